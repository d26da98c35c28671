"""torch.hub loads networks and the predictor from a process that was started elsewhere."""

import sys
import textwrap

from tests.conftest import ROOT, run_process

PICTURE = """
    import sys, torch
    from PIL import Image
    torch.hub.set_dir(sys.argv[2])
"""


def run_elsewhere(tmp_path, program):
    """Runs a program whose folder is not the project's; the project's folder is its first argument."""
    script = tmp_path / "user" / "script.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(textwrap.dedent(PICTURE) + textwrap.dedent(program))
    return run_process(sys.executable, script, ROOT, tmp_path / "hub", cwd=script.parent)


def test_networks_are_built_by_name(tmp_path):
    finished = run_elsewhere(
        tmp_path,
        """
        settings = {"backbone": "pvt_demo", "num_classes": 3}
        for name, more in (("lora_v", {"alpha": 2, "hidden_dim": 24}), ("pvt", {})):
            model = torch.hub.load(sys.argv[1], name, source="local", **settings, **more)
            print(name, tuple(model(torch.zeros(2, 3, 64, 64)).shape))
        """,
    )
    assert finished.code == 0, finished.output
    assert "lora_v (2, 3)\npvt (2, 3)" in finished.output


def test_the_predictor_explains_as_well_which_loads_modules_late(tmp_path):
    finished = run_elsewhere(
        tmp_path,
        """
        predictor = torch.hub.load(sys.argv[1], "predictor", source="local", device="cpu")
        picture = Image.new("RGB", (80, 80), "gold")
        print(len(predictor([picture])[0].probabilities))
        from inference.explain import explain
        print([focus.stage for focus in explain(predictor, picture).focus])
        """,
    )
    assert finished.code == 0, finished.output
    assert finished.output.splitlines()[-2:] == ["7", "[1, 2, 3, 4]"]


def test_a_module_of_the_same_name_is_named_on_one_line(tmp_path):
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "utils.py").write_text("MINE = 1\n")
    finished = run_elsewhere(
        tmp_path,
        """
        import utils
        try:
            torch.hub.load(sys.argv[1], "predictor", source="local")
        except ImportError as error:
            print(error)
        """,
    )
    assert finished.code == 0, finished.output
    assert finished.output.startswith("utils: expected the module of")
    assert len(finished.output.splitlines()) == 1
