"""The documents tell the truth: every command, flag, make target and file they name exists."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
import typer

from spatial_v2a import Config
from spatial_v2a.conditioning.video import write_video
from tests.captures import RATE_HZ, decoded
from tests.tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
README, CARD = ROOT / "README.md", ROOT / "spatial_v2a" / "bundled" / "stage" / "card.md"
# Notes tell what once was: their links are checked, commands of the past may name what is gone.
NOTES = sorted((ROOT / "docs" / "notes").glob("*.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLES = sorted((ROOT / "docs" / "samples").glob("*.md"))
DOCUMENTS += SAMPLES
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILES = re.compile(r"`((?:spatial_v2a|conditioning|training|inference|configs|tests)/[\w./-]+)`")
INLINE = re.compile(r"`(spatial-v2a(?:-train)? [^`\n]+)`")
SHELLS = {"", "sh", "bash", "console", "text"}


@cache
def command_line(name: str) -> click.Command:
    """The real command line behind a console script."""
    if name == "spatial-v2a":
        from spatial_v2a.inference.cli.main import app
    else:
        from spatial_v2a.training.cli import app
    return typer.main.get_command(app)


def shell_lines(text: str) -> Iterator[str]:
    """Commands of the fenced blocks (continuations joined) and of inline code."""
    for language, body in FENCE.findall(text):
        if language in SHELLS:
            yield from body.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def commands(text: str) -> Iterator[list[str]]:
    """Words of every `spatial-v2a...` command, from its name on."""
    for line in shell_lines(text):
        line = line.split(" #")[0].split(" > ")[0].split(" | ")[0].strip().removeprefix("$ ")
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        heads = [Path(word).name for word in words]
        for name in ("spatial-v2a", "spatial-v2a-train"):
            if name in heads[:4]:
                yield [name, *words[heads.index(name) + 1 :]]


def options(command: click.Command) -> set[str]:
    names = {"--help"}
    for parameter in command.params:
        names.update([*parameter.opts, *parameter.secondary_opts])
    return names


def check(words: list[str]) -> None:
    """Walks the subcommands that `words` name and looks up every flag."""
    command, rest = command_line(words[0]), words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command '{rest[0]}' in: {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    for word in rest:
        flag = word.split("=")[0]
        if re.match(r"^--?[a-zA-Z]", flag):
            assert flag in options(command), f"no flag '{flag}' in: {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_and_flags_exist(document: Path) -> None:
    for words in commands(document.read_text("utf-8")):
        check(words)


@cache
def all_flags() -> frozenset[str]:
    """Every flag of every command of both console scripts."""
    todo, flags = [command_line("spatial-v2a"), command_line("spatial-v2a-train")], set()
    while todo:
        command = todo.pop()
        flags |= options(command)
        todo += getattr(command, "commands", {}).values()
    return frozenset(flags)


@pytest.mark.parametrize("document", [*DOCUMENTS, CARD], ids=lambda path: path.name)
def test_flags_in_the_text_exist(document: Path) -> None:
    """Tables of options name flags without their command."""
    named = set(re.findall(r"`(--[a-z][a-z-]+)", FENCE.sub("", document.read_text("utf-8"))))
    gone = named - all_flags()
    assert not gone, f"{document.name} names {sorted(gone)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    for target in re.findall(r"`make ([a-z]+)", document.read_text("utf-8")):
        assert target in targets, f"{document.name} names `make {target}`"


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTES], ids=lambda path: path.name)
def test_linked_and_named_files_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for target in FILES.findall(text):
        assert (ROOT / target).exists(), f"{document.name} names {target}"


def test_the_python_of_the_readme_runs(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs it as it stands, on a short video and a tiny checkpoint in a folder called stage."""
    (body,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "stage", tiny_config)
    write_video("play.mp4", np.zeros((4, 48, 64, 3), np.uint8), fps=30)
    names: dict[str, object] = {}
    exec(compile(body, "README.md", "exec"), names)
    sound_LC, sample_rate = soundfile.read("play.wav")
    assert sound_LC.shape == (4 * 1600, 2) and sample_rate == 48_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_compile(document: Path) -> None:
    for language, body in FENCE.findall(document.read_text("utf-8")):
        if language == "python":
            compile(body, document.name, "exec")


def test_the_checker_sees_a_wrong_flag() -> None:
    """Guards the guard: a flag that does not exist must be found."""
    with pytest.raises(AssertionError, match="no flag '--colour'"):
        check(["spatial-v2a", "dub", "clip.mp4", "--colour", "red"])
    with pytest.raises(AssertionError, match="no command 'paint'"):
        check(["spatial-v2a", "paint"])
    assert "--weights" in all_flags() and "--colour" not in all_flags()


def table_cells(text: str) -> list[list[str]]:
    """Cells of all tables of a document, a list per row."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


def scores(path: Path) -> dict[tuple[str, str], str]:
    """Figures of the table of scores by row and column, without their intervals."""
    rows, columns = {}, []
    for name, *cells in table_cells(path.read_text("utf-8")):
        if "azimuth error, deg" in cells:
            columns = cells
        elif len(cells) == len(columns):
            pairs = zip(columns, cells, strict=True)
            rows |= {(name, column): cell.split(" [")[0] for column, cell in pairs}
    return rows


def test_the_figures_of_the_readme_are_those_of_the_card() -> None:
    """Its table cell by cell, and every percentage, time and angle of its text."""
    here, there = scores(README), scores(CARD)
    assert len(here) >= 20, f"{len(here)} figures"
    wrong = {key: (cell, there.get(key)) for key, cell in here.items() if cell != there.get(key)}
    assert not wrong, f"README against card: {wrong}"
    text = FENCE.sub("", README.read_text("utf-8"))
    known = set(re.findall(r"\d+(?:\.\d+)?", CARD.read_text("utf-8")))
    named = set(re.findall(r"(\d+(?:\.\d+)?) (?:%|ms|degrees)", text))
    assert len(named) >= 10 and named <= known, f"not in the card: {sorted(named - known)}"


def test_the_readme_is_short() -> None:
    size = README.stat().st_size
    assert 8_000 <= size <= 10_000, f"{size} bytes"


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTES, CARD], ids=lambda path: path.name)
def test_cells_are_short(document: Path) -> None:
    cells = [cell for row in table_cells(document.read_text("utf-8")) for cell in row]
    long = [cell for cell in cells if len(cell) >= 120]
    assert not long, f"cells of 120 characters and more: {long}"


def test_the_sample_can_be_played_and_is_small() -> None:
    """Its sound is as long as its picture and goes from one side to the other."""
    (path,) = (ROOT / "docs" / "samples").glob("*.mp4")
    assert path.stat().st_size < 400_000, f"{path.stat().st_size} bytes"
    assert path.relative_to(ROOT).as_posix() in README.read_text("utf-8")
    _, sound_LC = decoded(path)
    assert abs(len(sound_LC) - 10 * RATE_HZ) <= 1024, f"{len(sound_LC)} samples"
    left, right = (sound_LC[t * RATE_HZ : (t + 1) * RATE_HZ].std(0) for t in (3, 7))
    assert left[0] > 2 * left[1] and right[1] > 2 * right[0], f"rms left, right: {left}, {right}"
