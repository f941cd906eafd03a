"""What both console scripts share: version, quiet and verbose, completion, errors in one line."""

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import spatial_v2a
from spatial_v2a.conditioning.console import is_quiet
from spatial_v2a.inference.cli import main as inference_cli
from spatial_v2a.training import cli as training_cli

RUN = {"spatial-v2a": inference_cli.run, "spatial-v2a-train": training_cli.run}
LOGGER = logging.getLogger("spatial_v2a")


@pytest.fixture(autouse=True)
def own_level():
    yield
    LOGGER.setLevel(logging.NOTSET)


def test_the_version_is_that_of_the_distribution() -> None:
    assert spatial_v2a.__version__ == version("spatial-v2a")
    assert "__version__" in dir(spatial_v2a)


@pytest.mark.parametrize("name", RUN)
def test_both_say_their_version(name: str, capsys) -> None:
    assert RUN[name](["--version"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{name} {version('spatial-v2a')}\n", "")


@pytest.mark.parametrize("name", RUN)
def test_a_wrong_option_is_one_line(name: str, capsys) -> None:
    assert RUN[name](["--colour"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("flag", "level"), [("--quiet", logging.ERROR), ("-q", logging.ERROR),
                        ("--verbose", logging.DEBUG), ("-v", logging.DEBUG)],
)  # fmt: skip
def test_levels_may_stand_before_and_after_the_command(flag, level, place, capsys) -> None:
    command = ["provenance", "no-such-file"]
    assert inference_cli.run([flag, *command] if place == "before" else [*command, flag]) == 2
    assert LOGGER.level == level
    assert is_quiet() == (level == logging.ERROR)
    assert "no-such-file" in capsys.readouterr().err
    assert inference_cli.run(command) == 2 and not is_quiet(), "a later run is not quiet"


@pytest.mark.parametrize("name", RUN)
def test_quiet_and_verbose_together_are_refused(name: str, capsys) -> None:
    command = ["dub", "x"] if name == "spatial-v2a" else ["vae", "--out", "x"]
    for words in (["-q", "-v", *command], ["--verbose", *command, "--quiet"]):
        assert RUN[name](words) == 2
        assert "--quiet and --verbose" in capsys.readouterr().err


def test_a_command_of_a_group_can_be_quiet(capsys) -> None:
    assert inference_cli.run(["watermark", "detect", "-q", "no-such-file"]) == 2
    assert is_quiet() and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("spatial-v2a", ["du"], {"dub"}),
        ("spatial-v2a", ["dub", "--original", ""], {"drop", "keep", "duck"}),
        ("spatial-v2a-train", ["v"], {"vae"}),
    ],
)
def test_the_shell_completes(name: str, words: list[str], expected: set[str]) -> None:
    """As the script of `--show-completion bash` asks."""
    script = Path(sys.executable).with_name(name)
    asked = {
        "COMP_WORDS": " ".join([name, *words]),
        "COMP_CWORD": str(len(words)),
        f"_{name.replace('-', '_').upper()}_COMPLETE": "complete_bash",
    }
    done = subprocess.run([script], env=os.environ | asked, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("command", ["vae", "diffusion", "consistency"])
def test_a_run_without_shards_prints_no_config_first(command: str, tmp_path: Path, capsys) -> None:
    """It used to come behind 250 lines of YAML, with a run folder left."""
    (tmp_path / "data").mkdir()
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--config", "tiny"]
    init = ["--init", "stage"] if command != "vae" else []
    assert training_cli.run([command, *words, *init]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: no shards") and not said.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["dub", "tracks", "inspect"])
def test_a_refusal_is_an_object_where_json_was_asked_for(command: str, capsys) -> None:
    assert inference_cli.run([command, "no-such-file.mp4", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] in said.err and said.err.count("error: ") == 1
