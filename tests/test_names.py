"""Names from a user's data, in any script and of any bytes, in files, figures and on terminals."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from inference import lettering
from inference.explain import explain
from inference.overlay import explanation_figure
from inference.predictor import load_predictor
from runtime import figures
from runtime.boards import Harmless, boards
from runtime.model_card import as_markdown
from runtime.reports import PredictionFile, predictions_table, read_predictions
from tests.conftest import ROOT, SMALL
from tests.test_main import run_here
from utils import escaped, is_printable, printable, unescaped

CLASSES = ("开心", "a$b$c_{d}", "_lead", "back\\slash", "עצוב", "عصبانی\u200cها", "👩\u200d🚀", "全\u3000角")
RAW = os.fsdecode(b"bad\xff\xfe.png")
NAMES = (
    "plain.png",
    RAW,
    "two\nlines.png",
    "a\rb.png",
    'quote",comma.png',
    "\\udcff.png",
    "$x$\\u005cudcff.png",
    "悲.png",
)


@given(st.text(st.characters(codec=None) | st.sampled_from("\\u0dc\udcff\r"), max_size=30))
def test_an_escaped_text_is_utf8_and_gives_back_the_same(text):
    assert unescaped(escaped(text)) == text
    assert "\r" not in escaped(text)
    escaped(text).encode()


def test_predictions_give_back_the_same_names(tmp_path):
    shares = np.full((len(NAMES), len(CLASSES)), 1 / len(CLASSES))
    labels = np.arange(len(NAMES)) % len(CLASSES)
    table = PredictionFile(list(NAMES), labels, labels[::-1].copy(), shares, CLASSES)
    (tmp_path / "x.csv").write_text(predictions_table(table), encoding="utf-8", newline="")
    found = read_predictions(tmp_path / "x.csv")
    assert tuple(found.images) == NAMES
    assert found.class_names == CLASSES
    assert (found.labels == labels).all()


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_of_any_script_is_printable(name):
    assert is_printable(name)
    assert printable(name) == name


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "\u202eevil", RAW, "tab\t"])
def test_what_does_not_stay_on_a_line_is_escaped(name):
    assert printable(name) == repr(name)


def test_markdown_shows_a_name_as_it_is():
    assert as_markdown("a$x$ <b> `c` *d* \\e [f]") == r"a\$x\$ \<b\> \`c\` \*d\* \\e \[f\]"
    assert as_markdown("no_mark, 开心") == "no_mark, 开心"


@pytest.fixture(scope="module")
def named_set(tmp_path_factory):
    """Class folders of any script; test has an image whose name is no text."""
    root = tmp_path_factory.mktemp("named") / "data"
    noise = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for count in range(2):
                file = RAW if (split, number, count) == ("test", 0, 1) else f"{count}.png"
                Image.fromarray(noise.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / split / name / file)
    return root


@pytest.fixture(scope="module")
def named_run(named_set, tmp_path_factory, run_script):
    """A training on a terminal that knows ASCII alone, with all that a run draws."""
    folder = tmp_path_factory.mktemp("run") / "\u5f00"
    given = [*SMALL, "--dataset", "folder", "--data-path", named_set, "--output_dir", folder, "--epochs", "1"]
    finished = run_script(
        "main_V.py", *given, "--figures", "--tensorboard", env={"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    )
    assert finished.code == 0, finished.output
    return folder, finished.output


def test_a_training_with_any_names_is_done_on_an_ascii_terminal(named_run):
    folder, output = named_run
    assert "\\u5f00\\u5fc3" in output
    for name in ("confusion_matrix.png", "curves.png", "checkpoint_v.md", "checkpoint_v_test.json", "tensorboard"):
        assert (folder / name).exists(), output
    assert output.count("warning") <= 1  # of characters that no font has
    assert "Glyph" not in output
    table = read_predictions(folder / "checkpoint_v_test.csv")
    assert f"test/开心/{RAW}" in table.images
    assert set(table.class_names) == set(CLASSES)
    assert set(json.loads((folder / "checkpoint_v_test.json").read_text())["per_class"]) == set(CLASSES)
    assert "开心" in (folder / "checkpoint_v.md").read_text(encoding="utf-8")


def test_predictions_of_any_names_are_read_back(named_run, named_set, tmp_path, run_script):
    given = [named_run[0] / "checkpoint_v.pth", named_set / "test" / "开心", "--device", "cpu"]
    environment = {"PYTHONIOENCODING": "ascii"}
    expected = {str(named_set / "test" / "开心" / name) for name in ("0.png", RAW)}
    files = ["--format", "csv", "--output", tmp_path / "x.csv", "--overlay", tmp_path / "over"]
    finished = run_script("tools/predict.py", *given, *files, env=environment)
    assert finished.code == 0, finished.output
    rows = csv.DictReader(io.StringIO(unescaped((tmp_path / "x.csv").read_text(encoding="utf-8"))))
    assert {row["image"] for row in rows} == expected
    assert len(list((tmp_path / "over").iterdir())) == 2
    printed = run_script("tools/predict.py", *given, "--format", "json", env=environment)
    assert {row["image"] for row in json.loads(printed.output)} == expected


def texts_of(figure):
    """The texts that a figure shows once it is drawn."""
    FigureCanvasAgg(figure).draw()
    return {text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_parse_math"))}


def test_figures_read_nothing_as_mathematics(named_run, named_set):
    metrics = json.loads((named_run[0] / "checkpoint_v_test.json").read_text())
    predictor = load_predictor(named_run[0] / "checkpoint_v.pth", device="cpu")
    drawn = [
        figures.confusion_matrix(metrics),
        figures.feature_map(np.zeros((8, 2)), range(8), CLASSES, "map"),
        figures.mistake_sheet([Image.new("RGB", (4, 4))], ["a$b$c_{d}\nas back\\slash 90 %"]),
        explanation_figure(explain(predictor, named_set / "test" / "开心" / RAW)),
    ]
    for figure in drawn:
        assert any("a$b$c_{d}" in text for text in texts_of(figure))
        texts = figure.findobj(lambda one: hasattr(one, "get_parse_math"))
        assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())
    assert "_lead" in texts_of(drawn[1])


def write_font(path, characters):
    """A font in which each of the characters is a square."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (500, 0), (500, 500), (0, 500)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(one):X}" for one in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True)
    builder.save(path)


DRAW = """
import sys, numpy as np
from pathlib import Path
from runtime import figures
for name in ("one", "two"):
    rows = {text: dict(precision=0.0, recall=0.0, f1=0.0, samples=1) for text in ("\\U00013000\\U00013001", name)}
    metrics = dict(per_class=rows, confusion_matrix=[[1, 0], [0, 1]], split="test", acc1=0.0)
    figures.save_figure(figures.confusion_matrix(metrics), [Path(sys.argv[1]) / f"{name}.png"])
    figures.save_figure(figures.class_bars(metrics), [Path(sys.argv[1]) / f"{name}_bars.png"])
"""


@pytest.mark.parametrize("has_font", [True, False])
def test_a_font_of_the_system_is_used_or_one_warning_says_that_there_is_none(tmp_path, has_font):
    """Hieroglyphs, for which hardly a system has a font; in a process of its own, as fonts stay."""
    if has_font:
        write_font(tmp_path / "data" / "fonts" / "squares.ttf", "\U00013000\U00013001")
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "always", "-c", DRAW, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    warnings = [line for line in finished.stderr.splitlines() if "font" in line]
    assert len(warnings) == (0 if has_font else 1), finished.stderr
    assert "Glyph" not in finished.stderr
    assert all((tmp_path / f"{name}.png").is_file() for name in ("one", "two", "one_bars", "two_bars"))


def test_names_of_the_default_font_need_no_other(monkeypatch):
    monkeypatch.setattr(lettering, "looked_for", set())
    with lettering.lettering(["happy", "grün", "грусть"]):
        assert not lettering.looked_for


class Failing:
    """A board whose every call fails."""

    def __init__(self):
        self.calls = 0

    def numbers(self, entry):
        self.calls += 1
        raise OSError(28, "No space left on device")

    figure = close = numbers


def test_a_board_that_fails_is_one_warning(capsys):
    failing = Failing()
    board = Harmless(failing)
    board.numbers({"epoch": 0})
    board.figure("a", None, 0)
    board.close()
    assert failing.calls == 1
    said = capsys.readouterr().out
    assert said.startswith("warning: Failing fails and gets nothing more: No space left on device")
    assert said.count("\n") == 1


def test_ctrl_c_in_a_board_ends_the_run():
    class Interrupting(Failing):
        def numbers(self, entry):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Harmless(Interrupting()).numbers({"epoch": 0})


def test_a_training_survives_cards_and_figures_that_cannot_be_made(sticker_set, tmp_path):
    (tmp_path / "checkpoint_v.md").write_text("notes of mine")
    (tmp_path / "confusion_matrix.png").mkdir()
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path, "--epochs", "1", "--figures"]
    finished = run_here("main_V.py", *given)
    assert finished.code == 0, finished.output
    assert "warning: no model card: " in finished.output
    assert "warning: no confusion_matrix: " in finished.output
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "checkpoint_v_test.json").is_file()


def test_a_board_that_cannot_start_is_the_users_mistake(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    options = type("Options", (), {"output_dir": str(tmp_path), "tensorboard": True, "wandb": False})
    with pytest.raises(ValueError, match="--tensorboard: .* cannot be written"), boards(options, 0):
        pass
