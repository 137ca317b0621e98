"""Images and labels: read, made, fetched, packed, and cut into batches."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.data.batches import Batches
    from cnnlab.data.datasets import Datasets
    from cnnlab.data.module import ImageData
    from cnnlab.data.protocol import DataModule, Gallery

__all__ = ["Batches", "DataModule", "Datasets", "Gallery", "ImageData", "read_ahead"]


def read_ahead(node: Mapping[str, Any]) -> None:
    """Begin to read the file that a config's `data` node names, beside the imports that follow.

    Importing torch and Lightning takes seconds in which a second core has nothing to do.
    """
    path = node.get("path")
    # A class of the user's own reads as it likes.
    if node["_target_"] == "cnnlab.data.ImageData" and path and node.get("resident") != "disk":
        from cnnlab.data import archive

        archive.read_ahead(Path(path).expanduser(), node.get("keys") or {}, node.get("classes"))


def __getattr__(name: str) -> Any:
    # On demand: `cnnlab data check` needs neither torch nor Lightning.
    rooms = {
        "Batches": "batches",
        "Datasets": "datasets",
        "DataModule": "protocol",
        "Gallery": "protocol",
        "ImageData": "module",
    }
    if name in rooms:
        return getattr(importlib.import_module(f"{__name__}.{rooms[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
