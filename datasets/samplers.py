"""Which process sees which sample when: repeated augmentation in training, whole batches in evaluation."""

from collections.abc import Callable, Iterator, Sized

from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler, Sampler

from errors import UserError

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
    """The order of the training samples of one process; `set_epoch` is to be called before each epoch.

    With repeated augmentation (spec section 6) each sample comes three times in a row and an epoch has
    n // 256 * 256 / processes samples a process. Where that is less than a batch, so always below 256 samples, the
    epoch is every sample once, shuffled, and `say` is told so.

    Args:
        dataset: the data set, or how many samples it has.
        batch_size: of one process; an incomplete last batch is taken to be dropped.
        seed: of the order without repeated augmentation; with it, the order depends on the epoch alone.

    Raises:
        UserError: less than one batch a process.
    """
    samples = range(dataset if isinstance(dataset, int) else len(dataset))
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
