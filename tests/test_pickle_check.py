"""Files that `torch.load(weights_only=True)` takes without running code, and that are refused all the same."""

import zipfile

import pytest
import torch

from readers.checkpoint import read_checkpoint
from tests.fuzzing_pickles import BOMBS, HidesMethods, with_pickle
from utils import UserError


def test_storage_that_is_not_in_the_file_is_refused(tmp_path):
    """The legacy format makes storage of the size that it is told; the bytes follow, or do not."""
    torch.save({"weight": torch.zeros(4)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    assert content.count(b"cpuq\x06K\x04Ntq\x07Q") == 1
    content = content.replace(b"cpuq\x06K\x04Ntq\x07Q", b"cpuq\x06J\0\0\0\x10Ntq\x07Q")
    keys = b"\x80\x02]q\x00."  # an empty list: nothing is filled with bytes of the file
    (tmp_path / "x.pth").write_bytes(content[: content.rindex(b"\x80\x02]q\x00")] + keys)
    with pytest.raises(UserError, match="its tensors claim 1,073,741,824 bytes, the file has"):
        read_checkpoint(tmp_path / "x.pth", "--resume")


def test_compressed_records_are_refused(tmp_path):
    """A thousandth of their size on disk."""
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as source, zipfile.ZipFile(tmp_path / "y.pth", "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record), zipfile.ZIP_DEFLATED)
    assert torch.load(tmp_path / "y.pth")["weight"].shape == (10**6,)
    with pytest.raises(UserError, match=r"y\.pth: refused, it has compressed records"):
        read_checkpoint(tmp_path / "y.pth", "--resume")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_would_take_for_ever_is_refused_unread(tmp_path, name, zipped):
    (tmp_path / "x.pth").write_bytes(with_pickle(BOMBS[name], zipped=zipped))
    with pytest.raises(UserError, match=r"x\.pth: refused, "):
        read_checkpoint(tmp_path / "x.pth", "--resume")


def test_a_dictionary_that_hides_its_methods_is_read_all_the_same(tmp_path):
    state = HidesMethods(weight=torch.ones(2))
    hiding = HidesMethods(model=state, args=HidesMethods(), best=HidesMethods(acc1=1.0, epoch=0), scaler=HidesMethods())
    torch.save(hiding, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", "--resume").model["weight"].tolist() == [1, 1]
