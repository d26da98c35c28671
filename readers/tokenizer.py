"""From texts to the word ids that BERT reads (WordPiece, at most 30 ids), lower-cased unless the encoder is cased."""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_pretrained_bert.tokenization import BasicTokenizer, WordpieceTokenizer
from torch import Tensor

from readers.files import read_bytes
from utils import mistake, printable, typed

DEFAULT_VOCABULARY = Path(__file__).resolve().parents[1] / "weights" / "vocab.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
BERT_VOCABULARY = 30522  # word pieces of bert-base-uncased, which published checkpoints have
MAX_WORDS = 30
MAX_VOCABULARY_BYTES = 2**26
MAX_CONFIG_BYTES = 2**24
PAIR = re.compile(r"^(.*) \|\|\| (.*)$")
EXPECTED = "a WordPiece vocabulary, one piece a line"
REMEDY = "take the vocab.txt that the text encoder was trained with"


class Encoded(NamedTuple):
    """A text as word ids (30,), padded with 0, and their mask (30,), 1 on real ids; both of type long."""

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """The WordPiece tokenizer of bert-base-uncased, or of another vocabulary of BERT's.

    A text is lower-cased as a whole before it is split into words, as in the published code, unless the vocabulary is
    a cased one. A special piece never comes from a text, but for `[UNK]`: `[SEP]` in a text is `[`, `sep`, `]`.

    Args:
        vocab_file: a text file with one piece a line; the number of the line is the piece's id.
        lower_case: None takes `do_lower_case` of the `tokenizer_config.json` beside the file, True if there is none.
        content: of the file, if it is not to be opened; `vocab_file` is then its name in messages.

    Attributes:
        sha256: the checksum of the vocabulary.

    Raises:
        UserError: the file is missing, is not UTF-8, names a piece twice, lacks one of `[PAD] [UNK] [CLS] [SEP]`, or
            does not begin with `[PAD]`.
    """

    def __init__(self, vocab_file: str | Path, lower_case: bool | None = None, *, content: bytes | None = None):
        if content is None:
            content = read_bytes(vocab_file, EXPECTED, REMEDY, MAX_VOCABULARY_BYTES)
            if lower_case is None:
                lower_case = is_lower_case(Path(vocab_file).with_name(TOKENIZER_CONFIG))
        self.lower_case = lower_case is not False
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._pieces = _read_pieces(content, vocab_file)
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}
        self._basic = BasicTokenizer(do_lower_case=self.lower_case, never_split=())
        self._word_pieces = WordpieceTokenizer(self._ids)

    @property
    def vocab_size(self) -> int:
        """How many pieces the vocabulary has."""
        return len(self._pieces)

    @property
    def capitals(self) -> int:
        """How many pieces a lower-cased text never gives, as they have capital letters; special pieces do not count."""
        return sum(piece != piece.lower() and not piece.startswith("[") for piece in self._pieces)

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
        ids[: len(pieces)] = torch.tensor([self._ids[piece] for piece in pieces])
        mask[: len(pieces)] = 1
        return Encoded(ids, mask)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of word ids."""
        return [self._pieces[int(one)] for one in ids]

    def is_too_long(self, text: str) -> bool:
        """Whether `encode` cuts a text."""
        first, second = self._tokenize(text)
        return len(first) + len(second) > MAX_WORDS - (3 if second else 2)

    def _tokenize(self, text: str) -> tuple[list[str], ...]:
        """The pieces of a text, and of the second half of a pair."""
        if self.lower_case:
            text = text.lower()
        pair = PAIR.match(text.strip())
        return tuple(
            [piece for word in self._basic.tokenize(part) for piece in self._word_pieces.tokenize(word)]
            for part in (pair.groups() if pair else (text, ""))
        )

    def encode_all(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """Each distinct text with its ids and mask, in the order of first appearance."""
        return {text: self.encode(text) for text in dict.fromkeys(texts)}


def _cut_pair(first: list[str], second: list[str], length: int) -> None:
    """Takes pieces from the end of the longer list, of the second if they are equal, until both fit."""
    while len(first) + len(second) > length:
        (first if len(first) > len(second) else second).pop()


def _read_pieces(content: bytes, path: str | Path) -> list[str]:
    """The pieces of a vocabulary; raises UserError for a file that is none of BERT's."""
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
    return pieces


def is_lower_case(path: Path, name: str | Path | None = None) -> bool:
    """Whether a tokenizer_config.json says that texts are lower-cased; True, as published, if there is no such file.

    Args:
        name: of the file in messages, if it is another than its path.

    Raises:
        UserError: a file that is not JSON, or whose `do_lower_case` is neither true nor false.
    """
    if not os.path.isfile(path):
        return True
    name, remedy = name or path, "take the file that came with the text encoder, or remove it to lower-case texts"
    content = read_bytes(path, "a tokenizer's configuration", remedy, MAX_CONFIG_BYTES)
    try:
        config = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise mistake(name, "JSON", printable(error), remedy) from error
    value = config.get("do_lower_case", True) if isinstance(config, dict) else None
    if not isinstance(value, bool):
        found = typed(config if value is None else value)
        raise mistake(name, "an object whose do_lower_case is true or false", found, remedy)
    return value
