"""`spatial-v2a evaluate --long-run VIDEO`: minutes or an hour in one run, and its picture."""

import json
from functools import partial
from pathlib import Path

import torch

from spatial_v2a.conditioning.video import open_video
from spatial_v2a.files import write_text
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.object_mix import Objects
from spatial_v2a.inference.evaluation.generate import RunAs, load_system
from spatial_v2a.inference.evaluation.longrun import draw_long_run, long_run


def run_long(
    video: Path,
    out: Path,
    *,
    checkpoint: str,
    minutes: int,
    fov_deg: float,
    objects: Objects,
    run_as: RunAs,
    seed: int,
    nfe: int | None,
    device: str,
    detector: str | None = None,
    detector_weights: Path | None = None,
) -> None:
    """Dubs a video for minutes on end, as a command does, and says what changed."""
    source = open_video(video)
    system = load_system(
        checkpoint,
        settings=EngineSettings(seed=seed, nfe=nfe),
        device=device,
        objects=objects,
        fov_deg=fov_deg,
        detector=detector,
        detector_weights=detector_weights,
        run_as=run_as,
    )
    out.mkdir(parents=True, exist_ok=True)
    result = long_run(
        system,
        partial(source.ticks, max_width=system.max_width),
        minutes=minutes,
        progress=lambda line: print(line, flush=True),
    )
    data = {"video": str(video), "video_s": float(source.duration), "seed": seed, "device": device}
    data["detector"] = system.model.config.perception.boxes_from
    data["engine_weights"] = system.settings.weights
    data |= {"as": run_as, "objects": objects}
    data |= {"threads": 1 if device == "cpu" else torch.get_num_threads(), **result.as_json()}
    write_text(out / "long_run.json", json.dumps(data, indent=1) + "\n")
    title = f"{checkpoint} on {device}, {minutes} minutes of {video.name} in one run"
    draw_long_run(out / "long_run.png", result, title=title)
    print(
        f"memory {result.memory_growth_mb:+.1f} MB after minute 1, "
        f"level {result.level_db:+.2f} dB, worst band {result.worst_band_db:.2f} dB, "
        f"side/mid {result.side_over_mid_db:+.2f} dB, "
        f"median tick {100 * result.tick_change:+.1f} % (perception begun anew "
        f"{100 * result.fresh_change:+.1f} %, the tick beside it "
        f"{100 * result.tick_change_beside_fresh:+.1f} %, a line through all minutes "
        f"{100 * result.trend_beside_fresh:+.1f} %), "
        f"{result.realtime_factor:.2f} x real time"
    )
    print(f"report: {out / 'long_run.json'}, picture: {out / 'long_run.png'}")
