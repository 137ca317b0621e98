"""What no training step may do on a GPU, as augmentations: the tests of the stand-in must catch each of them."""

import torch
from torch import Generator

from cnnlab.batch import Batch


class HostIndex:
    """Index images on the device by a tensor of the host."""

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch."""
        return batch._replace(images=batch.images.index_select(0, torch.arange(len(batch.images))))


class HostGenerator:
    """Draw on the device from a generator of the host."""

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch."""
        torch.rand(3, generator=torch.Generator(), device=batch.images.device)
        return batch


class ReadBack:
    """Ask the device for a number."""

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch."""
        assert batch.targets.sum().item() >= 0
        return batch


class ReadMask:
    """Select by a mask, whose size the host must know."""

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch."""
        assert batch.images[batch.targets >= 0].ndim == 4
        return batch
