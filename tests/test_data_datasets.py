"""Data of one's own: torch Datasets and LightningDataModules, from training to report."""

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from typing_extensions import override

import train as script
from cnnlab import evaluation, export
from cnnlab.config import preflight
from cnnlab.data import Datasets
from cnnlab.data.datasets import adopt
from cnnlab.errors import ConfigError, DataError, UnsafeError
from cnnlab.report import report_run
from tests.conftest import drawn, read

TRUST = ["tests"]


class Squares(Dataset):
    """Easy images; each sample is shifted at random by every generator that transforms draw from."""

    classes = ("a", "b", "c", "d")

    def __init__(self, count: int = 120, seed: int = 0, listed: bool = True, kind: str = "array") -> None:
        self.images, targets = drawn(count, 4, seed)
        self.kind = kind
        self._targets = targets[:, 0]
        if listed:
            self.targets = targets[:, 0].tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        draws = random.randint(-1, 1), int(np.random.randint(-1, 2)), int(torch.randint(-1, 2, ()))  # noqa: NPY002
        image = np.roll(self.images[row], draws[:2], axis=(0, 1))
        kinds = {
            "array": lambda: image,
            "picture": lambda: Image.fromarray(image),
            "tensor": lambda: torch.from_numpy(image).permute(2, 0, 1) / 255,
        }
        return kinds[self.kind](), int(self._targets[row])


class Squared(LightningDataModule):
    """A data module as somebody writes it for Lightning alone."""

    classes = ("a", "b", "c", "d")
    image_shape = (32, 32, 3)

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    @override
    def setup(self, stage: str) -> None:
        self.train, self.held_out = Squares(), Squares(40, seed=1)

    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, batch_size=20)

    @override
    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, batch_size=20)


def batches_of(data: Datasets, epoch: int = 0, **options: Any) -> list[tuple[list[int], list[int], torch.Tensor]]:
    stream = data.batches("train", shuffle=True, batch_size=16, **options)
    stream.set_epoch(epoch)
    return [(batch.indices.tolist(), batch.targets.tolist(), batch.images) for batch in stream]


def equal(first: Any, second: Any) -> bool:
    return all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", ["array", "picture", "tensor"])
def test_samples_become_batches_whatever_their_kind(kind: str):
    data = Datasets(Squares(kind=kind), val_size=20, test_size=20, num_workers=0)
    assert (data.count("train"), data.image_shape, data.classes) == (80, (32, 32, 3), ("a", "b", "c", "d"))
    batch = next(iter(data.batches("val", batch_size=5)))
    assert batch.images.dtype == (torch.float32 if kind == "tensor" else torch.uint8)
    assert batch.images.shape == (5, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.targets, data.labels("val")[:5])
    assert data.pictures("val", slice(2)).dtype == np.uint8
    assert 0.1 < data.mean[0] < 0.3


def test_what_samples_draw_depends_on_seed_epoch_and_sample_alone():
    def data(num_workers: int, seed: int = 0) -> Datasets:
        return Datasets(Squares(), num_workers=num_workers, seed=seed, mean=[0.5] * 3, std=[0.5] * 3)

    before = torch.get_rng_state()
    alone = batches_of(data(0))
    assert torch.equal(before, torch.get_rng_state())
    assert equal(alone, batches_of(data(2)))
    assert not equal(alone, batches_of(data(0), epoch=1))
    first, second = (data(workers).batches("train", shuffle=True, batch_size=16) for workers in (0, 2))
    list(itertools.islice(first, 3))
    second.load_state_dict(first.state_dict())
    resumed = [(batch.indices.tolist(), batch.targets.tolist(), batch.images) for batch in second]
    assert equal(alone[3:], resumed)


def test_class_numbers_are_read_where_a_dataset_does_not_list_them():
    listed, unlisted = (Datasets(Squares(listed=flag), num_workers=0) for flag in (True, False))
    assert torch.equal(listed.labels("train"), unlisted.labels("train"))
    part = Datasets(Subset(Squares(), range(20, 60)), num_workers=0, classes=Squares.classes)
    assert part.class_counts == [7, 7, 7, 7]
    balanced = part.batches("train", shuffle=True, batch_size=28, sampler="balanced")
    assert torch.bincount(next(iter(balanced)).targets).tolist() == [7, 7, 7, 7]


class Odd(Squares):
    @override
    def __getitem__(self, row: int) -> tuple[Any, int]:
        image, target = super().__getitem__(row)
        if row == 7:
            raise OSError("7.jpg is broken")
        return image[: 32 - (row == 9)], target


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named_in_a_line(num_workers: int):
    options = {"val_size": 0, "test_size": 1, "num_workers": num_workers, "mean": [0.5] * 3, "std": [0.5] * 3}
    data = Datasets(Odd(), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^data.train\[7\]: 7.jpg is broken\.$"):
        list(data.batches("train", batch_size=4))
    data = Datasets(Subset(Odd(), range(8, 20)), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"one size and type, got uint8 \(31, 32, 3\) and uint8 \(32, 32, 3\)"):
        list(data.batches("train", batch_size=12))


DATASETS = ["data=dataset", "data.train._target_=tests.test_data_datasets.Squares", "data.num_workers=0"]


@pytest.mark.parametrize("kind", ["datasets", "module"])
def test_own_data_goes_from_training_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    conf = tmp_path / "options" / "data"
    conf.mkdir(parents=True)
    (conf / "own.yaml").write_text("_target_: tests.test_data_datasets.Squared\n")
    own = [*DATASETS, "data.val_size=20", "data.batch_size=32"] if kind == "datasets" else ["data=own"]

    def train(folder: Path, *overrides: str) -> Path:
        flags = ["--config-dir", str(tmp_path / "options")]
        monkeypatch.setattr(sys, "argv", ["train.py", *preflight([*overrides, *flags])])
        script.main()
        return folder

    def begin(name: str, epochs: int) -> Path:
        folder = tmp_path / name
        return train(folder, *own, f"hydra.run.dir='{folder}'", f"trainer.max_epochs={epochs}", "trusted=[tests]")

    whole, part = begin("whole", 2), begin("part", 1)
    assert 0.3 < read(whole / "metrics.json")["test/accuracy"] <= 1
    train(part, f"resume='{part}'", "trainer.max_epochs=2", "trusted=[tests]")
    assert read(part / "metrics.json") == read(whole / "metrics.json")
    with pytest.raises(UnsafeError, match=r"tests.test_data_datasets"):
        evaluation.evaluate(str(whole))
    result = evaluation.evaluate(str(whole), trusted=TRUST)
    assert result.content["metrics"]["accuracy"] == read(whole / "metrics.json")["test/accuracy"]
    assert report_run(str(whole), trusted=TRUST).missing is None
    assert export.export(str(whole), format="safetensors", trusted=TRUST).path.is_file()


def test_a_module_for_lightning_alone_is_read_in_the_labs_order():
    data = adopt(Squared(), seed=3)
    assert isinstance(data, Datasets)
    assert (data.count("train"), data.count("val"), data.batch_size) == (120, 40, 32)
    assert equal(batches_of(data), batches_of(Datasets(Squares(), Squares(), Squares(), num_workers=0, seed=3)))


class Nameless(Squared):
    classes = ()  # type: ignore[assignment]


class Hooked(Squared):
    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Squares())


class Streamed(Squared):
    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Endless(), batch_size=4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Nameless, "Nameless lacks `classes`"),
        (Hooked, "Hooked.on_after_batch_transfer would not be called"),
        (Streamed, "Streamed.train_dataloader must be a DataLoader of a Dataset with a length"),
        (Squares, "Squares must be a LightningDataModule"),
    ],
)
def test_what_a_data_module_lacks_is_named(module: type, message: str):
    with pytest.raises(ConfigError, match=message):
        adopt(module())
