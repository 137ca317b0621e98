"""Optimizers: only what `torch.optim` lacks."""

from cnnlab.optimizer.fused import FusedSGD, may_fuse
from cnnlab.optimizer.groups import parameter_groups
from cnnlab.optimizer.muon import Muon

__all__ = ["FusedSGD", "Muon", "may_fuse", "parameter_groups"]
