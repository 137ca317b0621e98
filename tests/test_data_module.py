"""The LightningDataModule: splits, statistics, augmentation, and what it refuses."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from cnnlab import evaluation, export
from cnnlab.batch import Batch
from cnnlab.data import ImageData
from cnnlab.errors import ConfigError, DataError
from tests.conftest import Train, read


def test_no_validation_split_keeps_everything_for_training(npz: Path):
    data = ImageData(npz, val_size=0)
    assert data.count("train") == 400
    assert data.val_dataloader() == []


def test_images_exist_once(npz: Path):
    data = ImageData(npz, val_size=80)
    train, val = data.batches("train"), data.batches("val")
    assert train.images.data_ptr() == val.images.data_ptr()


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


def test_share_is_held_out_and_a_large_batch_is_the_whole_set(npz: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    data = ImageData(npz, val_size=0.25, batch_size=1000)
    assert (data.count("train"), data.count("val"), data.count("test")) == (300, 100, 100)
    assert data.batch_size == 300
    assert "data.batch_size=1000 is more than the 300 training images: a batch is all of them" in caplog.text
    ImageData(npz, val_size=300)
    assert "300 images validate and 100 train" in caplog.text


def without_test(npz: Path, folder: Path, **more: Any) -> Path:
    with np.load(npz) as file:
        np.savez(folder / "data.npz", X_train=file["X_train"], y_train=file["y_train"], **more)
    return folder / "data.npz"


def test_test_set_is_held_out_where_the_file_has_none(npz: Path, tmp_path: Path):
    data = ImageData(without_test(npz, tmp_path), val_size=40, test_size=0.25)
    assert [data.count(split) for split in ("train", "val", "test")] == [260, 40, 100]
    assert torch.equal(data.rows("test").sort().values, data.rows("test"))
    with np.load(npz) as file:
        np.testing.assert_array_equal(data.images("test", slice(None)).numpy(), file["X_train"][data.rows("test")])
        assert data.labels("test").tolist() == file["y_train"][data.rows("test"), 0].tolist()


def test_validation_set_of_the_files_own_is_used(npz: Path, tmp_path: Path):
    images, targets = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)
    path = without_test(npz, tmp_path, X_val=images, y_val=targets)
    data = ImageData(path, test_size=0.25)
    assert (data.count("train"), data.count("val")) == (300, 10)
    with pytest.raises(ConfigError, match=r"data.folds divides the training images"):
        ImageData(path, folds=5)
    assert ImageData(path, folds=5, keys={"val_images": None, "val_targets": None}).count("val") == 64


def test_label_noise_changes_training_labels_only(npz: Path):
    clean, noisy = ImageData(npz, val_size=80), ImageData(npz, val_size=80, label_noise=0.25)
    assert int((clean.labels("train") != noisy.labels("train")).sum()) == pytest.approx(80, abs=15)
    assert torch.equal(clean.labels("val"), noisy.labels("val"))
    batch = next(iter(noisy.batches("train", batch_size=320)))
    assert torch.equal(batch.targets, noisy.labels("train"))


def test_label_noise_gives_an_image_one_label_in_all_folds(npz: Path):
    folds = [ImageData(npz, folds=4, fold=fold, label_noise=0.25) for fold in range(4)]
    labels, truth = torch.full((4, 400), -1), torch.from_numpy(np.load(npz)["y_train"].ravel().astype(int))
    for row, data in zip(labels, folds, strict=True):
        row[data.rows("train")] = data.labels("train")
        assert torch.equal(data.labels("val"), truth[data.rows("val")])
    assert ((labels == labels.amax(0)) | (labels == -1)).all()
    assert int((labels.amax(0) != truth).sum()) == 100


@pytest.mark.parametrize("resident", ["host", "disk"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_batches_do_not_depend_on_where_images_live(tmp_path: Path, dtype: type, resident: str):
    random = np.random.default_rng(0)
    images: np.ndarray = (random.random((30, 6, 5, 4)) * 200).astype(dtype)
    np.savez(tmp_path / "data.npz", X_train=images, y_train=np.arange(30) % 3)
    data = ImageData(tmp_path / "data.npz", resident=resident, val_size=6, test_size=6)  # type: ignore[arg-type]
    for batch in data.batches("train", shuffle=True, batch_size=7):
        rows = data.rows("train")[batch.indices]
        expected = images[rows] / np.float32(65535) if dtype is np.uint16 else images[rows]
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    pictures = data.pictures("test", slice(2))
    assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 6, 5, 3))


def test_batches_of_mapped_images_touch_no_page_of_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = np.zeros((64, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", X_train=images, y_train=np.arange(64) % 2)
    data = ImageData(tmp_path / "data.npz", resident="disk", val_size=0)
    monkeypatch.setattr(torch.Tensor, "index_select", lambda *_: pytest.fail("indexed"))
    assert sum(len(batch.images) for batch in data.batches("train", batch_size=20)) == data.count("train")
    with (tmp_path / "data.npz").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="has become shorter"):
        list(data.batches("train", batch_size=20))


def test_a_loader_that_would_be_empty_is_refused(npz: Path):
    data = ImageData(npz, val_size=80, batch_size=200, drop_last=True)
    cpu = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(overfit_batches=0, global_rank=0, world_size=2, strategy=cpu)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"data.drop_last=true leaves no batch"):
        data.train_dataloader()


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_overfitting_sees_the_same_images_and_learns_them_by_heart(train: Train):
    folder = train(
        "trainer=overfit",
        "trainer.overfit_batches=2",
        "trainer.max_epochs=40",
        "optimizer.lr=0.05",
    )
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train/accuracy"]) == 1


def test_a_network_for_another_size_keeps_it_in_evaluation_and_export(train: Train):
    size = ["augment=resized_crop", "augment.resized_crop.size=24", "augment.resized_crop.least=0.6"]
    folder = train(*size, "eval.resize=24", "trainer.max_epochs=1")
    result = evaluation.evaluate(str(folder), figures=False)
    assert result.content["metrics"]["accuracy"] == read(folder / "metrics.json")["test/accuracy"]
    assert export.export(str(folder), format="onnx").difference < 1e-5
