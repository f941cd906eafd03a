"""Cameras and screens as FFmpeg's devices, by platform."""

import os
import sys
from dataclasses import dataclass, field

import av

from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING

RATE = {"framerate": str(TIMING.tick_hz)}


@dataclass(frozen=True)
class Device:
    """What FFmpeg needs to open a device.

    Attributes:
        format: its device format.
        name: the device in that format's words.
        options: FFmpeg's options.
        remedy: what to try when it cannot be opened.
    """

    format: str
    name: str
    options: dict[str, str] = field(default_factory=dict)
    remedy: str = "name another one with --device-name"


def camera(name: str | None, *, platform: str = sys.platform) -> Device:
    """The named camera, or the first one.

    Raises:
        UserError: this platform or FFmpeg build has no cameras, or needs a name.
    """
    if platform.startswith("linux"):
        remedy = "name the right one with --device-name /dev/videoN, and join the group video"
        return _built_in(Device("v4l2", name or "/dev/video0", remedy=remedy), "camera")
    if platform == "darwin":
        # Without sound: the part after the colon would be a microphone.
        return _built_in(Device("avfoundation", f"{name or '0'}:none", RATE), "camera")
    if platform == "win32":
        if name is None:
            raise UserError(
                "--source camera needs --device-name NAME on Windows; the device manager lists"
                " cameras by name"
            )
        return _built_in(Device("dshow", f"video={name}"), "camera")
    raise UserError(f"--source camera: no camera is known on {platform}; pipe one in with -")


def screen(name: str | None, *, platform: str = sys.platform) -> Device:
    """The named screen or window, or the whole desktop.

    Raises:
        UserError: this platform, session or FFmpeg build cannot capture a screen.
    """
    if platform.startswith("linux"):
        display = name or os.environ.get("DISPLAY")
        if display is None:
            raise UserError(
                "--source screen needs an X display and DISPLAY is not set; name one with"
                " --device-name :0, or pipe a recorder into --source -"
            )
        return _built_in(Device("x11grab", display, RATE), "screen")
    if platform == "darwin":
        return _built_in(
            Device("avfoundation", f"{name or 'Capture screen 0'}:none", RATE), "screen"
        )
    if platform == "win32":
        window = "desktop" if name is None else f"title={name}"
        return _built_in(Device("gdigrab", window, RATE), "screen")
    raise UserError(f"--source screen: no screen is known on {platform}; pipe it in with -")


def _built_in(device: Device, kind: str) -> Device:
    try:
        av.format.ContainerFormat(device.format, "r")
    except ValueError as error:
        raise UserError(
            f"--source {kind}: this build of PyAV has no {device.format}; pipe the {kind} in with"
            " an ffmpeg program and --source -"
        ) from error
    return device
