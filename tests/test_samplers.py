"""The samplers: the published order, the fallback, and the sharing of evaluation."""

import hashlib
import json
from pathlib import Path

import pytest

from runtime.samplers import EvalBatchSampler, TrainBatchSampler, build_train_sampler
from utils import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "training.json").read_text())["repeated_aug"]


def build(dataset, **options):
    return build_train_sampler(
        dataset,
        **{"num_replicas": 1, "rank": 0, "batch_size": 16, "repeated_aug": True, "seed": 0, "say": lambda line: None}
        | options,
    )


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['n']}-{g['num_replicas']}-{g['rank']}-{g['epoch']}")
def test_repeated_augmentation_is_the_published_order(golden):
    said = []
    sampler = build(golden["n"], num_replicas=golden["num_replicas"], rank=golden["rank"], seed=7, say=said.append)
    sampler.set_epoch(golden["epoch"])
    order = list(sampler)
    assert len(sampler) == len(order) == golden["len"]
    assert order[: len(golden["first"])] == golden["first"]
    assert hashlib.sha1(str(order).encode()).hexdigest() == golden["sha1"]
    assert said == []


@pytest.mark.parametrize(
    ("samples", "processes", "batch_size", "repeated"),
    [(255, 1, 16, 0), (150, 2, 16, 0), (300, 4, 65, 64)],
)
def test_less_than_a_batch_falls_back_and_says_so_on_one_line(samples, processes, batch_size, repeated):
    said = []
    orders = []
    for rank in range(processes):
        sampler = build(samples, num_replicas=processes, rank=rank, batch_size=batch_size, say=said.append)
        orders.append(set(sampler))
        assert len(sampler) == len(orders[-1]) == samples // processes >= batch_size
    assert len(set.union(*orders)) == samples // processes * processes
    assert len(said) == processes
    for number in (f"of {samples} samples", f"{processes} processes {repeated},", f"--batch-size {batch_size};"):
        assert number in said[0]
    assert "\n" not in said[0]


def test_the_fallback_is_shuffled_by_seed_and_epoch():
    def order(seed, epoch):
        sampler = build(100, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0) != list(range(100))
    assert order(0, 1) != order(0, 0) != order(1, 0)


def test_without_repeated_augmentation_nothing_is_said():
    said = []
    sampler = build(1000, repeated_aug=False, say=said.append)
    assert sorted(sampler) == list(range(1000))
    assert said == []


def test_a_data_set_stands_for_its_length():
    assert list(build("x" * 1000)) == list(build(1000))


@pytest.mark.parametrize("repeated_aug", [True, False])
def test_less_than_a_batch_at_all_names_the_largest_that_works(repeated_aug):
    with pytest.raises(
        UserError, match=r"--batch-size 26: .* found 101 samples for 4 processes: lower .* to 25 or less"
    ):
        build(101, num_replicas=4, batch_size=26, repeated_aug=repeated_aug)
    assert len(build(101, num_replicas=4, batch_size=25, repeated_aug=repeated_aug)) == 25


def test_more_processes_than_samples_is_an_error():
    with pytest.raises(UserError, match="start at most 3 processes"):
        build(3, num_replicas=4, batch_size=1)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(("samples", "batch_size"), [(103, 8), (16, 8), (3, 8), (1, 1), (0, 4)])
def test_evaluation_batches_do_not_depend_on_the_number_of_processes(processes, samples, batch_size):
    shares = [EvalBatchSampler(samples, batch_size, processes, rank) for rank in range(processes)]
    alone = list(EvalBatchSampler(samples, batch_size, 1, 0))
    dealt = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(share) for share in dealt]
    assert [dealt[j % processes][j // processes] for j in range(len(alone))] == alone
    assert sorted(index for share in dealt for batch in share for index in batch) == list(range(samples))
    assert [index for batch in alone for index in batch] == list(range(samples))


@pytest.mark.parametrize("wrong", [(-1, 4, 1, 0), (4, 0, 1, 0), (4, 1, 2, 2), (4, 1, 2, -1)])
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="samples, batches of"):
        EvalBatchSampler(*wrong)


def train_batches(order, batch_size=16, epoch=0, first_batch=0, **options):
    sampler = TrainBatchSampler(order, batch_size, **{"seed": 0, "rank": 0} | options)
    sampler.set_epoch(epoch, first_batch)
    return list(sampler)


@pytest.mark.parametrize("repeated_aug", [True, False])
def test_training_batches_are_the_order_in_full_batches(repeated_aug):
    order = build(600, repeated_aug=repeated_aug, batch_size=50)
    for epoch in (0, 3):
        read = train_batches(order, 50, epoch)
        order.set_epoch(epoch)
        indices = list(order)
        assert len(read) == len(indices) // 50 == len(TrainBatchSampler(order, 50, seed=0, rank=0))
        assert len(indices) % 50 == (12 if repeated_aug else 0)
        assert [[draw.index for draw in batch] for batch in read] == [
            indices[start : start + 50] for start in range(0, len(indices) - 49, 50)
        ]


def test_an_epoch_continued_is_the_rest_of_the_whole_one():
    order = build(600)
    whole = train_batches(order, epoch=2)
    for first_batch in (0, 1, 17, len(whole) - 1, len(whole)):
        sampler = TrainBatchSampler(order, 16, seed=0, rank=0)
        sampler.set_epoch(2, first_batch)
        assert list(sampler) == whole[first_batch:]
        assert len(sampler) == len(whole)
    sampler.set_epoch(2)
    assert list(sampler) == whole


@pytest.mark.parametrize("first_batch", [-1, 33])
def test_a_start_behind_the_epoch_is_refused(first_batch):
    with pytest.raises(ValueError, match=f"first batch {first_batch} of an epoch of 32 batches"):
        TrainBatchSampler(build(600), 16, seed=0, rank=0).set_epoch(0, first_batch)


def test_seeds_differ_by_position_epoch_process_and_run():
    order = build(600)
    runs = [
        train_batches(order),
        train_batches(order, epoch=1),
        train_batches(order, rank=1),
        train_batches(order, seed=1),
        train_batches(order, seed=1, rank=1, epoch=1),
    ]
    seeds = [draw.seed for batches in runs for batch in batches for draw in batch]
    assert len(seeds) == len(set(seeds)) == 5 * 512
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**64
    assert runs[0] == train_batches(order)


def test_a_shorter_epoch_begins_as_the_whole_one():
    order = build(600)
    assert train_batches(order, num_batches=5) == train_batches(order)[:5]
    assert train_batches(order, num_batches=5, first_batch=3) == train_batches(order)[3:5]
    assert len(TrainBatchSampler(order, 16, seed=0, rank=0, num_batches=5)) == 5
    assert train_batches(order, num_batches=32) == train_batches(order)
    with pytest.raises(UserError, match=r"--steps-per-epoch 33: .* the 32 batches of an epoch.* lower it to 32"):
        TrainBatchSampler(order, 16, seed=0, rank=0, num_batches=33)
