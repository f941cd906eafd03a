"""Command line `spatial-v2a`: dub, tracks, live, evaluate, inspect, detectors, sounds, marks."""

import atexit
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

from spatial_v2a.conditioning.console import build_command, new_app, run_app
from spatial_v2a.inference.cli.bench import bench
from spatial_v2a.inference.cli.dub import demo, dub
from spatial_v2a.inference.cli.evaluate import evaluate
from spatial_v2a.inference.cli.inspect import inspect
from spatial_v2a.inference.cli.lists import detectors_app, sounds_app
from spatial_v2a.inference.cli.live import live
from spatial_v2a.inference.cli.marks import provenance, watermark_app
from spatial_v2a.inference.cli.options import keep_command_line
from spatial_v2a.inference.cli.tracks import tracks
from spatial_v2a.processes import keep_memory_flat

app = new_app(help="Sound for silent video: stereo that follows the source.")


for _command in (dub, demo, evaluate, inspect, bench, live, tracks, provenance):
    app.command()(_command)
for _name, _group in (
    ("detectors", detectors_app),
    ("sounds", sounds_app),
    ("watermark", watermark_app),
):
    app.add_typer(_group, name=_name)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    keep_memory_flat()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Remarks of a library on its own defaults are no business of someone who dubs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A polite kill and a terminal that is closed must clean up like Ctrl-C does; nohup stays deaf.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    end_at_once(run(sys.argv[1:]))


def end_at_once(code: int) -> NoReturn:
    """Ends the process as `sys.exit` does, but takes no network apart, which needs a second.

    Where a thread is still at work, or nobody reads what is printed, `sys.exit` has the word.
    """
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if all(thread.daemon for thread in others):
        # In this order, as the interpreter does it.
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            sys.exit(code)
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    keep_command_line(arguments)
    return run_app(
        lambda: build_command(app),
        arguments or ["--help"],
        prog_name="spatial-v2a",
        stopped="stopped; no unfinished file is left",
    )
