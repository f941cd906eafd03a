"""The house: declared packages are used, imports make no circle, no room has one visitor only."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDERS = ("spatial_v2a", "conditioning", "training", "inference")
# A shorter file with one importer belongs into that.
MIN_LINES = 60
# Packages whose import has another name.
IMPORTED_AS = {"pyyaml": "yaml", "c2pa-python": "c2pa", "huggingface-hub": "huggingface_hub"}
# Brought by packages that are declared: OpenCV by ultralytics (requirements.in has its headless
# build), Pillow by matplotlib and ultralytics.
BROUGHT = {"cv2", "PIL"}
# Optional packages that are tools: run, not imported.
TOOLS = {"pytest-xdist", "ruff", "setuptools", "pytest", "pymediainfo", "tensorboard"}
# Those that are still to be moved. No new ones.
LEFT = {
    "inference/bench/picture.py",
    "training/tracks/pool.py",
}


@cache
def modules() -> dict[str, Path]:
    """Every file of the package that is no entry of a folder, by its dotted name."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if path.name != "__init__.py":
                head = () if folder == "spatial_v2a" else ("spatial_v2a",)
                found[".".join((*head, *parts))] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, a module taken out of a folder in full."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_ultralytics"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


@cache
def graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports."""
    return {name: set(imports(path)) & modules().keys() for name, path in modules().items()}


def test_every_declared_package_is_imported_and_every_import_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    needed = {Requirement(item).name.lower() for item in project["dependencies"]}
    optional = {Requirement(item).name.lower() for item in extras} - TOOLS
    imported = {name.partition(".")[0] for path in modules().values() for name in imports(path)}
    names = {name: IMPORTED_AS.get(name, name.replace("-", "_")) for name in needed | optional}
    unused = {name for name in needed | optional if names[name] not in imported}
    assert not unused, "declared and not imported"
    ours = {"spatial_v2a", *FOLDERS}
    unknown = imported - set(names.values()) - set(sys.stdlib_module_names) - ours - BROUGHT
    assert not unknown, "imported and not declared"


def test_no_import_goes_in_a_circle() -> None:
    circles, done = [], set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circles.append(" -> ".join((*way[way.index(name) :], name)))
        elif name not in done:
            for other in sorted(graph()[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in sorted(graph()):
        walk(name, ())
    assert not circles, "\n".join(circles)


def test_no_short_file_has_one_importer() -> None:
    importers = {name: {k for k, v in graph().items() if name in v} for name in modules()}
    entries = re.findall(r'"(spatial_v2a[\w.]+):', (ROOT / "pyproject.toml").read_text())
    short = {
        str(path.relative_to(ROOT))
        for name, path in modules().items()
        if len(importers[name]) == 1
        and name not in entries
        and len(path.read_text("utf-8").splitlines()) < MIN_LINES
    }
    assert not short - LEFT, "move them into their importer"
