"""What a start may cost: command lines answer before torch is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a.conditioning.video import write_video

HEAVY = {
    "accelerate",
    "av",
    "c2pa",
    "diffusers",
    "matplotlib",
    "numpy",
    "openvino",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "ultralytics",
    "webdataset",
}
# Asks every command for its help, and says after each what has been loaded.
ASK_FOR_HELP = """
import json, sys, typer
from {module} import app
command = typer.main.get_command(app)
loaded = {{}}
for name in ("", *command.commands):
    command.main([*name.split(), "--help"], prog_name="it", standalone_mode=False)
    loaded[name] = [module for module in sys.modules if "." not in module]
print()
print(json.dumps(loaded))
"""


# Runs a command as far as torch, which takes most of a start.
RUN_UP_TO_TORCH = """
import sys
class Stop:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise SystemExit("torch")
sys.meta_path.insert(0, Stop)
from spatial_v2a.inference.cli.main import run
run({arguments!r})
"""


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints as its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "known"),
    [("spatial_v2a.inference.cli.main", "dub"), ("spatial_v2a.training.cli", "ablate")],
    ids=["spatial-v2a", "spatial-v2a-train"],
)
def test_help_loads_no_library_of_the_work(module: str, known: str) -> None:
    """`spatial-v2a-train --help` took 11 to 24 s, because every command's torch came with it."""
    loaded = json.loads(run_python(ASK_FOR_HELP.format(module=module)))
    assert known in loaded, f"commands: {sorted(loaded)}"
    guilty = {name: sorted(HEAVY.intersection(modules)) for name, modules in loaded.items()}
    assert not any(guilty.values()), guilty


def test_the_package_alone_loads_no_library_of_the_work() -> None:
    loaded = json.loads(
        run_python("import json, spatial_v2a, sys; print(json.dumps(list(sys.modules)))")
    )
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize("command", ["dub", "tracks", "live", "evaluate", "bench"])
def test_the_first_line_comes_before_torch(command: str, tmp_path: Path) -> None:
    """Nothing was said for most of half a minute."""
    clip = tmp_path / "clip.mp4"
    write_video(clip, np.zeros((2, 48, 64, 3), dtype=np.uint8), 30)
    arguments = {
        "dub": [clip, "--checkpoint", "tiny"],
        "tracks": [clip, "--checkpoint", "tiny"],
        "live": ["--source", clip, "--sink", tmp_path / "a.wav", "--checkpoint", "tiny"],
        "evaluate": ["--data", tmp_path, "--out", tmp_path / "out", "--checkpoint", "tiny"],
        "bench": ["--checkpoint", "tiny"],
    }[command]
    words = [command, *map(str, arguments)]
    code = RUN_UP_TO_TORCH.format(arguments=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["loading tiny ...", "torch"]


def test_a_missing_file_is_refused_before_torch(tmp_path: Path) -> None:
    words = ["dub", str(tmp_path / "nothing.mp4")]
    code = RUN_UP_TO_TORCH.format(arguments=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith("error: no such file") and done.stderr.count("\n") == 1


# Says in which order things end; the module's own object would be taken apart last.
END = """
import atexit, sys, threading, time
from spatial_v2a.inference.cli.main import end_at_once
class Network:
    def __del__(self):
        print("taken apart")
network = Network()
atexit.register(print, "handler")
def work():
    time.sleep(0.3)
    print("work")
threading.Thread(target=work, daemon={is_daemon}).start()
print("end")
end_at_once(3)
"""


@pytest.mark.parametrize(
    ("is_daemon", "lines"),
    [(True, ["end", "handler"]), (False, ["end", "work", "handler", "taken apart"])],
    ids=["nothing at work", "a thread at work"],
)
def test_a_command_ends_without_taking_networks_apart(is_daemon: bool, lines: list[str]) -> None:
    """It took a second after the last line; what is at work or to be said is waited for."""
    words = [sys.executable, "-c", END.format(is_daemon=is_daemon)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (3, lines, "")


def test_a_command_whose_reader_is_gone_ends_as_ever() -> None:
    code = "import time; from spatial_v2a.inference.cli.main import end_at_once;"
    code += "time.sleep(0.3); print('line'); end_at_once(0)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "BrokenPipeError" in process.stderr.read()
    assert process.wait(60) == 120
    process.stderr.close()
