"""The tokenizer, on bert-base-uncased's vocabulary and on small ones."""

import hashlib
import time
from pathlib import Path

import pytest

from readers.tokenizer import Tokenizer
from utils import UserError

VOCABULARY = Path(__file__).parent.parent / "weights" / "vocab.txt"
CLS, SEP, A, B = 101, 102, 1037, 1038  # "a" and "b" are one piece each


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCABULARY)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids in front of the padding, which is checked."""
    ids, mask = tokenizer.encode(text)
    assert ids.shape == mask.shape == (30,)
    length = int(mask.sum())
    assert mask.tolist() == [1] * length + [0] * (30 - length)
    assert ids[length:].tolist() == [0] * (30 - length)
    return ids[:length].tolist()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [CLS, 7592, 2088, SEP]),
        ("  Hello,\tWORLD!\n", [CLS, 7592, 1010, 2088, 999, SEP]),
        ("unaffable", [CLS, 14477, 20961, 3468, SEP]),
        ("naïve café", [CLS, 15743, 7668, SEP]),
        ("", [CLS, SEP]),
        ("  \n", [CLS, SEP]),
        ("\0\ufffd\u200b", [CLS, SEP]),
        ("\U0001fae0", [CLS, 100, SEP]),
    ],
)
def test_known_ids(tokenizer, text, ids):
    assert ids_of(tokenizer, text) == ids


def test_a_long_text_keeps_its_first_28_pieces(tokenizer):
    assert ids_of(tokenizer, " ".join(["a"] * 28)) == [CLS, *[A] * 28, SEP]
    assert ids_of(tokenizer, " ".join(["a"] * 28 + ["b"] * 5)) == [CLS, *[A] * 28, SEP]


def test_a_pair_has_a_separator_after_each_part(tokenizer):
    assert ids_of(tokenizer, "hello ||| world") == [CLS, 7592, SEP, 2088, SEP]
    assert ids_of(tokenizer, " hello ||| world \n") == [CLS, 7592, SEP, 2088, SEP]


def test_the_last_mark_of_several_divides_the_pair(tokenizer):
    bar = 1064
    assert ids_of(tokenizer, "a ||| b ||| hello") == [CLS, A, bar, bar, bar, B, SEP, 7592, SEP]


@pytest.mark.parametrize("text", ["a|||b", "a |||", " ||| b", "a ||| ", "a || b", "a\n||| b"])
def test_what_is_no_pair(tokenizer, text):
    assert ids_of(tokenizer, text).count(SEP) == 1


def test_a_second_part_without_pieces_makes_no_pair(tokenizer):
    assert ids_of(tokenizer, "a ||| \u200b") == [CLS, A, SEP]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (13, 14, (13, 14)),
        (14, 14, (14, 13)),  # a tie: the second gives way
        (40, 40, (14, 13)),
        (40, 5, (22, 5)),
        (5, 40, (5, 22)),
        (20, 10, (17, 10)),
        (27, 1, (26, 1)),
    ],
)
def test_the_longer_part_of_a_pair_is_cut(tokenizer, first, second, kept):
    text = " ".join(["a"] * first) + " ||| " + " ".join(["b"] * second)
    assert ids_of(tokenizer, text) == [CLS, *[A] * kept[0], SEP, *[B] * kept[1], SEP]


def test_encode_all_encodes_each_distinct_text_once(tokenizer):
    encoded = tokenizer.encode_all(["b", "a", "b", ""])
    assert {text: ids.tolist()[:3] for text, (ids, _) in encoded.items()} == {
        "b": [CLS, B, SEP],
        "a": [CLS, A, SEP],
        "": [CLS, SEP, 0],
    }
    start = time.monotonic()
    assert len(tokenizer.encode_all(["a " * 2000] * 2000)) == 1  # one text in about 10 ms
    assert time.monotonic() - start < 5


def test_vocabulary_size_and_checksum(tokenizer):
    assert tokenizer.vocab_size == 30522
    assert tokenizer.sha256 == hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()


def test_another_vocabulary_gives_its_own_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[SEP]\n[CLS]\n[UNK]\ncat\n##s\n")
    assert ids_of(Tokenizer(path), "Cats run") == [2, 4, 5, 3, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n", r"found one without \[SEP\]"),
        (b"", r"found one without \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", r"expected \[PAD\] in the first line"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\ncat\n", "found cat 2 times"),
        (b"[PAD]\n\xff\n", "expected UTF-8, found byte 0xff at 6"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_an_error(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"vocab\.txt: .*{message}.*: take the vocab\.txt"):
        Tokenizer(path)


def test_a_missing_vocabulary_is_an_error(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="expected a WordPiece vocabulary"):
            Tokenizer(path)
