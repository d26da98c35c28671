"""The torch data set, its loader, and the way of a reader's error out of a loader's worker process."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from datasets.annotations import CLASS_NAMES, Sample, read_emotion_roi, read_fi, read_ser
from datasets.files import printable
from datasets.images import read_image
from datasets.text import Tokenizer
from datasets.transforms import Transform
from errors import UserError

READERS: dict[str, Callable[[str | Path, str], list[Sample]]] = {
    "SER": read_ser,
    "SER_V": read_ser,
    "FI": read_fi,
    "EmotionROI": read_emotion_roi,
}
Item = dict[str, Any]


class StickerDataset(Dataset):
    """Images with their labels and, with a tokenizer, their texts as word ids.

    An item has `image` (3, H, W), `label` and `index`, and with a tokenizer `word_ids` (30,) and `word_mask` (30,).
    Texts are tokenised here, each distinct text once. Reading an item raises UserError where its image is broken;
    a loader, which asks for several items at once, gets the error as a value (see `batches`).

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
    ):
        self.samples = list(samples)
        self.labels = [sample.label for sample in self.samples]
        self.class_names = tuple(class_names)
        self.transform = transform
        self.words: Tensor | None = None  # (distinct texts, 2, 30): ids and mask
        if tokenizer is not None:
            encoded = tokenizer.encode_all(sample.text for sample in self.samples)
            self.words = torch.stack([torch.stack(tensors) for tensors in encoded.values()])
            rows = {text: row for row, text in enumerate(encoded)}
            self.rows = torch.tensor([rows[sample.text] for sample in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        image = read_image(sample.path)
        try:
            image = self.transform(image)
        except UserError as error:
            raise UserError(f"{printable(sample.path)}: {error}") from error
        item = {"image": image, "label": sample.label, "index": index}
        if self.words is not None:
            item["word_ids"], item["word_mask"] = self.words[self.rows[index]]
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[Item] | UserError:
        """The items of a batch, or the first error met; this is what a DataLoader calls."""
        try:
            return [self[index] for index in indices]
        except UserError as error:
            return UserError(str(error))


def build_dataset(
    name: str, root: str | Path, split: str, *, transform: Transform, tokenizer: Tokenizer | None = None
) -> StickerDataset:
    """A split of a data set: `SER` (with texts), `SER_V` (the same without), `FI` or `EmotionROI`.

    Args:
        tokenizer: for the texts of `SER`; the others have none and do not use it.

    Raises:
        UserError: an unknown name or split, or a mistake in the data.
    """
    if name not in READERS:
        raise UserError(f"--dataset: expected one of {', '.join(READERS)}, found {name!r}: choose one of these")
    tokenizer = tokenizer if name == "SER" else None
    return StickerDataset(READERS[name](root, split), transform, tokenizer, class_names=CLASS_NAMES[name])


def build_loader(
    dataset: Dataset,
    *,
    sampler: Sampler[int] | None = None,
    batch_sampler: Sampler[list[int]] | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
) -> DataLoader:
    """A loader to be read through `batches`; in order where there is no sampler.

    Args:
        sampler, batch_size, drop_last: single indices to be put into batches; or
        batch_sampler: whole batches of indices.
        seed: of this process; the seeds of its workers derive from it. Workers stay from one epoch to the next.
    """
    if batch_sampler is not None:
        batching = {"batch_sampler": batch_sampler}
    else:
        batching = {"sampler": sampler, "batch_size": batch_size or 1, "drop_last": drop_last}
    return DataLoader(
        dataset,
        **batching,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=num_workers > 0,
    )


def batches(loader: Iterable[Item | UserError]) -> Iterator[Item]:
    """The batches of a loader, each a dict of tensors with the batch in front.

    An exception that leaves a worker arrives wrapped, with the worker's traceback as its message. A worker therefore
    sends a reader's error as a value in the place of its batch, and here, in the main process, it is raised.

    Raises:
        UserError: an image of the batch could not be read.
    """
    for batch in loader:
        if isinstance(batch, UserError):
            # A new one: raising `batch` itself would tie it to this frame, and so the workers' end, seconds long, to
            # the garbage collector.
            raise UserError(str(batch))
        yield batch


def _collate(items: list[Item] | UserError) -> Item | UserError:
    """A batch of the items, or the error that came in their place."""
    return items if isinstance(items, UserError) else default_collate(items)


def _start_worker(_worker: int) -> None:
    """Seeds numpy and random as torch seeded itself here, and leaves the other cores to the other workers."""
    torch.set_num_threads(1)
    seed = torch.initial_seed()
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm's augmentation draws from numpy's global generator)
    random.seed(seed)
