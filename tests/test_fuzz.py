"""Some hundred hostile inputs for each reader; `make fuzz` reads 20,000. What they found is tested by name below."""

import os
import re
import signal
from pathlib import Path

import pytest

from runtime.options import parse_options
from tests import fuzz
from tests.fuzzing import make_case, read_case
from utils import UserError

COUNTS = {"annotations": 400, "own-data": 400, "tables": 400, "images": 400, "config": 200, "checkpoints": 300}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.filterwarnings("ignore")  # of Pillow and torch, on files that are broken on purpose
def test_hostile_inputs_end_in_a_result_or_in_an_error_of_one_line(name):
    outcomes = []
    for number in range(COUNTS[name]):
        with fuzz.case_folder() as folder:
            make_case(name, seed=1000, number=number, folder=Path(folder))
            outcomes.append(read_case(name, Path(folder)))
    assert outcomes.count("result") > COUNTS[name] // 20
    assert outcomes.count("UserError") > COUNTS[name] // 5


def test_a_case_is_the_same_each_time(tmp_path):
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        for number, name in enumerate(COUNTS):
            (folder / name).mkdir()
            make_case(name, seed=5, number=number, folder=folder / name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([(path.relative_to(folder), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) >= len(COUNTS)


def fail_at(number, action):
    """Replaces the reading of one case by an action; what the long run does with its other cases is real."""

    def read(name, folder):
        if (folder / "number").read_text() == str(number):
            action()
        return "result"

    return read


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: 1 / 0, "case 2: ZeroDivisionError at .*test_fuzz.py:"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "case 2: the process ended with code -9"),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), "case 2: not done in 1 s"),
        (lambda: bytearray(10**12), "case 2: MemoryError"),
        (lambda: bytearray(b"x") * (fuzz.MEMORY_LIMIT + 10**7), r"case 2: [\d,]+ bytes of memory"),
    ],
)
def test_the_long_run_finds_what_goes_wrong_and_goes_on(action, message, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(
        fuzz, "make_case", lambda name, seed, number, folder: (folder / "number").write_text(str(number))
    )
    monkeypatch.setattr(fuzz, "read_case", fail_at(2, action))
    monkeypatch.setattr(fuzz, "TIME_LIMIT", 1)
    monkeypatch.setattr(fuzz, "MEMORY_LIMIT", 2**28)
    assert fuzz.main(["images", "--count", "5", "--failures", str(tmp_path)]) == 1
    output = capfd.readouterr().out

    assert re.search(message, output), output
    assert "5 cases, 4 results, 0 UserErrors, 1 failures" in output
    assert (tmp_path / "images-0-2" / "number").read_text() == "2"


def test_the_long_run_reads_real_cases(tmp_path, capfd):
    assert fuzz.main(["config", "--count", "20", "--failures", str(tmp_path)]) == 0
    assert "config, seed 0: 20 cases, " in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


def config_error(path: Path, content: str | bytes) -> str:
    """What is said of a config file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="^--config .*config") as caught:
        parse_options(["--config", str(path)], {})
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 800 + len(str(path))
    return message


@pytest.mark.parametrize("digits", [400, 12_000])
def test_a_number_of_the_config_that_is_too_large_is_named(tmp_path, digits):
    assert "lr is " in config_error(tmp_path / "config.py", f"cfg = dict(lr=0x1{'0' * digits})")


@pytest.mark.parametrize("value", ["'x' * 10**6", "['x' * 10**6] * 1000", "{1: 'x' * 10**6}"])
def test_a_long_value_of_the_config_is_shortened(tmp_path, value):
    assert "alpha is " in config_error(tmp_path / "config.py", f"cfg = dict(alpha={value})")
    assert "cfg is " in config_error(tmp_path / "config.py", f"cfg = [{value}]")


@pytest.mark.parametrize("text", ["a\\0b", "a\\nb", "\\x1b[2J", "\\ud800"])
def test_a_text_of_the_config_that_no_file_is_named_by_is_refused(tmp_path, text):
    assert "expected text on one line" in config_error(tmp_path / "config.py", f"cfg = dict(output_dir='{text}')")


def test_a_key_of_the_config_stays_on_its_line(tmp_path):
    assert "unknown key" in config_error(tmp_path / "config.py", "cfg = {'\\x1b[2J\\n' * 10000: 5}")


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"\0", "(" * 5000, "cfg = " + "-" * 50_000 + "1"])
def test_a_config_that_cannot_be_read_is_said_shortly(tmp_path, content):
    assert "cannot be read as a config" in config_error(tmp_path / "config.py", content)


def test_a_config_cannot_end_the_run_as_if_all_were_well(tmp_path):
    assert "SystemExit" in config_error(tmp_path / "config.py", "raise SystemExit(0)")


@pytest.mark.parametrize("name", ["config.yaml", "config.json", "config.txt", "config"])
def test_a_config_of_another_kind_is_refused(tmp_path, name):
    """PyYAML, for one, runs code from a file that looks like data."""
    content = "cfg: !!python/object/apply:os.mkdir [was-run]" if name.endswith("yaml") else "{}"
    assert "expected a Python file" in config_error(tmp_path / name, content)


def test_a_huge_config_is_refused(tmp_path):
    assert "at most 1,048,576 bytes" in config_error(tmp_path / "config.py", b"#" * (2**20 + 1))
