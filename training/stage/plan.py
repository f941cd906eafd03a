"""The recording plan: which clips there are, in which shard; a pure function of the settings."""

from dataclasses import dataclass

import numpy as np

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.errors import UserError
from spatial_v2a.strict import StrictConfig
from spatial_v2a.timing import TIMING

CLIPS_PER_SHARD = 20
LATEST_REVISION = 4
MIX = {
    "walkers": 0.55,
    "passers-by": 0.15,
    "third-person": 0.08,
    "combat": 0.07,
    "off-screen": 0.07,
    "silence": 0.08,
}
SINGLE_SOURCE_SHARE = 0.6  # of the walkers clips
POP_IN_SHARE_OF_SILENCE = 1 / 3
FREEDOOM1_MAPS = tuple(f"E{e}M{m}" for e in range(1, 5) for m in range(1, 10))
FREEDOOM2_MAPS = tuple(f"MAP{i:02d}" for i in range(1, 33))
MAP_SETS: dict[str, tuple[str, ...]] = {
    "train": FREEDOOM2_MAPS[:24],
    "val": FREEDOOM2_MAPS[24:28],
    "freedoom1": FREEDOOM1_MAPS,
    "test": FREEDOOM2_MAPS[28:] + FREEDOOM1_MAPS,
}


class RecordingSettings(StrictConfig):
    """Everything that decides the bytes of a recording.

    Attributes:
        scenarios: names of MIX; their weights in MIX are kept in proportion.
        num_sources: fixed number of sounding actors, or None for the scenario's own range.
        stems_share: share of the clips that also get each source alone.
        revision: 1 to 3 repeat the recordings of earlier recorders; see docs/stage.md.
        key_prefix: begins the key of every clip: recordings read together need keys of their own,
            and the seed is no part of a key.
    """

    num_clips: int
    ticks_per_clip: int
    seed: int
    scenarios: tuple[str, ...]
    maps: tuple[str, ...]
    num_sources: int | None
    stems_share: float
    revision: int = LATEST_REVISION
    class_names: tuple[str, ...] = CLASS_NAMES
    key_prefix: str = ""


@dataclass(frozen=True)
class ClipPlan:
    """One clip to record; `seed` is its own generator's seed."""

    key: str
    index: int
    scenario: str
    map_name: str
    seed: int
    num_ticks: int
    classes: tuple[str, ...]
    has_stems: bool
    revision: int = LATEST_REVISION

    @property
    def has_steps(self) -> bool:
        """Whether the player's own steps sound; in revision 1 a walking camera was heard, too."""
        return self.scenario == "third-person" or self.revision == 1

    @property
    def has_lookalikes(self) -> bool:
        """Whether the maps' own silent things of a look of the cast stand there, unlabelled."""
        return self.revision < 3

    @property
    def wad_name(self) -> str:
        """The Freedoom file that holds the map."""
        return "freedoom1.wad" if self.map_name.startswith("E") else "freedoom2.wad"


def resolve_maps(text: str) -> tuple[str, ...]:
    """Map names from a comma-separated list of maps and set names (train, val, test, freedoom1)."""
    known = FREEDOOM2_MAPS + FREEDOOM1_MAPS
    names: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        if part in MAP_SETS:
            names += MAP_SETS[part]
        elif part.upper() in known:
            names.append(part.upper())
        else:
            raise UserError(
                f"unknown map {part!r}; use MAP01..MAP32, E1M1..E4M9 or {', '.join(MAP_SETS)}"
            )
    return tuple(dict.fromkeys(names))


def resolve_scenarios(names: list[str]) -> tuple[str, ...]:
    """Scenario names, `all` expanded."""
    for name in names:
        if name not in MIX and name != "all":
            raise UserError(f"unknown scenario {name!r}; use {', '.join(MIX)} or all")
    return tuple(MIX) if "all" in names else tuple(dict.fromkeys(names))


def _spread(names: tuple[str, ...], rng: np.random.Generator, count: int) -> list[str]:
    """`count` names in shuffled rounds: every name occurs before any occurs again."""
    rounds = -(-count // len(names))
    return [names[i] for _ in range(rounds) for i in rng.permutation(len(names))][:count]


def _scenario_order(settings: RecordingSettings, rng: np.random.Generator) -> list[str]:
    """Scenarios at even spacing by weight: any stretch of clips holds about the full mix."""
    weights = np.array([MIX[s] for s in settings.scenarios])
    weights = weights / weights.sum()
    credit, order = rng.uniform(0, 1, weights.size) * 0.5, []
    for _ in range(settings.num_clips):
        credit += weights
        best = int(np.argmax(credit))
        credit[best] -= 1
        order.append(settings.scenarios[best])
    return order


def _num_sources(scenario: str, settings: RecordingSettings, rng: np.random.Generator) -> int:
    if scenario == "combat":
        return 0
    if settings.num_sources is not None:
        return settings.num_sources
    if scenario == "walkers":
        return 1 if rng.random() < SINGLE_SOURCE_SHARE else int(rng.integers(2, 4))
    if scenario == "silence":
        return int(rng.random() < POP_IN_SHARE_OF_SILENCE)
    if scenario == "third-person":
        return int(rng.random() < 0.4)
    if scenario == "off-screen":
        return int(rng.integers(1, 3))
    return 1


def make_plan(settings: RecordingSettings) -> list[ClipPlan]:
    """Every clip of a recording, in order."""
    rng = np.random.default_rng([settings.seed, 0x57A6E])
    scenarios = _scenario_order(settings, rng)
    maps = _spread(settings.maps, rng, settings.num_clips)
    firsts = _spread(CLASS_NAMES, rng, settings.num_clips)
    plans = []
    for index, (scenario, map_name, first) in enumerate(zip(scenarios, maps, firsts, strict=True)):
        count = _num_sources(scenario, settings, rng)
        others = [CLASS_NAMES[i] for i in rng.permutation(len(CLASS_NAMES))]
        # Distinct classes within a clip: a stem is made by silencing the other classes.
        classes = [first, *(c for c in others if c != first)]
        if scenario == "third-person":
            classes = [c for c in classes if c != "footsteps"]
        plans.append(
            ClipPlan(
                key=f"{settings.key_prefix}{scenario}-{map_name}-{index:08d}",
                index=index,
                scenario=scenario,
                map_name=map_name,
                seed=int(rng.integers(2**31 - 1)),
                num_ticks=settings.ticks_per_clip,
                classes=tuple(classes[:count]),
                has_stems=bool(rng.random() < settings.stems_share),
                revision=settings.revision,
            )
        )
    return plans


def num_clips_for(hours: float, clip_seconds: float) -> int:
    """Clips needed for a number of hours."""
    return max(1, round(hours * 3600 / clip_seconds))


def ticks_for(clip_seconds: float) -> int:
    """Clip length in ticks; refuses lengths that are not whole ticks or too short."""
    ticks = clip_seconds * TIMING.tick_hz
    if ticks < TIMING.tick_hz or abs(ticks - round(ticks)) > 1e-6:
        raise UserError(f"clip length {clip_seconds} s: use at least 1 s, in steps of 1/30 s")
    return round(ticks)
