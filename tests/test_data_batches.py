"""The batch stream: its order, its shares, and resuming inside an epoch."""

import itertools

import pytest
import torch

from cnnlab.batch import PADDING, mix_seed
from cnnlab.data import Batches


def stream(count: int = 23, **options) -> Batches:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 5, 3).contiguous()
    return Batches(images, torch.arange(count), **({"batch_size": 4} | options))


def seen(batches: Batches, epoch: int = 0) -> list[int]:
    batches.set_epoch(epoch)
    return [int(target) for batch in batches for target in batch.targets]


def test_an_epoch_shows_every_sample_once():
    assert sorted(seen(stream(shuffle=True))) == list(range(23))
    assert seen(stream()) == list(range(23))


def test_order_is_a_function_of_seed_and_epoch_alone():
    batches = stream(shuffle=True, seed=3)
    third = seen(batches, epoch=3)
    assert seen(batches, epoch=0) != third
    assert seen(batches, epoch=3) == third == seen(stream(shuffle=True, seed=3), epoch=3)
    assert seen(stream(shuffle=True, seed=4), epoch=3) != third


def test_order_does_not_touch_the_global_random_numbers():
    before = torch.get_rng_state()
    seen(stream(shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_images_targets_and_indices_belong_together():
    subset = torch.tensor([2, 3, 5, 7, 11, 13])
    for batch in stream(subset=subset, shuffle=True):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 4, 5)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.targets)
        assert torch.equal(subset[batch.indices], batch.targets)


@pytest.mark.parametrize("stop", range(7))
def test_a_loaded_state_resumes_with_the_next_batch(stop: int):
    whole = stream(shuffle=True)
    whole.set_epoch(5)
    expected = [batch.targets.tolist() for batch in whole]

    first = stream(shuffle=True)
    first.set_epoch(5)
    head = [batch.targets.tolist() for batch in itertools.islice(first, stop)]
    second = stream(shuffle=True)
    second.load_state_dict(first.state_dict())
    iter(second)  # Lightning does this before it announces the epoch
    second.set_epoch(5)
    assert head + [batch.targets.tolist() for batch in second] == expected
    second.set_epoch(6)
    assert len(seen(second, 6)) == 23


def test_a_state_of_another_epoch_does_not_skip_samples():
    batches = stream(shuffle=True)
    batches.load_state_dict({"epoch": 1, "offset": 6})
    assert len(seen(batches, epoch=2)) == 23


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_batches_together_are_one_process_batch(world_size: int):
    count, size = 24, 3
    one = stream(count, shuffle=True, batch_size=size * world_size)
    shares = [stream(count, shuffle=True, batch_size=size, rank=r, world_size=world_size) for r in range(world_size)]
    assert {len(share) for share in shares} == {len(one)}
    for whole, *parts in zip(one, *shares, strict=True):
        together = sorted(target for part in parts for target in part.targets.tolist())
        assert together == sorted(whole.targets.tolist())


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_get_equally_many_samples(shuffle: bool):
    shares = [stream(23, shuffle=shuffle, rank=rank, world_size=4) for rank in range(4)]
    sizes = [[len(batch.targets) for batch in share] for share in shares]
    assert sizes == [[4, 2]] * 4
    targets = [target for share in shares for target in seen(share)]
    assert set(range(23)) <= set(targets)
    assert targets.count(PADDING) == (0 if shuffle else 1)


@pytest.mark.parametrize(
    ("options", "argument"), [({"batch_size": 0}, "batch_size"), ({"rank": 2, "world_size": 2}, "rank")]
)
def test_bad_arguments_are_named(options: dict, argument: str):
    with pytest.raises(ValueError, match=argument):
        stream(**options)


def test_mixed_seeds_of_neighbours_are_unrelated():
    seeds = [mix_seed(seed, epoch, step) for seed in range(5) for epoch in range(10) for step in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    flipped = [bin(mix_seed(0, step) ^ mix_seed(0, step + 1)).count("1") for step in range(500)]
    assert 28 < sum(flipped) / len(flipped) < 35


def test_a_balanced_epoch_shows_each_class_equally_often_and_resumes():
    targets = torch.tensor([0] * 3 + [1] * 40 + [3] * 17)
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1)

    def balanced(**options) -> Batches:
        return Batches(images, targets, batch_size=8, shuffle=True, sampler="balanced", **options)

    batches = balanced()
    order = batches.order(0)
    assert len(order) == 60
    assert torch.bincount(targets[order]).tolist() == [20, 20, 0, 20]
    counts = torch.bincount(order, minlength=60)
    assert sorted(counts[:3].tolist()) == [6, 7, 7]  # none again before all of its class
    assert counts[3:43].max() == 1
    assert len({*batches.order(4).tolist(), *batches.order(5).tolist()} & set(range(3, 43))) == 40
    shares = [balanced(rank=rank, world_size=2).order(0) for rank in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(), order)
    batches.set_epoch(2)
    expected = [batch.indices.tolist() for batch in batches]
    first, second = balanced(), balanced()
    first.set_epoch(2)
    head = [batch.indices.tolist() for batch in itertools.islice(first, 3)]
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    assert head + [batch.indices.tolist() for batch in second] == expected


def test_a_fixed_stream_repeats_its_first_epoch():
    batches = stream(shuffle=True, fixed=True)
    assert seen(batches, epoch=3) == seen(batches, epoch=0) == seen(stream(shuffle=True), epoch=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_smaller_last_batch_is_dropped(world_size: int):
    for rank in range(world_size):
        batches = stream(count=23, shuffle=True, drop_last=True, rank=rank, world_size=world_size)
        assert [len(batch.targets) for batch in batches] == [4] * len(batches)
        assert len(batches) == -(-23 // world_size) // 4
