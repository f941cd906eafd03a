"""Imports point one way: tests -> {inference, training} -> conditioning -> core -> torch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "core": "spatial_v2a",
    "conditioning": "conditioning",
    "training": "training",
    "inference": "inference",
    "configs": "configs",
    "tests": "tests",
}
# `configs` holds data only; config.py names it to find the presets.
MAY_IMPORT = {
    "core": {"core", "configs"},
    "conditioning": {"core", "conditioning"},
    "training": {"core", "conditioning", "training"},
    "inference": {"core", "conditioning", "inference"},
    "configs": set(),
    "tests": set(FOLDERS),
}
# Modules of the core that may touch files; classifier.py reads and writes its own small checkpoint.
FILE_MODULES = {
    "bounded.py",
    "checkpoint.py",
    "classifier.py",
    "clip.py",
    "config.py",
    "files.py",
    "tensor_files.py",
}
FILE_LIBRARIES = {
    "PIL",
    "av",
    "cv2",
    "huggingface_hub",
    "safetensors",
    "soundfile",
    "webdataset",
    "yaml",
}
NOT_IN_CORE = {"accelerate", "matplotlib", "rich", "tensorboard", "typer", "ultralytics", "vizdoom"}
NOWHERE = {"torchcodec", "pickle", "dill", "joblib"}
FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
# Sets the threads of processes forked off this one, which would wait for ever with more than one.
ONLY_IN_FORKS = "processes.py"
GLOBAL_EFFECTS = {"set_num_threads", "manual_seed", "set_default_dtype", "basicConfig"}
PRINTING_MODULES = ("cli.py",)
PRINTING_FOLDER = ROOT / FOLDERS["inference"] / "cli"


def files(layer: str) -> list[Path]:
    return sorted((ROOT / FOLDERS[layer]).rglob("*.py"))


def all_files() -> list[tuple[str, Path]]:
    return [(layer, path) for layer in FOLDERS for path in files(layer)]


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every dotted module named by an import, or by a string that an import function could take."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            yield node.lineno, node.module
            if node.module == "spatial_v2a":
                yield from ((node.lineno, f"spatial_v2a.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("spatial_v2a.") and " " not in node.value:
                yield node.lineno, node.value


def layer_of(module: str) -> str | None:
    """The layer a dotted name belongs to; None for other packages."""
    head, _, rest = module.partition(".")
    if head != "spatial_v2a":
        return head if head in FOLDERS else None
    folder = rest.partition(".")[0]
    return folder if folder in FOLDERS else "core"


def called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield node.lineno, called_name(node)


@pytest.mark.parametrize("layer", FOLDERS)
def test_every_import_follows_the_arrows(layer: str) -> None:
    wrong = []
    for path in files(layer):
        for line, module in imported_names(ast.parse(path.read_text("utf-8"))):
            target = layer_of(module)
            if target is not None and target not in MAY_IMPORT[layer]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} {layer} -> {target} ({module})")
    assert not wrong, "\n".join(wrong)


def test_no_module_is_imported_by_its_bare_folder_name() -> None:
    bare = []
    for _, path in all_files():
        for line, module in imported_names(ast.parse(path.read_text("utf-8"))):
            if module.partition(".")[0] in set(FOLDERS) - {"core", "tests"}:
                bare.append(f"{path.relative_to(ROOT)}:{line} import {module}")
    assert not bare, "second copies of modules: " + "\n".join(bare)


def test_the_core_touches_files_in_few_modules_only() -> None:
    wrong = []
    for path in files("core"):
        where = path.relative_to(ROOT)
        for line, module in imported_names(ast.parse(path.read_text("utf-8"))):
            library = module.partition(".")[0]
            if library in NOT_IN_CORE:
                wrong.append(f"{where}:{line} imports {module}")
            if library in FILE_LIBRARIES and path.name not in FILE_MODULES:
                wrong.append(f"{where}:{line} imports {module}")
        for line, name in calls(path):
            if name in FILE_CALLS and path.name not in FILE_MODULES:
                wrong.append(f"{where}:{line} calls {name}()")
    assert not wrong, "\n".join(wrong)


def test_libraries_nobody_may_import() -> None:
    wrong = []
    for layer, path in all_files():
        if layer == "tests":  # tests make pickles in order to see them refused
            continue
        for line, module in imported_names(ast.parse(path.read_text("utf-8"))):
            if module.partition(".")[0] in NOWHERE:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_library_code_changes_no_global_setting_and_prints_nothing() -> None:
    wrong = []
    for layer, path in all_files():
        if layer == "tests":
            continue
        for line, name in calls(path):
            is_library = layer in ("core", "conditioning") and path.name != ONLY_IN_FORKS
            if is_library and name in GLOBAL_EFFECTS:
                wrong.append(f"{path.relative_to(ROOT)}:{line} calls {name}()")
            may_print = path.parent == PRINTING_FOLDER or path.name.endswith(PRINTING_MODULES)
            if name == "print" and not may_print:
                wrong.append(f"{path.relative_to(ROOT)}:{line} prints")
    assert not wrong, "\n".join(wrong)


def test_every_file_opens_with_a_sentence() -> None:
    for layer, path in all_files():
        source = path.read_text("utf-8")
        if layer == "tests" or not source.strip():
            continue
        docstring = ast.get_docstring(ast.parse(source))
        assert docstring, f"{path.relative_to(ROOT)} has no opening docstring"
