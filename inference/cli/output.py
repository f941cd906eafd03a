"""What commands print: JSON that every parser reads, and how far the work is.

    with progress("clip.mp4", total_s=60.0) as show:
        show(12.3)

Progress is a bar on a terminal, else a line every few seconds, on stderr; nothing with --quiet.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import typer

from spatial_v2a.conditioning.console import is_quiet

LINE_EVERY_S = 5.0
# Of the work: before it, loading and compiling are most of the time, and an estimate is far off.
SHARE_TO_ESTIMATE = 0.05


def json_text(values: object) -> str:
    """JSON of numbers (six digits, null for what is not finite), texts, paths, lists, mappings."""
    return json.dumps(_plain(values), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def say_loading(what: str | Path | None) -> None:
    """Says on stderr that work has begun, where torch is still to be loaded, which takes seconds.

    Args:
        what: the checkpoint, or the sounds in its place; None is the bundled one.
    """
    if "torch" not in sys.modules and not is_quiet():
        typer.echo(f"loading {what or 'stage'} ...", err=True)


def process_age_s() -> float:
    """Seconds since this process began; where the system does not say, since this was imported."""
    try:
        # Field 22 of proc(5), counted after the name, which may hold anything.
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, IndexError, ValueError):
        return time.perf_counter() - _IMPORTED_AT_S


_IMPORTED_AT_S = time.perf_counter()


class Show(Protocol):
    """Shows how far the work is."""

    def __call__(self, done_s: float, *, doing: str = "") -> None:
        """`done_s` seconds of the file are done; `doing` names the part under way."""


@contextmanager
def progress(name: str, *, total_s: float | None = None) -> Iterator[Show]:
    """Within, the callback that it gives shows how far the work on a file is.

    Args:
        name: of the file.
        total_s: its length in seconds, if that is known.
    """
    if is_quiet():
        yield lambda done_s, *, doing="": None
    elif sys.stderr.isatty():
        with _bar(name, total_s) as show:
            yield show
    else:
        yield _Lines(name, total_s)


class _Lines:
    """Prints a line when the last one is some seconds old."""

    def __init__(self, name: str, total_s: float | None) -> None:
        self._name, self._total_s = name, total_s
        self._begun_s = self._last_s = time.monotonic()

    def __call__(self, done_s: float, *, doing: str = "") -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < LINE_EVERY_S:
            return
        self._last_s = now_s
        line = f"{self._name}: {doing + ', ' if doing else ''}{done_s:.1f} s"
        if self._total_s is not None:
            line += f" of {self._total_s:.1f} s"
            if 0 < SHARE_TO_ESTIMATE * self._total_s <= done_s:
                left_s = (now_s - self._begun_s) * (self._total_s - done_s) / done_s
                line += f", about {max(left_s, 0):.0f} s left"
        typer.echo(line, err=True)


@contextmanager
def _bar(name: str, total_s: float | None) -> Iterator[Callable[..., None]]:
    """A bar that goes when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # Names are no markup, whatever brackets they have.
    text = TextColumn("{task.description} {task.completed:.1f} s", markup=False)
    with Progress(
        text, BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(name, total=total_s)

        def show(done_s: float, *, doing: str = "") -> None:
            bar.update(task, completed=done_s, description=f"{name}: {doing}," if doing else name)

        yield show
