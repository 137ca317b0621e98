"""Optimizers: only what `torch.optim` lacks."""

from cnnlab.optimizer.groups import parameter_groups
from cnnlab.optimizer.muon import Muon

__all__ = ["Muon", "parameter_groups"]
