"""What a start may cost: command lines answer before torch is loaded."""

import json
import os
import subprocess
import sys

import pytest

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
    [("spatial_v2a.inference.cli", "dub"), ("spatial_v2a.training.cli", "ablate")],
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
