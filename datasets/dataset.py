"""The torch data set: samples read as tensors, and what happens where an image cannot be read."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import (
    WITH_TEXTS,
    Sample,
    class_names,
    read_csv,
    read_emotion_roi,
    read_fi,
    read_folder,
    read_ser,
)
from datasets.cache import PictureCache
from datasets.files import printable
from datasets.images import read_image
from datasets.randomness import kept_generators, seed_generators
from datasets.samplers import Draw
from datasets.text import Tokenizer
from datasets.transforms import Transform, first_size
from errors import UserError

READERS: dict[str, Callable[..., list[Sample]]] = {
    "SER": read_ser,
    "SER_V": read_ser,
    "FI": read_fi,
    "EmotionROI": read_emotion_roi,
    "folder": read_folder,
    "csv": read_csv,
}
MAX_REPLACEMENTS = 10
Item = dict[str, Any]
OnBadImage = Literal["error", "skip", "replace"]


class BadImage(NamedTuple):
    """An image that could not be read: its place in the data set, its file and why."""

    index: int
    path: str
    reason: str


class ItemsRead(NamedTuple):
    """The items of a batch, and the images that could not be read for it."""

    items: list[Item]
    bad_images: list[BadImage]


class StickerDataset(Dataset):
    """Images with their labels and, with a tokenizer, their texts as word ids.

    An item has `image` (3, H, W), `label` and `index`, and with a tokenizer `word_ids` (30,) and `word_mask` (30,).
    Texts are tokenised here, each distinct text once. The key of an item is its index, or a `Draw`, which has a seed
    for its augmentation: the item then depends on nothing else, and the generators of this process stay as they are.

    Reading a single item raises UserError where its image is broken. A loader asks for the items of a whole batch;
    there `on_bad_image` tells what becomes of such an image:
        error: it ends the run;
        skip: the batch is smaller by it, for evaluation;
        replace: the next image of the data set takes its place, with the same seed, for training.

    Args:
        cache_images: decodes all images here and keeps the pictures in memory, those of the workers included; items
            stay the same. Each process of a distributed run has its own.
        jpeg_draft: decodes a JPEG at a reduced scale where both its sides are at least twice those that the
            transform's first step crops or resizes to (see `read_image`). The picture as a whole stays at least that
            large; a crop of it, in training as small as 8 % of its area, may come from fewer pixels than at full
            scale, and is enlarged. Not for evaluation.

    Raises:
        UserError: with `cache_images`, pictures that do not fit into half of the memory.

    Attributes:
        samples: the list of samples; `labels`: their labels; `class_names`: the names of the labels.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        tokenizer: Tokenizer | None = None,
        *,
        class_names: Sequence[str] = (),
        on_bad_image: OnBadImage = "error",
        cache_images: bool = False,
        jpeg_draft: bool = False,
    ):
        self.samples = list(samples)
        self.labels = [sample.label for sample in self.samples]
        self.class_names = tuple(class_names)
        self.transform = transform
        self.on_bad_image = on_bad_image
        self.least_size = first_size(transform) if jpeg_draft else None
        paths = [sample.path for sample in self.samples]
        self.cache = PictureCache(paths, self.least_size) if cache_images else None
        self.words: Tensor | None = None  # (distinct texts, 2, 30): ids and mask
        if tokenizer is not None:
            encoded = tokenizer.encode_all(sample.text for sample in self.samples)
            self.words = torch.stack([torch.stack(tensors) for tensors in encoded.values()])
            rows = {text: row for row, text in enumerate(encoded)}
            self.rows = torch.tensor([rows[sample.text] for sample in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> Item:
        with kept_generators() if isinstance(key, Draw) else nullcontext():
            return self._read(key)

    def __getitems__(self, keys: Sequence[int] | Sequence[Draw]) -> ItemsRead | UserError:
        """The items of a batch, or the error that is to end the run; this is what a DataLoader calls."""
        read = ItemsRead([], [])
        try:
            with kept_generators() if isinstance(keys[0], Draw) else nullcontext():
                for key in keys:
                    self._read_into(read, key)
        except UserError as error:
            return UserError(str(error))
        return read

    def _read(self, key: int | Draw) -> Item:
        """An item; for a Draw, the generators are left in disorder."""
        index = key
        if isinstance(key, Draw):
            index = key.index
            seed_generators(key.seed)
        sample = self.samples[index]
        image = self.cache.read(sample.path) if self.cache else read_image(sample.path, self.least_size)
        try:
            image = self.transform(image)
        except UserError as error:
            raise UserError(f"{printable(sample.path)}: {error}") from error
        item = {"image": image, "label": sample.label, "index": index}
        if self.words is not None:
            item["word_ids"], item["word_mask"] = self.words[self.rows[index]]
        return item

    def _read_into(self, read: ItemsRead, key: int | Draw) -> None:
        """Adds an item, or what `on_bad_image` has in its place, to those read."""
        attempts = min(MAX_REPLACEMENTS, len(self)) if self.on_bad_image == "replace" else 1
        for _ in range(attempts):
            index = key.index if isinstance(key, Draw) else key
            try:
                read.items.append(self._read(key))
                return
            except UserError as error:
                if self.on_bad_image == "error":
                    raise
                path = printable(self.samples[index].path)
                read.bad_images.append(BadImage(index, path, str(error).removeprefix(f"{path}: ")))
            following = (index + 1) % len(self)
            key = Draw(following, key.seed) if isinstance(key, Draw) else following
        if self.on_bad_image == "replace":
            first = read.bad_images[-attempts]
            found = f"{attempts} in a row that cannot be read"
            raise UserError(f"{first.path}: expected readable images from here on, found {found}: {first.reason}")


def build_dataset(
    name: str,
    root: str | Path,
    split: str,
    *,
    transform: Transform,
    tokenizer: Tokenizer | None = None,
    on_bad_image: OnBadImage = "error",
    cache_images: bool = False,
    jpeg_draft: bool = False,
) -> StickerDataset:
    """A split of a data set: `SER` (with texts), `SER_V` (the same without), `FI`, `EmotionROI`, `folder` or `csv`.

    Args:
        tokenizer: for the texts of `SER`, `folder` and `csv`; the others have none and do not use it.
        on_bad_image, cache_images, jpeg_draft: see `StickerDataset`.

    Raises:
        UserError: an unknown name or split, or a mistake in the data.
    """
    if name not in READERS:
        raise UserError(f"--dataset: expected one of {', '.join(READERS)}, found {name!r}: choose one of these")
    return StickerDataset(
        READERS[name](root, split),
        transform,
        tokenizer if name in WITH_TEXTS else None,
        class_names=class_names(name, root),
        on_bad_image=on_bad_image,
        cache_images=cache_images,
        jpeg_draft=jpeg_draft,
    )
