"""The file of one take: its spooled sound mixed, finished, put beside the picture, marked, drawn.

Legend: L samples, C audio channels.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatial_v2a.audio.stereo import StereoMeter, StereoSummary, summarize
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import FrameFeatures
from spatial_v2a.files import Outputs
from spatial_v2a.inference.dub.jobs import DubJob, Take
from spatial_v2a.inference.dub.mixing import (
    Finish,
    Loudness,
    LoudnessMeter,
    mixed_pieces,
    plan_finish,
)
from spatial_v2a.inference.dub.mux import KeptPackets, open_sink
from spatial_v2a.inference.dub.original_sound import original_energies
from spatial_v2a.inference.dub.spool import Spool
from spatial_v2a.inference.dub.take_meter import TakeMeter
from spatial_v2a.inference.dub.take_scores import SceneNotes, score_take
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import attach, sidecar_of, unsigned_comment

log = logging.getLogger(__name__)

# Of a take's number and what was done to its mix.
StateOrigin = Callable[[int, Finish], Provenance | None]


@dataclass(frozen=True)
class FinishedTake:
    """A take that was written.

    Attributes:
        out, report: the files.
        stereo: the honest stereo figures of the generated sound.
        loudness: of the finished sound, the original in it where it is kept.
        finish: what was done to reach it.
        sidecars: files that belong to `out`.
    """

    out: Path
    report: Path | None
    stereo: StereoSummary
    loudness: Loudness
    finish: Finish
    sidecars: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All that was written."""
        return (self.out, *self.sidecars, *([self.report] if self.report else []))

    @property
    def levels(self) -> str:
        """Loudness, true peak and gain in words."""
        gain = f", gain {self.finish.gain_db:+.1f} dB" if self.finish.gain_db else ""
        held = ", peaks held" if self.finish.is_limited else ""
        return (
            f"level: {self.loudness.integrated_lufs:.1f} LUFS,"
            f" true peak {self.loudness.true_peak_dbtp:.1f} dBTP{gain}{held}"
        )


class TakeNotes:
    """What is noted tick by tick for the figures and pictures of a job's takes.

    Attributes:
        meters: stereo energies of every take.
        scene, judges: for the ranking, None and empty where there is one take only.
        pan: for the reports, or None.
    """

    def __init__(self, job: DubJob, config: PerceptionConfig) -> None:
        self.meters = [StereoMeter() for _ in job.takes]
        is_ranked = job.ranking is not None
        self.scene = SceneNotes() if is_ranked else None
        self.judges = [TakeMeter() for _ in job.takes] if is_ranked else []
        self.pan = None
        if any(take.report for take in job.takes):
            # Drawing needs matplotlib, which takes a second to load.
            from spatial_v2a.inference.dub.pan_report import PanReport

            self.pan = PanReport(config, is_annotated=job.annotations is not None, truth=job.truth)

    def add(self, image_HWC: np.ndarray, features: FrameFeatures, heard: list[np.ndarray]) -> None:
        """Notes a tick: the picture, what was seen in it, and the sound [L, 2] of every take."""
        for meter, audio_LC in zip(self.meters, heard, strict=True):
            meter.add(audio_LC)
        if self.pan is not None:
            self.pan.add(features)
        if self.scene is not None:
            self.scene.add(image_HWC, features)
            for judge, audio_LC in zip(self.judges, heard, strict=True):
                judge.add(audio_LC)


def write_take(
    job: DubJob,
    take: Take,
    sound: Spool,
    notes: TakeNotes,
    number: int,
    *,
    outputs: Outputs,
    state_origin: StateOrigin,
) -> FinishedTake:
    """Writes a take's video or sound file and its picture.

    Args:
        job: the take's job.
        take: what to write.
        sound: the generated sound.
        notes: figures of all takes of the job.
        number: of this take.
        outputs: takes the files.
        state_origin: makes the statement that goes into the file.
    """
    extent = job.extent(take)

    def make_mix() -> Iterator[np.ndarray]:
        return mixed_pieces(
            sound.pieces(), job.options.mix, source=job.source, track=job.track, extent=extent
        )

    finish = plan_finish(
        make_mix,
        start_sample=extent.start,
        loudness=job.options.mix.loudness,
        is_marked=job.options.watermark,
    )
    energies_TE = notes.meters[number].energies_TE

    def draw(path: Path) -> None:
        assert notes.pan is not None
        notes.pan.draw(
            path,
            energies_TE,
            title=job.source.path.name,
            truth_energies_TE=original_energies(job.source, sound=job.truth_sound),
        )

    pieces = finish.pieces(make_mix(), start_sample=extent.start)
    origin = state_origin(number, finish)
    loudness, sidecars = write_file(job, take, pieces, outputs=outputs, origin=origin, draw=draw)
    return FinishedTake(
        out=take.out,
        report=take.report,
        stereo=summarize(energies_TE),
        loudness=loudness,
        finish=finish,
        sidecars=sidecars,
    )


def write_file(
    job: DubJob,
    take: Take,
    pieces: Iterator[np.ndarray],
    *,
    outputs: Outputs,
    origin: Provenance | None,
    draw: Callable[[Path], None] | None = None,
    kept: KeptPackets | None = None,
) -> tuple[Loudness, tuple[Path, ...]]:
    """Writes finished sound with what belongs to it.

    Args:
        job, take: what to write.
        pieces: the finished sound over the take's extent.
        outputs: takes the files.
        origin: the statement of origin; None leaves it out.
        draw: writes the report, when the take has one.
        kept: sound packets of an earlier file that stay.

    Returns:
        Loudness of the sound, and the files written beside the take's.
    """
    meter = LoudnessMeter()
    draft = outputs.new(take.out)
    comment = None if origin is None else unsigned_comment(origin, has_picture=True)
    with open_sink(draft, job.source, job.sound, kept=kept, comment=comment) as sink:
        for audio_LC in pieces:
            sink.write(audio_LC)
            meter.add(audio_LC)
    sidecars: list[Path] = []
    if origin is not None:
        sidecars = attach(draft, origin, ingredient=job.source.path, out=take.out, outputs=outputs)
    old = sidecar_of(take.out)
    # os.path.isfile is false for a name that is too long, where Path.is_file raises.
    if not sidecars and os.path.isfile(old) and take.out.name.encode() in old.read_bytes():
        log.warning("%s belongs to an earlier %s and no longer fits; remove it", old, take.out.name)
    if take.report is not None and draw is not None:
        draw(outputs.new(take.report))
    return meter.finish(), tuple(sidecars)


def write_takes_ranking(
    job: DubJob, notes: TakeNotes, outputs: Outputs
) -> tuple[str, tuple[Path, ...]]:
    """Ranks several takes; returns the table, and the JSON, Markdown and picture written."""
    if job.ranking is None or notes.scene is None:
        return "", ()
    # It draws, and matplotlib takes a second to load.
    from spatial_v2a.inference.dub.take_report import (
        draw_takes,
        ranking_json,
        ranking_markdown,
        ranking_table,
    )

    names, title = [take.out.name for take in job.takes], job.source.path.name
    scores = [score_take(notes.scene, judge) for judge in notes.judges]
    words, picture = job.ranking.with_suffix(".md"), job.ranking.with_suffix(".png")
    outputs.new(job.ranking).write_text(ranking_json(names, scores, title=title), "utf-8")
    outputs.new(words).write_text(ranking_markdown(names, scores, title=title), "utf-8")
    draw_takes(outputs.new(picture), notes.scene, notes.judges, scores, names=names, title=title)
    return ranking_table(names, scores), (job.ranking, words, picture)
