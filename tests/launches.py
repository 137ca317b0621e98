"""What a training step asks of its device: how many operations are launched, and where the host waits for a result."""

import collections
import sys
import types
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {
    "_unsafe_view", "alias", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided",
    "resize_", "set_", "unsafe_split",
}  # fmt: skip
"""Operations besides views that compute nothing."""

WAITS = {
    "_is_all_true", "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result, or its size, the host needs."""

OTHERS = (
    "/torch/",
    "/pytorch_lightning/",
    "/lightning_fabric/",
    "/torchmetrics/",
    "/jaxtyping/",
    "/contextlib.py",
    __file__,
)


class Launches(TorchDispatchMode):
    """Count the operations on a kind of device, and note each place where the host waits for one.

    An operation is one launch at least: `convolution` or a foreach over many tensors can be several.

    Args:
        device: The kind of device that is looked at.

    Attributes:
        operations: How often each (operation, place in the code) was launched.
        waits: How often the host waited for each (reason, place in the code).
    """

    active: "list[Launches]" = []  # noqa: RUF012

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.operations: collections.Counter[tuple[str, str]] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()

    def __enter__(self) -> "Launches":
        self.active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.active.remove(self)
        super().__exit__(*error)

    @classmethod
    def note(cls, reason: str) -> None:
        """Let those who count know of a wait that is no operation."""
        for launches in cls.active:
            launches.waits[reason, place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if any(each.device.type == self.device for each in (*inputs, *outputs)):
            name = func.overloadpacket.__name__
            reason = self._reason_to_wait(name, inputs, outputs, args, kwargs)
            if reason:
                self.waits[reason, place()] += 1
            if name not in FREE and not func.is_view:
                self.operations[name, place()] += 1
        return result

    def _reason_to_wait(self, name: str, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any) -> str:
        if name in WAITS:
            return name
        if name in ("_to_copy", "copy_"):
            source = inputs[-1] if name == "copy_" else inputs[0]
            target = outputs[0]
            moves = source.device.type != target.device.type
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            return f"{source.device.type} to {target.device.type}" if moves and not non_blocking else ""
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool for index in indices):
                return f"{name} by a mask"
            if any(index.device.type != inputs[0].device.type for index in indices):
                return f"{name} by an index of the host"
        return ""

    @property
    def count(self) -> int:
        """The number of operations."""
        return sum(self.operations.values())


def place() -> str:
    """Return the innermost line that is none of PyTorch's or Lightning's."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not (path.startswith("<") or any(part in path for part in OTHERS)):
            return f"{path.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "autograd"
