"""The benchmark on a small network."""

import json
import multiprocessing
import re
import time
from functools import partial

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from models.attention import attend
from tools.benchmark import memory
from tools.benchmark.__main__ import main
from tools.benchmark.measure import ATTENTION_FLOPS, interleave, timed
from tools.benchmark.rows import Setting

pytestmark = pytest.mark.long

SMALL = ["network", "--backbone", "pvt_demo", "--size", "64", "--alpha", "4", "--rounds", "1", "--threads", "1"]
ROWS = ["ours", "textbook", "backbone", "pvt_v2_b2"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A benchmark file of two sizes."""
    output = tmp_path_factory.mktemp("benchmark") / "sizes.json"
    assert main([*SMALL, "--size", "64", "96", "--rows", *ROWS, "--output", str(output)]) == 0
    return output


def test_benchmark_measures_every_row(measured):
    results = json.loads(measured.read_text())["results"]
    expected = [(size, mode, row) for size in (64, 96) for mode in ("forward", "training") for row in ROWS]
    assert [(result["size"], result["mode"], result["row"]) for result in results] == expected
    for result in results:
        seconds = result["seconds"]
        assert 0 < seconds["lower"] <= seconds["median"] <= seconds["upper"]
        assert 0 < result["weight_bytes"] < result["network_bytes"] < result["peak_bytes"]


def test_benchmark_counts_the_operations(measured):
    """The text-book form's are more; a training step's are about three times the forward pass's."""
    results = json.loads(measured.read_text())["results"]
    flops = {(result["size"], result["mode"], result["row"]): result["flops"] for result in results}
    assert flops[96, "forward", "backbone"] < flops[96, "forward", "ours"] < flops[96, "forward", "textbook"]
    assert 2.5 < flops[96, "training", "backbone"] / flops[96, "forward", "backbone"] < 3.1
    assert flops[96, "training", "pvt_v2_b2"] is None  # where the counter is wrong


def test_operations_of_the_fused_attention_are_counted():
    """A product of queries and keys and one with the values: 2 * 2 * N * M * d."""
    q, k = torch.zeros(1, 2, 50, 8), torch.zeros(1, 2, 10, 8)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        attend(q, k, k)
    assert counter.get_total_flops() == 2 * (2 * 2 * 50 * 10 * 8)


def test_a_row_that_does_not_fit_says_so(tmp_path, capsys):
    """The text-book form's 16,385 x 16,385 matrix needs 1 GiB in each image and head of stage 1."""
    output = tmp_path / "limited.json"
    flags = ["--size", "512", "--mode", "forward", "--rows", "ours", "textbook", "--memory-limit", "1.2"]
    assert main([*SMALL, *flags, "--output", str(output)]) == 0
    ours, textbook = json.loads(output.read_text())["results"]
    assert "seconds" in ours
    assert "seconds" not in textbook
    assert textbook["refused"] == "1.0 GiB more was refused within a limit of 1.2 GiB"
    assert "| textbook | 1 | does not fit: 1.0 GiB more was refused" in capsys.readouterr().out


def test_other_forms_of_the_network_are_rows(capsys):
    flags = ["--mode", "training", "--rows", "ours", "ours channels-last", "ours checkpointing", "--channels-last"]
    assert main([*SMALL, *flags, "--grad-checkpointing", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "| 64 | training step, bfloat16 | ours channels-last | 1 |" in out
    assert "| ours checkpointing | 1 |" in out


def test_lora_is_compared_with_its_parts(capsys):
    flags = ["--model", "lora", "--mode", "forward", "--rows", "ours", "lora_v", "text encoder"]
    assert main([*SMALL, *flags]) == 0
    assert "LORA / (LORA-V + text encoder)" in capsys.readouterr().out


def test_tgca_pvt_is_compared_with_lora_and_its_textbook_form(capsys):
    flags = ["--model", "tgca_pvt", "--batch-size", "2", "--rows", "ours", "textbook", "lora", "tgca_pvt_v"]
    assert main([*SMALL, *flags]) == 0
    out = capsys.readouterr().out
    assert "| px | step | batch | textbook / ours | ours / lora |" in out
    for row in ("ours", "textbook", "lora", "tgca_pvt_v"):
        assert f"| 64 | training step, float32 | {row} | 2 |" in out


def test_largest_batch_of_a_memory_limit(tmp_path):
    output = tmp_path / "most.json"
    flags = ["--size", "256", "--mode", "training", "--rows", "backbone", "--batch-size", "max"]
    assert main([*SMALL, *flags, "--memory-limit", "0.8", "--output", str(output)]) == 0
    (most,) = json.loads(output.read_text())["results"]
    assert most["batch_size"] > 1
    assert most["timed"] == "alone"
    assert most["seconds"]["median"] > 0


def test_rows_that_fit_alone_but_not_together_are_timed_alone(tmp_path):
    output = tmp_path / "alone.json"
    flags = ["--size", "256", "--mode", "training", "--rows", "ours", "pvt_v2_b2", "--memory-limit", "1.1"]
    assert main([*SMALL, *flags, "--output", str(output)]) == 0
    assert [result["timed"] for result in json.loads(output.read_text())["results"]] == ["alone", "alone"]


@pytest.mark.parametrize("bytes_an_image", [1000, 1, 0])  # of which the second and third are less than the limit says
@pytest.mark.parametrize("largest", [0, 1, 2, 5, 8, 11, 200, 1000])
def test_the_largest_number_that_fits_is_found(largest, bytes_an_image):
    tried = []

    def peak(number):
        tried.append(number)
        return 500 + bytes_an_image * number if number <= largest else None

    found = memory.find_largest(peak, 500 + 1000 * largest)
    assert largest - largest // 16 <= found <= largest
    assert len(tried) == len(set(tried)) < 35
    if bytes_an_image == 1000:
        assert len(tried) <= 8


def test_rows_take_turns_and_slow_ones_rest():
    turns = []
    steps = {"fast": lambda: turns.append("fast"), "slow": lambda: (turns.append("slow"), time.sleep(0.06))}
    timing = {name: partial(timed, step) for name, step in steps.items()}
    seconds = interleave(timing, rounds=4, row_seconds=0.1)
    assert turns[:4] == ["fast", "slow", "fast", "slow"]
    assert (seconds["fast"]["rounds"], seconds["slow"]["rounds"]) == (4, 2)


def test_a_row_that_takes_too_long_is_killed(monkeypatch):
    setting = Setting("lora_v", "pvt_demo", (1, 1, 1, 0), 4, 512, 1, "float32", "cpu", "forward")
    monkeypatch.setattr(memory, "LONGEST_SECONDS", 0.2)
    refused = memory.alone("textbook", setting, threads=1, limit=8 * memory.GIB)
    assert refused == {"refused": "it was killed after 0 s"}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "100"], "--size 100: .*multiple of 32"),
        (["--batch-size", "0"], "--batch-size 0: expected a number of images or max"),
        (["--rows", "theirs"], "--rows theirs: unknown row; expected some of .*textbook"),
    ],
)
def test_benchmark_names_a_wrong_flag(flags, message, capsys):
    assert main([*SMALL, *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_results_are_drawn_and_put_into_the_document(measured, tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- benchmark: sizes -->\nold\n<!-- end -->\nafter\n")
    plot = tmp_path / "sizes.png"
    assert main(["plot", str(measured), "--plot", str(plot), "--docs", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- benchmark: sizes -->\n")
    assert "old" not in text
    assert "| textbook | 1 |" in text
    assert text.endswith("<!-- end -->\nafter\n")
    with Image.open(plot) as picture:
        assert picture.width > 500
        assert len(picture.convert("L").getcolors()) > 20


def test_what_cannot_be_drawn_is_named(measured, tmp_path, capsys):
    document = tmp_path / "performance.md"
    document.write_text("no marks")
    assert main(["plot", str(measured), "--docs", str(document)]) == 2
    assert "expected <!-- benchmark: sizes -->" in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text("[]")
    assert main(["plot", str(other)]) == 2
    assert "other.json: expected a result file with facts and results" in capsys.readouterr().err
