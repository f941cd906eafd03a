"""Makes every missing sound of a report: of clips in groups and several processes, of footage."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spatial_v2a.clip import Clip
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.clips import Chosen, motion_peaks_s, read_clips
from spatial_v2a.inference.evaluation.footage import Item
from spatial_v2a.inference.evaluation.generate import (
    System,
    codec_round_trip,
    detect,
    dub_clips,
    dub_item,
    give_geometry,
    largest_box_azimuth_deg,
    load_system,
)
from spatial_v2a.inference.evaluation.store import SoundStore, clip_digest, stamp_of
from spatial_v2a.processes import end_with_parent

# Clips that share an engine; a clip's slot is its place in its group, and moves its seed.
GROUP_CLIPS = 8


@dataclass(frozen=True)
class Plan:
    """Which variants of the model to run.

    Attributes:
        given, mirror: also with the engine's geometry; also on the flipped frames.
        is_brief: the model alone beside ground truth and mono, to compare many models.
        only_model: nothing but the model itself (for clips in which nothing sounds).
    """

    given: bool
    mirror: bool
    is_brief: bool = False
    only_model: bool = False

    @property
    def row_names(self) -> list[str]:
        """Rows the model makes, in order."""
        if self.only_model:
            return [rows.MODEL]
        optional = [
            (rows.WITHOUT, not self.is_brief),
            (rows.GIVEN, self.given),
            (rows.MIRRORED, self.mirror),
        ]
        return [rows.MODEL, *(name for name, wanted in optional if wanted)]

    @property
    def has_codec(self) -> bool:
        """Whether the ground truth also goes through the codec."""
        return not (self.is_brief or self.only_model)


def clip_stamp(system: System, clip: Clip, *, slot: int) -> str:
    """Stamp of every sound the system makes for a clip in a slot."""
    return stamp_of(system.digest, str(system.settings), clip_digest(clip), slot, system.objects)


def keep_ground_truth(clip: Clip, store: SoundStore) -> dict[str, Any]:
    """Stores a clip's own sound once; its notes hold when the motion of the picture peaks."""
    key, stamp = clip.meta["key"], stamp_of(clip_digest(clip))
    notes = store.notes(rows.GROUND_TRUTH, key, stamp=stamp)
    if notes is None:
        notes = {"motion_peaks_s": motion_peaks_s(clip)}
        store.save(rows.GROUND_TRUTH, key, clip.audio_LC(), stamp=stamp, notes=notes)
    return notes


def generate_group(system: System, group: list[Clip], store: SoundStore, *, plan: Plan) -> None:
    """Makes the missing sounds of one group.

    The notes beside the model's sound hold the bearings of the largest detected box.
    """
    stamps = [clip_stamp(system, clip, slot=slot) for slot, clip in enumerate(group)]
    dub = partial(dub_clips, system)
    keys = [clip.meta["key"] for clip in group]

    def missing(row: str) -> list[int]:
        return [
            slot
            for slot, key in enumerate(keys)
            if store.notes(row, key, stamp=stamps[slot]) is None
        ]

    def save(row: str, sounds: list, notes: list[dict]) -> None:
        for slot in missing(row):
            store.save(row, keys[slot], sounds[slot], stamp=stamps[slot], notes=notes[slot])

    if not plan.only_model:
        for clip in group:
            keep_ground_truth(clip, store)
    no_notes: list[dict] = [{} for _ in group]
    if plan.has_codec and missing(rows.CODEC):
        save(rows.CODEC, [codec_round_trip(system, clip.audio_LC()) for clip in group], no_notes)
    wanted = [row for row in plan.row_names if missing(row)]
    if set(wanted) - {rows.MIRRORED}:
        detected = [detect(system, clip) for clip in group]
        if rows.MODEL in wanted:
            bearings = [largest_box_azimuth_deg([f for f, _ in ticks]) for ticks in detected]
            notes = [{"largest_box_azimuth_deg": bearing} for bearing in bearings]
            save(rows.MODEL, dub(detected), notes)
        if rows.WITHOUT in wanted:
            save(rows.WITHOUT, dub(detected, "depth", "boxes"), no_notes)
        if rows.GIVEN in wanted:
            given = [
                list(give_geometry(ticks, clip, system))
                for ticks, clip in zip(detected, group, strict=True)
            ]
            save(rows.GIVEN, dub(given), no_notes)
    if rows.MIRRORED in wanted:
        flipped = [detect(system, clip, mirrored=True) for clip in group]
        save(rows.MIRRORED, dub(flipped), no_notes)


def generate_all(
    system: System,
    chosen: Chosen,
    store: SoundStore,
    *,
    plan: Plan,
    num_jobs: int,
    progress: Callable[[str], None],
) -> None:
    """Makes every missing sound of the chosen clips, the silent ones included.

    Args:
        system: the loaded checkpoint; other processes load it again by its name.
        chosen: the clips.
        store: where sounds go.
        plan: variants of the model.
        num_jobs: processes at once; the sounds do not depend on it.
        progress: receives one line per group.
    """
    silent_plan = replace(plan, only_model=True)
    tasks = [
        (keys[start : start + GROUP_CLIPS], task_plan)
        for keys, task_plan in ((chosen.scored, plan), (chosen.silent, silent_plan))
        for start in range(0, len(keys), GROUP_CLIPS)
    ]
    started_s = time.monotonic()

    def report(done: int) -> None:
        spent_s = time.monotonic() - started_s
        progress(f"group {done}/{len(tasks)} of at most {GROUP_CLIPS} clips, {spent_s:.0f} s")

    if num_jobs == 1:
        for done, (keys, task_plan) in enumerate(tasks, start=1):
            generate_group(system, list(read_clips(chosen, keys)), store, plan=task_plan)
            report(done)
        return
    with ProcessPoolExecutor(
        num_jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(
            store.root,
            str(system.model.folder),
            {
                "settings": system.settings,
                "device": system.device,
                "objects": system.objects,
                "detector": system.model.config.perception.boxes_from,
                "detector_weights": system.model.detector_weights,
                "run_as": system.run_as,
            },
        ),
    ) as pool:
        waiting = [pool.submit(_work, chosen, keys, task_plan) for keys, task_plan in tasks]
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            report(done)


def keep_item(
    system: System,
    item: Item,
    store: SoundStore,
    *,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Makes the missing sounds of footage and gives the notes of each by row name.

    Raises:
        UserError: the picture is damaged; nothing of it is kept.
    """
    parts = (str(system.settings), item.digest(), system.fov_deg, system.objects)
    stamp = stamp_of(system.digest, *parts)
    kept = {}
    for row in (rows.MODEL, rows.MIRRORED):
        kept[row] = store.notes(row, item.key, stamp=stamp)
        if kept[row] is None:
            begin = time.monotonic()
            audio_LC, kept[row] = dub_item(
                system, item, mirrored=row == rows.MIRRORED, progress=progress
            )
            store.save(row, item.key, audio_LC, stamp=stamp, notes=kept[row])
            spent_s = time.monotonic() - begin
            progress(f"{item.key}: {row}, {float(item.duration_s):.1f} s made in {spent_s:.1f} s")
    return kept


# One per process of the pool: the loaded checkpoint and the store.
_worker: dict = {}


def _start_worker(root: Path, folder: str, options: dict[str, Any]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker["system"] = load_system(folder, **options)
    _worker["store"] = SoundStore(root)


def _work(chosen: Chosen, keys: list[str], plan: Plan) -> None:
    group = list(read_clips(chosen, keys))
    generate_group(_worker["system"], group, _worker["store"], plan=plan)
