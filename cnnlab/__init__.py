"""A laboratory for convolutional networks.

A run from Python, as `python train.py` makes it, and a table of runs:

    import cnnlab
    run = cnnlab.train(["experiment=quickstart", "optimizer.lr=0.1"])
    cnnlab.runs("outputs")

The parts, without a config:

    from pytorch_lightning import Trainer
    from cnnlab import Classifier, ConvNet, ImageData, normalised
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.batch import Batch
    from cnnlab.classifier import Classifier
    from cnnlab.data import Batches, ImageData
    from cnnlab.model import ConvNet, ResNet, WideResNet, normalised
    from cnnlab.notebook import runs, train

_HOME = {
    "Batch": "cnnlab.batch",
    "Batches": "cnnlab.data.batches",
    "Classifier": "cnnlab.classifier",
    "ConvNet": "cnnlab.model",
    "ImageData": "cnnlab.data.module",
    "ResNet": "cnnlab.model",
    "WideResNet": "cnnlab.model",
    "normalised": "cnnlab.model",
    "runs": "cnnlab.notebook",
    "train": "cnnlab.notebook",
}

__all__ = [
    "Batch", "Batches", "Classifier", "ConvNet", "ImageData", "ResNet", "WideResNet", "normalised", "runs", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # On demand: the command line checks a config without waiting for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
