"""The cast: how each sounding class looks, and the actor definitions the engine reads."""

from dataclasses import dataclass

import numpy as np

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.training.stage.sounds import loop_for

ACTOR_PREFIX = "stage_"
WALKER_ACTOR = "stage_player"  # the player's own body in third-person clips
STEP_VOLUME = 0.5
SOURCE_RMS_DB = -17.0  # every loop plays at this RMS relative to full scale before distance
# The maps' own things that look like one of the cast (barrels like clocks, burnt trees like saws).
LOOKALIKES = ("ExplosiveBarrel", "TorchTree")


@dataclass(frozen=True)
class Look:
    """A Freedoom sprite, its walking frames, a size factor and an optional tint (r, g, b)."""

    sprite: str
    frames: str
    scale: float = 1.2
    tint: tuple[float, float, float] | None = None


LOOKS: dict[str, Look] = {
    "footsteps": Look("PLAY", "ABCD", 1.3),
    "engine": Look("SARG", "ABCD", 1.2),
    "water": Look("HEAD", "A", 1.0, (0.3, 0.7, 2.0)),
    "fire": Look("SKUL", "AB", 1.3),
    "siren": Look("SPOS", "ABCD", 1.3, (2.0, 0.2, 0.2)),
    "bell": Look("BOSS", "ABCD", 1.1, (1.9, 1.4, 0.2)),
    "dog": Look("TROO", "ABCD", 1.2),
    "crow": Look("SKEL", "ABCDEF", 1.1),
    "voice": Look("POSS", "ABCD", 1.3, (1.9, 1.9, 1.8)),
    "electric": Look("BSPI", "ABCDEF", 0.8, (0.2, 1.9, 1.9)),
    "drill": Look("CPOS", "ABCD", 1.3, (2.0, 1.0, 0.1)),
    "steam": Look("FATT", "ABCDEF", 0.9, (1.4, 1.4, 1.6)),
    "clock": Look("BAR1", "AB", 1.8),
    "helicopter": Look("PAIN", "ABC", 1.0),
    "machinery": Look("CYBR", "ABCD", 0.75),
    "alarm": Look("SSWV", "ABCD", 1.3, (1.8, 0.3, 1.8)),
    "frog": Look("BOS2", "ABCD", 1.0, (0.4, 1.9, 0.3)),
    "music_box": Look("VILE", "ABCDEF", 1.1, (2.0, 0.9, 1.4)),
    "saw": Look("TRE1", "A", 0.9),
    "horn": Look("SPID", "ABCDEF", 0.55),
}


def actor_name(class_name: str) -> str:
    """The engine's class name of a sounding class."""
    return ACTOR_PREFIX + class_name


def class_of_actor(name: str) -> str | None:
    """The sounding class of an engine object, or None."""
    if name == WALKER_ACTOR:
        return "footsteps"
    known = name.startswith(ACTOR_PREFIX) and name[len(ACTOR_PREFIX) :] in CLASS_NAMES
    return name[len(ACTOR_PREFIX) :] if known else None


def lump_name(class_name: str) -> str:
    """Sound lump of a class: at most 8 characters, longer ones are silently not found."""
    return f"SNDV{CLASS_NAMES.index(class_name):02d}"


def source_volume(class_name: str) -> float:
    """A_PlaySound volume that brings the full-scale loop to SOURCE_RMS_DB."""
    rms_db = 10 * np.log10(np.mean(loop_for(class_name) ** 2))
    return float(min(1.0, 10 ** ((SOURCE_RMS_DB - rms_db) / 20)))


def _actor(class_name: str) -> str:
    look = LOOKS[class_name]
    tint = ""
    if look.tint is not None:
        red, green, blue = look.tint
        tint = f'  Translation "0:255=%[0,0,0]:[{red},{green},{blue}]"\n'
    wander = "".join(f * 2 for f in look.frames)
    volume = f"{source_volume(class_name):.4f}"
    return f"""ACTOR {actor_name(class_name)}
{{
  Radius 18
  Height 56
  Mass 10000
  Speed 5
  Scale {look.scale}
{tint}  +SOLID
  +CANPASS
  States
  {{
  Spawn:
    TNT1 A 0
    {look.sprite} A 0 A_PlaySound("stage/{class_name}", CHAN_BODY, {volume}, true, ATTN_NORM)
  Walk:
    {look.sprite} {look.frames} 5 Bright
    Loop
  Wander:
    {look.sprite} {wander} 3 Bright A_Wander
    Loop
  }}
}}
"""


def _walker(has_steps: bool) -> str:
    """The player's body; without steps a walking camera makes no sound."""
    left, right = (
        (f' A_PlaySound("stage/step{i}", CHAN_BODY, {STEP_VOLUME})' if has_steps else "")
        for i in range(2)
    )
    return f"""ACTOR {WALKER_ACTOR} : DoomPlayer
{{
  Player.DisplayName "Walker"
  -PICKUP
  States
  {{
  See:
    PLAY A 4{left}
    PLAY B 4
    PLAY C 4{right}
    PLAY D 4
    Loop
  }}
}}
"""


def _nothing(replaced: str) -> str:
    """An actor that takes the place of one of the maps' own and is gone at once."""
    return f"""ACTOR {ACTOR_PREFIX}no_{replaced} replaces {replaced}
{{
  States
  {{
  Spawn:
    TNT1 A 1
    Stop
  }}
}}
"""


def decorate(*, has_steps: bool, has_lookalikes: bool = False) -> str:
    """The DECORATE lump (sources are drawn fullbright: dark maps must not hide them).

    Args:
        has_steps: whether the player's own steps sound.
        has_lookalikes: whether the maps' own things of a look of the cast stay, silent as they are.
    """
    actors = [*(_actor(name) for name in CLASS_NAMES), _walker(has_steps)]
    return "\n".join(actors if has_lookalikes else actors + [_nothing(n) for n in LOOKALIKES])


def sndinfo() -> str:
    """The SNDINFO lump: names, lumps, and no limit on simultaneous instances."""
    lines = [f"stage/{n} {lump_name(n)}\n$limit stage/{n} 0" for n in CLASS_NAMES]
    lines += [f"stage/step{i} SNDSTEP{i}\n$limit stage/step{i} 0" for i in range(2)]
    return "\n".join(lines) + "\n"
