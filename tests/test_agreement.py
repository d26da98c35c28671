"""The annotators' agreement, on votes whose figures are known, and as tools/check_dataset.py reports it."""

import json

import numpy as np
import pytest

from tools import agreement, check_dataset

# Fleiss (1971) in Wikipedia's example: 14 raters, 10 subjects, 5 classes, kappa 0.210.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def make_set(root, rows, split="test", write_image=None):
    """SER30K's lists with rows of anno and three votes; a vote None is left out."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "Images" / "cats").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (label, *votes) in enumerate(rows):
        entry = {"topic": "cats", "file_name": f"{number}.png", "text": "", "anno": label}
        entry |= {f"anno{place}": vote for place, vote in enumerate(votes, start=1) if vote is not None}
        entries.append(entry)
    (root / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": entries}))
    return root


def measured(tmp_path, rows):
    return agreement.measure(agreement.read_votes(make_set(tmp_path / "set", rows)))


def test_kappa_is_that_of_the_published_example():
    assert agreement.fleiss_kappa(np.array(FLEISS)) == pytest.approx(0.20993, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_statsmodels(seed):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    generator = np.random.default_rng(seed)
    votes = generator.choice(7, (200, 3), p=generator.dirichlet(np.ones(7)))
    table, _ = inter_rater.aggregate_raters(votes, n_cat=7)
    assert agreement.fleiss_kappa(agreement.count_votes(votes, 7)) == pytest.approx(
        inter_rater.fleiss_kappa(table, method="fleiss"), abs=1e-12
    )


def test_kappa_of_votes_for_one_class_is_not_defined(tmp_path):
    found = measured(tmp_path, [(1, 1, 1, 1)] * 3)
    assert found["fleiss_kappa"] is None
    assert "Fleiss' kappa undefined" in "\n".join(agreement.lines(found))


def test_the_shares_of_agreement_are_counted(tmp_path):
    found = measured(tmp_path, [(1, 1, 1, 1), (2, 2, 2, 3), (3, 4, 3, 3), (5, 5, 6, 7)])
    assert found["agreeing"] == {"3": 0.25, "2": 0.5, "none": 0.25}
    assert found["pairwise_agreement"] == {
        "mean": pytest.approx(5 / 12),
        "anno1, anno2": 0.5,
        "anno1, anno3": 0.25,
        "anno2, anno3": 0.5,
    }
    matrix = np.array(found["confusion_matrix"])
    assert matrix.sum() == 4 * 6
    assert matrix[0, 0] == 6
    assert (matrix[1, 1], matrix[1, 2], matrix[2, 1]) == (2, 2, 2)
    assert (matrix[4, 5], matrix[4, 6], matrix[5, 6]) == (1, 1, 1)
    assert (matrix == matrix.T).all()


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([(1, 1, 1, 2), (2, 1, 2, 2), (3, 4, 3, 5)], "the majority, else anno2"),
        ([(1, 1, 1, 2), (2, 1, 2, 2), (5, 4, 3, 5), (7, 7, 6, 1), (6, 5, 4, 6)], "the majority, else the largest"),
        ([(1, 1, 2, 2), (3, 3, 4, 4), (3, 3, 1, 2)], "anno1"),
        ([(2, 1, 1, 2), (4, 3, 3, 4), (2, 3, 1, 2)], "anno3"),
    ],
)
def test_the_rule_of_the_label_is_found(tmp_path, rows, name):
    rule = measured(tmp_path, rows)["rule"]
    assert rule["name"].startswith(name)
    assert rule["exceptions"] == []


def test_labels_against_the_rule_are_listed(tmp_path):
    rows = [(1, 2, 1, 1), (2, 2, 2, 3), (3, 3, 4, 3), (6, 2, 2, 3), (4, 5, 5, 4), (7, 7, 7, 6)]
    rule = measured(tmp_path, rows)["rule"]
    assert (rule["name"], rule["as_good"]) == ("the majority", [])
    assert (rule["judged"], rule["without_majority"], rule["follows"]["anno1"]) == (6, 0, 3)
    assert rule["exceptions"] == [
        "test, entry 3, cats/3.png: anno 6, votes 2 2 3",
        "test, entry 4, cats/4.png: anno 4, votes 5 5 4",
    ]


def test_missing_votes_and_votes_out_of_range_are_counted_and_listed(tmp_path):
    rows = [(1, 1, 1, 1), (1, None, 1, 1), (1, 8, 1, 0), (1, "1", 1, 1), (1, 1, True, ""), (9, 2, 2, 2)]
    found = measured(tmp_path, rows)
    assert (found["stickers"], found["with_three_votes"], found["rule"]["judged"]) == (6, 2, 1)
    wrong = found["wrong_votes"]
    assert (wrong["missing"], wrong["out of range"]) == (2, 4)
    assert [text.rpartition(": ")[2] for text in wrong["list"]] == [
        "no anno1",
        "anno1 is int 8",
        "anno3 is int 0",
        "anno1 is str '1'",
        "anno2 is bool True",
        "no anno3",
    ]
    assert found["pairwise_agreement"]["anno1, anno2"] == 1


def test_lists_without_votes_and_with_what_is_no_entry_are_read(tmp_path):
    root = make_set(tmp_path / "set", [])
    for entries in ([], [5, None, {}], [{"topic": "a", "file_name": "b", "anno": 1}]):
        (root / "Annotations" / "test.json").write_text(json.dumps({"annotations": entries}))
        found = agreement.measure(agreement.read_votes(root))
        assert (found["stickers"], found["with_three_votes"]) == (len(entries), 0)
        assert found["wrong_votes"]["missing"] == 3 * len(entries)
        assert len(agreement.lines(found)) == 2


def test_the_checker_reports_the_agreement(tmp_path, sticker_set, capsys):
    output = tmp_path / "report.json"
    assert check_dataset.main([str(sticker_set), "--workers", "1", "--json", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["agreement"]["fleiss_kappa"] == 1
    assert report["agreement"]["stickers"] == 37
    said = capsys.readouterr().out
    assert "annotators: three votes on 37 of 37 stickers" in said
    assert "all three agree on 100.00 %" in said
