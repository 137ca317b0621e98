"""The data module of the lab's own files: one npz file, its splits, and the batches of each."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from cnnlab.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare, Seed, ShareBelowOne
from cnnlab.data import archive, cifar, folder, shapes, splits
from cnnlab.data.batches import Batches, Sampler, as_network_input
from cnnlab.data.pictures import Fit
from cnnlab.data.protocol import Augment, DataModule, Split
from cnnlab.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A split: rows of an array of images, and the targets of that array."""

    images: Tensor
    targets: Int64[Tensor, "all"]
    rows: Int64[Tensor, "n"]


class ImageData(DataModule):
    """Images of one npz file, kept in memory once and cut into batches.

    Args:
        path: The npz file; or a folder of pictures, which is packed into one beside it.
        source: Where to get the file when it does not exist: `npz` and `folder` nowhere, `cifar10` and `cifar100` from
            their authors' site, `shapes` from the generator.
        keys: The arrays' names in the file.
        classes: The classes' names in label order; by default the file's own, or numbers.
        batch_size: Training images a step, on each device; at most all of them.
        eval_batch_size: Validation and test images a step, on each device.
        val_size: Training images held out for validation, an equal share of each class: a number, or a share below
            1 with at least one of each class that has two; 0 for none. Unused where the file has a validation set.
        test_size: Likewise for the test, where the file has no test set.
        train_size: Training images to use of those that remain, an equal share of each class: a number or a share.
        folds: Divide the training images into so many folds, of which one validates, in place of `val_size`.
        fold: Which one, from 0.
        split_seed: Decides which images are held out, used or relabelled.
        exclude: A CSV file whose column `index` names rows of the training array to leave out.
        sampler: `shuffled` shows each training image once an epoch; `balanced` each class equally often.
        drop_last: Whether a smaller last batch of an epoch is left out.
        label_noise: Share of the training array's labels that is replaced by another class, where they are trained on.
        mean: Of each channel of the training array scaled to 0–1 (floats: as they are); computed by default.
        std: Likewise.
        resident: Where the images live during a run: on the `device`, on the `host`, on the `disk` (mapped, for files
            larger than the memory), or `auto`, which takes the device if a quarter of its free memory holds them, and
            else the host.
        size: Side of the images that a folder's pictures become, in pixels; by default chosen from the pictures.
        fit: How a folder's pictures become square: `crop`, `pad` or `stretch`.
        augment: Changes training batches; (batch, generator, epoch) to batch.
        seed: Decides the order of the training images and the augmentation.

    Raises:
        ConfigError: Settings exclude each other.
        DataError: The file is missing, broken, or has too few images for the sizes.
    """

    def __init__(
        self,
        path: str | Path,
        source: Literal["npz", "folder", "cifar10", "cifar100", "shapes"] = "npz",
        *,
        keys: Mapping[str, str | None] | None = None,
        classes: Sequence[str] | None = None,
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt = 1000,
        val_size: NonNegativeInt | ShareBelowOne = 0.1,
        test_size: PositiveInt | ShareBelowOne = 0.2,
        train_size: PositiveInt | PositiveShare | None = None,
        folds: Annotated[int, Bounds(low=2)] | None = None,
        fold: NonNegativeInt = 0,
        split_seed: Seed = 0,
        exclude: str | Path | None = None,
        sampler: Sampler = "shuffled",
        drop_last: bool = False,
        label_noise: ShareBelowOne = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[PositiveFloat] | None = None,
        resident: Literal["auto", "device", "host", "disk"] = "auto",
        size: PositiveInt | None = None,
        fit: Fit = "crop",
        augment: Augment | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.source = source
        self.eval_batch_size = eval_batch_size
        self.sampler = sampler
        self.drop_last = drop_last
        self.augment = augment
        self.seed = seed
        self.resident = resident

        self._find_file(size, fit)
        data = archive.read(self.path, dict(keys or {}), classes, mapped=resident == "disk")
        self.classes = data.classes
        self.image_shape = data.image_shape
        self._mapping = data.mapping
        self.mean, self.std = self._statistics(data, mean, std)
        if folds is not None and "val" in data.images:
            raise ConfigError(
                "data.folds divides the training images, and the file has a validation set of its own: give one of "
                "data.folds=null and data.keys.val_images=null with data.keys.val_targets=null."
            )
        division = splits.divide(
            data.targets["train"],
            seed=split_seed,
            val_size=val_size if "val" not in data.images else 0,
            test_size=test_size if "test" not in data.images else 0,
            train_size=train_size,
            folds=folds,
            fold=fold,
            without=None if exclude is None else splits.excluded(exclude, len(data.targets["train"])),
            groups=data.groups,
        )
        self._parts = _parts(data, division, label_noise, split_seed)
        self.batch_size = self._usable_batch_size(batch_size)
        if self.count("val") > self.count("train"):
            log.warning(
                f"{self.count('val')} images validate and {self.count('train')} train: is data.val_size meant so?"
            )

    def _find_file(self, size: int | None, fit: Fit) -> None:
        """Fetch, draw or pack the file where it is not there yet."""
        if self.source in ("cifar10", "cifar100"):
            cifar.fetch(self.source, self.path)
        elif self.source == "shapes":
            shapes.generate(self.path)
        elif self.path.is_dir():
            self.path = folder.cached(self.path, size, fit)

    def _statistics(
        self, data: archive.Archive, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of each channel, computed unless they are given, and check them."""
        if not (mean and std):
            mean, std = archive.channel_statistics(data.images["train"], data.mapping)
        if not len(mean) == len(std) == data.image_shape[2]:
            raise DataError(
                f"data.mean and data.std must have one value for each of the {data.image_shape[2]} channels, "
                f"got {len(mean)} and {len(std)}."
            )
        if not np.isfinite([*mean, *std]).all():
            raise DataError(f"{self.path}: the training images must be finite numbers; some are NaN or infinite.")
        return mean, std

    def _usable_batch_size(self, batch_size: int) -> int:
        count = self.count("train")
        if batch_size > count:
            log.info(f"data.batch_size={batch_size} is more than the {count} training images: a batch is all of them")
        return min(batch_size, count)

    @override
    def count(self, split: Split) -> int:
        return len(self._parts[split].rows)

    @override
    def labels(self, split: Split) -> Int64[Tensor, "n"]:
        part = self._parts[split]
        return part.targets.cpu()[part.rows]

    @override
    def images(self, split: Split, positions: Int64[Tensor, "n"] | slice) -> Tensor:
        part = self._parts[split]
        if self._mapping is None:
            images = part.images.index_select(0, part.rows[positions].to(part.images.device))
        else:
            images = torch.from_numpy(self._mapping.take(part.images.numpy(), part.rows[positions].tolist()))
        return as_network_input(images)

    @override
    def rows(self, split: Split) -> Int64[Tensor, "n"]:
        return self._parts[split].rows

    @override
    def batches(self, split: Split, **options: Any) -> Batches:
        part = self._parts[split]
        if self._mapping is not None:
            mapping, array = self._mapping, part.images.numpy()
            options["take"] = lambda rows: torch.from_numpy(mapping.take(array, rows))
        return Batches(*part, **({"batch_size": self.eval_batch_size} | options))

    @override
    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        if not self._keep_on(device):
            return
        # Splits share arrays, which are moved once.
        arrays = {id(tensor): tensor for part in self._parts.values() for tensor in part[:2]}
        moved = {key: tensor.to(device) for key, tensor in arrays.items()}
        self._parts = {
            split: part._replace(images=moved[id(part.images)], targets=moved[id(part.targets)])
            for split, part in self._parts.items()
        }

    def _keep_on(self, device: torch.device) -> bool:
        if self.resident != "auto":
            return self.resident == "device"
        if device.type != "cuda":
            return True
        arrays = {id(part.images): part.images for part in self._parts.values()}
        free, _ = torch.cuda.mem_get_info(device)
        return 4 * sum(images.nbytes for images in arrays.values()) < free

    @override
    def placement(self) -> dict[str, Any]:
        assert self.trainer is not None
        on_host = self._parts["train"].images.device.type == "cpu"
        pin_memory = on_host and self.trainer.strategy.root_device.type == "cuda"
        return super().placement() | {"pin_memory": pin_memory}


def _parts(data: archive.Archive, division: splits.Division, label_noise: float, seed: int) -> dict[str, Part]:
    """Return the splits; where the file has arrays for one, these, and else rows of the training array."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a mapped array may not be written: it isn't
        images, targets = torch.from_numpy(data.images["train"]), torch.from_numpy(data.targets["train"])
        parts = {split: Part(images, targets, torch.from_numpy(rows)) for split, rows in division._asdict().items()}
        for split in data.images.keys() - {"train"}:
            arrays = torch.from_numpy(data.images[split]), torch.from_numpy(data.targets[split])
            parts[split] = Part(*arrays, torch.arange(len(arrays[0])))
    if label_noise:
        # Of all rows of the array, so that an image has one label whichever of its folds is trained on.
        noisy, changed = splits.relabelled(data.targets["train"], label_noise, data.num_classes, seed)
        parts["train"] = parts["train"]._replace(targets=torch.from_numpy(noisy))
        count = int(np.isin(changed, division.train).sum())
        log.info(f"data.label_noise={label_noise}: {count} of {len(division.train)} training labels are changed")
    return parts
