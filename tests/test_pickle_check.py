"""Files that `torch.load(weights_only=True)` takes without running code, and that are refused all the same."""

import zipfile

import numpy as np
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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_dictionary_may_stand_at_two_places(tmp_path, zipped):
    shared = {"weight": torch.ones(2)}
    content = {"model": shared, "state_dict": shared, "args": {"a": [shared, (shared,)]}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(tmp_path / "x.pth", "--finetune").model["weight"].tolist() == [1, 1]


NUMBERS = [
    np.float64(89.4),
    np.float32(0.5),
    np.float16(2),
    np.int64(-(2**60)),
    np.int8(-3),
    np.uint8(200),
    np.bool_(True),
]
NUMBERS += [np.int32(7), np.uint64(2**63), np.array([1.5], ">f8")[0], np.float64("nan"), np.array([3], ">i4")[0]]


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_are_read_as_numbers(tmp_path, zipped):
    content = {
        "model": {"weight": torch.ones(2)},
        "args": {"numbers": NUMBERS, "again": NUMBERS[0]},
        "epoch": np.int64(3),
    }
    content["best"] = {"acc1": np.float64(89.4), "epoch": np.int32(2)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "x.pth", "--resume")
    numbers = checkpoint.args["numbers"]
    assert [type(number) for number in numbers] == [type(number.item()) for number in NUMBERS]
    assert str(numbers) == str([number.item() for number in NUMBERS])
    assert (checkpoint.epoch, checkpoint.best, checkpoint.args["again"]) == (3, {"acc1": 89.4, "epoch": 2}, 89.4)


def test_numbers_that_numpy_1_wrote_are_read(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}, "epoch": np.int64(3)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as source, zipfile.ZipFile(tmp_path / "y.pth", "w") as target:
        for record in source.infolist():
            content = source.read(record)
            assert not record.filename.endswith("data.pkl") or b"numpy._core.multiarray" in content
            target.writestr(record, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "y.pth", "--resume").epoch == 3


NO_NUMBERS = [np.ones(2), np.str_("x" * 9), np.complex128(1j), np.datetime64("2020"), np.longdouble(1), np.bytes_(b"x")]
NO_NUMBERS += [b"123456789", np.void(b"12345678"), np.array([(1, 2.0)], "i4,f4")[0], np.random.RandomState(0)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_else_numpy_writes_is_refused(tmp_path, value):
    torch.save({"model": {"weight": torch.ones(2)}, "args": {"value": value}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: ") as caught:
        read_checkpoint(tmp_path / "x.pth", "--resume")
    assert str(caught.value).isprintable()


SCALAR, DTYPE = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy\ndtype\n"
F8 = DTYPE + b"X\2\0\0\0f8\x89\x88\x87R"
BYTES = b"c_codecs\nencode\nX\10\0\0\0abcdefghX\6\0\0\0latin1\x86R"


@pytest.mark.parametrize(
    "pickled",
    [
        SCALAR + F8 + b"X\10\0\0\0abcdefgh\x86R",  # a text for bytes
        SCALAR + BYTES + BYTES + b"\x86R",  # bytes for a type
        SCALAR + F8 + BYTES.replace(b"\10\0\0\0abcdefgh", b"\7\0\0\0abcdefg") + b"\x86R",
        SCALAR + F8 + BYTES.replace(b"\6\0\0\0latin1", b"\3\0\0\0hex") + b"\x86R",
        SCALAR + F8 + BYTES.replace(b"\10\0\0\0abcdefgh", b"\x0a\0\0\0abcdefghij") + b"\x86R",
        SCALAR + F8 + b"\x85R",
        DTYPE + b"K\5\x85R",
        DTYPE + b"X\2\0\0\0O8\x89\x88\x87R",
        DTYPE + b"X\4\0\0\0V999\x89\x88\x87R",
        F8 + b"K\1b",
        F8 + b"(K\3X\1\0\0\0<X\1\0\0\0xNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"cnumpy\nload\nX\1\0\0\0x\x85R",
        b"c_codecs\ndecode\n",
        b"c_codecs\nencode\nX\1\0\0\0x\x85R",
        b"c_codecs\nencode\n(X\1\0\0\0xX\6\0\0\0latin1X\6\0\0\0strictltR",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_numpys_names_make_nothing_but_numbers(tmp_path, pickled, zipped):
    (tmp_path / "x.pth").write_bytes(with_pickle(b"\x80\2}X\5\0\0\0epoch" + pickled + b"s.", zipped=zipped))
    with pytest.raises(UserError, match=r"x\.pth: "):
        read_checkpoint(tmp_path / "x.pth", "--resume")
