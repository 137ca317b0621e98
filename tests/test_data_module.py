"""The LightningDataModule: splits, statistics, augmentation, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from cnnlab.batch import Batch
from cnnlab.data import ImageData
from cnnlab.data.module import stratified_split
from cnnlab.errors import DataError


def test_validation_split_is_stratified_seeded_and_disjoint():
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    rest, held_out = stratified_split(targets, 10, seed=0)
    assert sorted(torch.cat([rest, held_out]).tolist()) == list(range(100))
    assert torch.bincount(targets[held_out]).tolist() == [5, 3, 2]
    assert torch.equal(held_out, stratified_split(targets, 10, seed=0)[1])
    assert not torch.equal(held_out, stratified_split(targets, 10, seed=1)[1])


@pytest.mark.parametrize("val_size", [1, 7, 33, 99])
def test_validation_split_has_the_size_asked_for_and_every_class_its_share(val_size: int):
    targets = torch.arange(100) % 7
    _, held_out = stratified_split(targets, val_size, seed=0)
    assert len(held_out) == val_size
    counts = torch.bincount(targets[held_out], minlength=7)
    assert (counts - val_size * torch.bincount(targets) / 100).abs().max() <= 1


def test_no_validation_split_keeps_everything_for_training(npz: Path):
    data = ImageData(npz, val_size=0)
    assert len(data.train_indices) == 400
    assert data.val_dataloader() == []


def test_images_exist_once(npz: Path):
    data = ImageData(npz, val_size=80)
    train, val = data.batches("train"), data.batches("val")
    assert train.images.data_ptr() == val.images.data_ptr() == data.train_images.data_ptr()


def test_statistics_are_those_of_the_training_images(npz: Path):
    with np.load(npz) as file:
        images = file["X_train"] / 255
    data = ImageData(npz, val_size=80)
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, images.std((0, 1, 2)), rtol=1e-6)
    chosen = ImageData(npz, val_size=80, mean=[0.5] * 3, std=[0.25] * 3)
    assert (list(chosen.mean), list(chosen.std)) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 400}, r"data.val_size must be between 0 and 399.*got 400"),
        ({"val_size": -1}, r"data.val_size must be between 0 and 399.*got -1"),
        ({"val_size": 80, "batch_size": 321}, r"data.batch_size must be between 1 and 320.*got 321"),
        ({"path": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_what_cannot_work_is_refused(npz: Path, options: dict, message: str):
    with pytest.raises(DataError, match=message):
        ImageData(**({"path": npz} | options))


def test_augmentation_is_a_function_of_seed_epoch_and_step(npz: Path):
    def noise(batch: Batch, generator: Generator, epoch: int) -> Batch:
        return batch._replace(images=torch.rand(batch.images.shape, generator=generator))

    data = ImageData(npz, val_size=0, augment=noise, seed=1)
    batch = next(iter(data.batches("train")))
    first = data.augmented(batch, epoch=0, step=0).images
    data.augmented(batch, epoch=0, step=1)
    torch.rand(3)
    assert torch.equal(data.augmented(batch, epoch=0, step=0).images, first)
    for other in ({"epoch": 1, "step": 0}, {"epoch": 0, "step": 1}):
        assert not torch.equal(data.augmented(batch, **other).images, first)
    data.seed = 2
    assert not torch.equal(data.augmented(batch, epoch=0, step=0).images, first)
