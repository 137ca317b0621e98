"""Callbacks of the Trainer: only what Lightning lacks."""

from cnnlab.callbacks.budget import Budget
from cnnlab.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from cnnlab.callbacks.dashboard import Dashboard
from cnnlab.callbacks.divergence import Divergence
from cnnlab.callbacks.early_stopping import EarlyStopping
from cnnlab.callbacks.ema import EMA
from cnnlab.callbacks.figures import Figures
from cnnlab.callbacks.freeze import Freeze
from cnnlab.callbacks.history import History
from cnnlab.callbacks.lookahead import Lookahead
from cnnlab.callbacks.progress import Progress
from cnnlab.callbacks.prune import Prune
from cnnlab.callbacks.reseed import Reseed
from cnnlab.callbacks.stop import LastStep, StopOnSignal, Timer

__all__ = [
    "EMA", "AtomicCheckpointIO", "Budget", "Checkpoint", "Dashboard", "Divergence", "EarlyStopping", "Figures",
    "Freeze", "History", "LastStep", "Lookahead", "Progress", "Prune", "Reseed", "StopOnSignal", "Timer",
]  # fmt: skip
