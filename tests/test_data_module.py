"""The LightningDataModule: splits, statistics, augmentation, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from cnnlab.batch import Batch
from cnnlab.data import ImageData
from cnnlab.errors import DataError


def test_no_validation_split_keeps_everything_for_training(npz: Path):
    data = ImageData(npz, val_size=0)
    assert data.count("train") == 400
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
        ({"val_size": 1.0}, r"data.val_size must be between 0 and 399.*got 1.0"),
        ({"train_size": 361}, r"data.train_size must be between 1 and 360.*got 361"),
        ({"folds": 401}, r"data.folds must be between 2 and 400.*got 401"),
        ({"exclude": "nowhere.csv"}, "data.exclude=nowhere.csv could not be read"),
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
