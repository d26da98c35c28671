"""Which process sees which sample when: repeated augmentation in training, whole batches in evaluation."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler, Sampler

from datasets import Draw
from utils import UserError

REPEATS = 3
ROUND = 256


def build_train_sampler(
    dataset: Sized | int,
    *,
    num_replicas: int,
    rank: int,
    batch_size: int,
    repeated_aug: bool,
    seed: int,
    say: Callable[[str], None] = print,
) -> RepeatAugSampler | DistributedSampler:
    """The order of the training samples of one process; call `set_epoch` before each epoch.

    With repeated augmentation each sample comes three times in a row and an epoch has
    n // 256 * 256 / processes samples a process. Where that is less than a batch, so always below 256 samples, the
    epoch is every sample once, shuffled, and `say` is told so.

    Args:
        dataset: the data set, or how many samples it has.
        batch_size: of one process; an incomplete last batch is taken to be dropped.
        seed: of the order without repeated augmentation; with it, the order depends on the epoch alone.

    Raises:
        UserError: less than one batch a process.
    """
    samples: Any = range(dataset if isinstance(dataset, int) else len(dataset))
    repeated, once = len(samples) // ROUND * ROUND // num_replicas, len(samples) // num_replicas
    if once < batch_size:
        remedy = f"lower --batch-size to {once} or less" if once else f"start at most {len(samples)} processes"
        found = f"{len(samples):,} samples for {num_replicas} processes"
        raise UserError(f"--batch-size {batch_size}: expected at least a batch a process, found {found}: {remedy}")
    if repeated_aug and repeated >= batch_size:
        return RepeatAugSampler(samples, num_replicas, rank, num_repeats=REPEATS, selected_round=ROUND)
    if repeated_aug:
        say(
            f"repeated augmentation is off: of {len(samples):,} samples it would give each of {num_replicas} processes "
            f"{repeated}, less than --batch-size {batch_size}; each epoch has every sample once, {once} a process"
        )
    return DistributedSampler(samples, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)


class BalancedSampler(Sampler[int]):
    """Draws each class as often as any other, in place of another order of as many samples.

    The draws of a class go through its samples in turn, shuffled; with repeated augmentation each draw comes three
    times in a row. All processes share the draws of an epoch, which depend on `seed` and the epoch alone.

    Args:
        labels: of all samples, from 0, each class at least once.
        order: what it replaces: of this process, with its length, processes and repeats.
    """

    def __init__(self, labels: Sequence[int], order: RepeatAugSampler | DistributedSampler, *, seed: int):
        self.of_class = [np.flatnonzero(np.equal(labels, label)) for label in range(max(labels) + 1)]
        self.order, self.seed = order, seed
        self.repeats = REPEATS if isinstance(order, RepeatAugSampler) else 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        total = len(self.order) * self.order.num_replicas
        draws = -(-total // self.repeats)
        classes = generator.permutation(np.arange(draws) % len(self.of_class))
        drawn = np.empty(draws, dtype=np.int64)
        for label, samples in enumerate(self.of_class):
            places = np.flatnonzero(classes == label)
            rounds = [generator.permutation(samples) for _ in range(-(-len(places) // len(samples)))]
            drawn[places] = np.concatenate(rounds)[: len(places)] if rounds else []
        return iter(drawn.repeat(self.repeats)[self.order.rank : total : self.order.num_replicas].tolist())

    def __len__(self) -> int:
        return len(self.order)


TrainOrder = RepeatAugSampler | DistributedSampler | BalancedSampler


class TrainBatchSampler(Sampler[list[Draw]]):
    """The batches of one process in training, each sample with a seed of its own; the last incomplete one is dropped.

    A seed follows from `seed`, the rank, the epoch and the sample's position in it, so that a batch is the same
    whatever the number of loader workers, and whether the epoch began with it or is continued there.

    Args:
        order: the order of single samples, such as `build_train_sampler` gives.
        batch_size: of this process.
        seed: of the whole run; `rank`: the number of this process.
        num_batches: where the epoch is to end (`--steps-per-epoch`); None: with the last full batch.

    Raises:
        UserError: the epoch has fewer than `num_batches` batches.
    """

    def __init__(
        self,
        order: TrainOrder,
        batch_size: int,
        *,
        seed: int,
        rank: int,
        num_batches: int | None = None,
    ):
        whole = len(order) // batch_size
        if num_batches is not None and num_batches > whole:
            expected = f"expected at most the {whole:,} batches of an epoch"
            raise UserError(f"--steps-per-epoch {num_batches}: {expected}, found more: lower it to {whole} or less")
        self.order = order
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_batches = whole if num_batches is None else num_batches
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Turns to an epoch, of which iteration leaves out the batches before `first_batch`."""
        if not 0 <= first_batch <= self.num_batches:
            raise ValueError(f"first batch {first_batch} of an epoch of {self.num_batches} batches")
        self.order.set_epoch(epoch)
        self.epoch = epoch
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        indices = list(self.order)
        mixed = np.random.SeedSequence((self.seed, self.rank, self.epoch))
        seeds = np.random.PCG64(mixed).random_raw(len(indices)).tolist()
        for number in range(self.first_batch, self.num_batches):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield [Draw(*pair) for pair in zip(indices[part], seeds[part], strict=True)]

    def __len__(self) -> int:
        """The batches of a whole epoch, wherever iteration starts."""
        return self.num_batches


class EvalBatchSampler(Sampler[list[int]]):
    """Batches of consecutive samples, dealt to the processes in turn: batch j goes to process j % num_replicas.

    No sample is repeated or left out, and which samples share a batch does not depend on the number of processes, so
    neither do the logits. Some processes have one batch less than others, or none.
    """

    def __init__(self, num_samples: int, batch_size: int, num_replicas: int = 1, rank: int = 0):
        if not (num_samples >= 0 and batch_size >= 1 and 0 <= rank < num_replicas):
            raise ValueError(f"{num_samples} samples, batches of {batch_size}, process {rank} of {num_replicas}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, num_samples, num_replicas * batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, min(start + self.batch_size, self.num_samples)))

    def __len__(self) -> int:
        return len(self.starts)
