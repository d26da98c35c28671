"""The runs behind the demo's tables: done once, scored from their own files, and named where they fail."""

import json

import numpy as np
import pytest

from runtime.reports import PredictionFile
from tools.demo_table import Row, emoji_accuracy, read_score, run_all
from utils import UserError

ROW = Row("LORA-V", "main_V.py", flags=tuple("--epochs 1 --steps-per-epoch 1 --warmup-epochs 0 --batch-size 4".split()))


def test_each_emoji_counts_alike():
    images = ["Images/twemoji/1F61A.png", "Images/noto-bold/1F61A.png"]
    images += [f"Images/openmoji/1F64E{variant}.png" for variant in ("", "-1F3FB", "-200D-2642-FE0F")]
    labels, predictions = np.array([1, 1, 5, 5, 5]), np.array([1, 2, 5, 5, 5])
    found = PredictionFile(images, labels, predictions, np.zeros((5, 7)), ("",) * 7)
    assert emoji_accuracy(found) == pytest.approx((1 / 2 + 3 / 3) / 2)


@pytest.mark.long
def test_a_finished_run_is_scored_and_not_done_again(sticker_set, tmp_path):
    runs = [(ROW, tmp_path / f"lora_v-{seed}", str(sticker_set), seed) for seed in (0, 1)]
    assert read_score(tmp_path / "lora_v-0") is None
    assert list(run_all(runs[:1], 1)) == [tmp_path / "lora_v-0"]
    assert list(run_all(runs, 1)) == [tmp_path / "lora_v-1"]
    figures = json.loads((tmp_path / "lora_v-0" / "checkpoint_v_best_test.json").read_text())
    epoch = json.loads((tmp_path / "lora_v-0" / "log.txt").read_text())
    score = read_score(tmp_path / "lora_v-0")
    assert (score.test, score.val) == (figures["acc1"], epoch["val_acc1"])
    assert score.macro_f1 == pytest.approx(100 * figures["macro"]["f1"])
    assert json.loads((tmp_path / "lora_v-1" / "options.json").read_text())["options"]["seed"] == 1


@pytest.mark.long
def test_a_run_that_fails_is_named_with_its_log_and_ends_the_others(tmp_path):
    runs = [(ROW, tmp_path / f"run-{seed}", str(tmp_path / "nowhere"), seed) for seed in range(9)]
    with pytest.raises(UserError, match=r"LORA-V, seed 0: .*nowhere.*; see .*run\.log"):
        list(run_all(runs, 1))
    assert not (tmp_path / "run-8").exists()
