"""The tokenizer, on bert-base-uncased's vocabulary and on small ones."""

import hashlib
import random
import time
from pathlib import Path

import pytest
from pytorch_pretrained_bert import BertTokenizer

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


def alphabet() -> list[str]:
    """What random texts are made of: words and special pieces, and letters of many scripts, whole and broken."""
    words = ["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "[unused1]", "[", "]", "sep", "Hello", "WORLD", "|||", "##s"]
    words += ["na\u00efve", "nai\u0308ve", "\u00c5ngstr\u00f6m", "\u0391\u03a3", "\u03a3", "\u0130stanbul", "don't"]
    words += ["...", "$5", "x" * 101, "\u6211\u5f88", "\U00020000", "\u3053\u3093", "\ud55c\uad6d", "\u0645\u0631"]
    words += ["\U0001f600", "\u1e9e", "\ufb01", "\uff21", "\0", "\t", "\n", "\r", "\u00a0", "\u2028", "\u200b"]
    words += ["\ufffd", "\ufeff", "\u0301", "\x1b", "\x85", "\ud800", "\udfff", "\ude00\ud83d", " ", " ", " ", "a", "B"]
    return words


def random_text(rng: random.Random, words: list[str]) -> str:
    parts = [
        rng.choice(words) if rng.random() < 0.7 else chr(rng.randrange(0x110000 if rng.random() < 0.3 else 0x250))
        for _ in range(rng.randrange(6))
    ]
    return rng.choice(["", " "]).join(parts)


def test_ids_are_those_of_the_published_tokenizer_on_the_text_in_lower_case(tokenizer):
    """`BertTokenizer` on `text.lower()`, for 60,000 random texts."""
    published, rng, words = BertTokenizer(str(VOCABULARY)), random.Random(0), alphabet()
    compared = 0
    while compared < 60_000:
        text = random_text(rng, words)
        if " ||| " in text:
            continue  # a pair, which the published code cannot read
        compared += 1
        ids = published.convert_tokens_to_ids(published.tokenize(text.lower()))[:28]
        encoded = tokenizer.encode(text).ids.tolist()
        assert encoded == [CLS, *ids, SEP] + [0] * (28 - len(ids)), repr(text)


@pytest.mark.parametrize("lower_case", [True, False])
def test_special_pieces_never_come_from_a_text(tmp_path, lower_case):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[\n]\nSEP\nsep\nCLS\ncls\nMASK\nmask\nPAD\npad\n")
    tokenizer, rng = Tokenizer(path, lower_case), random.Random(1)
    marks = ["[SEP]", "[CLS]", "[MASK]", "[PAD]", " ", "a", "\u0301", "\0", "[sep]", "\ud800", " ||| "]
    for _ in range(2000):
        text = "".join(rng.choice(marks) for _ in range(rng.randrange(6)))
        ids = ids_of(tokenizer, text)
        special = [number for number in ids if number in (0, 2, 3, 4)]
        assert special[0] == 2
        assert set(special[1:]) == {3}
        assert len(special) == 2 + (len(special) == 3 and " ||| " in text)


def test_the_tokenizers_configuration_says_whether_texts_are_cased(tmp_path):
    path, config = tmp_path / "vocab.txt", tmp_path / "tokenizer_config.json"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nGood\ngood\n\u00c9t\u00e9\nete\n")
    for content, ids in ((None, [5, 7]), ("{}", [5, 7]), ('{"do_lower_case": true}', [5, 7])):
        if content is not None:
            config.write_text(content)
        assert ids_of(Tokenizer(path), "Good \u00c9t\u00e9") == [2, *ids, 3]
    config.write_text('{"do_lower_case": false, "model_max_length": 512}')
    assert ids_of(Tokenizer(path), "Good \u00c9t\u00e9") == [2, 4, 6, 3]
    assert ids_of(Tokenizer(path, True), "Good \u00c9t\u00e9") == [2, 5, 7, 3]
    for content in ("{", '{"do_lower_case": "no"}', "[]", '{"do_lower_case": null}', "[" * 10**5):
        config.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer_config\.json: expected .*found "):
            Tokenizer(path)
