"""What the lab needs of a data module."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from typing_extensions import override

from cnnlab.batch import Batch, mix_seed
from cnnlab.data.batches import Stream
from cnnlab.data.pictures import displayable
from cnnlab.errors import ConfigError

log = logging.getLogger(__name__)

Augment = Callable[[Batch, Generator, int], Batch]
Split = Literal["train", "val", "test"]


class DataModule(LightningDataModule):
    """Images with class numbers, in splits: what training, evaluation, export and reports ask for.

    A data module of one's own sets the attributes in its constructor and gives `count`, `labels` and `batches`;
    loaders, augmentation, the position in an epoch and the pictures to look at follow from these. The batches of
    `batches("train", shuffle=True, ...)` are a `Stream`, whose order is known beforehand: that is what makes a resumed
    run equal one that was never stopped.

    Attributes:
        classes: The classes' names in label order.
        image_shape: (height, width, channels).
        mean: Of each channel, of images on the scale from 0 to 1; images that are floats, as they are.
        std: Likewise.
        path: Where the images come from, for people to read.
        batch_size: Training images a step, on each device.
        eval_batch_size: Validation and test images a step, on each device.
        sampler: `shuffled`, or `balanced`: each class equally often.
        drop_last: Whether a smaller last batch of an epoch is left out.
        augment: Changes training batches; (batch, generator, epoch) to batch.
        seed: Decides the order of the training images and the augmentation.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    path: Any = ""
    batch_size: int = 64
    eval_batch_size: int = 1000
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    drop_last: bool = False
    augment: Augment | None = None
    seed: int = 0

    def __init__(self) -> None:
        super().__init__()
        self._generator: Generator | None = None
        self._train: Stream | None = None
        self._train_state: dict[str, Any] | None = None
        self._span: tuple[float, float] | None = None

    @abstractmethod
    def count(self, split: Split) -> int:
        """Return the number of images in a split; 0 where there is none."""

    @abstractmethod
    def labels(self, split: Split) -> Int64[Tensor, "n"]:
        """Return the class numbers of a split's images, in its order, on the CPU."""

    @abstractmethod
    def batches(self, split: Split, **options: Any) -> Stream:
        """Return the batches of a split, `eval_batch_size` images each; `options` are those of `Stream`."""

    @abstractmethod
    def images(self, split: Split, positions: Int64[Tensor, "n"] | slice) -> Tensor:
        """Return some of a split's images as (n, height, width, channels), in the type that batches have."""

    def rows(self, split: Split) -> Int64[Tensor, "n"]:
        """Return where a split's images stand in the source that they come from."""
        return torch.arange(self.count(split))

    @property
    def num_classes(self) -> int:
        """Count the classes, those without a picture included."""
        return len(self.classes)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return self.labels("train").bincount(minlength=self.num_classes).tolist()

    @override
    def train_dataloader(self) -> Stream:
        assert self.trainer is not None
        self._train = self.batches(
            "train",
            shuffle=True,
            seed=self.seed,
            batch_size=self.batch_size,
            sampler=self.sampler,
            drop_last=self.drop_last,
            # Lightning sees to this for samplers of torch's only.
            fixed=self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
            **self.placement(),
        )
        if not len(self._train):
            raise ConfigError(
                f"data.drop_last=true leaves no batch: {self.count('train')} training images on "
                f"{self.trainer.world_size} devices are fewer than data.batch_size={self.batch_size}."
            )
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
    def val_dataloader(self) -> Stream | list[Stream]:
        return self.batches("val", **self.placement()) if self.count("val") else []

    @override
    def test_dataloader(self) -> Stream | list[Stream]:
        return self.batches("test", **self.placement()) if self.count("test") else []

    @override
    def predict_dataloader(self) -> Stream | list[Stream]:
        return self.test_dataloader()

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
        stream = self.batches("train", shuffle=True, seed=self.seed, batch_size=self.batch_size, sampler=self.sampler)
        order = stream.order(epoch)
        images = []
        for position in positions:
            places = (order == position).nonzero()
            if not len(places):  # a balanced epoch shows some of a large class only
                images.append(self.images("train", torch.tensor([position]))[0].permute(2, 0, 1))
                continue
            number, place = divmod(int(places[0]), self.batch_size)
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            pixels = self.images("train", chosen).permute(0, 3, 1, 2)
            batch = Batch(pixels, self.labels("train")[chosen], chosen)
            images.append(self.augmented(batch, epoch, epoch * len(stream) + number).images[place])
        return torch.stack(images)

    def pictures(
        self, split: Split, positions: Int64[Tensor, "n"] | slice
    ) -> UInt8[np.ndarray, "n height width channel"]:
        """Return some of a split's images to look at: bytes, and 1 or 3 channels, the first three of any others."""
        return self.displayable(self.images(split, positions))

    def displayable(self, images: Tensor) -> UInt8[np.ndarray, "n height width channel"]:
        """Turn images as batches have them, channels last, into bytes with 1 or 3 channels.

        Floats from 0 to 1 are taken so; others are spread from the lowest to the highest of the first 1,000 images.
        """
        if images.is_floating_point() and self._span is None:
            first = self.images("train", slice(1000))
            low, high = float(first.min()), float(first.max())
            self._span = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        return displayable(images.cpu().numpy(), self._span)

    def placement(self) -> dict[str, Any]:
        """Return the options of `batches` that say which share of a split is this process'."""
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


class Gallery:
    """A split's pictures to look at, read when they are indexed: an array as far as drawing goes.

    Args:
        data: Where they come from.
        split: Which of its splits.
    """

    def __init__(self, data: DataModule, split: Split) -> None:
        self.data = data
        self.split: Split = split

    def __len__(self) -> int:
        return self.data.count(self.split)

    def __getitem__(self, positions: Any) -> UInt8[np.ndarray, "n height width channel"]:
        """Return the pictures at some positions, given as a slice or an array."""
        return self.data.pictures(
            self.split, positions if isinstance(positions, slice) else torch.as_tensor(np.asarray(positions))
        )
