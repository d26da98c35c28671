"""What one annotator reaches: figures of votes that are known, and the rows of tools/reproduce.py."""

import json

import numpy as np
import pytest

from tests.test_agreement import make_set
from tools import reproduce
from tools.tables.annotators import ANNOTATOR, OTHERS, bootstrap_mean, figures_of_annotators

# Each annotator is right on 3 of the 4. The two others agree, beside row 0, once each, and then he says something else.
ROWS = [(1, 1, 1, 1), (2, 2, 2, 3), (3, 3, 5, 3), (6, 2, 6, 6)]


def test_against_the_label(tmp_path):
    root = make_set(tmp_path / "SER_Dataset", [*ROWS, (7, 7, None, 7), (9, 1, 1, 1)])
    figures = figures_of_annotators(root, ANNOTATOR)
    assert figures["acc1"] == pytest.approx(100 * (3 + 3 + 3) / 12)
    assert figures["samples"] == 4
    assert figures["per_class"]["surprise"] == {"precision": 1, "recall": 1, "f1": 1, "samples": 1}
    low, high = figures["intervals"]["acc1"]
    assert low < figures["acc1"] < high


def test_against_the_two_others_where_they_agree(tmp_path):
    figures = figures_of_annotators(make_set(tmp_path / "SER_Dataset", [*ROWS, (4, 4, 5, 6)]), OTHERS)
    assert figures["acc1"] == pytest.approx(50)
    assert figures["samples"] == 4


def test_without_votes_there_are_no_figures(tmp_path):
    root = make_set(tmp_path / "SER_Dataset", [(1, None, None, None)])
    assert figures_of_annotators(root, ANNOTATOR) is None
    assert figures_of_annotators(make_set(tmp_path / "b", [(1, 1, 2, 3)]), OTHERS) is None


def test_the_interval_is_that_of_drawing_stickers():
    generator = np.random.default_rng(0)
    correct, counted = generator.random((80, 3)) < 0.7, generator.random((80, 3)) < 0.8
    values = []
    for _ in range(4000):
        drawn = generator.integers(0, 80, 80)
        right, of_all = (correct & counted)[drawn].sum(axis=0), counted[drawn].sum(axis=0)
        values.append(100 * (right / of_all).mean())
    np.testing.assert_allclose(bootstrap_mean(correct, counted), np.percentile(values, [2.5, 97.5]), atol=0.7)


def test_the_tables_have_the_rows(tmp_path):
    make_set(tmp_path / "SER_Dataset", ROWS)
    arguments = [
        "--data-root",
        tmp_path,
        "--weights",
        tmp_path,
        "--output",
        tmp_path / "tables",
        "--runs",
        tmp_path / "r",
    ]
    reproduce.main([*map(str, arguments), "--only", "annotator", "annotator_others", "lora_v", "--seeds", "0", "1"])
    rows = json.loads((tmp_path / "tables" / "tables.json").read_text())["tables"][0]["rows"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["annotator"]["seeds"]["0"]["acc1"] == pytest.approx(75)
    assert by_name["annotator_others"]["seeds"]["0"]["acc1"] == pytest.approx(50)
    assert (by_name["annotator"]["command"], len(by_name["annotator"]["seeds"])) == ("", 1)
    text = (tmp_path / "tables" / "tables.md").read_text()
    assert "| one annotator | val | 75.00 |" in text
    assert "no strict ceiling" in text
