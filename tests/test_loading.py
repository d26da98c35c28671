"""Loaders: the same batches however they are read, unreadable images, and workers that are signalled or killed."""

import os
import random
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_process
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from datasets import BadImage, Draw, StickerDataset, build_transform
from readers.annotations import Sample
from runtime.loader import build_loader, read_batches, worker_death
from runtime.samplers import EvalBatchSampler, TrainBatchSampler
from utils import RunError, UserError


@pytest.fixture(scope="module")
def stickers(tmp_path_factory) -> list[Sample]:
    """Twelve stickers of noise."""
    folder = tmp_path_factory.mktemp("stickers")
    noise = np.random.RandomState(0)
    for number in range(12):
        Image.fromarray(noise.randint(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [Sample(folder / f"{number}.png", number % 7, "") for number in range(12)]


@pytest.fixture
def training(stickers) -> StickerDataset:
    """The stickers under an augmentation that draws from all three generators."""
    return StickerDataset(stickers, build_transform(True, input_size=32, reprob=0.5))


def break_images(samples: list[Sample], folder: Path, *numbers: int) -> list[Sample]:
    """The samples, those of the numbers with a text in the place of the picture."""
    broken = list(samples)
    for number in numbers:
        path = folder / f"broken{number}.png"
        path.write_text("no picture")
        broken[number] = samples[number]._replace(path=path)
    return broken


def read_training(dataset: StickerDataset, *, num_workers: int, epoch: int = 1, first_batch: int = 0) -> list[dict]:
    """The batches of an epoch from one of them on, by a loader that has read another part of an epoch before."""
    sampler = TrainBatchSampler(RepeatAugSampler(range(12), 1, 0), 5, seed=3, rank=0)
    loader = build_loader(dataset, batch_sampler=sampler, num_workers=num_workers)
    sampler.set_epoch(0, first_batch=1)
    list(read_batches(loader))
    sampler.set_epoch(epoch, first_batch)
    return list(read_batches(loader))


def same(some: list[dict], others: list[dict]) -> bool:
    """Whether two lists of batches are equal to the bit."""
    return len(some) == len(others) and all(
        one.keys() == other.keys()
        and one["skipped"] == other["skipped"]
        and all(one[name].equal(other[name]) for name in ("image", "label", "index"))
        for one, other in zip(some, others, strict=True)
    )


def test_batches_do_not_depend_on_the_number_of_workers_or_on_the_start(training):
    whole = read_training(training, num_workers=0)
    assert [batch["image"].shape for batch in whole] == [(5, 3, 32, 32)] * 2
    assert all(batch["skipped"] == [] for batch in whole)
    for num_workers in (0, 1, 2):
        assert same(read_training(training, num_workers=num_workers), whole)
        assert same(read_training(training, num_workers=num_workers, first_batch=1), whole[1:])
    assert read_training(training, num_workers=2, first_batch=2) == []
    assert not same(read_training(training, num_workers=0, epoch=2), whole)


@pytest.mark.parametrize("reprob", [0.0, 1.0])
def test_a_draw_depends_on_its_seed_alone(stickers, reprob):
    dataset = StickerDataset(stickers, build_transform(True, input_size=32, reprob=reprob))
    images = {}
    for seed in (0, 1, 2**32, 2**64 - 1):
        images[seed] = dataset[Draw(4, seed)]["image"]
        random.seed()
        np.random.seed()  # noqa: NPY002 (the generator that timm draws from)
        torch.seed()
        assert dataset[Draw(4, seed)]["image"].equal(images[seed])
        assert dataset[Draw(4, seed)]["index"] == 4
    assert len({image.numpy().tobytes() for image in images.values()}) == 4


def draw_from_all() -> list[float]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()]  # noqa: NPY002


@pytest.mark.parametrize("broken", [False, True])
def test_a_draw_leaves_the_generators_of_the_process_alone(training, stickers, tmp_path, broken):
    if broken:
        training.samples = break_images(stickers, tmp_path, 2)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw_from_all()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    training.__getitems__([Draw(1, 5), Draw(2, 6)])
    training[Draw(1, 7)]
    assert draw_from_all() == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_can_leave_out_unreadable_images(stickers, tmp_path, num_workers):
    samples = break_images(stickers, tmp_path, 1, 4, 5, 6, 7)
    dataset = StickerDataset(samples, build_transform(False, input_size=32), on_bad_image="skip")
    loader = build_loader(dataset, batch_sampler=EvalBatchSampler(12, 4), num_workers=num_workers)
    first, second, third = read_batches(loader)
    assert first["index"].tolist() == [0, 2, 3]
    assert first["label"].tolist() == [0, 2, 3]
    assert first["image"].shape == (3, 3, 32, 32)
    reason = "expected an image that Pillow reads, found another kind of file, or one cut off in its first bytes: "
    assert first["skipped"] == [
        BadImage(1, str(tmp_path / "broken1.png"), reason + "replace the file, or take its entry out of the data")
    ]
    assert second.keys() == {"skipped"}
    assert [bad.index for bad in second["skipped"]] == [4, 5, 6, 7]
    assert third["index"].tolist() == [8, 9, 10, 11]
    assert third["skipped"] == []


def test_an_image_that_the_transform_refuses_is_skipped_too(stickers, tmp_path):
    line = tmp_path / "line.png"
    Image.new("L", (1, 60_000)).save(line)
    samples = [Sample(line, 0, ""), stickers[0]]
    dataset = StickerDataset(samples, build_transform(False, input_size=448), on_bad_image="skip")
    (batch,) = read_batches(build_loader(dataset, batch_size=2))
    assert batch["index"].tolist() == [1]
    assert batch["skipped"][0][:2] == (0, str(line))
    assert batch["skipped"][0].reason.startswith("expected a picture of usual proportions, found 1 x 60000")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_can_replace_unreadable_images(training, stickers, tmp_path, num_workers):
    training.samples = break_images(stickers, tmp_path, 10, 11)
    training.on_bad_image = "replace"
    keys = [[Draw(9, 1), Draw(10, 2), Draw(11, 3)]]
    (batch,) = read_batches(build_loader(training, batch_sampler=keys, num_workers=num_workers))
    assert batch["index"].tolist() == [9, 0, 0]
    for place, draw in enumerate((Draw(9, 1), Draw(0, 2), Draw(0, 3))):
        assert batch["image"][place].equal(training[draw]["image"])
    assert [bad.index for bad in batch["skipped"]] == [10, 11, 11]


def test_ten_unreadable_images_in_a_row_end_a_training(training, stickers, tmp_path):
    training.on_bad_image = "replace"
    training.samples = break_images(stickers, tmp_path, *range(2, 11))
    (batch,) = read_batches(build_loader(training, batch_sampler=[[2]]))
    assert batch["index"].tolist() == [11]
    assert len(batch["skipped"]) == 9
    training.samples = break_images(stickers, tmp_path, *range(2, 12))
    with pytest.raises(UserError, match=r"broken2\.png: expected readable images .* found 10 in a row that cannot"):
        list(read_batches(build_loader(training, batch_sampler=[[2]])))


def test_a_small_set_without_a_readable_image_ends_a_training(training, stickers, tmp_path):
    training.on_bad_image = "replace"
    training.samples = break_images(stickers[:2], tmp_path, 0, 1)
    with pytest.raises(UserError, match=r"broken1\.png: .* found 2 in a row"):
        list(read_batches(build_loader(training, batch_sampler=[[1]])))


class Workers(torch.utils.data.Dataset):
    """Which process reads an item, and how many threads it has."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict:
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "index": index}


def test_workers_do_not_heed_the_signals_that_end_a_run():
    loader = build_loader(Workers(), batch_size=1, num_workers=2)
    reading = read_batches(loader)
    pids = {next(reading)["pid"].item() for _ in range(2)}
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    rest = list(reading)
    assert [batch["index"].item() for batch in rest] == list(range(2, 40))
    assert {batch["pid"].item() for batch in rest} == pids
    assert {batch["threads"].item() for batch in rest} == {1}


def test_workers_read_as_far_ahead_as_asked():
    loader = build_loader(Workers(), batch_size=1, num_workers=2, prefetch_factor=5)
    assert loader.prefetch_factor == 5
    assert build_loader(Workers(), prefetch_factor=5).prefetch_factor is None


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that its parent has not asked after is a zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for a condition, which must come true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.mark.parametrize("killed", [False, True])
def test_no_worker_outlives_the_program(killed):
    program = """
        import os, signal, sys, torch
        from runtime.loader import build_loader, read_batches
        class Pids(torch.utils.data.Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, index):
                return {"pid": os.getpid()}
        loader = build_loader(Pids(), batch_size=1, num_workers=2)  # global: it is there when Python ends
        print(*{batch["pid"].item() for batch in read_batches(loader)}, flush=True)
        if sys.argv[1] == "True":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    finished = run_process(sys.executable, "-c", textwrap.dedent(program), killed, timeout=60)
    assert finished.code == (-signal.SIGKILL if killed else 0)
    pids = [int(pid) for pid in finished.output.split()]  # nothing but the two numbers: no complaint either
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)))


class Dying(Workers):
    """Workers of which one is killed, as the kernel does for want of memory, or ends on its own."""

    def __init__(self, death: str):
        self.death = death

    def __getitem__(self, index: int) -> dict:
        if index == 7 and self.death == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 7 and self.death == "ended":
            os._exit(3)
        return super().__getitem__(index)


def death_of(reading: Iterator[dict]) -> str:
    """The one line with which the batches end. (An error kept would keep its frames, and they the other workers.)"""
    try:
        list(reading)
    except RunError as error:
        return str(error)
    return "none"


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("killed", r"(was killed by signal Killed|ended without saying why), .* memory: lower --num-workers or"),
        ("ended", r"(ended with exit code 3: --num-workers 0 shows why|ended without saying why)"),
    ],
)
def test_a_dead_worker_ends_the_batches_with_one_line(death, message):
    line = death_of(read_batches(build_loader(Dying(death), batch_size=1, num_workers=2)))
    assert re.match(r"data loader worker \(process \d+\) " + message, line)
    assert line.isprintable()


def compute_on(seconds: float) -> str | None:
    """What `worker_death` says of the error that comes meanwhile."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            time.sleep(0.01)
    except RuntimeError as error:
        return worker_death(error)
    return "none"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (signal.SIGKILL, "lower --num-workers"),
        (signal.SIGBUS, "enlarge /dev/shm"),
        (signal.SIGXCPU, "--num-workers 0 may show why"),
    ],
)
def test_a_worker_killed_while_the_main_process_computes_is_explained(number, remedy):
    reading = read_batches(build_loader(Workers(), batch_size=1, num_workers=2))
    pid = next(reading)["pid"].item()
    os.kill(pid, number)
    line = compute_on(20)
    assert line.startswith(f"data loader worker (process {pid}) was killed by signal {signal.strsignal(number)}, ")
    assert remedy in line


class KilledWhileAsking(Workers):
    """Workers that are killed while they ask whether the loader ends, holding that question's lock if it has one."""

    def __getitem__(self, index: int) -> dict:
        frame = sys._getframe()
        while "done_event" not in frame.f_locals:
            frame = frame.f_back
        lock = getattr(frame.f_locals["done_event"], "_cond", None)
        if lock is not None:
            lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_worker_killed_while_it_asks_for_the_end_leaves_no_lock():
    reading = read_batches(build_loader(KilledWhileAsking(), batch_size=1, num_workers=2))
    with pytest.raises(RunError, match="data loader worker"):
        next(reading)  # and the loader ends, or this test hangs


def test_a_worker_that_does_not_come_out_of_the_fork_is_replaced(tmp_path):
    """The first process stays in the fork for ever, as where a thread held a lock of Python's in that moment."""
    program = """
        import os, sys, time, torch
        import runtime.loader
        from runtime.loader import build_loader, read_batches
        class Numbers(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                return {"number": index}
        def get_stuck():
            try:
                file = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.write(file, str(os.getpid()).encode())
            time.sleep(600)
        os.register_at_fork(after_in_child=get_stuck)
        runtime.loader.START_SECONDS = (2, 30)
        loader = build_loader(Numbers(), batch_size=1, num_workers=2)
        print(*[batch["number"].item() for batch in read_batches(loader)])
    """
    finished = run_process(sys.executable, "-c", textwrap.dedent(program), tmp_path / "stuck", timeout=60)
    assert finished.code == 0, finished.output
    assert finished.output.splitlines() == [
        "a data loader worker did not start within 2 s: another is started",
        "0 1 2 3",
    ]
    assert not is_running(int((tmp_path / "stuck").read_text()))


class Stuck(Workers):
    """Workers that never read an item, as on a disk that does not answer."""

    def __init__(self, started: Path):
        self.started = started

    def __getitem__(self, index: int) -> dict:
        self.started.write_text(str(os.getpid()))
        time.sleep(1000)
        return {}


def test_a_worker_that_is_stuck_ends_with_its_loader(tmp_path):
    loader = build_loader(Stuck(tmp_path / "pid"), batch_size=1, num_workers=1)
    reading = iter(loader)
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    del loader, reading
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    "message",
    ["mat1 and mat2 shapes cannot be multiplied", "Caught RuntimeError in DataLoader worker process 0.\nTraceback", ""],
)
def test_another_error_is_no_death_of_a_worker(message):
    assert worker_death(RuntimeError(message)) is None


class Failing(Workers):
    def __getitem__(self, index: int) -> dict:
        raise RuntimeError("a mistake in the program")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_another_error_leaves_the_batches_as_it_is(num_workers):
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        list(read_batches(build_loader(Failing(), batch_size=1, num_workers=num_workers)))
