"""Optimizers: only what `torch.optim` lacks."""

from cnnlab.optimizer.fused import may_fuse
from cnnlab.optimizer.groups import parameter_groups
from cnnlab.optimizer.muon import Muon

__all__ = ["Muon", "may_fuse", "parameter_groups"]
