"""The LightningDataModule: one data set, its splits, and the batches of each."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from typing_extensions import override

from cnnlab.batch import Batch, mix_seed
from cnnlab.data import archive, cifar, shapes
from cnnlab.data.batches import Batches
from cnnlab.errors import DataError

log = logging.getLogger(__name__)

Augment = Callable[[Batch, Generator, int], Batch]


class ImageData(LightningDataModule):
    """Images of one npz file, kept in memory once and cut into batches.

    Args:
        path: The npz file.
        source: Where to get the file when it does not exist: `npz` nowhere, `cifar10` and `cifar100` from their
            authors' site, `shapes` from the generator.
        keys: The arrays' names in the file.
        classes: The classes' names in label order; by default the file's own, or numbers.
        batch_size: Training images a step, on each device.
        eval_batch_size: Validation and test images a step, on each device.
        val_size: Training images held out for validation, an equal share of each class; 0 for none.
        split_seed: Decides which.
        mean: Of each channel of the training images scaled to 0–1; computed by default.
        std: Likewise.
        resident: Where the images live during a run: on the `device`, on the `host`, or `auto`, which takes the
            device if a quarter of its free memory holds them.
        augment: Changes training batches; (batch, generator, epoch) to batch.
        seed: Decides the order of the training images and the augmentation.

    Raises:
        DataError: The file is missing, broken, or has too few images for `val_size` or `batch_size`.
    """

    def __init__(
        self,
        path: str | Path,
        source: Literal["npz", "cifar10", "cifar100", "shapes"] = "npz",
        *,
        keys: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resident: Literal["auto", "device", "host"] = "auto",
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augment = augment
        self.seed = seed
        self.resident = resident
        self._generator: Generator | None = None
        self._train: Batches | None = None
        self._train_state: dict[str, Any] | None = None

        if source in ("cifar10", "cifar100"):
            cifar.fetch(source, self.path)
        elif source == "shapes":
            shapes.generate(self.path)
        data = archive.read(self.path, **({} if keys is None else {"keys": dict(keys)}), classes=classes)
        self.classes = data.classes
        self.num_classes = data.num_classes
        self.image_shape = data.image_shape
        self.mean, self.std = (mean, std) if mean and std else archive.channel_statistics(data.train_images)
        if not len(self.mean) == len(self.std) == self.image_shape[2]:
            raise DataError(
                f"data.mean and data.std must have one value for each of the {self.image_shape[2]} channels, "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        self.train_images = torch.from_numpy(data.train_images)
        self.train_targets = torch.from_numpy(data.train_targets)
        self.test_images = torch.from_numpy(data.test_images)
        self.test_targets = torch.from_numpy(data.test_targets)
        self.train_indices, self.val_indices = stratified_split(self.train_targets, val_size, split_seed)
        if batch_size > len(self.train_indices):
            raise DataError(
                f"data.batch_size must be between 1 and {len(self.train_indices)}, the number of training images, "
                f"got {batch_size}."
            )

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return self.train_targets[self.train_indices].bincount(minlength=self.num_classes).tolist()

    @override
    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        if self._keep_on(device) and self.train_images.device != device:
            self.train_images, self.train_targets = (
                self.train_images.to(device),
                self.train_targets.to(device),
            )
            self.test_images, self.test_targets = self.test_images.to(device), self.test_targets.to(device)

    @override
    def train_dataloader(self) -> Batches:
        options = {"shuffle": True, "seed": self.seed, "batch_size": self.batch_size} | self._placement()
        self._train = self.batches("train", **options)
        if self._train_state is not None:
            self._train.load_state_dict(self._train_state)
            self._train_state = None
        return self._train

    # Lightning keeps a loader's state too, but forgets to load it where the number of steps was asked for before the
    # checkpoint was read, as every schedule by step does.
    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._train is None else {"train": self._train.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_state = state_dict.get("train")

    @override
    def val_dataloader(self) -> Batches | list[Batches]:
        if not len(self.val_indices):
            return []
        return self.batches("val", **self._placement())

    @override
    def test_dataloader(self) -> Batches:
        return self.batches("test", **self._placement())

    def batches(self, split: Literal["train", "val", "test"], **options: Any) -> Batches:
        """Return a split's batches as a plain iterable; `options` are those of `Batches`."""
        options = {"batch_size": self.eval_batch_size} | options
        if split == "test":
            return Batches(self.test_images, self.test_targets, **options)
        subset = self.train_indices if split == "train" else self.val_indices
        return Batches(self.train_images, self.train_targets, subset, **options)

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if batch.images.device == device:
            return batch
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        if self.augment is None or not self.trainer.training:
            return batch
        return self.augmented(batch, self.trainer.current_epoch, self.trainer.fit_loop.total_batch_idx + 1)

    def augmented(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Augment a training batch: a pure function of the batch, the seed, the epoch, the step and the rank."""
        if self.augment is None:
            return batch
        device = batch.images.device
        if self._generator is None or self._generator.device != device:
            self._generator = Generator(device)
        rank = self.trainer.global_rank if self.trainer is not None else 0
        self._generator.manual_seed(mix_seed(self.seed, epoch, step, rank))
        return self.augment(batch, self._generator, epoch)

    def seen(self, positions: Sequence[int], epoch: int) -> Tensor:
        """Return what training on one device sees of some training images in an epoch.

        Args:
            positions: Which of the training split's images.
            epoch: The epoch, from 0.
        """
        stream = self.batches("train", shuffle=True, seed=self.seed, batch_size=self.batch_size)
        order = stream.order(epoch)
        images = []
        for position in positions:
            number, place = divmod(int((order == position).nonzero()), self.batch_size)
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            rows = self.train_indices[chosen]
            batch = Batch(self.train_images[rows].permute(0, 3, 1, 2), self.train_targets[rows], chosen)
            images.append(self.augmented(batch, epoch, epoch * len(stream) + number).images[place])
        return torch.stack(images)

    def _keep_on(self, device: torch.device) -> bool:
        if device.type == "cpu" or self.resident != "auto":
            return self.resident == "device" or device.type == "cpu"
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        return 4 * (self.train_images.nbytes + self.test_images.nbytes) < free

    def _placement(self) -> dict[str, Any]:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        return {
            "rank": self.trainer.global_rank,
            "world_size": self.trainer.world_size,
            "pin_memory": device.type == "cuda" and self.train_images.device.type == "cpu",
        }


def stratified_split(
    targets: Int64[Tensor, "n"], val_size: int, seed: int
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "val"]]:
    """Split off `val_size` samples, of each class in proportion to its size, and return (rest, held out), sorted.

    Raises:
        DataError: `val_size` leaves nothing to train on.
    """
    if not 0 <= val_size < len(targets):
        raise DataError(
            f"data.val_size must be between 0 and {len(targets) - 1}, one less than the training images, "
            f"got {val_size}."
        )
    labels = targets.cpu().numpy()
    random = np.random.Generator(np.random.PCG64(seed))
    # Each sample's rank within its shuffled class, as a share of the class: the lowest shares over all classes
    # together are val_size samples in which no class is off its proportion by more than one.
    shares = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shares[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    held_out = np.sort(np.argsort(shares, kind="stable")[:val_size])
    rest = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    return torch.from_numpy(rest), torch.from_numpy(held_out)
