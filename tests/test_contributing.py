"""The examples of CONTRIBUTING.md, applied to a copy of the project and run there."""

import re
import shutil
import sys
import textwrap

import pytest
import torch

from tests.conftest import ROOT, SMALL, run_process

BLOCK = re.compile(r"^```python\n# (.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PACKAGES = ("models", "readers", "runtime", "inference", "configs")


def blocks_of(title):
    """The places and contents of the blocks of a section of CONTRIBUTING.md."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return BLOCK.findall(section)


def add(path, place, block):
    """Adds a block to a module: before its other imports, to the tuple of a record, or at the end of a function."""
    source = path.read_text()
    if place == "imports":
        at = re.search(r"^(from|import) ", source, re.MULTILINE).start()
    elif place.isupper():
        at = re.compile(r"for \w+ in \(\n").search(source, source.index(f"{place}:")).end()
        block = textwrap.indent(f"{block.rstrip()},\n", " " * 12)
    else:
        end = source.find("\n\n\n", source.index(f"def {place}("))
        at = end + 1 if end >= 0 else len(source)
        block = textwrap.indent(block, " " * 4)
    path.write_text(source[:at] + block + source[at:])


def follow(title, project):
    """Does what a section says, and runs its last block in a process of its own."""
    for where, block in blocks_of(title):
        file, _, place = where.partition(", in ")
        if file == "try it":
            (project / "try_it.py").write_text(block)
        elif place:
            add(project / file, place, block)
        else:
            (project / file).write_text(block)
    finished = run_process(sys.executable, project / "try_it.py")
    assert finished.code == 0, finished.output


@pytest.fixture
def project(tmp_path):
    """A copy of the project's modules."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    return tmp_path


@pytest.fixture
def train(project, sticker_set):
    """Trains a network of the copy and returns its output folder."""

    def run(*flags):
        arguments = [*SMALL, "--data-path", sticker_set, "--output_dir", project / "run", *flags]
        finished = run_process(sys.executable, project / "main_V.py", *arguments)
        assert finished.code == 0, finished.output
        return project / "run"

    return run


def test_a_network_can_be_added_and_trained(project, train):
    follow("Add a network", project)
    assert (train("--model", "mean_colour") / "checkpoint_mean_colour.pth").is_file()


def test_a_data_set_can_be_added(project):
    follow("Add a data set", project)
    finished = run_process(sys.executable, project / "main_V.py", "--help")
    assert "pairs" in finished.output


def test_a_flag_can_be_added(project, train):
    follow("Add a flag", project)
    backbone = ROOT / "weights" / "pvt_demo.pth"
    folder = train("--freeze-vision", "--visfinetune", backbone)
    trained = torch.load(folder / "checkpoint_v.pth", weights_only=True)["model"]
    given = torch.load(backbone, weights_only=True)
    given = given.get("model", given)
    assert all(torch.equal(trained[f"vision_model.{name}"], value.float()) for name, value in given.items())
