"""Predicts a sticker's emotion with a file that tools/export.py wrote: onnxruntime, numpy and Pillow, no PyTorch.

    python docs/examples/run_onnx.py lora.onnx sticker.png "good morning"

Prints the probability of each class as JSON. The file contains what it needs: the transform, the classes and, for
LORA, the vocabulary. Pairs of texts (`a ||| b`), pictures with more than 8 bits a channel and animations whose first
frame is empty are not supported.
"""

import json
import sys
import unicodedata

import numpy as np
import onnxruntime
from PIL import Image

CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


def predict(model: str, image: str, text: str = "") -> dict[str, float]:
    """The probability of each class for an image file and, for LORA, its text."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    inputs = {"images": read_image(image, json.loads(about["transform"]))[None]}  # (1, 3, size, size)
    if "vocabulary" in about:
        pieces = {piece: number for number, piece in enumerate(about["vocabulary"].split("\n"))}
        lower_case = json.loads(about.get("lower_case", "true"))  # files of an earlier version do not say it
        ids = encode(text, pieces, int(about["max_word_ids"]), lower_case)
        inputs["word_ids"] = np.array([ids], dtype=np.int64)  # (1, 30), padded with 0
        inputs["word_mask"] = (inputs["word_ids"] != 0).astype(np.int64)
    logits = session.run(["logits"], inputs)[0][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return dict(zip(json.loads(about["class_names"]), probabilities.tolist(), strict=True))


def read_image(path: str, transform: dict) -> np.ndarray:
    """A picture on white, its short side resized, the centre cropped, normalised: (3, size, size)."""
    if transform["mode"] != "RGB on white":
        raise SystemExit(f"expected a model of pictures in RGB on white, found one of pictures {transform['mode']}")
    image = Image.open(path).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    side, crop, short = transform["resize_short_side"], transform["center_crop"], min(image.size)
    image = image.resize([int(side * length / short) for length in image.size], Image.Resampling.BICUBIC)
    left, top = (round((length - crop) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    normalised = (pixels - np.float32(transform["mean"])) / np.float32(transform["std"])
    return normalised.transpose(2, 0, 1)


def encode(text: str, vocabulary: dict[str, int], length: int, lower_case: bool = True) -> list[int]:
    """The ids of `[CLS] pieces [SEP]`, cut and padded to `length`."""
    pieces = [piece for word in words(text, lower_case) for piece in word_pieces(word, vocabulary)]
    ids = [vocabulary[piece] for piece in ("[CLS]", *pieces[: length - 2], "[SEP]")]
    return ids + [0] * (length - len(ids))


def words(text: str, lower_case: bool = True) -> list[str]:
    """BERT's words; punctuation and Chinese characters are words of their own.

    In lower case a text has no accents either. A cased vocabulary keeps both.
    """
    spaced = ""
    for char in text.lower() if lower_case else text:
        kind = unicodedata.category(char)
        if char in "\t\n\r" or kind == "Zs":
            spaced += " "
        elif kind[0] != "C" and char != "\ufffd":  # control characters are dropped
            spaced += f" {char} " if any(low <= ord(char) <= high for low, high in CJK) else char
    separated = ""
    for word in spaced.split():
        if lower_case:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        separated += " " + "".join(f" {char} " if is_punctuation(char) else char for char in word)
    return separated.split()


def is_punctuation(char: str) -> bool:
    """Whether it is punctuation in Unicode, or an ASCII character other than a letter, digit or space."""
    return unicodedata.category(char)[0] == "P" or ("!" <= char <= "~" and not char.isalnum())


def word_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """A word as the longest pieces from its start; `[UNK]` if there are none."""
    pieces, start = [], 0
    while start < len(word) <= 100:
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces or ["[UNK]"]


if __name__ == "__main__":
    print(json.dumps(predict(*sys.argv[1:4]), indent=1))
