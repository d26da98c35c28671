"""Data set, transforms and loader, on a small SER30K made of real files."""

import contextlib
import gc
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from datasets import Draw, StickerDataset, Transform, build_dataset, build_transform, seed_generators
from readers.annotations import SER_NAMES, Sample
from readers.image_cache import available_memory
from readers.tokenizer import Tokenizer
from runtime.loader import build_loader, read_batches
from runtime.samplers import EvalBatchSampler
from utils import UserError

VOCABULARY = Path(__file__).parent.parent / "weights" / "vocab.txt"
TEXTS = ["hello world", "", "hello world", "a ||| b", "", "hello world", "a"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Seven stickers of 40 x 40 px, one of each class."""
    root = tmp_path_factory.mktemp("data") / "SER_Dataset"
    (root / "Images" / "cats").mkdir(parents=True)
    noise = np.random.RandomState(0)
    for number in range(7):
        image = Image.fromarray(noise.randint(0, 256, (40, 40, 3), dtype=np.uint8))
        image.save(root / "Images" / "cats" / f"{number}.png")
    entries = [
        {"topic": "cats", "file_name": f"{number}.png", "text": text, "anno": number + 1}
        for number, text in enumerate(TEXTS)
    ]
    (root / "Annotations").mkdir()
    for split in ("train", "test"):
        (root / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": entries}))
    return root


@pytest.fixture
def evaluation() -> Transform:
    return build_transform(False, input_size=32)


def test_an_item_of_ser_has_image_label_index_and_words(root, tokenizer, evaluation):
    dataset = build_dataset("SER", root, "test", transform=evaluation, tokenizer=tokenizer)
    assert len(dataset) == 7
    assert dataset.labels == list(range(7))
    assert dataset.class_names == SER_NAMES
    assert dataset.samples[3] == Sample(root / "Images/cats/3.png", 3, "a ||| b", "cats")
    for index, text in enumerate(TEXTS):
        item = dataset[index]
        assert item["image"].shape == (3, 32, 32)
        assert (item["label"], item["index"]) == (index, index)
        ids, mask = tokenizer.encode(text)
        assert item["word_ids"].equal(ids)
        assert item["word_mask"].equal(mask)


def test_each_distinct_text_is_kept_once(root, tokenizer, evaluation):
    dataset = build_dataset("SER", root, "test", transform=evaluation, tokenizer=tokenizer)
    assert dataset.words.shape == (4, 2, 30)


def test_ser_v_has_no_words(root, tokenizer, evaluation):
    for given in (None, tokenizer):
        dataset = build_dataset("SER_V", root, "train", transform=evaluation, tokenizer=given)
        assert set(dataset[0]) == {"image", "label", "index"}


def test_an_unknown_data_set_is_an_error(root, evaluation):
    with pytest.raises(UserError, match="expected one of SER, SER_V, FI, EmotionROI, folder, csv, found 'MNIST'"):
        build_dataset("MNIST", root, "train", transform=evaluation)


def test_evaluation_resizes_the_short_side_and_crops_the_centre():
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 90, 3), dtype=np.uint8))
    resized = image.resize((131, 73), Image.Resampling.BICUBIC)  # int(256 / 224 * 64) = 73, and 90 * 73 / 50
    left, top = round((131 - 64) / 2), round((73 - 64) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 64, top + 64)), dtype=np.float32) / 255
    expected = torch.tensor((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)
    torch.testing.assert_close(build_transform(False, input_size=64)(image), expected)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)])
@pytest.mark.parametrize("image_size", [(30, 200), (200, 30), (128, 128)])
@pytest.mark.parametrize("is_train", [False, True])
def test_other_sides_are_filled_by_the_image(size, image_size, is_train):
    white = Image.new("RGB", image_size, "white")
    image = build_transform(is_train, input_size=size, auto_augment=None, color_jitter=None)(white)
    assert image.shape == (3, *size)
    torch.testing.assert_close(image, ((1 - torch.tensor(MEAN)) / torch.tensor(STD))[:, None, None].expand(3, *size))


def test_training_is_timms_transform_as_published():
    steps = build_transform(True, input_size=448).transforms
    crop, flip, augment, _, normalise = steps
    assert (crop.size, crop.scale) == ((448, 448), (0.08, 1.0))
    assert crop.interpolation == transforms.InterpolationMode.BICUBIC
    assert flip.p == 0.5
    assert type(augment).__name__ == "RandAugment"
    assert augment.ops[0].magnitude == 9
    assert augment.ops[0].magnitude_std == 0.5
    assert normalise.mean.tolist() == pytest.approx(MEAN)
    assert normalise.std.tolist() == pytest.approx(STD)


def test_colour_jitter_and_erasing_where_asked_for():
    steps = build_transform(True, input_size=64, auto_augment=None, color_jitter=0.1, reprob=0.3).transforms
    names = [type(step).__name__ for step in steps]
    assert names[2:3] + names[4:] == ["ColorJitter", "Normalize", "RandomErasing"]


@pytest.mark.parametrize(
    "options", [{}, {"auto_augment": None, "re_prob": 1.0, "re_mode": "pixel", "interpolation": "random"}]
)
def test_training_images_are_timms_to_the_bit(options):
    ours = {name.replace("re_", "re"): value for name, value in options.items()}
    settings = {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.1, "interpolation": "bicubic"} | options
    transform, published = build_transform(True, input_size=48, **ours), create_transform(48, True, **settings)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (90, 70, 3), dtype=np.uint8))
    images = {}
    for name, function in (("ours", transform), ("timm's", published)):
        seed_generators(7)
        images[name] = torch.stack([function(image) for _ in range(20)])
    assert images["ours"].equal(images["timm's"])


@pytest.mark.parametrize("options", [{"auto_augment": "foo"}, {"interpolation": "foo"}, {"reprob": 1, "remode": "foo"}])
def test_an_augmentation_that_timm_does_not_know_is_an_error(options):
    with pytest.raises(UserError, match="foo"):
        build_transform(True, input_size=64, **options)


def test_an_image_too_elongated_to_resize_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "line.png"
    Image.new("L", (1, 60_000)).save(path)
    dataset = StickerDataset([Sample(path, 0, "")], build_transform(False, input_size=448))
    with pytest.raises(UserError, match=r"line\.png: expected a picture of usual proportions, found 1 x 60000"):
        dataset[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_batches_of_tensors(root, tokenizer, evaluation, num_workers):
    dataset = build_dataset("SER", root, "test", transform=evaluation, tokenizer=tokenizer)
    sampler = EvalBatchSampler(7, 3, 1, 0)
    loader = build_loader(
        dataset, batch_sampler=sampler, drop_last=False, num_workers=num_workers, pin_memory=False, seed=0
    )
    for _ in range(2):
        read = list(read_batches(loader))
        assert [batch["index"].tolist() for batch in read] == [[0, 1, 2], [3, 4, 5], [6]]
        assert read[0]["image"].shape == (3, 3, 32, 32)
        assert read[0]["word_ids"].shape == read[0]["word_mask"].shape == (3, 30)
        assert read[1]["label"].tolist() == [3, 4, 5]
        assert read[1]["image"][0].equal(dataset[3]["image"])


def test_an_incomplete_batch_is_dropped_where_asked(root, evaluation):
    dataset = build_dataset("SER_V", root, "train", transform=evaluation)
    sizes = {}
    for drop_last in (True, False):
        loader = build_loader(
            dataset,
            sampler=range(6, -1, -1),
            batch_size=3,
            drop_last=drop_last,
            num_workers=0,
            pin_memory=False,
            seed=0,
        )
        sizes[drop_last] = [batch["index"].tolist() for batch in read_batches(loader)]
    assert sizes == {True: [[6, 5, 4], [3, 2, 1]], False: [[6, 5, 4], [3, 2, 1], [0]]}


def read_all(dataset: StickerDataset, num_workers: int) -> tuple[list[list[int]], UserError | None]:
    """The indices of the batches read, and the error that ended them, without its frames, which keep the workers."""
    indices = []
    loader = build_loader(dataset, batch_size=1, drop_last=False, num_workers=num_workers, pin_memory=False, seed=0)
    try:
        for batch in read_batches(loader):
            indices.append(batch["index"].tolist())
    except UserError as error:
        return indices, error.with_traceback(None)
    return indices, None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_arrives_as_the_same_one_line_error(root, tmp_path, evaluation, num_workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes((root / "Images/cats/0.png").read_bytes()[:200])
    samples = [Sample(root / "Images/cats/0.png", 0, ""), Sample(broken, 1, ""), Sample(tmp_path / "no.png", 2, "")]
    dataset = StickerDataset(samples, evaluation)
    with pytest.raises(UserError, match=r"broken\.png: expected an image that Pillow reads") as direct:
        dataset[1]
    indices, error = read_all(dataset, num_workers)
    assert indices == [[0]]
    assert type(error) is UserError
    assert str(error) == str(direct.value)
    assert str(error).isprintable()


def test_the_workers_end_at_once_after_an_error(tmp_path, evaluation):
    def read() -> None:
        loader = build_loader(dataset, batch_size=1, drop_last=False, num_workers=2, pin_memory=False, seed=0)
        with contextlib.suppress(UserError):
            list(read_batches(loader))

    dataset = StickerDataset([Sample(tmp_path / f"{n}.png", 0, "") for n in range(8)], evaluation)
    gc.collect()
    start = time.monotonic()
    read()
    gc.collect()
    assert time.monotonic() - start < 4


class Draws(torch.utils.data.Dataset):
    """What the generators of a worker draw, and how many threads it has."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002 (timm's generator)
        return {
            "drawn": torch.tensor(drawn, dtype=torch.float64),
            "threads": torch.get_num_threads(),
            "pid": os.getpid(),
        }


def test_the_workers_generators_follow_from_the_seed():
    def draw(seed: int) -> torch.Tensor:
        loader = build_loader(Draws(), batch_size=1, drop_last=False, num_workers=2, pin_memory=False, seed=seed)
        read = list(read_batches(loader))
        assert all(batch["threads"].item() == 1 for batch in read)
        return torch.cat([batch["drawn"] for batch in read])

    first = draw(0)
    assert first.equal(draw(0))
    assert not (first == draw(1)).any()
    assert len(first.unique()) == 12


def test_the_workers_stay_from_one_epoch_to_the_next():
    loader = build_loader(Draws(), batch_size=1, drop_last=False, num_workers=2, pin_memory=False, seed=0)
    first, second = ({batch["pid"].item() for batch in read_batches(loader)} for _ in range(2))
    assert first == second
    assert len(first) == 2


def test_training_batches_follow_from_the_seed(root):
    transform = build_transform(True, input_size=32)
    dataset = build_dataset("SER_V", root, "train", transform=transform)

    def images(seed: int) -> torch.Tensor:
        loader = build_loader(dataset, batch_size=7, drop_last=True, num_workers=1, pin_memory=False, seed=seed)
        return next(read_batches(loader))["image"]

    assert images(3).equal(images(3))
    assert not images(3).equal(images(4))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Sample]:
    """JPEGs and a PNG of smooth colours, some of them large, the last two not to be read."""
    folder = tmp_path_factory.mktemp("photographs")
    sizes = {"small.jpg": (60, 50), "double.jpg": (64, 64), "wide.jpg": (400, 63), "large.jpg": (700, 520)}
    for number, (name, size) in enumerate((sizes | {"large.png": (700, 520)}).items()):
        noise = np.random.RandomState(number).randint(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:700])
    return [Sample(folder / name, 0, "") for name in (*sizes, "large.png", "broken.jpg", "gone.png")]


def items(dataset: StickerDataset) -> list:
    """Each item twice, as tensors, or the error in its place."""
    read = []
    for draw in (Draw(index, 8) for index in 2 * list(range(len(dataset)))):
        try:
            read.append(dataset[draw]["image"])
        except UserError as error:
            read.append(str(error))
    return read


@pytest.mark.parametrize("is_train", [False, True])
@pytest.mark.parametrize("jpeg_draft", [False, True])
def test_cached_images_give_the_same_items(photographs, is_train, jpeg_draft):
    transform = build_transform(is_train, input_size=32)
    uncached = items(StickerDataset(photographs, transform, jpeg_draft=jpeg_draft))
    cached = items(StickerDataset(photographs, transform, jpeg_draft=jpeg_draft, cache_images=True))
    assert [type(item) for item in cached[:7]] == [torch.Tensor] * 5 + [str] * 2
    for one, other in zip(uncached, cached, strict=True):
        assert one == other if isinstance(one, str) else one.equal(other)


def test_cached_images_are_read_before_the_first_item(photographs, tmp_path):
    paths = [tmp_path / sample.path.name for sample in photographs[:5]]
    for path, sample in zip(paths, photographs, strict=False):
        path.write_bytes(sample.path.read_bytes())
    transform = build_transform(True, input_size=32)
    dataset = StickerDataset([Sample(path, 0, "") for path in paths], transform, cache_images=True)
    for path in paths:
        path.unlink()
    loader = build_loader(dataset, batch_sampler=[[0, 1, 2, 3, 4]], num_workers=1)
    (batch,) = read_batches(loader)
    assert batch["image"].shape == (5, 3, 32, 32)


def test_images_too_large_for_the_memory_are_refused(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "0.png")
    count = available_memory() // (9000 * 9000 * 4)
    for number in range(1, count):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    samples = [Sample(tmp_path / f"{number}.png", 0, "") for number in range(count)]
    found = rf"found {count * 9000 * 9000 * 4 / 2**30:.2f} GiB in {count:,} images"
    with pytest.raises(UserError, match=rf"--cache-images: expected pictures of at most [\d.]+ GiB .* {found}: leave"):
        StickerDataset(samples, build_transform(True, input_size=32), cache_images=True)


def test_the_available_memory_is_the_least_of_the_limits(tmp_path):
    def write(name: str, content: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    assert available_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal:       9000 kB\nMemAvailable:   8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    write("proc/self/cgroup", "4:memory:/job/step\n1:cpu:/job\n0::/job/step\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert available_memory(tmp_path) == 8000 * 1024
    write("sys/fs/cgroup/job/memory.max", "70000\n")
    assert available_memory(tmp_path) == 70000
    write("sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "60000\n")
    assert available_memory(tmp_path) == 60000


def test_a_draft_is_never_smaller_than_the_input(photographs):
    def sizes(input_size: int | tuple[int, int], jpeg_draft: bool) -> list[tuple[int, int]]:
        dataset = StickerDataset(photographs[:5], build_transform(True, input_size=input_size), jpeg_draft=jpeg_draft)
        dataset.transform = lambda image: torch.tensor(image.size)
        return [tuple(item.tolist()) for item in items(dataset)[:5]]

    assert sizes(32, False) == [(60, 50), (64, 64), (400, 63), (700, 520), (700, 520)]
    assert sizes(32, True) == [(60, 50), (32, 32), (400, 63), (88, 65), (700, 520)]
    assert sizes((16, 64), True) == [(60, 50), (64, 64), (200, 32), (88, 65), (700, 520)]


def test_a_draft_looks_like_the_picture(photographs):
    transform = build_transform(False, input_size=28)
    full, draft = (StickerDataset(photographs, transform, jpeg_draft=jpeg_draft)[3] for jpeg_draft in (False, True))
    difference = (full["image"] - draft["image"]).abs()
    assert 0 < difference.max() < 0.1
