"""The benchmarks of the loader and of whole runs, in small, and the end of a benchmark that is killed."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from tools.benchmark import loader, runs
from tools.benchmark.__main__ import main

SMALL = ["loader", "--input-size", "32", "--images", "8", "--batch-size", "4", "--rounds", "1"]
ROWS = ["bare", "item", "item, --jpeg-draft", "item, --cache-images"]
ROWS += [f"loader, {num_workers} workers" for num_workers in (0, 1, 2)]


def test_the_loader_benchmark_measures_every_row(tmp_path, sticker_set, capsys):
    output = tmp_path / "new" / "loader.json"
    assert main([*SMALL, "--data-path", str(sticker_set), "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["facts"]["command"].startswith("python -m tools.benchmark loader --input-size 32")
    assert {"machine", "date", "torch"} < written["facts"].keys()
    seconds = written["results"]
    assert list(seconds) == ["JPEG stickers", "SER_Dataset"]
    for rows in seconds.values():
        assert list(rows) == ROWS
        assert all(0 < row["lower"] <= row["median"] <= row["upper"] for row in rows.values())
    table = capsys.readouterr().out
    assert "| JPEG stickers | bare | " in table
    assert table.count("| 1.00 |") >= 2


def test_the_stickers_drawn_are_always_the_same_jpegs(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = loader.draw_stickers(tmp_path / name, 3)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 3
    with Image.open(paths[0]) as image:
        assert image.format == "JPEG"
        assert 440 <= min(image.size) <= max(image.size) <= 560


def test_a_folder_that_is_no_data_set_is_named(tmp_path, capsys):
    assert main([*SMALL, "--data-path", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: expected the layout of SER30K, FI or EmotionROI" in capsys.readouterr().err


@pytest.fixture
def run_flags(tmp_path, sticker_set):
    """Flags of a short benchmark of whole runs, on a set with the layout of the demo's."""
    source = tmp_path / "set"
    (source / "Annotations").mkdir(parents=True)
    (source / "Annotations" / "image-level").symlink_to(sticker_set / "Annotations")
    (source / "Images").symlink_to(sticker_set / "Images")
    flags = ["--data-path", str(source), "--backbone", "pvt_demo", "--size", "96", "--rounds", "1", "--steps", "2"]
    return ["run", *flags, "--rows"]


@pytest.mark.long
def test_the_benchmark_of_whole_runs_measures_every_switch(tmp_path, run_flags, capsys):
    output = tmp_path / "run.json"
    rows = [runs.GIVEN_BACK, "--grad-accum-steps 2"]
    assert main([*run_flags, *rows, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["results"]
    assert list(rows) == ["plain", runs.GIVEN_BACK, "--grad-accum-steps 2"]
    for row in rows.values():
        assert row["seconds_an_image"]["median"] > 0
        assert 0.1 < row["peak_gib"]["median"] < 10
    assert "| `--grad-accum-steps 2` | " in capsys.readouterr().out
    assert main(["run", "--data-path", str(tmp_path / "nowhere")]) == 2


@pytest.mark.long
@pytest.mark.parametrize("command", ["network", "run"])
def test_a_killed_benchmark_leaves_no_process(command, run_flags):
    network = ["network", "--backbone", "pvt_demo", "--alpha", "4", "--size", "512", "--rows", "textbook"]
    flags = {"network": [*network, "--mode", "forward", "--threads", "1"], "run": [*run_flags, "plain"]}[command]
    with subprocess.Popen([sys.executable, "-m", "tools.benchmark", *flags], cwd=ROOT) as benchmark:
        started = wait_for(lambda: children_of([benchmark.pid], b"main_V.py" if command == "run" else b"forkserver"))
        if command == "network":
            started += wait_for(lambda: children_of(started, b"forkserver"))
        benchmark.kill()
    wait_for(lambda: not any(map(is_running, started)), seconds=10)


def children_of(parents, word):
    """Ids of the processes with a word in their command that these started."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents and word in (folder / "cmdline").read_bytes():
                children.append(int(folder.name))
    return children


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    """What a condition gives once it holds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value
