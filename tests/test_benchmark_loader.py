"""The loader's benchmark, in small."""

import json

from PIL import Image

from tools import benchmark_loader, benchmark_run

SMALL = ["--input-size", "32", "--images", "8", "--batch-size", "4", "--rounds", "1"]
ROWS = ["bare", "item", "item, --jpeg-draft", "item, --cache-images"]
ROWS += [f"loader, {num_workers} workers" for num_workers in (0, 1, 2)]


def test_the_loader_benchmark_measures_every_row(tmp_path, sticker_set, capsys):
    output = tmp_path / "new" / "loader.json"
    assert benchmark_loader.main([*SMALL, "--data-path", str(sticker_set), "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["facts"]["command"].startswith("python tools/benchmark_loader.py --input-size 32")
    assert {"machine", "date", "torch"} < written["facts"].keys()
    seconds = written["seconds_an_image"]
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
        paths = benchmark_loader.draw_stickers(tmp_path / name, 3)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 3
    with Image.open(paths[0]) as image:
        assert image.format == "JPEG"
        assert 440 <= min(image.size) <= max(image.size) <= 560


def test_a_folder_that_is_no_data_set_is_named(tmp_path, capsys):
    assert benchmark_loader.main([*SMALL, "--data-path", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: expected one of the folders" in capsys.readouterr().err


def test_the_benchmark_of_whole_runs_measures_every_switch(tmp_path, sticker_set, monkeypatch, capsys):
    source = tmp_path / "set"
    (source / "Annotations").mkdir(parents=True)
    (source / "Annotations" / "image-level").symlink_to(sticker_set / "Annotations")
    (source / "Images").symlink_to(sticker_set / "Images")
    monkeypatch.setattr(benchmark_run, "SWITCHES", ("plain", benchmark_run.GIVEN_BACK, "--grad-accum-steps 2"))
    output = tmp_path / "run.json"
    given = ["--data-path", str(source), "--backbone", "pvt_demo", "--size", "96", "--rounds", "1", "--steps", "2"]
    assert benchmark_run.main([*given, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["plain", benchmark_run.GIVEN_BACK, "--grad-accum-steps 2"]
    for row in rows.values():
        assert row["seconds_an_image"]["median"] > 0
        assert 0.1 < row["peak_gib"]["median"] < 10
    assert "| `--grad-accum-steps 2` | " in capsys.readouterr().out
    assert benchmark_run.main(["--data-path", str(tmp_path / "nowhere")]) == 2
