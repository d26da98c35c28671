"""Topics: from the data sets into batches, and what an evaluation of TGCA-PVT says of them."""

import csv
import json

import pytest
import torch
from PIL import Image

from datasets import build_dataset, build_transform, same_topics
from readers.data_sets import DATA_SETS
from readers.tokenizer import DEFAULT_VOCABULARY, Tokenizer
from tests.conftest import SMALL, write_sticker_set
from tests.test_main import assert_one_line_error, run_here

V = ("main_V.py", "--model", "tgca_pvt_v", *SMALL)


@pytest.fixture(scope="module")
def topic_set(tmp_path_factory):
    """The small sticker set with three topics, two of which have the same word ids."""
    root = write_sticker_set(tmp_path_factory.mktemp("topics") / "SER_Dataset", counts=(24, 6, 14))
    for split in ("train", "val", "test"):
        path = root / "Annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        for number, entry in enumerate(content["annotations"]):
            topic = ("Panda", "panda", "cat")[number // 2 % 3]
            (root / "Images" / topic).mkdir(exist_ok=True)
            (root / "Images" / "squares" / entry["file_name"]).rename(root / "Images" / topic / entry["file_name"])
            entry["topic"] = topic
        path.write_text(json.dumps(content))
    return root


def topics_of(root, topics, name="SER_V"):
    data = build_dataset(name, root, "test", transform=build_transform(False, input_size=32), topics=topics)
    return [data[index]["topics"] for index in range(len(data))]


def write_table(folder, **columns):
    rows = [{"path": f"{n}.png", "label": "ab"[n % 2], "split": "train" if n < 8 else "test"} for n in range(12)]
    for row in rows:
        Image.new("RGB", (40, 40)).save(folder / row["path"])
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *columns])
        writer.writeheader()
        writer.writerows(row | {key: of(n) for key, of in columns.items()} for n, row in enumerate(rows))
    return folder / "table.csv"


def test_topics_are_one_if_their_word_ids_are_unless_they_are_to_be_exact(topic_set):
    encoded = topics_of(topic_set, same_topics(Tokenizer(DEFAULT_VOCABULARY)))
    assert encoded[:8] == [0, 0, 0, 0, 1, 1, 0, 0]
    assert topics_of(topic_set, same_topics(None))[:8] == [0, 0, 1, 1, 2, 2, 0, 0]


def test_an_image_of_fi_and_emotion_roi_is_its_own_topic_and_a_table_names_them(tmp_path):
    for folder in ("test/Awe", "images/joy", "training_testing_split"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("test/Awe/1.jpg", "images/joy/1.jpg", "images/joy/2.jpg"):
        Image.new("RGB", (40, 40)).save(tmp_path / path)
    (tmp_path / "training_testing_split" / "testing.txt").write_text("joy/1.jpg\njoy/2.jpg\n")
    (tmp_path / "test.json").write_text(json.dumps([["Awe/1.jpg", 2]]))
    assert [sample.topic for sample in DATA_SETS["FI"].read(tmp_path, "test")] == ["Awe/1.jpg"]
    (tmp_path / "test.json").unlink()
    assert [sample.topic for sample in DATA_SETS["EmotionROI"].read(tmp_path, "test")] == ["joy/1.jpg", "joy/2.jpg"]
    table = write_table(tmp_path, topic=lambda n: f"pack {n // 2}")
    assert topics_of(table, same_topics(None), "csv") == [0, 0, 1, 1]


@pytest.mark.parametrize("columns", [{}, {"topic": lambda n: "" if n == 3 else "pack"}], ids=["none", "one empty"])
def test_a_table_without_topics_is_an_error_of_one_line(columns, tmp_path):
    table = write_table(tmp_path, **columns)
    finished = run_here(*V, "--dataset", "csv", "--data-path", table, "--output-dir", tmp_path / "run")
    assert finished.code == 2
    last = finished.output.splitlines()[-1]
    assert f"{3 if columns else 0}.png: expected a topic for each image, which this --model reads, found none" in last
    assert "Traceback" not in finished.output


@pytest.mark.parametrize("flag", ["--context alone", "--context batch", "--topics-as exact"])
def test_flags_of_topics_are_an_error_for_lora(flag, topic_set, tmp_path):
    finished = run_here("main_V.py", *SMALL, *flag.split(), "--data-path", topic_set, "--output-dir", tmp_path)
    expected = "--model tgca_pvt, tgca_pvt_v or tgca_pvt_lora_locals"
    assert_one_line_error(finished, f"{flag}: expected {expected}, found lora_v")


@pytest.fixture(scope="module")
def trained(topic_set, tmp_path_factory, run_torchrun):
    """A run of two processes without local stages, whose `conv1` to `conv3` get no gradient."""
    folder = tmp_path_factory.mktemp("tgca")
    given = ("--locals", *"0000", "--epochs", "1", "--data-path", topic_set, "--output-dir", folder)
    finished = run_torchrun(2, *V, *given)
    assert finished.code == 0, finished.output
    return folder


def evaluated(run, trained, folder, topic_set, *flags):
    given = ("--locals", *"0000", "--eval", "--data-path", topic_set, "--output-dir", folder)
    finished = run(*V, *given, "--resume", trained / "checkpoint_tgca_v.pth", *flags)
    assert finished.code == 0, finished.output
    figures = json.loads((folder / "checkpoint_tgca_v_test.json").read_text())
    return finished.output, figures, (folder / "checkpoint_tgca_v_test.csv").read_bytes()


def test_a_batch_is_the_same_context_on_any_number_of_processes(trained, topic_set, tmp_path, run_torchrun):
    output, figures, predictions = evaluated(run_here, trained, tmp_path / "1", topic_set)
    context = figures["context"]
    assert (context["mode"], context["batch_size"], context["processes"]) == ("batch", 6, 1)
    assert context["with_others_of_their_topic"] == 14
    assert f"context {context['statement']}" in output
    two = evaluated(lambda *words: run_torchrun(2, *words), trained, tmp_path / "2", topic_set)
    assert two[2] == predictions
    assert two[1]["acc1"] == figures["acc1"]
    exact = evaluated(run_here, trained, tmp_path / "3", topic_set, "--topics-as", "exact")
    assert exact[2] != predictions
    assert context["statement"] in (trained / "checkpoint_tgca_v.md").read_text().replace("2 processes", "1 processes")


def test_alone_depends_on_no_batch(trained, topic_set, tmp_path):
    alone = evaluated(run_here, trained, tmp_path / "1", topic_set, "--context", "alone")
    assert alone[1]["context"]["with_others_of_their_topic"] == 0
    single = evaluated(run_here, trained, tmp_path / "2", topic_set, "--context", "batch", "--batch-size", "1")
    assert single[1]["context"]["batch_size"] == 1
    assert abs(alone[1]["loss"] - single[1]["loss"]) < 1e-5
    together = evaluated(run_here, trained, tmp_path / "3", topic_set)
    assert abs(together[1]["loss"] - alone[1]["loss"]) > 1e-5


def test_the_whole_network_trains_with_texts_and_topics(topic_set, small_bert, tmp_path):
    given = ("--epochs", "1", "--data-path", topic_set, "--output-dir", tmp_path, "--bert-model", small_bert)
    finished = run_here("main.py", "--model", "tgca_pvt", *SMALL, *given)
    assert finished.code == 0, finished.output
    assert torch.load(tmp_path / "checkpoint_tgca.pth", weights_only=True)["args"]["context"] == "batch"
