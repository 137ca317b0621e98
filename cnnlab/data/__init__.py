"""Images and labels: read, made, fetched, packed, and cut into batches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.data.batches import Batches
    from cnnlab.data.module import ImageData

__all__ = ["Batches", "ImageData", "read_ahead"]


def read_ahead(node: Mapping[str, Any]) -> None:
    """Begin to read the file that a config's `data` node names, beside the imports that follow.

    Importing torch and Lightning takes seconds in which a second core has nothing to do.
    """
    path = node.get("path")
    if node["_target_"] == "cnnlab.data.ImageData" and path:  # a class of the user's own reads as it likes
        from cnnlab.data import archive

        archive.read_ahead(path, node.get("keys") or {}, node.get("classes"))


def __getattr__(name: str) -> Any:
    # On demand: `cnnlab data check` needs neither torch nor Lightning.
    if name == "Batches":
        from cnnlab.data.batches import Batches

        return Batches
    if name == "ImageData":
        from cnnlab.data.module import ImageData

        return ImageData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
