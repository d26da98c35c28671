"""The layout's one direction: who imports whom, and what loads without PyTorch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A part of the project, and the parts that it may import beside itself.
ALLOWED = {
    "utils": (),
    "models": (),
    "readers": ("models", "utils"),  # the record of a network alone, see below
    "datasets": ("readers", "utils"),
    "engine": ("utils",),
    "inference": ("datasets", "engine", "models", "readers", "utils"),
    "runtime": ("datasets", "engine", "inference", "models", "readers", "utils"),
    "main": ("datasets", "engine", "models", "readers", "runtime", "utils"),
    "main_V": ("main", "runtime"),
    "hubconf": ("inference", "models", "runtime", "utils"),
    "tools": ("datasets", "engine", "inference", "main", "models", "readers", "runtime", "utils"),
    "configs": ("tools",),  # settings of the tables
}
WITHOUT_TORCH = (
    "utils",
    "models",
    "readers.data_sets",
    "runtime.options",
    "runtime.config_file",
    "runtime.surroundings",
)


def files_of(part: str) -> list[Path]:
    """The Python files of a part of the project."""
    return [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").is_file() else sorted((ROOT / part).rglob("*.py"))


def imports_of(file: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_is_below_it(part):
    files = files_of(part)
    assert files
    others = {*ALLOWED, "tests"} - {part, *ALLOWED[part]}
    wrong = {
        (file.relative_to(ROOT), name) for file in files for name in imports_of(file) if name.split(".")[0] in others
    }
    assert not wrong


def test_the_root_has_the_five_files_and_the_hub():
    assert {file.stem for file in ROOT.glob("*.py")} == {"main", "main_V", "engine", "datasets", "utils", "hubconf"}


def test_readers_know_the_record_of_a_network_but_no_network():
    names = {name for file in files_of("readers") for name in imports_of(file) if name.split(".")[0] == "models"}
    assert names <= {"models", "models.networks"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_answers_at_once_does_not_load_pytorch(module):
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--lr", "high"], ["--model", "nonsense"], ["--config", "none.py"]])
@pytest.mark.parametrize("script", ["main.py", "main_V.py"])
def test_help_and_a_wrong_flag_end_before_pytorch_is_loaded(script, arguments):
    """-X importtime names each module as it is loaded."""
    command = [sys.executable, "-X", "importtime", script, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == (0 if arguments == ["--help"] else 2)
    assert " torch\n" not in finished.stderr
