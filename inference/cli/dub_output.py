"""What `spatial-v2a dub` says at the end, in words or as JSON."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from spatial_v2a.conditioning.console import is_quiet
from spatial_v2a.inference.cli.options import process_age_s
from spatial_v2a.inference.cli.plain_json import json_text
from spatial_v2a.inference.cli.progress import progress

if TYPE_CHECKING:
    from spatial_v2a.inference.dub.dubber import Dubber, DubResult
    from spatial_v2a.inference.dub.jobs import DubJob
    from spatial_v2a.inference.dub.many import Outcome

log = logging.getLogger(__name__)


def run_job(dubber: "Dubber", job: "DubJob") -> "DubResult":
    """Dubs one video, with progress on stderr."""
    tick_s = float(job.source.timing.tick_s)
    with progress(job.source.path.name, total_s=float(job.source.duration)) as show:
        return dubber.dub(job, on_tick=lambda done: show(done * tick_s))


def tell(video: Path, result: "DubResult", *, as_json: bool) -> None:
    """Says what was written and heard, how fast, and how stereo it is."""
    if result.warning:
        log.warning("warning: %s", result.warning)
    if as_json:
        print(json_text({"files": [_row(video, result)]}))
    elif not is_quiet():
        print(_in_words(result))


def tell_as_json(outcomes: list["Outcome"]) -> None:
    """What became of many videos, as one JSON object."""
    print(json_text({"files": [outcome_row(outcome) for outcome in outcomes]}))


def outcome_row(outcome: "Outcome") -> dict[str, object]:
    """One video of many, as JSON values."""
    if outcome.result is not None:
        return _row(outcome.video, outcome.result)
    row: dict[str, object] = {"video": outcome.video, "state": outcome.state}
    return row | ({"message": outcome.message} if outcome.message else {})


def _row(video: Path, result: "DubResult") -> dict[str, object]:
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    return {
        "video": video,
        "state": "dubbed",
        "duration_s": result.duration_s,
        "wall_s": result.wall_s,
        "real_time_factor": result.real_time_factor,
        "tick_ms": {"p50": p50_ms, "p95": p95_ms},
        "objects": {
            "share": result.objects.share,
            "heard": [
                {
                    "class": one.class_name,
                    "seconds": one.seconds,
                    "loudest_dbfs": one.loudest_dbfs,
                }
                for one in result.objects.classes
            ],
        },
        "warning": result.warning or None,
        "takes": [
            {
                "out": take.out,
                "report": take.report,
                "sidecars": take.sidecars,
                "stereo": asdict(take.stereo) | {"side_over_mid_db": take.stereo.side_over_mid_db},
                **asdict(take.loudness),
                **asdict(take.finish),
            }
            for take in result.takes
        ],
        "extras": result.extras,
        "settings": result.settings,
    }


def _in_words(result: "DubResult") -> str:
    import numpy as np

    p50_ms, p95_ms = np.percentile(result.tick_ms, [50, 95])
    total_s = process_age_s()
    loading_s = max(0.0, total_s - result.wall_s)
    written = [path for take in result.takes for path in take.files]
    lines = [f"wrote {path}" for path in (*written, *result.extras)]
    lines += [
        f"{result.duration_s:.2f} s of video in {total_s:.1f} s, {loading_s:.1f} s of them loading;"
        f" without that {result.real_time_factor:.2f} x real time;"
        f" per tick p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms",
        result.objects.line,
    ]
    for take in result.takes:
        stereo, name = take.stereo, f" of {take.out.name}" if len(result.takes) > 1 else ""
        lines += [
            f"stereo{name}: side {stereo.side_dbfs:.1f} dBFS, mid {stereo.mid_dbfs:.1f} dBFS"
            f" (side/mid {stereo.side_over_mid_db:+.1f} dB);"
            f" left {stereo.left:.0%}, centre {stereo.centre:.0%}, right {stereo.right:.0%}"
            f" of audible ticks; silent {stereo.silent:.0%}",
            take.levels,
        ]
    return "\n".join(lines + [result.ranking] * bool(result.ranking))
