"""The batch stream: a whole split in memory, cut into batches by index."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cnnlab.batch import PADDING, Batch, mix_seed


class Batches:
    """Iterate over a split in batches, without per-sample work and without worker processes.

    The order of the samples is a pure function of (seed, epoch), so that an epoch can be resumed at any batch: a new
    stream that loads the `state_dict()` of an old one continues with the next batch.

    Under distributed training each process takes every `world_size`-th sample of the common order, so that the
    processes' batches together are the batch that one process would see. All processes get equally many samples:
    a shuffled split is filled up with its first samples, an unshuffled one with padding (`PADDING`) as its targets.

    Args:
        images: The images of the whole data set; never copied, only indexed.
        targets: Their classes.
        subset: Which of them belong to this split; all by default.
        batch_size: Images in a batch; the last one of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: Decides the orders.
        rank: This process' number among `world_size`.
        world_size: Number of processes that share the epoch.
        pin_memory: Put batches into page-locked memory, so that they are copied to a GPU without waiting.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n height width channel"],
        targets: Int64[Tensor, "n"],
        subset: Int64[Tensor, "m"] | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        self.images = images
        self.targets = targets
        self.subset = torch.arange(len(images)) if subset is None else subset.cpu()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self.epoch = 0
        self._offset = 0
        self._resume: dict[str, int] | None = None

    batch_sampler = None
    """Lightning looks here for what may be shuffled."""

    @property
    def sampler(self) -> "Batches":
        """Lightning announces each epoch by calling `set_epoch` on a loader's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(math.ceil(len(self.subset) / self.world_size) / self.batch_size)

    def order(self, epoch: int) -> Int64[Tensor, "share"]:
        """Return this process' positions in the split, in the order of `epoch`; -1 stands for padding."""
        count = len(self.subset)
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            positions = torch.randperm(count, generator=generator)
        else:
            positions = torch.arange(count)
        missing = -count % self.world_size
        if missing:
            filler = positions[:missing] if self.shuffle else torch.full((missing,), PADDING)
            positions = torch.cat([positions, filler])
        return positions[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch, from where a loaded state says."""
        # The body of a generator runs at the first `next`: after Lightning's `set_epoch`, however often it called
        # `iter` before.
        resume, self._resume = self._resume, None
        self._offset = resume["offset"] if resume is not None and resume["epoch"] == self.epoch else 0
        positions = self.order(self.epoch)
        rows = torch.where(positions < 0, -1, self.subset[positions])
        device = self.images.device
        all_indices = positions.to(device).split(self.batch_size)
        # Padding shows the first image: any will do, it is left out of every sum.
        all_rows = rows.clamp(min=0).to(device).split(self.batch_size)
        all_targets = torch.where(rows < 0, PADDING, self.targets[rows.clamp(min=0).to(device)].cpu()).to(device)
        batch_targets = all_targets.split(self.batch_size)
        for number in range(self._offset, len(all_rows)):
            images = self.images.index_select(0, all_rows[number])
            batch = Batch(images.permute(0, 3, 1, 2), batch_targets[number], all_indices[number])
            if self.pin_memory:
                batch = Batch(*(tensor.pin_memory() for tensor in batch))
            self._offset = number + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and the images of a batch over all processes."""
        return {"epoch": self.epoch, "offset": self._offset, "images": self.batch_size * self.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch that was handed out, if the next iteration is of the same epoch."""
        self._resume = dict(state)
