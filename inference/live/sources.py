"""What --source can name, opened and checked: camera, screen, FILE, FIFO, URL, or - for stdin."""

import os
import re
import stat
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

from spatial_v2a.conditioning.media import open_container
from spatial_v2a.conditioning.video import MAX_ROUNDING_UNIT_S, VideoSource, open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.live.devices import Device, camera, screen
from spatial_v2a.inference.live.reader import AvSource, PipeInput, reason_of
from spatial_v2a.timing import TIMING

STDIN = "-"
DEVICES = ("camera", "screen")
# Names of a descriptor that is open already.
DESCRIPTOR = re.compile(r"/dev/stdin|(?:/dev|/proc/self)/fd/(\d+)")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
# Sent as it happens: what is not taken in time is lost, so times are those of arrival.
LIVE_SCHEMES = ("rtsp", "rtsps", "rtp", "udp", "srt", "rtmp", "rtmps", "tcp")
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
RETRY_S = 0.5
# A file's reader is ahead; where it is not, a tick gives it a moment.
FILE_PATIENCE_S = float(TIMING.tick_s) / 4
RUNNING = {"fflags": "+genpts+discardcorrupt"}
PROMPT = {"fflags": "+genpts+discardcorrupt+nobuffer", "analyzeduration": "1000000"}
RECONNECT = {"reconnect": "1", "reconnect_streamed": "1", "reconnect_delay_max": "2"}


@dataclass(frozen=True)
class SourceOptions:
    """How to open a source.

    Attributes:
        device_name: which camera or screen; None takes the first.
        input_format: FFmpeg's name of the format, for what cannot be recognized.
        input_options: FFmpeg's options for it, e.g. {"video_size": "640x480"}.
        hold_s: how long sound goes on after a camera, a screen or a URL is lost.
        newest: the newest picture there counts, whatever its time: for a live sender.
    """

    device_name: str | None = None
    input_format: str | None = None
    input_options: dict[str, str] = field(default_factory=dict)
    hold_s: float = 5.0
    newest: bool = False


def open_source(name: str, options: SourceOptions) -> AvSource:
    """Opens and checks a source.

    Raises:
        UserError: it cannot be opened, has no picture, or an option does not fit it.
    """
    check_options(name, options)
    if name in DEVICES:
        find = camera if name == "camera" else screen
        return _device_source(name, find(options.device_name), options)
    if is_pipe(name):
        descriptor = _open_pipe(name)
        try:
            return pipe_source(descriptor, options, name=name)
        finally:
            os.close(descriptor)
    if URL.match(name):
        return _url_source(name, options)
    return file_source(open_video(Path(name)))


def is_file(name: str) -> bool:
    """Whether --source names a file: none of the words, no URL, no pipe."""
    return name not in DEVICES and not URL.match(name) and not is_pipe(name)


def is_pipe(name: str) -> bool:
    """Whether --source names a pipe: stdin, or a FIFO, which is what <(command) gives, too."""
    return name == STDIN or Path(name).is_fifo()


def check_options(name: str, options: SourceOptions) -> None:
    """Refuses options that do not fit a source.

    Raises:
        UserError: one of them is given.
    """
    if options.device_name is not None and name not in DEVICES:
        raise UserError(
            f"--device-name {options.device_name} fits --source camera and screen, not {name};"
            " leave it out"
        )
    if is_file(name) and Path(name).exists() and not Path(name).is_dir():
        _check_regular(name)
    if options.newest and (is_file(name) or name in DEVICES):
        raise UserError(
            f"--newest is for a sender behind a pipe or a URL, not for {name}; leave it out"
        )
    if is_file(name) and (options.input_format or options.input_options):
        raise UserError(
            f"--input-format and --input-option do not fit the file {name}; leave them out"
        )


def file_source(video: VideoSource) -> AvSource:
    """The pictures of a checked file, each at its own time."""
    unit_s = video.extent.time_base_s
    name = str(video.path)
    return AvSource(
        name,
        lambda: open_container(video.path),
        is_paced=True,
        start_s=video.extent.start_s,
        num_ticks=video.num_ticks,
        tolerance_s=unit_s / 2 if unit_s <= MAX_ROUNDING_UNIT_S else Fraction(0),
        patience_s=FILE_PATIENCE_S,
    )


def _check_regular(name: str) -> None:
    """Refuses what lies among the files and can neither be read twice nor as it comes."""
    mode = Path(name).stat().st_mode
    if stat.S_ISREG(mode):
        return
    if re.match(r"/dev/video\d", name):
        raise UserError(f"{name} is a camera; use --source camera --device-name {name}")
    kind = "socket" if stat.S_ISSOCK(mode) else "device"
    raise UserError(f"{name} is a {kind}, no video; name a file, or pipe a video into --source -")


def open_any(
    url: str | PipeInput, shown: str, options: SourceOptions, defaults: dict
) -> InputContainer:
    """Opens what FFmpeg calls `url`; `shown` is the user's name for it in errors."""
    has_timeout = isinstance(url, str) and bool(URL.match(url))
    try:
        return av.open(
            url,
            format=options.input_format,
            options=defaults | options.input_options,
            timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S) if has_timeout else None,
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        remedy = "give --input-format and --input-option where it is raw video"
        if has_timeout:
            remedy = "check the address and that somebody sends"
        elif isinstance(url, PipeInput):
            remedy = f"send MKV, MPEG-TS or fragmented MP4 into it, or {remedy}"
        raise UserError(f"cannot open --source {shown} ({reason_of(error)}); {remedy}") from error


def _open_pipe(name: str) -> int:
    """A new descriptor of a pipe's reading end; a FIFO need not have a writer yet."""
    if name == STDIN and sys.stdin is not None and sys.stdin.isatty():
        raise UserError("--source - reads stdin, which is a terminal; pipe a video into it")
    try:
        if match := DESCRIPTOR.fullmatch("/dev/stdin" if name == STDIN else name):
            return os.dup(int(match[1] or 0))
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(
            f"cannot open --source {name} ({error.strerror}); check its permissions, or pipe a"
            " video into --source -"
        ) from error


def pipe_source(descriptor: int, options: SourceOptions, *, name: str = STDIN) -> AvSource:
    """Pictures of an open pipe: each at its own time, the pipe waits; or the newest there."""
    defaults = PROMPT if options.newest else RUNNING
    pipe = PipeInput(os.dup(descriptor))
    return AvSource(
        name,
        lambda: open_any(pipe, name, options, defaults),
        is_paced=not options.newest,
        pipe=pipe,
    )


def _url_source(url: str, options: SourceOptions) -> AvSource:
    scheme = url.partition(":")[0].lower()
    is_live = options.newest or scheme in LIVE_SCHEMES
    defaults = PROMPT if is_live else RUNNING
    if scheme == "rtsp":
        defaults = defaults | {"rtsp_transport": "tcp"}
    if scheme in ("http", "https"):
        defaults = defaults | RECONNECT
    return AvSource(
        url,
        lambda: open_any(url, url, options, defaults),
        is_paced=not is_live,
        hold_s=options.hold_s,
        retry_s=RETRY_S if is_live else None,
    )


def _device_source(name: str, device: Device, options: SourceOptions) -> AvSource:
    def open_device() -> InputContainer:
        try:
            return av.open(
                device.name,
                format=options.input_format or device.format,
                options=device.options | options.input_options,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"cannot open the {name} {device.name} with {device.format} ({reason_of(error)});"
                f" {device.remedy}"
            ) from error

    return AvSource(name, open_device, is_paced=False, hold_s=options.hold_s, retry_s=RETRY_S)
