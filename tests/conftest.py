"""A small real sticker set, and running the command line in processes of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from models import create_model

# As the processes that tests start: with other threads, rounding takes other patches where scores are nearly tied. And
# workers share two cores, where more threads than cores wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"  # which runs inside a test obey
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
LONG_FILES = (
    "test_main",
    "test_export",
    "test_resume",
    "test_tools",
    "test_visualize",
    "test_predictor",
    "test_reproduce",
    "test_names",
    "test_image_reading",
)
SMALL = (
    "--backbone pvt_demo --hidden-dim 24 --fuse-mlp-dim 96 --input-size 64 --alpha 2 --batch-size 4 --epochs 2 "
    "--num_workers 0 --unscale-lr --lr 1e-3 --warmup-epochs 1 --device cpu --no-repeated-aug --no-figures --seed 0"
).split()

BERT = {
    "vocab_size": 30522,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
}


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="kill runs at many more places, and in more ways")
    parser.addoption("--long", action="store_true", help="only what takes minutes: exports, benchmarks, tables")
    parser.addoption("--browser", action="store_true", help="drive the page of tools/app.py in Chromium")


def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked `faults` to `make test-faults`, `browser` to `make test-app`, `long` to `make test-long`.

    `--long` runs those alone. Files that take long come first, so that two workers end together.
    """
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)
    long = config.getoption("--long")

    def is_left_out(item):
        marked = [marker for marker in ("faults", "browser") if item.get_closest_marker(marker)]
        if any(not config.getoption(f"--{marker}") for marker in marked):
            return True
        return not marked and long != bool(item.get_closest_marker("long"))

    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


class Finished(NamedTuple):
    """What a process printed, and its exit code."""

    code: int
    output: str


def run_process(*command, env=None, timeout=240, cwd=ROOT):
    """Runs a command, from the project's root, and returns its output, standard error included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **(env or {})}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(finished.returncode, finished.stdout)


@pytest.fixture(scope="session")
def run_script():
    """Runs `python script arguments`."""

    def run(script, *arguments, **settings):
        return run_process(sys.executable, script, *arguments, **settings)

    return run


@pytest.fixture(scope="session")
def run_torchrun():
    """Runs a script in several processes."""

    def run(processes, script, *arguments, **settings):
        launcher = ("-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}")
        return run_process(sys.executable, *launcher, script, *arguments, **settings)

    return run


def free_port():
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_sticker_set(root, counts=(24, 6, 7), seed=0):
    """SER30K's layout with coloured squares: the hue tells the class."""
    generator = np.random.default_rng(seed)
    (root / "Annotations").mkdir(parents=True)
    (root / "Images" / "squares").mkdir(parents=True)
    number = 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        entries = []
        for _ in range(count):
            label = number % 7
            pixels = generator.integers(0, 60, (70, 70, 3), dtype=np.uint8)
            pixels[15:55, 15:55, label % 3] += np.uint8(60 + 20 * label)
            name = f"{number}.png"
            Image.fromarray(pixels).save(root / "Images" / "squares" / name)
            entry = {"topic": "squares", "file_name": name, "text": f"square {label}" if number % 2 else ""}
            entries.append(entry | {"anno": label + 1, "anno1": label + 1, "anno2": label + 1, "anno3": label + 1})
            number += 1
        (root / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": entries}))
    return root


@pytest.fixture(scope="session")
def sticker_set(tmp_path_factory):
    return write_sticker_set(tmp_path_factory.mktemp("stickers") / "SER_Dataset")


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory):
    """A small BERT with random weights and the real vocabulary, in pytorch-pretrained-bert's layout."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    text_model = create_model("lora", backbone="pvt_demo", bert=BERT).text_model
    torch.save(text_model.state_dict(), folder / "pytorch_model.bin")
    (folder / "bert_config.json").write_text(json.dumps(BERT))
    (folder / "vocab.txt").write_bytes((ROOT / "weights" / "vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sticker_set, small_bert, run_script):
    """Output folders of a LORA and a LORA-V run of two epochs."""
    folders = {}
    for script, model in (("main.py", "lora"), ("main_V.py", "lora_v")):
        folder = tmp_path_factory.mktemp(model)
        arguments = [*SMALL, "--data-path", sticker_set, "--output_dir", folder]
        if model == "lora":
            arguments += ["--bert-model", small_bert]
        finished = run_script(script, *arguments)
        assert finished.code == 0, finished.output
        folders[model] = folder
    return folders
