"""The GPU report, in small on a CPU."""

import json

import pytest
import torch

from tools.benchmark import gpu_report
from utils import UserError

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def flags(sticker_set):
    """Those of a report in small, on a set with the layout of the demo's."""
    return ["--device", "cpu", "--small", "--data", str(sticker_set)]


def test_a_report_has_each_step_and_its_figures(flags, tmp_path, capsys):
    steps = ["resume", "demo", "networks", "logsumexp", "loader"]
    assert gpu_report.main([*flags, "--output", str(tmp_path), "--steps", *steps]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert {"machine", "torch", "date"} < found["facts"].keys()
    results = found["results"]
    assert list(results) == steps
    assert results["resume"]["same_bits"] is True
    assert "stopped" not in (tmp_path / "resumed.log").read_text()
    assert results["demo"]["test"].startswith("top-1 ")
    assert float(results["networks"]["float32 training"]["textbook / ours"]) > 1
    assert float(results["logsumexp"]["time over that with it, float32"]) > 0
    assert results["loader"]["processes that keep up"]["float32"] >= 1
    stages = json.loads((tmp_path / "logsumexp.json").read_text())["results"]
    assert [stage["stage"] for stage in stages] == [1, 2, 3]
    assert max(stage["difference"] for stage in stages) < 1e-4


def test_a_step_that_fails_does_not_stop_the_others(flags, tmp_path, capsys):
    (tmp_path / "whole.log").mkdir()  # where the first step would write
    code = gpu_report.main([*flags, "--output", str(tmp_path), "--steps", "resume", "logsumexp"])
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert code == 1
    assert "whole.log" in results["resume"]["failed"]
    assert "failed" not in results["logsumexp"]


def test_a_report_ends_when_its_time_is_over(flags, tmp_path, capsys):
    code = gpu_report.main([*flags, "--output", str(tmp_path), "--minutes", "0.02", "--steps", "demo", "loader"])
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert code == 1
    assert all("the time of the report was over" in results[step]["failed"] for step in ("demo", "loader"))
    assert sum(step["seconds"] for step in results.values()) < 30


def test_what_is_not_there_is_named(flags, tmp_path):
    with pytest.raises(UserError, match="expected the demo set's folder, found none"):
        gpu_report.main(["--device", "cpu", "--data", str(tmp_path / "nowhere")])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="PyTorch finds no GPU here"):
            gpu_report.main(["--data", str(tmp_path)])
