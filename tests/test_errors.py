"""Errors travel: from a loader's worker to the main process, and from process to process of a run."""

import copy
import pickle

import pytest
from PIL import Image

from datasets import StickerDataset, build_transform
from readers.annotations import Sample
from readers.placing import MissingImages
from runtime.loader import build_loader, read_batches
from tests.conftest import ROOT
from tests.errors import every_error
from utils import UserError


@pytest.mark.parametrize("send", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_every_error_stays_what_it_is(send):
    errors = every_error()
    assert {MissingImages, UserError} < {type(error) for error in errors}
    for error in errors:
        received = send(error)
        assert (type(received), str(received), vars(received)) == (type(error), str(error), vars(error))


def test_every_error_of_one_process_becomes_the_same_of_all(run_torchrun):
    finished = run_torchrun(2, ROOT / "tests" / "send_errors.py")
    assert finished.code == 0, finished.output
    lines = [line for line in finished.output.splitlines() if line.endswith(": the same")]
    assert lines == [f"{type(error).__name__}: the same" for error in every_error()]


class Refused(UserError):
    """An error of a transform."""


def refuse(image):
    raise Refused("expected another picture")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_worker_keeps_its_kind(tmp_path, num_workers):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    dataset = StickerDataset([Sample(tmp_path / "a.png", 0, "")], build_transform(False, input_size=64))
    dataset.transform = refuse
    loader = build_loader(dataset, batch_size=1, num_workers=num_workers)
    with pytest.raises(Refused, match=r"a\.png: expected another picture"):
        list(read_batches(loader))
