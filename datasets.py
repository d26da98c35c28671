"""The data sets as PyTorch reads them: draws, transforms and `StickerDataset`."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import functional

from readers.annotations import Sample
from readers.data_sets import DATA_SETS
from readers.image_cache import PictureCache
from readers.images import RGB_ON_WHITE, is_blank, read_image
from readers.own_data import read_csv as read_csv  # beside `build_dataset`, for those who want the samples alone
from readers.own_data import read_folder as read_folder
from readers.tokenizer import Tokenizer
from utils import UserError, printable


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the generators that augmentation draws from back as they were, at the end.

    These are the generators of `random`, of numpy's global functions and of torch on the CPU: timm and torchvision
    draw from all three.
    """
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_generators(seed: int) -> None:
    """Seeds the same generators, with 0 to 2**64 - 1.

    `torch.manual_seed` would seed CUDA as well, and costs 100 times as much.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


class Draw(NamedTuple):
    """A training sample and the seed of its augmentation, from 0 to 2**64 - 1."""

    index: int  # type: ignore[assignment]
    seed: int


Transform = Callable[[Image.Image], Tensor]


class InputStatistics(NamedTuple):
    """How a network wants its images: timm's names and meanings. The defaults are ImageNet's, as LORA was published.

    Attributes:
        mean, std: of each channel, which is from 0 to 1.
        interpolation, crop_pct, crop_mode: of the evaluation, which crops the share `crop_pct` of the resized picture.
            center: the short side is resized; squash: both sides are; border: the long side is, and the rest is filled.
    """

    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: Sequence[float] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 224 / 256
    crop_mode: str = "center"


IMAGENET = InputStatistics()


def build_transform(
    is_train: bool,
    *,
    input_size: int | tuple[int, int],
    color_jitter: float | None = 0.1,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    interpolation: str = "bicubic",
    reprob: float = 0.0,
    remode: str = "pixel",
    recount: int = 1,
    scale: tuple[float, float] = (0.08, 1.0),
    statistics: InputStatistics = IMAGENET,
) -> Transform:
    """The way from a picture in RGB to a tensor (3, H, W), normalised with the mean and deviation of `statistics`.

    In training: random crop of `scale` of the area, flip, augmentation; timm leaves the colour jitter out if
    `auto_augment` is set. In evaluation: the short side resized to int(256 / 224 * size), bicubic, and the centre
    cropped, or as `statistics` have it. `input_size`, the side in pixels or (height, width), and `statistics` are all
    that matters in evaluation.

    Raises:
        UserError: timm does not know the augmentation, the interpolation or the mode of random erasing.
    """
    if not is_train:
        size = (input_size, input_size) if isinstance(input_size, int) else input_size
        return _evaluation_transform(size, statistics)
    try:
        transform = create_transform(
            input_size,
            is_training=True,
            color_jitter=color_jitter,  # type: ignore[arg-type]
            auto_augment=auto_augment,
            interpolation=interpolation,
            re_prob=reprob,
            re_mode=remode,
            re_count=recount,
            scale=scale,
            mean=tuple(statistics.mean),
            std=tuple(statistics.std),
        )
    except (AssertionError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"--aa {auto_augment}, --train-interpolation {interpolation}, --remode {remode}: expected what timm knows, "
            f"found {type(error).__name__} {error}: correct the flag"
        ) from error
    steps = transform.transforms
    place = next(place for place, step in enumerate(steps) if isinstance(step, transforms.Normalize))
    steps[place - 1], steps[place].inplace = _ToTensor(), True
    return transform


def first_size(transform: transforms.Compose) -> tuple[int, int]:
    """(height, width) that the first step of a transform of `build_transform` crops or resizes to."""
    return tuple(transform.transforms[0].size)


def _evaluation_transform(size: tuple[int, int], statistics: InputStatistics) -> Transform:
    """Resize, crop and normalise, for images of `size` (height, width)."""
    if statistics.crop_mode == "center":
        covered = (int(size[0] / statistics.crop_pct), int(size[1] / statistics.crop_pct))
        steps = [_Resize(covered, str_to_interp_mode(statistics.interpolation)), transforms.CenterCrop(size)]
    else:
        steps = create_transform(size, **{**statistics._asdict(), "mean": tuple(statistics.mean)}).transforms[:2]
    normalize = transforms.Normalize(tuple(statistics.mean), tuple(statistics.std), inplace=True)
    return transforms.Compose([*steps, _ToTensor(), normalize])


class _ToTensor:
    """A picture as a tensor (3, H, W) with values from 0 to 1: those of torchvision's ToTensor, in fewer passes."""

    def __call__(self, image: Image.Image) -> Tensor:
        """The tensor, which is new and may be changed in place."""
        values = functional.pil_to_tensor(image)
        return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


class _Resize:
    """Resizes a picture until it just covers (height, width); with equal sides that is a rule for the short side."""

    def __init__(self, size: tuple[int, int], interpolation: transforms.InterpolationMode):
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """The resized picture; raises UserError (see `check_proportions`)."""
        check_proportions(image, self.size)
        is_square = self.size[0] == self.size[1]
        size = self.size[0] if is_square else ResizeKeepRatio.get_params(image, self.size, longest=0)
        return functional.resize(image, size, self.interpolation)


def check_proportions(image: Image.Image, size: tuple[int, int]) -> None:
    """Raises UserError for a picture so elongated that it exceeds Pillow's limit when it covers (height, width)."""
    scale = max(size[0] / image.height, size[1] / image.width)
    if Image.MAX_IMAGE_PIXELS and image.height * image.width * scale**2 > Image.MAX_IMAGE_PIXELS:
        found = f"{image.width} x {image.height}"
        raise UserError(f"expected a picture of usual proportions, found {found} pixels: crop it")


def same_topics(tokenizer: Tokenizer | None) -> Callable[[str], Any]:
    """What tells topics apart: with a tokenizer their word ids, as published (TGCA-PVT); else their names.

    Word ids merge names that differ in case, in accents, behind the 28th piece or in unknown words.
    """
    return (lambda topic: topic) if tokenizer is None else (lambda topic: tuple(tokenizer.encode(topic).ids.tolist()))


def vote_shares(samples: Sequence[Sample], num_classes: int) -> Tensor | None:
    """The share of each sample's votes that each class has, (samples, num_classes); None if there are no votes."""
    if not samples or not samples[0].votes:
        return None
    votes = torch.tensor([sample.votes for sample in samples])  # (samples, annotators)
    return torch.nn.functional.one_hot(votes, num_classes).float().mean(dim=1)


def number_topics(samples: Sequence[Sample], key: Callable[[str], Any]) -> list[int]:
    """The number of each sample's topic, equal if `key` of the topics is; raises UserError for one without a topic."""
    for sample in samples:
        if not sample.topic:
            expected = "expected a topic for each image, which this --model reads"
            remedy = "name the topics (in a table, in a column topic)"
            raise UserError(f"{printable(sample.path)}: {expected}, found none: {remedy}")
    keys = {topic: key(topic) for topic in dict.fromkeys(sample.topic for sample in samples)}
    numbers = {one: number for number, one in enumerate(dict.fromkeys(keys.values()))}
    return [numbers[keys[sample.topic]] for sample in samples]


MAX_REPLACEMENTS = 10
Item = dict[str, Any]
OnBadImage = Literal["error", "skip", "replace"]


class BadImage(NamedTuple):
    """An image that could not be read: its place in the data set, its file and why."""

    index: int  # type: ignore[assignment]
    path: str
    reason: str


class ItemsRead(NamedTuple):
    """The items of a batch, and the images that could not be read for it."""

    items: list[Item]
    bad_images: list[BadImage]


class StickerDataset(Dataset):
    """Images with their labels and, with a tokenizer, their texts as word ids.

    An item has `image` (3, H, W), `label` and `index`, with a tokenizer `word_ids` (30,) and `word_mask` (30,), if
    there are topics, `topics`, its topic's number, and with votes, `vote_shares` (classes,). Texts are tokenised here,
    each distinct text once. The key of an item is its index, or a `Draw`, which has a seed for its augmentation: the
    item then depends on nothing else, and the generators of this process stay as they are.

    Reading a single item raises UserError if its image is broken. A loader asks for the items of a whole batch;
    there `on_bad_image` tells what becomes of such an image:
        error: it ends the run;
        skip: the batch is smaller by it, for evaluation;
        replace: the next image of the data set takes its place, with the same seed, for training.

    Args:
        cache_images: decodes all images here and keeps the pictures in memory, those of the workers included; items
            stay the same. Each process of a distributed run has its own.
        jpeg_draft: decodes a JPEG at a reduced scale if both its sides are at least twice those that the
            transform's first step crops or resizes to (see `read_image`). The picture as a whole stays at least that
            large; a crop of it, in training as small as 8 % of its area, may come from fewer pixels than at full
            scale, and is enlarged. Not for evaluation.
        image_reading: how pictures are read, one of `readers.images.READINGS`.
        topics: which topics are one, by `same_topics`; None gives no topics.

    Raises:
        UserError: with `cache_images`, pictures that do not fit into half of the memory.

    Attributes:
        samples: the list of samples; `labels`: their labels; `class_names`: the names of the labels.
        vote_shares: (n, classes), the share of votes that each class has; None if the samples have no votes.
        blank: bool (n,), the images that were read so far and are of one colour; shared with the workers.
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
        image_reading: str = RGB_ON_WHITE,
        topics: Callable[[str], Any] | None = None,
    ):
        self.samples = list(samples)
        self.labels = [sample.label for sample in self.samples]
        self.class_names = tuple(class_names)
        self.transform = transform
        self.on_bad_image = on_bad_image
        self.least_size = first_size(transform) if jpeg_draft else None
        paths = [sample.path for sample in self.samples]
        self.image_reading = image_reading
        self.cache = PictureCache(paths, self.least_size, image_reading) if cache_images else None
        self.blank = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self.topics = number_topics(self.samples, topics) if topics is not None else None
        self.vote_shares = vote_shares(self.samples, len(self.class_names))
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
            return copy.copy(error)  # without the frames that it came through
        return read

    def _read(self, key: int | Draw) -> Item:
        """An item; for a Draw, the generators are left in disorder."""
        index = key.index if isinstance(key, Draw) else key
        if isinstance(key, Draw):
            seed_generators(key.seed)
        sample = self.samples[index]
        path = sample.path
        picture = self.cache.read(path) if self.cache else read_image(path, self.least_size, self.image_reading)
        self.blank[index] = is_blank(picture)
        try:
            image = self.transform(picture)
        except UserError as error:
            raise type(error)(f"{printable(path)}: {error}") from error
        item = {"image": image, "label": sample.label, "index": index}
        if self.words is not None:
            item["word_ids"], item["word_mask"] = self.words[self.rows[index]]
        if self.topics is not None:
            item["topics"] = self.topics[index]
        if self.vote_shares is not None:
            item["vote_shares"] = self.vote_shares[index]
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
    annotations: str = "",
    image_reading: str = RGB_ON_WHITE,
    topics: Callable[[str], Any] | None = None,
    votes: bool = False,
) -> StickerDataset:
    """A split of a data set: `SER` (with texts), `SER_V` (the same without), `FI`, `EmotionROI`, `folder` or `csv`.

    Args:
        tokenizer: for the texts of `SER`, `folder` and `csv`; the others have none and do not use it.
        on_bad_image, cache_images, jpeg_draft, image_reading, topics: see `StickerDataset`.
        annotations, votes: see `readers.annotations.read_ser`.

    Raises:
        UserError: an unknown name or split, or a mistake in the data.
    """
    if name not in DATA_SETS:
        raise UserError(f"--dataset: expected one of {', '.join(DATA_SETS)}, found {name!r}: choose one of these")
    record = DATA_SETS[name]
    return StickerDataset(
        record.read(root, split, annotations=annotations, votes=votes),
        transform,
        tokenizer if record.has_texts else None,
        class_names=record.class_names(root),
        on_bad_image=on_bad_image,
        cache_images=cache_images,
        jpeg_draft=jpeg_draft,
        image_reading=image_reading,
        topics=topics,
    )
