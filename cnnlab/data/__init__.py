"""Images and labels: read, made, fetched, packed, and cut into batches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.data.batches import Batches
    from cnnlab.data.module import ImageData

__all__ = ["Batches", "ImageData"]


def __getattr__(name: str) -> Any:
    # On demand: `cnnlab data check` needs neither torch nor Lightning.
    if name == "Batches":
        from cnnlab.data.batches import Batches

        return Batches
    if name == "ImageData":
        from cnnlab.data.module import ImageData

        return ImageData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
