"""`spatial-v2a live`: sound for a picture while it plays, from a camera, screen, file, URL or pipe.

Run: spatial-v2a live --source camera|screen|FILE|FIFO|URL|- --sink speakers|FILE|-
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    Checkpoint,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    Fov,
    Guidance,
    HeardObjects,
    Nfe,
    Objects,
    Overwrite,
    Seed,
    SpatialGuidance,
    Without,
    command_line,
    engine_settings,
    streams,
)
from spatial_v2a.inference.cli.output import say_loading

if TYPE_CHECKING:
    from spatial_v2a.conditioning.video import VideoSource
    from spatial_v2a.inference.engine.engine import Weights
    from spatial_v2a.inference.live.figures import Figures
    from spatial_v2a.inference.live.sinks import FileMarks, FileSink, LiveSink, PcmFormat
    from spatial_v2a.inference.live.sources import SourceOptions
    from spatial_v2a.model import SpatialV2A

log = logging.getLogger(__name__)

STATUS_S = 0.25
# A share of concealed ticks beyond this is worth a word.
MAX_CONCEALED = 0.01
SPEAKERS, STDOUT = "speakers", "-"


def live(
    source: Annotated[
        str, typer.Option(help="camera, screen, a file or FIFO, a URL, or - for stdin.")
    ] = "camera",
    sink: Annotated[
        str, typer.Option(help="speakers, a .wav or .flac file, or - for raw samples on stdout.")
    ] = SPEAKERS,
    checkpoint: Checkpoint = "stage",
    seed: Seed = 0,
    nfe: Nfe = None,
    guidance: Guidance = None,
    spatial_guidance: SpatialGuidance = 1.0,
    without: Without = None,
    fov: Fov = None,
    objects: Objects = None,
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    device: DeviceName = Device.auto,
    weights: Annotated[
        Literal["float32", "int8", "bfloat16"] | None,
        typer.Option(
            help="Of the engine.",
            show_default="int8 on a CPU with OpenVINO, bfloat16 on a GPU, float32 with --fast",
        ),
    ] = None,
    delay_ms: Annotated[
        float, typer.Option(min=0, max=10_000, help="From a picture's tick to its sound.")
    ] = 120.0,
    hold_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Sound goes on so long after a lost source.")
    ] = 5.0,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop after so much sound.", show_default="never")
    ] = None,
    pcm: Annotated[
        Literal["s16le", "f32le"] | None,
        typer.Option(help="Kind of samples on stdout.", show_default="s16le"),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A file as fast as it goes: every tick, no clock.")
    ] = False,
    newest: Annotated[
        bool,
        typer.Option("--newest", help="A pipe or URL is a live sender: its newest picture counts."),
    ] = False,
    device_name: Annotated[
        str | None, typer.Option(help="Which camera or screen.", show_default="the first")
    ] = None,
    input_format: Annotated[
        str | None, typer.Option(help="FFmpeg's name of the source's format.", metavar="NAME")
    ] = None,
    input_option: Annotated[
        list[str] | None,
        typer.Option(help="FFmpeg's option for the source; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    watermark: Annotated[
        bool,
        typer.Option("--watermark/--no-watermark", help="Mark the samples of a file as synthetic."),
    ] = True,
    provenance: Annotated[
        bool,
        typer.Option("--provenance/--no-provenance", help="State in a file where it comes from."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON; on stderr with --sink -.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Sound for a picture while it plays; Ctrl-C ends it and leaves a whole file."""
    from spatial_v2a.concepts import AUTO, STAGE
    from spatial_v2a.conditioning.video import open_video
    from spatial_v2a.inference.live.sources import SourceOptions, is_file, open_source

    _check_sink(sink, pcm, overwrite=overwrite, provenance=provenance)
    engine_settings(seed=seed, nfe=nfe, guidance=guidance, spatial_guidance=spatial_guidance)
    options = SourceOptions(
        device_name=device_name,
        input_format=input_format,
        input_options=_pairs(input_option or []),
        hold_s=hold_s,
        newest=newest,
    )
    max_ticks = _num_ticks(seconds)
    with ExitStack() as stack:
        video = _file_to_race(source, options) if fast else None
        opened = None if fast else stack.enter_context(closing(open_source(source, options)))
        # What loads PyTorch comes after what may be refused, or waited for.
        say_loading(checkpoint)
        from spatial_v2a.inference.engine.stream import Stream as FrameStream
        from spatial_v2a.inference.live.session import run_fast, run_live, warm_up
        from spatial_v2a.inference.live.sinks import FileMarks

        marks = FileMarks(watermark, provenance, command_line())
        stack.enter_context(_one_interrupt())
        to = stack.enter_context(
            _opened_sink(sink, pcm, marks, keeps_time=not fast, overwrite=overwrite)
        )
        model = _model(checkpoint, str(device), detector, detector_weights)
        file = video
        if detector == AUTO and video is None and is_file(source):
            file = open_video(Path(source))
        stream = stack.enter_context(
            FrameStream(
                model,
                seed=seed,
                nfe=nfe,
                guidance=guidance,
                spatial_guidance=spatial_guidance,
                without=streams(without),
                fov_deg=fov,
                weights=weights or _weights(model, is_fast=fast),
                objects=(objects or HeardObjects.apart).value,
                detector=detector or STAGE,
                is_live=not fast,
                source=file,
            )
        )
        marks.pipeline, marks.source = stream, file
        warm_up(stream)
        on_tick = stack.enter_context(_status())
        if video is not None:
            figures = run_fast(stream, video, to, max_ticks=max_ticks, on_tick=on_tick)
        else:
            delay_s = delay_ms / 1e3
            figures = run_live(
                stream, opened, to, delay_s=delay_s, max_ticks=max_ticks, on_tick=on_tick
            )
        _check_heard(figures, sink=sink)
    _tell(figures, source=source, sink=sink, as_json=as_json)
    if faults := _faults(figures, to, marks, sink=sink):
        print(f"error: {faults}", file=sys.stderr)
        raise typer.Exit(1)


def _weights(model: "SpatialV2A", *, is_fast: bool) -> "Weights":
    """Without a clock to keep, the samples are those of dub."""
    from spatial_v2a.inference.engine.engine import fastest_weights

    return "float32" if is_fast else fastest_weights(model.latent_mean_D.device)


def _check_sink(sink: str, pcm: str | None, *, overwrite: bool, provenance: bool) -> None:
    """Refuses a sink that cannot take sound, or a key that cannot sign, before any work."""
    from spatial_v2a.files import check_writable
    from spatial_v2a.inference.live.sinks import check_sound_suffix
    from spatial_v2a.inference.marking.manifest import signing_credential

    if pcm is not None and sink != STDOUT:
        raise UserError(f"--pcm {pcm} is for --sink -, not for {sink}; leave it out")
    if sink == STDOUT and sys.stdout is None:
        raise UserError("--sink - writes raw samples to stdout, which is closed; pipe them on")
    if sink == STDOUT and sys.stdout.isatty():
        raise UserError("--sink - writes raw samples, and stdout is a terminal; pipe them on")
    if sink not in (SPEAKERS, STDOUT):
        check_sound_suffix(Path(sink))
        check_writable(Path(sink), overwrite=overwrite, option="--sink")
        if provenance:
            signing_credential()


def _pairs(options: list[str]) -> dict[str, str]:
    for option in options:
        if not option.partition("=")[0] or "=" not in option:
            raise UserError(f"--input-option {option} is not KEY=VALUE; e.g. video_size=640x480")
    return dict(option.split("=", 1) for option in options)


def _num_ticks(seconds: float | None) -> int | None:
    from fractions import Fraction

    from spatial_v2a.timing import TIMING

    # As written, so that 0.1 is three ticks and not four.
    return None if seconds is None else TIMING.num_ticks(Fraction(str(seconds)))


def _file_to_race(source: str, options: "SourceOptions") -> "VideoSource":
    """The checked file behind --fast."""
    from spatial_v2a.conditioning.video import open_video
    from spatial_v2a.inference.live.sources import check_options, is_file

    if not is_file(source):
        raise UserError(f"--fast fits a file only, and --source is {source}; leave --fast out")
    check_options(source, options)
    return open_video(source)


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Within, Ctrl-C or a polite kill interrupts once; the next ones find the file being closed."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _interrupts(n)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupts(number: int) -> bool:
    return callable(signal.getsignal(number))


@contextmanager
def _opened_sink(
    sink: str, pcm: "PcmFormat | None", marks: "FileMarks", *, keeps_time: bool, overwrite: bool
) -> Iterator["LiveSink"]:
    """The sink; a file appears under its name when it is whole, or not at all."""
    from spatial_v2a.inference.live.sinks import PcmSink
    from spatial_v2a.inference.live.speakers import Speakers

    if sink == SPEAKERS:
        with closing(Speakers()) as speakers:
            yield speakers
    elif sink == STDOUT:
        with closing(PcmSink(sys.stdout.fileno(), pcm or "s16le", keeps_time=keeps_time)) as pipe:
            yield pipe
    else:
        with _recording(Path(sink), marks, overwrite=overwrite) as file:
            yield file


@contextmanager
def _recording(path: Path, marks: "FileMarks", *, overwrite: bool) -> Iterator["FileSink"]:
    """A sound file that is completed whatever ends the session, once something was heard."""
    from spatial_v2a.files import Outputs, cannot_write
    from spatial_v2a.inference.live.sinks import FileSink
    from spatial_v2a.inference.marking.provenance import sidecar_of

    failure = None
    with Outputs(overwrite=overwrite) as outputs:
        try:
            draft = outputs.new(path)
            outputs.follow_links([sidecar_of(path)])
            sink = FileSink(draft, is_marked=marks.watermark)
        except OSError as error:
            raise cannot_write(path, error, option="--sink") from error
        with closing(sink) as file:
            try:
                yield file
            except NothingHeard:
                raise
            except BaseException as error:  # raised again below, when the file is whole
                failure = error
        if file.num_samples == 0:
            raise failure or cannot_write(path, file.failure or OSError(), option="--sink")
        marks.sign(draft, out=path, outputs=outputs)
    if failure is not None:
        log.warning("%s holds what was heard until then", path)
        raise failure


class NothingHeard(UserError):
    """A session without a tick of the model's sound."""


def _check_heard(figures: "Figures", *, sink: str) -> None:
    """Refuses a session whose sound is all concealment: of it no file stays.

    A pipe whose reader left before the first sound is not refused: `_faults` says that it left.
    """
    from spatial_v2a.inference.live.session import STOPPED

    counts = figures.counts
    if figures.is_heard or (sink == STDOUT and figures.is_cut_short):
        return
    if counts.ticks == 0 and figures.ended == STOPPED:
        raise KeyboardInterrupt
    if counts.ticks == 0:
        raise NothingHeard(f"the session ended before its first sound ({figures.ended})")
    cut = f"{figures.ended}; " if figures.is_cut_short else ""
    raise NothingHeard(
        f"{cut}nothing was heard: each of the {counts.ticks} ticks came too late and was"
        " concealed, so no file is written; raise --delay-ms, lower --nfe or leave a stream out"
    )


def _faults(figures: "Figures", to: "LiveSink", marks: "FileMarks", *, sink: str) -> str:
    """What went wrong with sound that is there, or nothing."""
    from spatial_v2a.inference.live.sinks import FileSink, no_room

    is_file = isinstance(to, FileSink)
    # A disk may be found full only when the file is closed.
    failure = to.failure if is_file else None
    reason = figures.ended if figures.is_cut_short else failure and no_room(failure)
    kept = f"{sink} holds the sound until then" if is_file else "the sound ends there"
    faults = [f"{reason}; {kept}"] if reason else []
    return "; ".join(faults + [marks.failure] * bool(marks.failure))


def _model(checkpoint: str, device: str, detector: str | None, detector_weights: Path | None):
    from typing import get_args

    from spatial_v2a.config import DetectorName
    from spatial_v2a.inference.engine.pipeline import resolve_device
    from spatial_v2a.model import SpatialV2A

    device = resolve_device(device)
    own = detector if detector in get_args(DetectorName) else None
    model = SpatialV2A.from_pretrained(checkpoint, detector=own).to(device)
    model.detector_weights = detector_weights
    return model


@contextmanager
def _status() -> Iterator[Callable[["Figures"], None]]:
    """Gives what to call each tick; on a terminal it keeps one line on stderr up to date."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda figures: None
        return
    shown_s = 0.0
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as line:

        def show(figures: "Figures") -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s > STATUS_S:
                shown_s = time.monotonic()
                line.update(Text(figures.status(), no_wrap=True), refresh=True)

        yield show


def _tell(figures: "Figures", *, source: str, sink: str, as_json: bool) -> None:
    """Summary, and JSON as the last line; stdout may be taken by the sound."""
    out = sys.stderr if sink == STDOUT else sys.stdout
    if sink not in (SPEAKERS, STDOUT) and not as_json:
        print(f"wrote {sink}", file=out)
    if as_json:
        print(json.dumps({"source": source, "sink": sink, **figures.as_json()}), file=out)
        return
    print(figures.summary(), file=out)
    counts = figures.counts
    if counts.ticks_concealed > MAX_CONCEALED * counts.ticks:
        print(
            f"{counts.ticks_concealed} of {counts.ticks} ticks were concealed: the model is too"
            " slow here; raise --delay-ms, lower --nfe or leave a stream out",
            file=sys.stderr,
        )
