"""Records other games than the one that the model was trained on, to hear what it makes of them.

    python -m tests.capture_game openarena DIR       # DIR/openarena.avi, with its own sound
    python -m tests.capture_game supertuxkart DIR    # DIR/supertuxkart.mkv, picture only

Needs Debian's openarena, or supertuxkart and faketime, and xvfb and libgl1-mesa-dri. Bots play; the
game's home is a scratch folder. Both draw with the processor, slower than they play: OpenArena is
played once and drawn afterwards, picture by picture; SuperTuxKart goes on by at most 1/20 s from
one picture to the next, and with a fast clock by just that.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

FPS = 30
CONSOLE = Console(stderr=True)
# Time to load and to fill the arena, seconds.
OPENARENA_START_S = 60
OPENARENA_OPTIONS = {
    "r_mode": -1, "r_customwidth": 480, "r_customheight": 360, "r_fullscreen": 0,
    "s_useOpenAL": 0, "s_sdlSpeed": 44100, "s_musicvolume": 0, "s_volume": 0.8,
    "com_introplayed": 1, "cg_drawFPS": 0,
}  # fmt: skip
OPENARENA_GAME = {
    "sv_pure": 0, "bot_enable": 1, "bot_minplayers": 5, "g_gametype": 0, "com_maxfps": 20,
    "timelimit": 0, "fraglimit": 0,
}  # fmt: skip
KART_WIDTH, KART_HEIGHT = 320, 240
# Three of its physical steps of 1/60 s, the most that a picture may take.
KART_FPS = 20
# The clock that it sees against ours; until the karts are off, in its own seconds.
KART_CLOCK, KART_START_S = 20, 12
# How often the screen is looked at, a second.
LOOKS_HZ = 60
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def _options(values: dict[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in ("+set", name, str(value))]


def _environment(home: str) -> dict[str, str]:
    quiet = {"SDL_AUDIODRIVER": "dummy", "LIBGL_ALWAYS_SOFTWARE": "1", "HOME": home}
    return {**os.environ, **quiet}


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/games")
    if found is None:
        raise typer.BadParameter(f"no program {name}; apt install openarena supertuxkart xvfb")
    return found


def _console_game(home: str, words: list[str], orders: list[tuple[float, str]]) -> None:
    """Runs OpenArena and types into its console: (seconds to wait, what to type)."""
    command = [_program("xvfb-run"), "-a", "-s", "-screen 0 640x480x24", _program("openarena")]
    game = subprocess.Popen(
        [*command, *_options(OPENARENA_OPTIONS), *words],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        text=True, env=_environment(home), start_new_session=True,
    )  # fmt: skip
    try:
        for wait_s, order in orders:
            with CONSOLE.status(f"openarena: {order} in {wait_s:.0f} s"):
                time.sleep(wait_s)
            print(order, file=game.stdin, flush=True)
        game.wait(60)
    finally:
        _end(game)


def _end(game: subprocess.Popen) -> None:
    """Ends a game and the X server that it runs in."""
    if game.poll() is None:
        os.killpg(game.pid, signal.SIGTERM)
    try:
        game.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(game.pid, signal.SIGKILL)


def openarena(folder: Path, home: str, seconds: float) -> Path:
    """Five bots in an arena, seen by one who follows them; with the game's own stereo sound."""
    spectate = [(OPENARENA_START_S, "team s"), (3, "follownext"), (2, "record d1")]
    _console_game(
        home,
        [*_options(OPENARENA_GAME), "+map", "oa_dm1"],
        [*spectate, (seconds + 5, "stoprecord"), (2, "quit")],
    )
    # Drawing takes up to ten times as long as the demo; it quits at the demo's end or here.
    _console_game(
        home,
        [*_options({"cl_aviFrameRate": FPS, "cl_aviMotionJpeg": 1, "nextdemo": "quit"}),
         "+demo", "d1"],
        [(OPENARENA_START_S / 2, "video cap"), (10 * seconds, "stopvideo"), (2, "quit")],
    )  # fmt: skip
    (recorded,) = Path(home).rglob("cap*.avi")
    return Path(shutil.move(recorded, folder / "openarena.avi"))


def supertuxkart(folder: Path, home: str, seconds: float) -> Path:
    """Six karts that drive themselves, every picture that the game draws."""
    out = folder / "supertuxkart.mkv"
    words = ["--track=lighthouse", "--numkarts=6", "--no-start-screen", "--profile-time=600"]
    words += [f"--screensize={KART_WIDTH}x{KART_HEIGHT}", "--windowed"]
    words += ["--disable-hd-textures", "--disable-glow", "--disable-dynamic-lights"]
    clock = {"LD_PRELOAD": FAKETIME, "FAKETIME": f"+0 x{KART_CLOCK}", "LP_NUM_THREADS": "1"}
    display = f":{90 + os.getpid() % 900}"
    screen = ["-screen", "0", f"{KART_WIDTH}x{KART_HEIGHT}x24"]
    server = subprocess.Popen([_program("Xvfb"), display, *screen], start_new_session=True)
    time.sleep(2)
    game = subprocess.Popen(
        [_program("supertuxkart"), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**_environment(home), "DISPLAY": display, **clock},
    )  # fmt: skip
    try:
        pictures = _drawn(display)
        for _ in track(range(KART_START_S * KART_FPS), "supertuxkart: start", console=CONSOLE):
            next(pictures)
        with av.open(out, "w") as file:
            stream = file.add_stream("ffv1", rate=KART_FPS)
            stream.width, stream.height, stream.pix_fmt = KART_WIDTH, KART_HEIGHT, "yuv420p"
            for number in track(range(round(seconds * KART_FPS)), "recording", console=CONSOLE):
                picture = av.VideoFrame.from_ndarray(next(pictures), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, KART_FPS)
                file.mux(stream.encode(picture.reformat(format="yuv420p")))
            file.mux(stream.encode())
    finally:
        _end(game)
        _end(server)
    return out


def _drawn(display: str) -> Iterator[NDArray]:
    """Each picture that is drawn on an X display, uint8 [H, W, 3].

    One that was seen twice in a row is complete; as it was last is no new one.
    """
    options = {"framerate": str(LOOKS_HZ), "video_size": f"{KART_WIDTH}x{KART_HEIGHT}"}
    options["draw_mouse"] = "0"
    last = before = np.zeros((KART_HEIGHT, KART_WIDTH, 3), np.uint8)
    with av.open(display, format="x11grab", options=options) as screen:
        for frame in screen.decode(video=0):
            now = frame.to_ndarray(format="rgb24")
            if np.array_equal(now, before) and not np.array_equal(now, last):
                last = now
                yield now
            before = now


GAMES: dict[str, Callable[[Path, str, float], Path]] = {
    "openarena": openarena,
    "supertuxkart": supertuxkart,
}


def capture(
    game: Annotated[str, typer.Argument(help=f"One of {', '.join(GAMES)}.")],
    folder: Annotated[Path, typer.Argument(help="Where the recording goes.")],
    seconds: Annotated[float, typer.Option(min=1, help="Length of the recording.")] = 20.0,
) -> None:
    """Records a game that plays itself."""
    if game not in GAMES:
        raise typer.BadParameter(f"{game!r} is none of {', '.join(GAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="game-") as home:
        out = GAMES[game](folder, home, seconds)
    print(f"wrote {out}", file=sys.stdout)


if __name__ == "__main__":
    typer.run(capture)
