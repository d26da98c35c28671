"""The samplers: the published order, the fallback, and the sharing of evaluation."""

import hashlib
import json
from pathlib import Path

import pytest

from datasets.samplers import EvalBatchSampler, build_train_sampler
from errors import UserError

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
