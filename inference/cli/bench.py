"""`spatial-v2a bench`: how long a tick takes, part by part, against deadline and ceiling.

Run: spatial-v2a bench [--checkpoint NAME | --preset NAME] [--streams B] [--sweep] [--json]
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    CHECKPOINT,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    HeardObjects,
    Nfe,
    Objects,
    Overwrite,
    engine_settings,
)
from spatial_v2a.inference.cli.output import say_loading

if TYPE_CHECKING:
    from spatial_v2a.inference.bench.figures import Report
    from spatial_v2a.inference.engine.pipeline import Pipeline

SWEEP_FOLDER = Path("spatial-v2a-bench")
JSON_NAME, PICTURE_NAME = "bench.json", "bench.png"


def bench(
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Instead: a preset's sizes with random weights.", metavar="NAME"),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=4096, help="Videos in one batch.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=86400, help="Video measured, after 1 s to warm up.")
    ] = 10.0,
    nfe: Nfe = None,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Threads on the CPU; dub takes one.")
    ] = 1,
    weights: Annotated[
        Literal["float32", "int8", "bfloat16"] | None,
        typer.Option(
            help="Of the engine; dub takes float32, live what is fastest.",
            show_default="as live: int8 on a CPU with OpenVINO, bfloat16 on a GPU",
        ),
    ] = None,
    attention: Annotated[
        Literal["sdpa", "xformers"],
        typer.Option(help="Kernel of the backbone's attention; xformers needs a GPU."),
    ] = "sdpa",
    device: DeviceName = Device.auto,
    objects: Objects = None,
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    video: Annotated[
        Path | None, typer.Option(help="Video to see; default: a moving 480p picture, made anew.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="1, 2, 4 ... streams until deadlines are missed.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Folder for {JSON_NAME} and a sweep's {PICTURE_NAME}.",
            show_default=f"none; {SWEEP_FOLDER} with --sweep",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Times every part of a tick on this machine; the last line is JSON."""
    if sweep and streams != 1:
        raise UserError("--sweep chooses the streams itself; leave --streams out")
    if sweep and out is None:
        out = SWEEP_FOLDER
    _prepare(out, names=(JSON_NAME, PICTURE_NAME) if sweep else (JSON_NAME,), overwrite=overwrite)

    say_loading(checkpoint or preset)
    from spatial_v2a.conditioning.video import open_video
    from spatial_v2a.inference.bench.feed import made_video
    from spatial_v2a.inference.bench.measure import WARMUP_TICKS, measure
    from spatial_v2a.inference.bench.measure import sweep as sweep_streams
    from spatial_v2a.inference.bench.subject import load_subject
    from spatial_v2a.inference.bench.text import as_sweep_row, as_text
    from spatial_v2a.inference.engine.engine import fastest_weights
    from spatial_v2a.inference.engine.pipeline import resolve_device
    from spatial_v2a.models.attention import set_attention_backend
    from spatial_v2a.timing import TIMING

    needed_s = seconds + (WARMUP_TICKS + 2) / TIMING.tick_hz
    # Opened before the weights are loaded, made after: a mistake is told at once.
    footage = nullcontext(open_video(video)) if video else made_video(seconds=needed_s)
    weights = weights or fastest_weights(resolve_device(str(device)))
    # Of several videos in one batch each is one stream.
    is_apart = not sweep and streams == 1 and objects != HeardObjects.together
    heard = "apart" if is_apart else "together"
    pipeline = load_subject(
        checkpoint=checkpoint,
        preset=preset,
        device=str(device),
        settings=engine_settings(nfe=nfe, weights=weights),
        objects=heard,
        detector=detector,
        detector_weights=detector_weights,
    )
    set_attention_backend(pipeline.model, attention)
    with footage as source:
        run = {"system": checkpoint or preset or "stage", "objects": heard}
        run |= _describe(pipeline, is_trained=preset is None, threads=threads)
        run["attention"] = attention
        run["video"] = (
            "a moving picture made for it, 854x480, 30 Hz" if video is None else str(video)
        )

        def measure_streams(num_streams: int) -> "Report":
            report = measure(
                pipeline,
                source,
                num_streams=num_streams,
                num_threads=threads,
                seconds=seconds,
            )
            if not as_json:
                print(as_sweep_row(report) if sweep else as_text(report, run), flush=True)
            return report

        reports = sweep_streams(measure_streams) if sweep else [measure_streams(streams)]
    _finish(reports, run, out=out, is_sweep=sweep, is_quiet=as_json, overwrite=overwrite)


def _describe(pipeline: "Pipeline", *, is_trained: bool, threads: int) -> dict:
    """What runs and where."""
    import torch

    from spatial_v2a.conditioning.compiled import has_openvino
    from spatial_v2a.inference.bench.machine import describe_machine

    model, settings = pipeline.model, pipeline.settings
    device = torch.device(pipeline.device)
    return {
        "detector": model.config.perception.boxes_from,
        "weights": "trained" if is_trained else "random",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "nfe": settings.nfe or model.config.sampler.nfe,
        "guidance": model.config.sampler.guidance,
        "dtype": str(model.latent_mean_D.dtype).removeprefix("torch."),
        "engine_weights": settings.weights,
        "openvino": device.type == "cpu" and has_openvino(),
        "threads": threads if device.type == "cpu" else torch.get_num_threads(),
        **describe_machine(device),
    }


def _prepare(out: Path | None, *, names: tuple[str, ...], overwrite: bool) -> None:
    """Refuses a folder that cannot take the files, before any work."""
    from spatial_v2a.files import check_writable

    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"--out {out} is a file; name a folder") from error
    except OSError as error:
        reason = error.strerror
        raise UserError(f"cannot make the folder {out} ({reason}); choose another --out") from error
    for name in names:
        check_writable(out / name, overwrite=overwrite)


def _finish(
    reports: list["Report"],
    run: dict,
    *,
    out: Path | None,
    is_sweep: bool,
    is_quiet: bool,
    overwrite: bool,
) -> None:
    """Writes the files and prints the last line."""
    from spatial_v2a.files import Outputs
    from spatial_v2a.inference.bench.figures import PUBLISHED, PUBLISHED_NOTE

    figures = [report.as_json() for report in reports]
    data = {"run": run, "published": {"note": PUBLISHED_NOTE, "rows": PUBLISHED}}
    data |= {"sweep": figures} if is_sweep else figures[0]
    line = json.dumps(data)
    written = []
    if out is not None:
        with Outputs(overwrite=overwrite) as outputs:
            outputs.new(out / JSON_NAME).write_text(line + "\n", "utf-8")
            written.append(out / JSON_NAME)
            if is_sweep:
                from spatial_v2a.inference.bench.picture import draw_sweep

                title = f"{run['system']}, NFE {run['nfe']}, {run['name']}"
                draw_sweep(
                    outputs.new(out / PICTURE_NAME),
                    reports,
                    title=f"{title}, threads: {run['threads']}",
                )
                written.append(out / PICTURE_NAME)
    if not is_quiet:
        print("".join(f"wrote {path}\n" for path in written))
    print(line)
