"""From texts to the word ids that BERT reads (WordPiece, lower-cased, at most 30 ids)."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_pretrained_bert.tokenization import BertTokenizer
from torch import Tensor

from readers.files import read_bytes
from utils import UserError, mistake, printable, typed

DEFAULT_VOCABULARY = Path(__file__).resolve().parents[1] / "weights" / "vocab.txt"
BERT_VOCABULARY = 30522  # word pieces of bert-base-uncased, which published checkpoints have
MAX_WORDS = 30
MAX_VOCABULARY_BYTES = 2**26
PAIR = re.compile(r"^(.*) \|\|\| (.*)$")
EXPECTED = "a WordPiece vocabulary, one piece a line"
REMEDY = "take the vocab.txt that the text encoder was trained with"


class Encoded(NamedTuple):
    """A text as word ids (30,), padded with 0, and their mask (30,), 1 on real ids; both of type long."""

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """The WordPiece tokenizer of bert-base-uncased, or of another lower-cased vocabulary.

    Args:
        vocab_file: a text file with one piece a line; the number of the line is the piece's id.

    Raises:
        UserError: the file is missing, is not UTF-8, names a piece twice, lacks one of `[PAD] [UNK] [CLS] [SEP]`, or
            does not begin with `[PAD]`.
    """

    def __init__(self, vocab_file: str | Path):
        content = read_bytes(vocab_file, EXPECTED, REMEDY, MAX_VOCABULARY_BYTES)
        self.sha256 = hashlib.sha256(content).hexdigest()
        _check_vocabulary(content, vocab_file)
        self._tokenizer = BertTokenizer(str(vocab_file), do_lower_case=True)

    @property
    def vocab_size(self) -> int:
        """How many pieces the vocabulary has."""
        return len(self._tokenizer.vocab)

    def encode(self, text: str) -> Encoded:
        """Word ids (30,) and mask (30,) of a text.

        `[CLS] pieces [SEP]` with the first 28 pieces. A text of the form `a ||| b` is a pair, `[CLS] a [SEP] b [SEP]`
        cut to 27 pieces, recognised as in BERT's own feature extraction: a b without pieces makes no pair.
        """
        first, second = self._tokenize(text)
        if second:
            _cut_pair(first, second, MAX_WORDS - 3)
            pieces = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        else:
            pieces = ["[CLS]", *first[: MAX_WORDS - 2], "[SEP]"]
        ids, mask = torch.zeros(2, MAX_WORDS, dtype=torch.long)
        ids[: len(pieces)] = torch.tensor(self._tokenizer.convert_tokens_to_ids(pieces))
        mask[: len(pieces)] = 1
        return Encoded(ids, mask)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of word ids."""
        return self._tokenizer.convert_ids_to_tokens([int(one) for one in ids])

    def is_too_long(self, text: str) -> bool:
        """Whether `encode` cuts a text."""
        first, second = self._tokenize(text)
        return len(first) + len(second) > MAX_WORDS - (3 if second else 2)

    def _tokenize(self, text: str) -> tuple[list[str], list[str]]:
        """The pieces of a text, and of the second half of a pair."""
        pair = PAIR.match(text.strip())
        return tuple(self._tokenizer.tokenize(part) for part in (pair.groups() if pair else (text, "")))

    def encode_all(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """Each distinct text with its ids and mask, in the order of first appearance."""
        return {text: self.encode(text) for text in dict.fromkeys(texts)}


def _cut_pair(first: list[str], second: list[str], length: int) -> None:
    """Takes pieces from the end of the longer list, of the second where they are equal, until both fit."""
    while len(first) + len(second) > length:
        (first if len(first) > len(second) else second).pop()


def _check_vocabulary(content: bytes, path: str | Path) -> None:
    """Raises UserError for a file that is no vocabulary of BERT's."""
    try:
        lines = io.StringIO(content.decode("utf-8"), newline=None)  # ends lines as BertTokenizer's reader does
        pieces = [line.strip() for line in lines]
    except UnicodeDecodeError as error:
        raise mistake(path, "UTF-8", f"byte {content[error.start]:#04x} at {error.start}", REMEDY) from error
    lacking = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in pieces]
    if lacking:
        raise mistake(path, EXPECTED, f"one without {', '.join(lacking)}", REMEDY)
    if pieces[0] != "[PAD]":
        raise mistake(path, "[PAD] in the first line, as ids are padded with 0", typed(pieces[0]), REMEDY)
    piece, count = Counter(pieces).most_common(1)[0]
    if count > 1:
        raise mistake(path, EXPECTED, f"{printable(piece)} {count} times", REMEDY)


def find_tokenizer(sha256: str | None, bert_model: str, source: str) -> Tokenizer:
    """The tokenizer of a checkpoint: of `weights/vocab.txt`, else of the vocabulary in the folder `bert_model`.

    Args:
        sha256: the vocabulary's checksum; None for a published checkpoint, which has BERT's own.
        source: flag and file of the checkpoint, for the message.

    Raises:
        UserError: neither is the checkpoint's vocabulary.
    """
    for path in (DEFAULT_VOCABULARY, Path(bert_model) / "vocab.txt"):
        if path.is_file():
            tokenizer = Tokenizer(path)
            if sha256 in (None, tokenizer.sha256):
                return tokenizer
    raise UserError(
        f"{source}: the checkpoint's vocabulary is neither {DEFAULT_VOCABULARY} nor in --bert-model "
        f"{bert_model}: name the folder of its text encoder with --bert-model"
    )


def check_vocabulary(tokenizer: Tokenizer, bert_config: Mapping[str, Any] | None, source: str) -> None:
    """Raises UserError for a vocabulary with pieces that the text encoder has no embedding for."""
    known = (bert_config or {}).get("vocab_size", BERT_VOCABULARY)
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{source}: its text encoder knows {known:,} word pieces, the vocabulary has {tokenizer.vocab_size:,}: "
            "name the encoder's own with --bert-model"
        )
