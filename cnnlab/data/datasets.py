"""Data of one's own: any torch Dataset with a length, and any LightningDataModule."""

import contextlib
import logging
import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)
from typing_extensions import override

from cnnlab import lock
from cnnlab.batch import PADDING, Batch, mix_seed
from cnnlab.bounds import NonNegativeInt, PositiveFloat, PositiveInt, Seed, ShareBelowOne
from cnnlab.data import archive, splits
from cnnlab.data.batches import Sampler, Stream, as_network_input
from cnnlab.data.protocol import Augment, DataModule, Split
from cnnlab.errors import ConfigError, DataError, first_line

log = logging.getLogger(__name__)

STATISTICS_SAMPLE = 2000
"""Training images that mean and standard deviation are computed from."""


class _Failure(NamedTuple):
    """Why a sample could not be read: an exception would come out of a worker process with its traceback."""

    text: str


class _Samples(Dataset):
    """A dataset's samples by (epoch, position, row), each with the random numbers of its own.

    What a sample draws is so a function of (seed, epoch, row), whichever worker reads it and whatever it read before.
    """

    def __init__(self, dataset: Any, name: str, seed: int) -> None:
        self.dataset = dataset
        self.name = name
        self.seed = seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, int, int] | _Failure:
        epoch, position, row = key
        try:
            with _random_numbers(mix_seed(self.seed, epoch, row)):
                image, target = self.dataset[row]
            return _as_array(image), int(target) if position >= 0 else PADDING, position
        except Exception as error:  # a dataset raises whatever its author wrote
            return _Failure(f"data.{self.name}[{row}]: {first_line(error)}")


def _as_array(image: Any) -> np.ndarray:
    """Return an image as (height, width, channels): a tensor has its channels first, a picture and an array last."""
    if isinstance(image, Image.Image):
        image = np.asarray(image)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.dtype not in archive.DTYPES:
        raise ValueError(
            f"an image must be a picture, an array (height, width, channels) or a tensor (channels, height, width) of "
            f"uint8, uint16 or float32, got {image.dtype} {image.shape}"
        )
    return image


@contextlib.contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python, NumPy and PyTorch in the block, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - transforms draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _collate(samples: list[Any]) -> Batch | _Failure:
    if failures := [sample for sample in samples if isinstance(sample, _Failure)]:
        return failures[0]
    images, targets, positions = zip(*samples, strict=True)
    if len({(image.dtype, image.shape) for image in images}) > 1:
        kinds = sorted({f"{image.dtype} {image.shape}" for image in images})
        return _Failure(f"the images of a dataset must be of one size and type, got {' and '.join(kinds)}")
    pixels = as_network_input(torch.from_numpy(np.stack(images)))
    return Batch(pixels.permute(0, 3, 1, 2), torch.tensor(targets), torch.tensor(positions))


def _begin_worker(worker: int) -> None:
    lock.disown()  # a worker outlives a killed main process for seconds
    # The main process answers the keyboard and the scheduler, and ends its workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Batches(Stream):
    """Batches of a dataset, read by worker processes in the order of `Stream`."""

    def __init__(
        self, samples: _Samples, rows: Int64[Tensor, "n"], num_workers: int, pin_memory: bool = False, **order: Any
    ) -> None:
        super().__init__(len(rows), **order)
        self.samples = samples
        self.rows = rows
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    @override
    def read(self, positions: Int64[Tensor, "share"], first: int) -> Iterator[Batch]:
        epoch = self.epoch if self.shuffle else 0  # an evaluation draws the same in each epoch
        rows = self.rows[positions.clamp(min=0)]
        keys = [(epoch, position, row) for position, row in zip(positions.tolist(), rows.tolist(), strict=True)]
        batches = [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]
        loader = DataLoader(
            self.samples,
            batch_sampler=batches[first:],
            num_workers=self.num_workers,
            collate_fn=_collate,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # the loader would draw from the global one
            pin_memory=self.pin_memory,
        )
        for batch in loader:
            if isinstance(batch, _Failure):
                raise DataError(f"{batch.text}.")
            yield batch


class Datasets(DataModule):
    """Images of one, two or three torch Datasets with a length, read by worker processes.

    A sample is (image, class number); the image a picture of Pillow's, an array (height, width, channels), or a
    tensor (channels, height, width), of uint8, uint16 or float32. Random transforms may be in the dataset: what a
    sample draws depends on the seed, the epoch and the sample alone, so that a resumed run sees what it would have
    seen.

    Args:
        train: The training set.
        val: The validation set; without one, `val_size` images of `train` are held out.
        test: The test set; without one, `test_size` images of `train` are held out.
        classes: The classes' names in label order; by default the dataset's `classes`, or numbers.
        batch_size: Training images a step, on each device; at most all of them.
        eval_batch_size: Validation and test images a step, on each device.
        num_workers: Processes that read; 0 for the training process itself.
        val_size: A number, or a share below 1; 0 for no validation.
        test_size: Likewise.
        split_seed: Decides which images are held out.
        sampler: `shuffled` shows each training image once an epoch; `balanced` each class equally often.
        drop_last: Whether a smaller last batch of an epoch is left out.
        mean: Of each channel, of images scaled to 0–1 (floats: as they are); by default from 2,000 training images.
        std: Likewise.
        augment: Changes training batches; (batch, generator, epoch) to batch.
        seed: Decides the order of the training images, the augmentation, and what samples draw.

    Raises:
        ConfigError: A dataset has no length.
        DataError: A sample cannot be read, or is no image with a class number.
    """

    def __init__(
        self,
        train: Any,
        val: Any = None,
        test: Any = None,
        *,
        classes: Sequence[str] | None = None,
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt = 250,
        num_workers: NonNegativeInt = 2,
        val_size: NonNegativeInt | ShareBelowOne = 0.1,
        test_size: PositiveInt | ShareBelowOne = 0.2,
        split_seed: Seed = 0,
        sampler: Sampler = "shuffled",
        drop_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[PositiveFloat] | None = None,
        augment: Augment | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        datasets = {"train": train, "val": val, "test": test}
        for name, dataset in datasets.items():
            if dataset is not None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise ConfigError(f"data.{name} must be a Dataset with a length and items, got {type(dataset)}.")
        self.path = type(train).__name__
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.sampler = sampler
        self.drop_last = drop_last
        self.augment = augment
        self.seed = seed
        self._samples = {
            name: _Samples(dataset, name, seed) for name, dataset in datasets.items() if dataset is not None
        }
        self._targets = {name: self._read_targets(samples) for name, samples in self._samples.items()}
        self.classes = self._class_names(train, classes)
        first, _, _ = self._sample("train", 0)
        self.image_shape = (first.shape[0], first.shape[1], first.shape[2])
        division = splits.divide(
            self._targets["train"], seed=split_seed, val_size=0 if val is not None else val_size,
            test_size=0 if test is not None else test_size,
        )  # fmt: skip
        self._rows: dict[str, Tensor] = {}
        for split, rows in division._asdict().items():
            is_separate = split != "train" and split in self._samples
            self._rows[split] = torch.arange(len(self._targets[split])) if is_separate else torch.from_numpy(rows)
        self.batch_size = min(batch_size, self.count("train"))
        self.mean, self.std = (mean, std) if mean and std else self._statistics()

    def _source(self, split: Split) -> str:
        return split if split in self._samples else "train"

    def _sample(self, split: Split, row: int) -> tuple[np.ndarray, int, int]:
        sample = self._samples[self._source(split)][0, 0, row]
        if isinstance(sample, _Failure):
            raise DataError(f"{sample.text}.")
        return sample

    def _read_targets(self, samples: _Samples) -> Int64[np.ndarray, "n"]:
        """Return a dataset's class numbers: as it has them, or else by reading all of it."""
        targets = _listed_targets(samples.dataset)
        if targets is None:
            log.info(f"data.{samples.name} has no `targets`: all {len(samples.dataset)} samples are read for them")
            rows = torch.arange(len(samples.dataset))
            batches = _Batches(samples, rows, self.num_workers, batch_size=self.eval_batch_size)
            targets = np.concatenate([batch.targets.numpy() for batch in batches])
        return targets

    def _class_names(self, train: Any, classes: Sequence[str] | None) -> tuple[str, ...]:
        highest = max(int(targets.max()) for targets in self._targets.values())
        names = tuple(classes or getattr(train, "classes", None) or map(str, range(highest + 1)))
        lowest = min(int(targets.min()) for targets in self._targets.values())
        if lowest < 0 or highest >= len(names):
            raise DataError(
                f"data: class numbers must be from 0 to {len(names) - 1}, one for each of the {len(names)} classes, "
                f"got {lowest} to {highest}. Name all classes with data.classes."
            )
        return tuple(map(str, names))

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        count = self.count("train")
        chosen = np.random.default_rng(0).permutation(count)[:STATISTICS_SAMPLE]
        images = np.stack([self._sample("train", int(row))[0] for row in self._rows["train"][np.sort(chosen)]])
        return archive.channel_statistics(images)

    @override
    def count(self, split: Split) -> int:
        return len(self._rows[split])

    @override
    def labels(self, split: Split) -> Int64[Tensor, "n"]:
        return torch.from_numpy(self._targets[self._source(split)])[self._rows[split]]

    @override
    def images(self, split: Split, positions: Int64[Tensor, "n"] | slice) -> Tensor:
        rows = self._rows[split][positions].tolist()
        return as_network_input(torch.from_numpy(np.stack([self._sample(split, row)[0] for row in rows])))

    @override
    def rows(self, split: Split) -> Int64[Tensor, "n"]:
        return self._rows[split]

    @override
    def batches(self, split: Split, *, sampler: Sampler = "shuffled", **options: Any) -> Stream:
        balance = self.labels(split) if sampler == "balanced" else None
        options = {"batch_size": self.eval_batch_size} | options
        samples = self._samples[self._source(split)]
        return _Batches(samples, self._rows[split], self.num_workers, balance=balance, **options)

    @override
    def placement(self) -> dict[str, Any]:
        assert self.trainer is not None
        return super().placement() | {"pin_memory": self.trainer.strategy.root_device.type == "cuda"}


def _listed_targets(dataset: Any) -> Int64[np.ndarray, "n"] | None:
    """Return the class numbers that a dataset lists without its images being read."""
    if isinstance(dataset, Subset):
        targets = _listed_targets(dataset.dataset)
        return None if targets is None else targets[np.asarray(dataset.indices)]
    for name in ("targets", "labels"):
        if getattr(dataset, name, None) is not None:
            targets = np.asarray(getattr(dataset, name))
            if targets.dtype.kind in "iu" and targets.size == len(dataset):
                return targets.reshape(-1).astype(np.int64)
    return None


def adopt(module: Any, seed: int = 0) -> DataModule:
    """Return a data module of the lab's for one that somebody wrote for Lightning alone.

    Its datasets are read in the lab's order, so that resume is exact; its own hooks after the loader are not called.

    Args:
        module: With `classes` (or `num_classes`); `mean` and `std` are taken where it has them.
        seed: The run's.

    Raises:
        ConfigError: It lacks what the lab needs, or its batches cannot be made in the lab's order.
    """
    if isinstance(module, DataModule):
        return module
    where = f"data: {type(module).__name__}"
    if not isinstance(module, LightningDataModule):
        raise ConfigError(f"{where} must be a LightningDataModule, or cnnlab.data.Datasets of torch Datasets.")
    classes, num_classes = getattr(module, "classes", None), getattr(module, "num_classes", None)
    if not (classes or num_classes):
        raise ConfigError(f"{where} lacks `classes`, the classes' names in label order.")
    for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        if getattr(type(module), hook) is not getattr(LightningDataModule, hook):
            raise ConfigError(f"{where}.{hook} would not be called; give what it does as augment, or in the dataset.")
    module.prepare_data()
    for stage in ("fit", "test"):
        module.setup(stage)
    train, val, test = (_plain_loader(module, split) for split in ("train", "val", "test"))
    if train is None:
        raise ConfigError(f"{where}.train_dataloader must return a loader.")
    data = Datasets(
        train.dataset, val and val.dataset, test and test.dataset,
        classes=list(classes or map(str, range(num_classes or 0))),
        batch_size=train.batch_size or 1, eval_batch_size=((val or test or train).batch_size or 1),
        num_workers=train.num_workers, val_size=0, drop_last=train.drop_last,
        mean=getattr(module, "mean", None), std=getattr(module, "std", None), seed=seed,
    )  # fmt: skip
    data.path = type(module).__name__
    return data


def _plain_loader(module: LightningDataModule, split: str) -> DataLoader | None:
    """Return a split's loader if its samples can be read in another order by another loader."""
    name = f"{split}_dataloader"
    if getattr(type(module), name) is getattr(LightningDataModule, name):
        return None
    loader = getattr(module, name)()
    if loader is None or (isinstance(loader, list) and not loader):
        return None
    plain = (
        isinstance(loader, DataLoader)
        and hasattr(loader.dataset, "__len__")
        and isinstance(loader.sampler, RandomSampler | SequentialSampler)
        and type(loader.batch_sampler) is BatchSampler
        and loader.collate_fn is default_collate
    )
    if not plain:
        raise ConfigError(
            f"data: {type(module).__name__}.{name} must be a DataLoader of a Dataset with a length, without a sampler "
            "or collate_fn of its own: only so can a resumed run see what it would have seen. A loader of another kind "
            "is written as a subclass of cnnlab.data.DataModule."
        )
    return loader
