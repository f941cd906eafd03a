"""The whole report: makes the sounds, scores every row, writes tables, plots and audio."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spatial_v2a.clip import Clip
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.clips import Chosen, given_box_azimuth_deg, read_clips
from spatial_v2a.inference.evaluation.generate import System
from spatial_v2a.inference.evaluation.literature_scoring import (
    LiteratureScorer,
    Picture,
    box_edges_px,
    largest_box_side,
)
from spatial_v2a.inference.evaluation.metrics import level_dbfs
from spatial_v2a.inference.evaluation.plots import plot_clip
from spatial_v2a.inference.evaluation.report import write_report
from spatial_v2a.inference.evaluation.rows import Record, Row
from spatial_v2a.inference.evaluation.scoring import RowScore, mirror_figures, skill
from spatial_v2a.inference.evaluation.several import source_azimuths
from spatial_v2a.inference.evaluation.sounds import (
    GROUP_CLIPS,
    Plan,
    clip_stamp,
    generate_all,
    keep_ground_truth,
)
from spatial_v2a.inference.evaluation.store import (
    SoundStore,
    clip_digest,
    read_rival_wav,
    stamp_of,
)
from spatial_v2a.inference.evaluation.table import TableScorer, score_table
from spatial_v2a.models.classifier import SoundClassifier
from spatial_v2a.truth import clip_truth, window_truth

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
class Suite:
    """One report: what to run, on what, and where it goes.

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
    _pictures: list[Picture] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.store = SoundStore(self.out / "audio")

    def run(self, description: dict[str, Any]) -> str:
        """Runs everything and returns report.md's text; `description` says what was run."""
        if self.rival is not None:
            check_rival(self.rival, self.chosen)
        records = self._make_sounds()
        table, mirrored = self._table(records)
        literature = LiteratureScorer(
            records, self._pictures, ground_truth=table[0], seed=self.seed
        )
        scorer = TableScorer(records, table[0], self.classifier, literature, self.seed)
        scores = score_table(table, scorer, num_jobs=self.num_jobs, progress=self.progress)
        by_name = {score.row.name: score for score in scores}
        checks = self._checks(records, by_name, mirrored)
        self._plot(records, by_name)
        skills = {name: skill(score, by_name[rows.MONO]) for name, score in by_name.items()}
        run = {**description, "clips": [record.truth.key for record in records]}
        return write_report(self.out, scores=scores, skills=skills, checks=checks, run=run)

    def _make_sounds(self) -> list[Record]:
        if self.system is not None:
            generate_all(
                self.system,
                self.chosen,
                self.store,
                plan=self.plan,
                num_jobs=self.num_jobs,
                progress=self.progress,
            )
        records = []
        for number, clip in enumerate(read_clips(self.chosen, self.chosen.scored)):
            key, audio_LC = clip.meta["key"], clip.audio_LC()
            stamp = stamp_of(clip_digest(clip))
            notes = keep_ground_truth(clip, self.store)
            peaks_s = np.array(notes["motion_peaks_s"])
            self._pictures.append(
                Picture(
                    box_edges_px(clip.meta),
                    peaks_s,
                    clip.meta["fov_deg"],
                    largest_box_side(clip.meta),
                )
            )
            if self.rival is not None:
                rival_LC = read_rival_wav(self.rival / f"{key}.wav", num_samples=len(audio_LC))
                self.store.save(RIVAL, key, rival_LC, stamp=stamp, notes={})
            records.append(self._record(clip, number))
        return records

    def _record(self, clip: Clip, number: int) -> Record:
        truth = clip_truth(clip.meta)
        panner_T = given_box_azimuth_deg(clip.meta)
        if self.system is not None:
            slot = number % GROUP_CLIPS
            stamp = clip_stamp(self.system, clip, slot=slot, objects=self.plan.objects)
            notes = self.store.notes(rows.MODEL, truth.key, stamp=stamp)
            panner_T = np.array(notes["largest_box_azimuth_deg"], dtype=np.float64)
        load_stems, azimuths_NT = self._stems(clip)
        return Record(
            truth,
            window_truth(truth, clip.audio_LC()),
            panner_T,
            number,
            load_stems=load_stems,
            azimuths_NT=azimuths_NT,
        )

    def _stems(self, clip: Clip) -> tuple[Callable[[], np.ndarray] | None, np.ndarray | None]:
        """Keeps the stems of a clip with several sources; a loader of them, and their bearings."""
        stems = {source["id"]: clip.stem_LC(source["id"]) for source in clip.meta["sources"]}
        if len(stems) < 2 or any(stem_LC is None for stem_LC in stems.values()):
            return None, None
        key, stamp = clip.meta["key"], stamp_of(clip_digest(clip))
        names = {identity: f"stem{identity}" for identity in stems}
        for identity, name in names.items():
            if self.store.notes(name, key, stamp=stamp) is None:
                self.store.save(name, key, stems[identity], stamp=stamp, notes={})
        azimuths = source_azimuths(clip.meta)

        load = partial(_load_stems, self.store, key, tuple(names.values()))
        return load, np.stack([azimuths[identity] for identity in names])

    def _table(self, records: list[Record]) -> tuple[list[Row], Row | None]:
        """Rows in order, and the mirrored sounds' row, which is a check and no line."""
        names = [rows.GROUND_TRUTH]
        if self.system is not None:
            names += [rows.CODEC] if self.plan.has_codec else []
            names += [name for name in self.plan.row_names if name != rows.MIRRORED]
        titles = {name: TITLES[name] for name in names}
        if self.rival is not None:
            titles[RIVAL] = f"{self.rival.name} (given sounds)"
        table = rows.stored_rows(self.store, titles)
        nulls = rows.null_rows(
            self.store,
            records,
            system=rows.MODEL if self.system is not None else RIVAL,
            panner="detected" if self.system is not None else "given",
            seed=self.seed,
        )
        table += [row for row in nulls if row.name == rows.MONO or not self.plan.is_brief]
        if self.system is None or not self.plan.mirror:
            return table, None
        return table, rows.stored_rows(self.store, {rows.MIRRORED: "mirrored"})[0]

    def _checks(
        self, records: list[Record], by_name: dict[str, RowScore], mirrored: Row | None
    ) -> dict[str, Any]:
        checks: dict[str, Any] = {}
        if mirrored is not None:
            checks.update(mirror_figures(by_name[rows.MODEL].row, mirrored, records))
        if self.system is not None:
            checks["silent_scene_dbfs"] = self._silent_levels() or "no silent clip in the data"
        if self.classifier is None:
            checks["class_accuracy"] = "no classifier; train one or give --classifier"
        return checks

    def _silent_levels(self) -> dict[str, float]:
        """Level of the model's sound for each clip in which nothing sounds."""
        return {
            key: round(float(level_dbfs(self.store.load(rows.MODEL, key))), 2)
            for key in self.chosen.silent
        }

    def _plot(self, records: list[Record], by_name: dict[str, RowScore]) -> None:
        folder = self.out / "plots"
        folder.mkdir(exist_ok=True)
        drawn = [n for n in (rows.GROUND_TRUTH, rows.MODEL, RIVAL) if n in by_name]
        for record in records:
            sounds = {name.replace("_", " "): by_name[name].row.render(record) for name in drawn}
            parts = []
            for name in drawn[1:]:
                count, r = by_name[name].sums["pan_correlation_per_clip"][record.number]
                parts.append(f"{name} correlation {r:.2f}" if count else f"{name}: source still")
            plot_clip(folder / f"{record.truth.key}.png", record, sounds, subtitle=", ".join(parts))


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
