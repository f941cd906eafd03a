"""The whole report: makes the sounds, scores every row, writes tables, plots and audio.

One suite over two kinds of data: clips with known positions, and footage.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spatial_v2a.audio.stereo import sound_level_dbfs
from spatial_v2a.clip import Clip
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.clips import Chosen, clip_record, read_clips
from spatial_v2a.inference.evaluation.footage import Candidate, Found, Item, NotScored
from spatial_v2a.inference.evaluation.generate import System
from spatial_v2a.inference.evaluation.originals import (
    DataStereo,
    FootageRecord,
    Original,
    footage_record,
    inspect_original,
    read_original,
)
from spatial_v2a.inference.evaluation.plots import plot_clip, plot_item
from spatial_v2a.inference.evaluation.report import write_footage_report, write_report
from spatial_v2a.inference.evaluation.rows import ClipRecord, Row, null_rows, stored_row
from spatial_v2a.inference.evaluation.scoring import (
    ClipScorer,
    FootageScorer,
    RowScore,
    mirror_figures,
    score_table,
    skill,
)
from spatial_v2a.inference.evaluation.sounds import (
    GROUP_CLIPS,
    Plan,
    clip_stamp,
    generate_all,
    keep_ground_truth,
    keep_item,
)
from spatial_v2a.inference.evaluation.store import (
    SoundStore,
    clip_digest,
    read_rival_wav,
    stamp_of,
)
from spatial_v2a.models.classifier import SoundClassifier

Progress = Callable[[str], None]
RIVAL = "audio"
TITLES = {
    rows.GROUND_TRUTH: "ground truth",
    rows.CODEC: "ground truth through the codec",
    rows.MODEL: "**model**, detected boxes and depth",
    rows.WITHOUT: "model --without depth --without boxes",
    rows.GIVEN: "model, given boxes and depth",
}


@dataclass
class ClipSuite:
    """A report on clips with known positions: what to run, on what, and where it goes.

    Attributes:
        chosen: clips to score.
        out: report folder; `audio/` and `plots/` are below it.
        system: the loaded checkpoint, None to score only `rival`.
        rival: folder of KEY.wav files made by another system, or None.
        plan: variants of the model to run.
        classifier: names the class of a sound, None to leave that column empty.
        seed: of the bootstrap, the random pans and the shuffle.
        num_jobs: processes that make sounds, and then score rows, at once.
        progress: receives one line per step.
    """

    chosen: Chosen
    out: Path
    system: System | None
    rival: Path | None
    plan: Plan
    classifier: SoundClassifier | None
    seed: int
    num_jobs: int
    progress: Progress
    store: SoundStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = SoundStore(self.out / "audio")

    def run(self, description: dict[str, Any]) -> str:
        """Runs everything and returns report.md's text; `description` says what was run."""
        if self.rival is not None:
            check_rival(self.rival, self.chosen)
        if self.system is not None:
            generate_all(
                self.system,
                self.chosen,
                self.store,
                plan=self.plan,
                num_jobs=self.num_jobs,
                progress=self.progress,
            )
        clips = read_clips(self.chosen, self.chosen.scored)
        records = [self._record(clip, number) for number, clip in enumerate(clips)]
        table = self._table(records)
        scorer = ClipScorer(records, table[0], self.classifier, self.seed)
        scores = score_table(table, scorer, num_jobs=self.num_jobs, progress=self.progress)
        by_name = {score.row.name: score for score in scores}
        for record in records:
            self._plot(record, by_name)
        return write_report(
            self.out,
            scores=scores,
            skills={name: skill(score, by_name[rows.MONO]) for name, score in by_name.items()},
            checks=self._checks(records),
            run={**description, "clips": [record.key for record in records]},
        )

    def _record(self, clip: Clip, number: int) -> ClipRecord:
        """Keeps what lies in the clip; the panner takes the boxes that the model saw, if any."""
        key, stamp = clip.meta["key"], stamp_of(clip_digest(clip))
        truth_notes = keep_ground_truth(clip, self.store)
        if self.rival is not None:
            num_samples = len(clip.audio_LC())
            rival_LC = read_rival_wav(self.rival / f"{key}.wav", num_samples=num_samples)
            self.store.save(RIVAL, key, rival_LC, stamp=stamp, notes={})
        panner_T = None
        if self.system is not None:
            slot = number % GROUP_CLIPS
            of_model = clip_stamp(self.system, clip, slot=slot)
            notes = self.store.notes(rows.MODEL, key, stamp=of_model)
            panner_T = np.array(notes["largest_box_azimuth_deg"], dtype=np.float64)
        return clip_record(
            clip,
            number,
            panner_azimuth_T=panner_T,
            motion_peaks_s=truth_notes["motion_peaks_s"],
            load_stems=self._keep_stems(clip, key, stamp),
        )

    def _keep_stems(self, clip: Clip, key: str, stamp: str) -> Callable[[], np.ndarray] | None:
        """Keeps the stems of a clip with several sources; a loader of them."""
        stems = {f"stem{s['id']}": clip.stem_LC(s["id"]) for s in clip.meta["sources"]}
        if len(stems) < 2 or any(stem_LC is None for stem_LC in stems.values()):
            return None
        for name, stem_LC in stems.items():
            if self.store.notes(name, key, stamp=stamp) is None:
                self.store.save(name, key, stem_LC, stamp=stamp, notes={})
        return partial(_load_stems, self.store, key, tuple(stems))

    def _table(self, records: list[ClipRecord]) -> list[Row]:
        titles = {rows.GROUND_TRUTH: TITLES[rows.GROUND_TRUTH]}
        if self.system is not None:
            codec = [rows.CODEC] if self.plan.has_codec else []
            made = [*codec, *(name for name in self.plan.row_names if name != rows.MIRRORED)]
            titles |= {name: TITLES[name] for name in made}
        if self.rival is not None:
            titles[RIVAL] = f"{self.rival.name} (given sounds)"
        nulls = null_rows(
            self.store,
            records,
            system=rows.MODEL if self.system is not None else RIVAL,
            panner="detected" if self.system is not None else "given",
            seed=self.seed,
        )
        table = [stored_row(self.store, name, title) for name, title in titles.items()]
        return table + [row for row in nulls if row.name == rows.MONO or not self.plan.is_brief]

    def _checks(self, records: list[ClipRecord]) -> dict[str, Any]:
        checks: dict[str, Any] = {}
        if self.system is not None and self.plan.mirror:
            pair = (stored_row(self.store, name, "") for name in (rows.MODEL, rows.MIRRORED))
            checks.update(mirror_figures(*pair, records))
        if self.system is not None:
            # Level of the model's sound for each clip in which nothing sounds.
            levels = {
                key: round(sound_level_dbfs(self.store.load(rows.MODEL, key)), 2)
                for key in self.chosen.silent
            }
            checks["silent_scene_dbfs"] = levels or "no silent clip in the data"
        if self.classifier is None:
            checks["class_accuracy"] = "no classifier; train one or give --classifier"
        return checks

    def _plot(self, record: ClipRecord, by_name: dict[str, RowScore]) -> None:
        drawn = [n for n in (rows.GROUND_TRUTH, rows.MODEL, RIVAL) if n in by_name]
        sounds = {name.replace("_", " "): by_name[name].row.render(record) for name in drawn}
        parts = []
        for name in drawn[1:]:
            count, r = by_name[name].sums["pan_correlation_per_clip"][record.number]
            parts.append(f"{name} correlation {r:.2f}" if count else f"{name}: source still")
        path = self.out / "plots" / f"{record.key}.png"
        plot_clip(path, record, sounds, subtitle=", ".join(parts))


@dataclass
class FootageSuite:
    """A report on footage: what to score and where it goes.

    Attributes:
        found: what the folder holds.
        chosen: those of its candidates to score.
        out: report folder; `audio/` and `plots/` are below it.
        system: the loaded checkpoint.
        seed: of the bootstrap, the random pans and the shuffle.
        progress: receives one line per step.
    """

    found: Found
    chosen: list[Candidate]
    out: Path
    system: System
    seed: int
    progress: Progress
    store: SoundStore = field(init=False)
    _not_scored: list[NotScored] = field(init=False)

    def __post_init__(self) -> None:
        self.store = SoundStore(self.out / "audio")
        self._not_scored = list(self.found.not_scored)

    def run(self, description: dict[str, Any]) -> str:
        """Runs everything and returns report.md's text; `description` says what was run.

        Raises:
            UserError: nothing could be scored.
        """
        self.progress(f"{len(self.chosen)} items to score, {len(self._not_scored)} other files")
        items, originals = self._open()
        records = self._records(items, originals)
        if not records:
            keys = {candidate.key for candidate in self.chosen}
            reason = next(n.reason for n in self._not_scored if n.name in keys)
            raise UserError(f"none of {len(keys)} items can be scored; the first: {reason}")
        table = self._table(records)
        original = table[0] if table[0].name == rows.ORIGINAL else None
        scorer = FootageScorer(records, original, self.seed)
        scores = score_table(table, scorer, num_jobs=1, progress=self.progress)
        for record in records:
            plot_item(
                self.out / "plots" / f"{record.key}.png",
                record,
                model_LC=self.store.load(rows.MODEL, record.key),
                mirrored_LC=self.store.load(rows.MIRRORED, record.key),
                original_LC=_original(self.store, record),
            )
        return write_footage_report(
            self.out,
            run=description,
            stereo=DataStereo(originals),
            scores=scores,
            records=records,
            not_scored=self._not_scored,
            splits={name: len(set(names)) for name, names in self.found.splits.items()},
        )

    def _open(self) -> tuple[list[Item], dict[str, Original]]:
        """Opens the chosen items and measures their originals.

        Of Walking The Maps every sample is measured, scored or not: its sounds are short, and the
        question is what the data set is.
        """
        wanted = {candidate.key for candidate in self.chosen}
        items, originals = [], {}
        for candidate in self.found.candidates:
            if candidate.key not in wanted and not candidate.is_sample:
                continue
            try:
                item = candidate.open()
            except UserError as error:
                self._fail(candidate.key, error)
                continue
            originals[item.key] = original = inspect_original(item)
            if candidate.key in wanted:
                items.append(item)
                self.progress(f"{item.key}: {float(item.duration_s):.1f} s, {original.kind}")
        return items, originals

    def _records(self, items: list[Item], originals: dict[str, Original]) -> list[FootageRecord]:
        """Makes every missing sound; items that fail are listed and left out."""
        records: list[FootageRecord] = []
        for item in items:
            original, fov_deg = originals[item.key], self.system.fov_deg
            try:
                notes = keep_item(self.system, item, self.store, progress=self.progress)
                self._keep_original(item, original)
            except UserError as error:
                self._fail(item.key, error)
                continue
            number = len(records)
            records.append(
                footage_record(item, number, notes=notes, original=original, fov_deg=fov_deg)
            )
        return records

    def _keep_original(self, item: Item, original: Original) -> None:
        stamp = stamp_of(item.digest())
        if original.is_sound and self.store.notes(rows.ORIGINAL, item.key, stamp=stamp) is None:
            audio_LC = read_original(item)
            self.store.save(rows.ORIGINAL, item.key, audio_LC, stamp=stamp, notes={})

    def _fail(self, key: str, error: UserError) -> None:
        self._not_scored.append(NotScored(key, str(error)))
        self.progress(f"{key}: not scored: {error}")

    def _table(self, records: list[FootageRecord]) -> list[Row]:
        """Rows in order; those made from the model's sound have one of the mirrored picture too."""
        straight, mirrored = (
            [
                stored_row(self.store, name, "**model**"),
                *null_rows(
                    self.store,
                    records,
                    system=name,
                    panner="detected",
                    seed=self.seed,
                    noun="item",
                ),
            ]
            for name in (rows.MODEL, rows.MIRRORED)
        )
        table = [
            replace(row, render_mirrored=partial(_render_mirrored, twin))
            for row, twin in zip(straight, mirrored, strict=True)
        ]
        if any(record.original.is_sound for record in records):
            original = partial(_original, self.store)
            table.insert(0, Row(rows.ORIGINAL, "original track", original))
        return table


def _render_mirrored(twin: Row, record: FootageRecord) -> np.ndarray:
    return twin.render(record.mirrored)


def _original(store: SoundStore, record: FootageRecord) -> np.ndarray | None:
    return store.load(rows.ORIGINAL, record.key) if record.original.is_sound else None


def _load_stems(store: SoundStore, key: str, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([store.load(name, key) for name in names])


def check_rival(folder: Path, chosen: Chosen) -> None:
    """Refuses a folder that misses a clip, or holds names that match no clip.

    Raises:
        UserError: in both cases, naming the first file.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give --audio a folder of KEY.wav files")
    present = {path.stem for path in folder.glob("*.wav")}
    missing = sorted(set(chosen.scored) - present)
    if missing:
        raise UserError(
            f"{folder} misses {missing[0]}.wav and {len(missing) - 1} more; "
            "name the files after the clips"
        )
    unknown = sorted(present - chosen.known)
    if unknown:
        raise UserError(f"{folder}/{unknown[0]}.wav matches no clip; move it out of the folder")
