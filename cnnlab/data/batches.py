"""The batch stream: a split cut into batches, in an order that is known beforehand."""

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8, UInt16
from torch import Tensor

from cnnlab.batch import PADDING, Batch, mix_seed

Sampler = Literal["shuffled", "balanced"]


@dataclass(eq=False, repr=False)
class Stream:
    """The order of a split's samples, and the place in it; what a batch is made of, the classes below say.

    The order is a pure function of (seed, epoch), so that an epoch can be resumed at any batch: a new stream that
    loads the `state_dict()` of an old one continues with the next batch.

    Under distributed training each process takes every `world_size`-th sample of the common order, so that the
    processes' batches together are the batch that one process would see. All processes get equally many samples:
    a shuffled split is filled up with its first samples, an unshuffled one with padding (`PADDING`) as its targets.

    Args:
        count: Number of samples.
        batch_size: Samples in a batch; the last one of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: Decides the orders.
        balance: The class of each sample, for epochs of the same length that show each class equally often. A class
            with fewer samples than that repeats them, one with more shows the others in the next epochs.
        fixed: Whether each epoch has the order of the first.
        drop_last: Whether a smaller last batch is left out.
        rank: This process' number among `world_size`.
        world_size: Number of processes that share the epoch.
    """

    count: int
    _: KW_ONLY
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    balance: Int64[Tensor, "n"] | None = None
    fixed: bool = False
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}.")
        self.epoch = 0
        self._offset = 0
        self._resume: dict[str, int] | None = None

    batch_sampler = None
    """Lightning looks here for what may be shuffled."""

    @property
    def sampler(self) -> "Stream":
        """Lightning announces each epoch by calling `set_epoch` on a loader's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        share = math.ceil(self.count / self.world_size)
        return share // self.batch_size if self.drop_last else math.ceil(share / self.batch_size)

    def order(self, epoch: int) -> Int64[Tensor, "share"]:
        """Return this process' positions in the split, in the order of `epoch`; -1 stands for padding."""
        count, epoch = self.count, 0 if self.fixed else epoch
        if self.shuffle:
            if self.balance is None:
                positions = _permutation(count, self.seed, epoch)
            else:
                positions = _balanced(self.balance, self.seed, epoch)
        else:
            positions = torch.arange(count)
        missing = -count % self.world_size
        if missing:
            filler = positions[:missing] if self.shuffle else torch.full((missing,), PADDING)
            positions = torch.cat([positions, filler])
        share = positions[self.rank :: self.world_size]
        return share[: len(self) * self.batch_size] if self.drop_last else share

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch, from where a loaded state says."""
        # The body of a generator runs at the first `next`: after Lightning's `set_epoch`, however often it called
        # `iter` before.
        resume, self._resume = self._resume, None
        self._offset = resume["offset"] if resume is not None and resume["epoch"] == self.epoch else 0
        for number, batch in enumerate(self.read(self.order(self.epoch), self._offset), self._offset):
            self._offset = number + 1
            yield batch

    def read(self, positions: Int64[Tensor, "share"], first: int) -> Iterator[Batch]:
        """Yield the batches of an order, from the batch number `first`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and the images of a batch over all processes."""
        return {"epoch": self.epoch, "offset": self._offset, "images": self.batch_size * self.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch that was handed out, if the next iteration is of the same epoch."""
        self._resume = dict(state)


class Batches(Stream):
    """Iterate over images in one array, without per-sample work and without worker processes.

    Args:
        images: The images of the whole data set; never copied, only indexed. uint16 becomes float from 0 to 1.
        targets: Their classes.
        subset: Which of them belong to this split; all by default.
        pin_memory: Put batches into page-locked memory, so that they are copied to a GPU without waiting.
        take: Reads rows of `images`, where these are mapped; they are indexed by default.
        sampler: `balanced` shows each class equally often.
        order: Further arguments of `Stream`.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n height width channel"]
        | UInt16[Tensor, "n height width channel"]
        | Float[Tensor, "n height width channel"],
        targets: Int64[Tensor, "n"],
        subset: Int64[Tensor, "m"] | None = None,
        *,
        pin_memory: bool = False,
        take: Callable[[list[int]], Tensor] | None = None,
        sampler: Sampler = "shuffled",
        **order: Any,
    ) -> None:
        subset = torch.arange(len(images)) if subset is None else subset.cpu()
        balance = targets.cpu()[subset] if sampler == "balanced" else None
        super().__init__(len(subset), balance=balance, **order)
        self.images = images
        self.targets = targets
        self.subset = subset
        self.pin_memory = pin_memory
        self.take = take

    def read(self, positions: Int64[Tensor, "share"], first: int) -> Iterator[Batch]:
        """Yield the batches of an order, from the batch number `first`."""
        rows = torch.where(positions < 0, -1, self.subset[positions])
        device = self.images.device
        all_indices = positions.to(device).split(self.batch_size)
        # Padding shows the first image: any will do, it is left out of every sum.
        all_rows = rows.clamp(min=0).to(device).split(self.batch_size)
        all_targets = torch.where(rows < 0, PADDING, self.targets[rows.clamp(min=0).to(device)].cpu()).to(device)
        batch_targets = all_targets.split(self.batch_size)
        for number in range(first, len(all_rows)):
            if self.take is None:
                images = self.images.index_select(0, all_rows[number])
            else:
                images = self.take(all_rows[number].tolist())
            batch = Batch(as_network_input(images).permute(0, 3, 1, 2), batch_targets[number], all_indices[number])
            if self.pin_memory:
                batch = Batch(*(tensor.pin_memory() for tensor in batch))
            yield batch


def as_network_input(images: Tensor) -> Tensor:
    """Return images of 16 bits as floats from 0 to 1, others as they are."""
    return images.float().div_(65535) if images.dtype == torch.uint16 else images


def _balanced(targets: Int64[Tensor, "n"], seed: int, epoch: int) -> Int64[Tensor, "n"]:
    """Return as many positions as there are, each class equally often (or one more), in random order.

    A class goes on through its samples in the next epoch: none is shown again before all were shown.
    """
    classes = torch.unique(targets).tolist()
    chosen = []
    for number, label in enumerate(classes):
        members = (targets == label).nonzero().flatten()
        quota = (len(targets) - number - 1) // len(classes) + 1
        first, end = epoch * quota, (epoch + 1) * quota
        rounds = range(first // len(members), -(-end // len(members)))
        shuffled = [_permutation(len(members), seed, label, number) for number in rounds]
        start = first - rounds.start * len(members)
        chosen.append(members[torch.cat(shuffled)[start : start + quota]])
    positions = torch.cat(chosen)
    return positions[_permutation(len(positions), seed, epoch)]


def _permutation(count: int, *seeds: int) -> Int64[Tensor, "count"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(*seeds)))
