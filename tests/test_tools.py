"""The tools on a real run folder."""

import json

from PIL import Image

from tools import benchmark, plot_run


def test_pictures_of_a_run(trained, capsys):
    folder = trained["lora"]
    (folder / "baselines_test.json").write_text(
        json.dumps({"majority": {"accuracy": 0.0, "macro_f1": 0.0}, "hog": {"accuracy": 1.0, "macro_f1": 1.0}})
    )
    assert plot_run.main([str(folder)]) == 0
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("L").getcolors()) > 20
    assert "The network is NOT better than HOG + logistic regression." in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert plot_run.main([str(tmp_path)]) == 2
    assert "log.txt: no such file" in capsys.readouterr().err


def test_benchmark_measures_every_row(tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    small = ["--backbone", "pvt_demo", "--size", "64", "--alpha", "4", "--rounds", "1", "--output", str(output)]
    assert benchmark.main(small) == 0
    seconds = json.loads(output.read_text())["seconds"]
    for mode in ("forward", "training step"):
        assert seconds[mode].keys() == {"ours", "textbook", "backbone", "pvt_v2_b2", "resnet50"}
        assert all(0 < row["lower"] <= row["median"] <= row["upper"] for row in seconds[mode].values())
    assert "| forward | textbook |" in capsys.readouterr().out
