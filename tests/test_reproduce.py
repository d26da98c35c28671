"""tools/reproduce.py on a small set: tables from checkpoints and trainings, and what could not be run."""

import csv
import json
import shlex
import shutil
import sys

import numpy as np
import pytest

from runtime.options import parse_options
from runtime.reports import read_predictions
from tests.conftest import ROOT, SMALL, run_process
from tools.tables.experiments import Experiment, Table, choose, originals, read_settings, read_tables
from tools.tables.running import ANNOTATORS, Job, RunContext
from tools.tables.writing import COLUMNS, Row, as_csv, difference, latex, markdown
from utils import UserError

pytestmark = pytest.mark.long

TABLES = """
table = dict(
    title="Small & 100 % ours",
    rows=[
        dict(name="given", title="LORA-V", protocols=("published", "val"), published=70.0, source="a paper"),
        dict(name="majority", title="majority", model="majority", start=""),
        dict(name="locals_0000", title="LORA-V, locals 0000", flags="--locals 0 0 0 0"),
        dict(name="fi", title="LORA-V", dataset="FI", protocols=("published",)),
        dict(name="wrong", title="LORA-V, alpha 9", flags="--alpha 9"),
        dict(name="large", title="Swin-T", model="timm/swin"),
        dict(name="stand_in", title="Big", model="timm/big", start=""),
        dict(name="book", title="MAM", script="", published=68.97, source="another paper"),
        dict(name="again", title="LORA-V again", same_as="locals_0000"),
        dict(name="by_2", title="LORA-V by 2", same_as="locals_0000", evaluation="--batch-size 2"),
        dict(name="given_by_2", title="by 2", same_as="given", protocols=("published",), evaluation="--batch-size 2"),
    ],
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, sticker_set, trained):
    """A folder with data, a checkpoint, experiments and settings."""
    root = tmp_path_factory.mktemp("reproduce")
    (root / "data").mkdir()
    (root / "data" / "SER_Dataset").symlink_to(sticker_set)
    (root / "weights").mkdir()
    shutil.copy(trained["lora_v"] / "checkpoint_v.pth", root / "weights" / "given.pth")
    (root / "paper").mkdir()
    (root / "paper" / "small.py").write_text(TABLES)
    (root / "config.py").write_text("cfg = dict()")
    flags = " ".join(SMALL)
    settings = f"settings = dict(config={str(root / 'config.py')!r}, flags={flags!r}, is_published=True, "
    (root / "settings.py").write_text(settings + "models={'timm/swin': None, 'timm/big': 'timm/test_vit'}, same={})")
    return root


def reproduce(root, *flags):
    """Runs the tool and returns what it printed, and its tables."""
    command = [sys.executable, "tools/reproduce.py", "--data-root", root / "data", "--weights", root / "weights"]
    command += ["--experiments", root / "paper", "--settings", root / "settings.py", "--runs", root / "runs"]
    finished = run_process(*command, "--output", root / "results", *flags)
    assert finished.code == 0, finished.output
    return finished.output, json.loads((root / "results" / "tables.json").read_text())


@pytest.fixture(scope="module")
def filled(project):
    """What is there without training, and then with it; starts without weights of a backbone, as settings say."""
    _, before = reproduce(project)
    source = (project / "paper" / "small.py").read_text()
    (project / "paper" / "small.py").write_text(source.replace('flags="--l', 'start="", flags="--l'))
    output, after = reproduce(project, "--train", "--jobs", "2")
    return before, after, output


def row(tables, name, protocol="val"):
    """A row of tables.json."""
    return next(
        one for table in tables["tables"] for one in table["rows"] if (one["name"], one["protocol"]) == (name, protocol)
    )


def test_a_checkpoint_is_evaluated_and_compared_with_what_was_published(filled, trained):
    given = row(filled[0], "given", "published")
    expected = json.loads((trained["lora_v"] / "checkpoint_v_test.json").read_text())
    (figures,) = given["seeds"].values()
    for name in ("acc1", "macro", "weighted", "per_class", "mean_average_precision", "samples"):
        assert figures[name] == expected[name]
    low, high = figures["intervals"]["acc1"]
    assert low <= figures["acc1"] <= high
    assert figures["parameters"] > 1e6
    assert figures["operations"] > 1e7
    assert figures["images_per_second"] > 0
    assert given["difference"] == f"{expected['acc1'] - 70:+.2f}, not reproduced"
    assert given["title"] == "LORA-V"


def test_a_checkpoint_is_also_evaluated_with_images_as_published(filled, project):
    rows = [one for table in filled[0]["tables"] for one in table["rows"] if one["name"] == "given"]
    titles = [(one["title"], one["protocol"]) for one in rows]
    assert titles == [
        ("LORA-V", "published"),
        ("LORA-V (--image-reading published)", "published"),
        ("LORA-V", "val"),
    ]
    options = {}
    for name in ("weights", "weights-published"):
        content = json.loads((project / "runs" / "given" / name / "given_test.json").read_text())
        options[name] = content["run"]["options"]["image_reading"]
    assert options == {"weights": "rgb-on-white", "weights-published": "published"}


def test_reproduced_means_within_a_tenth_of_a_point():
    facts = {"comparable": True, "columns": COLUMNS}
    for points, word in ((0.1, "reproduced"), (-0.09, "reproduced"), (0.11, "not reproduced")):
        figures = {0: {"acc1": 70.0 + points, "from": "lora.pth"}}
        text = difference(Row(Experiment("a", "A", published=70.0), "published", figures), facts)
        assert text == f"{points:+.2f}, {word}"


def test_what_is_not_there_says_why(filled, project):
    before, after, _ = filled
    assert row(before, "given")["not_run"].startswith("no given.pth in --weights, and without --train")
    assert row(before, "locals_0000")["not_run"].startswith("no locals_0000.pth in --weights")
    assert row(after, "fi", "published")["not_run"].startswith("no data: ")
    assert row(after, "given")["not_run"] == f"no {project}/weights/pvt_small.pth, from which training starts"
    assert row(after, "large")["not_run"] == "timm/swin has no small form in these settings"
    assert row(after, "book")["not_run"] == "a figure of the literature"


def test_what_is_missing_is_trained(filled, project):
    after = filled[1]
    folder = project / "runs" / "locals_0000" / "val-0"
    expected = json.loads((folder / "checkpoint_v_best_test.json").read_text())
    given = row(after, "locals_0000")["seeds"]["0"]
    assert (given["acc1"], given["from"]) == (expected["acc1"], "training")
    assert expected["run"]["options"]["locals"] == [0, 0, 0, 0]
    assert row(after, "again")["seeds"] == row(after, "locals_0000")["seeds"]
    assert row(after, "majority")["seeds"]["0"]["samples"] == 7
    assert row(after, "stand_in")["title"] == "Big (timm/test_vit in its place)"
    assert row(after, "stand_in")["seeds"]["0"]["samples"] == 7


def test_a_second_call_trains_nothing_again(filled, project):
    log = project / "runs" / "locals_0000" / "val-0" / "run.log"
    before = log.stat().st_mtime_ns
    _, tables = reproduce(project, "--train", "--only", "locals_0000")
    assert log.stat().st_mtime_ns == before
    assert [one["name"] for table in tables["tables"] for one in table["rows"]] == ["locals_0000"]


def test_a_checkpoint_is_evaluated_once_more_with_other_flags(filled, project):
    """That of --weights in both image readings; a trained one after its training, with the epoch chosen there."""
    before, after, _ = filled
    options = {}
    for place in ("given/weights", "given/weights-published", "locals_0000/val-0"):
        (file,) = (project / "runs" / place / "batch_size_2").glob("*_test.json")
        options[place] = json.loads(file.read_text())["run"]["options"]["batch_size"]
    assert set(options.values()) == {2}
    assert row(before, "by_2")["not_run"].startswith("no locals_0000.pth in --weights")
    assert row(before, "given_by_2", "published")["seeds"]["0"]["from"].endswith("given.pth")
    again, own = (row(after, name)["seeds"]["0"] for name in ("by_2", "locals_0000"))
    assert (again["acc1"], again["from"]) == (own["acc1"], "training")
    log = (project / "runs" / "locals_0000" / "val-0" / "run.log").read_text()
    assert log.count("$ ") == 1


def test_figures_published_by_class_are_shown_without_a_run():
    one = Experiment("a", "A", script="", source="a paper", published_by_class=(("calm", 61.5, 42.25, 50.0),))
    facts = {"command": "c", "machine": "m", "threads": 1, "torch": "2", "date": "d", "minutes": 1, "comparable": True}
    facts |= {"cost_device": "a CPU", "columns": COLUMNS}
    text = markdown([Table("t", "T", "", [one])], {"t": [Row(one, "val", "a figure of the literature")]}, facts)
    assert "| class | precision | recall | F1 |" in text
    assert "| calm | 61.50 | 42.25 | 50.00 |" in text


def test_a_run_of_other_settings_is_not_taken_for_this_one(filled, project):
    settings = project / "settings.py"
    before = settings.read_text()
    settings.write_text(before.replace("--epochs 2", "--epochs 3"))
    _, tables = reproduce(project, "--only", "locals_0000")
    settings.write_text(before)
    assert "is of another command: remove it" in row(tables, "locals_0000")["not_run"]


def test_a_newer_checkpoint_is_evaluated_again(filled, project):
    result = project / "runs" / "given" / "weights" / "given_test.json"
    before = result.stat().st_mtime_ns
    reproduce(project, "--only", "given")
    assert result.stat().st_mtime_ns == before
    (project / "weights" / "given.pth").touch()
    reproduce(project, "--only", "given")
    assert result.stat().st_mtime_ns > before


def test_every_format_has_every_row(filled, project):
    reproduce(project)
    results = project / "results"
    with (results / "tables.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines][2:4] == ["LORA-V", "majority"]
    assert len(lines) == 14
    text = (results / "tables.md").read_text()
    assert text.count("| LORA-V | published |") == 2
    assert "Published: a paper. Published: another paper." in text
    tex = (results / "tables.tex").read_text()
    assert r"\caption{Small \& 100 \% ours}" in tex
    assert tex.count(r" \\") == 15


OWN = """
settings = dict(config={config!r}, flags={flags!r}, group=lambda image: image.split("/")[1][:1], columns={columns!r})
tables = [
    dict(name="own", title="Own", note="By group: by the first letter.", rows=[
        dict(name="hog", title="HOG", model="hog", folder="elsewhere"),
        dict(name="lora_v", title="LORA-V", start="", folder="elsewhere"),
        dict(name="given", title="given", start="", flags="--epochs 9 --lr x"),
    ])
]
"""


def test_settings_may_bring_tables_columns_and_groups(project, sticker_set):
    """They run on another folder of data, take no checkpoint of --weights, and show the columns that they name."""
    (project / "data" / "elsewhere").symlink_to(sticker_set)
    columns = ("row", "val top-1", "top-1", "by group", "seeds", "training")
    own = OWN.format(config=str(project / "config.py"), flags=" ".join(SMALL), columns=columns)
    (project / "own.py").write_text(own)
    command = [sys.executable, "tools/reproduce.py", "--data-root", project / "data", "--weights", project / "weights"]
    command += ["--settings", project / "own.py", "--runs", project / "own", "--output", project / "own"]
    finished = run_process(*command, "--train", "--jobs", "2", "--seeds", "0", "1")
    assert finished.code == 0, finished.output
    tables = json.loads((project / "own" / "tables.json").read_text())
    assert list(row(tables, "hog")["seeds"]) == ["0"]
    assert "invalid" in row(tables, "given")["not_run"]
    assert "run.log" in row(tables, "given")["not_run"]
    runs = row(tables, "lora_v")["seeds"]
    folder = project / "own" / "lora_v" / "val-1"
    predictions = read_predictions(folder / "checkpoint_v_best_test.csv")
    shares = {}
    for image, correct in zip(predictions.images, predictions.labels == predictions.predictions, strict=True):
        shares.setdefault(image.split("/")[1][:1], []).append(correct)
    assert runs["1"]["acc1_by_group"] == pytest.approx(100 * np.mean([np.mean(one) for one in shares.values()]))
    epochs = [json.loads(line)["val_acc1"] for line in (folder / "log.txt").read_text().splitlines()]
    assert runs["1"]["best_val_acc1"] == max(epochs)
    text = (project / "own" / "tables.md").read_text()
    assert "| row | val top-1 | top-1 | by group | seeds | training |" in text
    assert "By group: by the first letter." in text
    hog = (project / "own" / "hog" / "val-0" / "hog.json").stat().st_mtime_ns
    assert run_process(*command, "--only", "hog").code == 0
    assert (project / "own" / "hog" / "val-0" / "hog.json").stat().st_mtime_ns == hog


@pytest.mark.parametrize("name", ["demo_table", "demo_selection", "demo_topics"])
def test_the_demos_experiments_are_command_lines(name):
    settings, tables = read_settings(ROOT / "configs" / f"{name}.py")
    assert set(settings.columns) < set(COLUMNS)
    rows = originals(tables).values()
    for one in rows:
        parse_options([*shlex.split(settings.flags), *one.flags.split(), *shlex.split(one.evaluation)], {})
    assert len({one._replace(name="", title="") for one in rows}) == len(rows)
    if settings.group:
        assert settings.group("Images/openmoji/1F64E-1F3FB.png") == settings.group("Images/noto-bold/1F64E.png")


def test_a_table_that_leaves_test_out_shows_nothing_of_it():
    figures = {"macro": dict.fromkeys(("precision", "recall", "f1"), 0.5), "mean_average_precision": 0.4}
    figures |= {"weighted": figures["macro"], "samples": 10, "from": "training", "intervals": {"acc1": [40.0, 80.0]}}
    figures |= {"per_class": {"calm": {}}, "acc1": 61.0, "best_val_acc1": 52.0}
    one = Experiment("a", "A")
    rows = {"t": [Row(one, "val", {0: figures}), Row(one, "val", "no data")]}
    facts = {"command": "c", "machine": "m", "threads": 1, "torch": "2", "date": "d", "minutes": 1, "comparable": True}
    facts |= {"cost_device": "a CPU", "columns": ("row", "val top-1")}
    table = [Table("t", "T", "", [one])]
    for text in (markdown(table, rows, facts), latex(table, rows, facts), as_csv(table, rows, facts)):
        assert "52.00" in text
        assert "61" not in text
        assert "not run" in text


def test_seeds_have_mean_and_deviation():
    figures = {"macro": dict.fromkeys(("precision", "recall", "f1"), 0.5), "mean_average_precision": 0.4}
    figures |= {"weighted": figures["macro"], "samples": 10, "parameters": 2e6, "operations": 3e9, "from": "training"}
    figures |= {"intervals": {"acc1": [40.0, 80.0]}, "images_per_second": 5.0, "minutes": 2.0, "per_class": {}}
    runs = {seed: {**figures, "acc1": acc1} for seed, acc1 in enumerate((50.0, 60.0, 70.0))}
    one = Experiment("a", "A_1", published=70.0)
    rows = {"t": [Row(one, "val", runs), Row(one, "published", "no data: a|b")]}
    facts = {"command": "c", "machine": "m", "threads": 1, "torch": "2", "date": "d", "minutes": 1, "comparable": True}
    facts |= {"cost_device": "a CPU", "columns": COLUMNS}
    text = markdown([Table("t", "T", "", [one])], rows, facts)
    assert "Reproduced: within 0.1 points, because in float16" in text
    assert "| A_1 | val | 60.00 ± 10.00 | 40.00 to 80.00 |" in text
    assert "| -10.00 | 10 | 0 1 2 |" in text
    assert "not run: no data: a\\|b" in text
    assert r"A\_1 & val & 60.00 $\pm$ 10.00" in latex([Table("t", "T", "", [one])], rows, facts)
    assert "val top-1" not in text.splitlines()[6]  # no row has one


def test_the_papers_experiments_have_the_papers_batches():
    """Of 16 images a process, and not of as many as the flag's default says; the demo's have those of its config."""
    (experiment,) = [
        row for table in read_tables(ROOT / "configs" / "paper") for row in table.rows if row.name == "lora"
    ]
    for file, size in ((None, 16), (ROOT / "configs" / "paper_demo.py", 32)):
        folders = {"data_root": ROOT, "weights": ROOT / "weights", "runs": ROOT / "runs"}
        context = RunContext(read_settings(file)[0], **folders, bert_model="", launcher="", threads=1, train=True)
        _, *words = Job(experiment, "published", 0).command(context)
        assert parse_options(words, {}).batch_size == size


def test_the_papers_experiments_are_command_lines():
    """Every flag is one, every figure has its source, and the small settings name data sets and models that exist."""
    tables = read_tables(ROOT / "configs" / "paper")
    rows = originals(tables)
    assert [rows[name].published for name in ("lora_v", "lora", "tgca_pvt")] == [69.22, 70.73, 71.63]
    for one in rows.values():
        model = [] if one.model in ("", *ANNOTATORS) else ["--model", one.model]
        parse_options([*f"{one.flags} {one.evaluation}".split(), *model], {})
        assert bool(one.source) == (one.published is not None)
        assert (ROOT / "configs" / "pvt" / f"{one.backbone}.py").is_file()
    settings, own = read_settings(ROOT / "configs" / "paper_demo.py")
    assert (settings.is_published, own) == (False, [])
    used = {one.model for one in rows.values()} | {one.backbone for one in rows.values()}
    assert set(settings.models) <= used
    assert set(settings.same) <= set(rows)


def test_wrong_experiments_are_reported(tmp_path):
    with pytest.raises(UserError, match="expected files of experiments"):
        read_tables(tmp_path)
    (tmp_path / "a.py").write_text("table = dict(title='A', rows=[dict(name='a', title='A', colour=1)])")
    with pytest.raises(UserError, match=r"a.py: expected table = dict\(title, note, rows\)"):
        read_tables(tmp_path)
    (tmp_path / "a.py").write_text("table = dict(title='A', rows=[dict(name='a', title='A')] * 2)")
    with pytest.raises(UserError, match="experiments named twice or not at all"):
        read_tables(tmp_path)
    with pytest.raises(UserError, match="--only"):
        choose([Table("t", "T", "", [Experiment("a", "A")])], ["b"])
