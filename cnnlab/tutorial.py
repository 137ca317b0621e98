"""Convolution and pooling on plain arrays, as the tutorial explains them."""

import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from cnnlab.errors import ConfigError

Kernel = Float[np.ndarray, "side side"]
Plane = Float[np.ndarray, "height width channel"]

KERNELS: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "blur": ((1 / 9, 1 / 9, 1 / 9), (1 / 9, 1 / 9, 1 / 9), (1 / 9, 1 / 9, 1 / 9)),
    "edges": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "sobel_x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
}
"""Kernels by name. Source of `sobel_x`: Sobel & Feldman 1968; the others are textbook stencils."""

_LARGEST = 15  # a larger kernel can't be read in a picture


def parse_kernel(text: str) -> Kernel:
    """Return the kernel that a text names or writes out.

    Args:
        text: A name in `KERNELS`, or a matrix in JSON: `[[0,1,0],[1,-4,1],[0,1,0]]`.

    Raises:
        ConfigError: The text is neither, or no square matrix of finite numbers with an odd side.
    """
    if text in KERNELS:
        return np.array(KERNELS[text], float)
    rule = f"{', '.join(KERNELS)} or a square matrix of numbers in JSON, its side odd and at most {_LARGEST}"
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"--kernel must be {rule}; got {text[:100]}.") from None
    square = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    if not square or not all(type(value) in (int, float) for row in rows for value in row):
        raise ConfigError(f"--kernel must be {rule}; got {text[:100]}.")
    if len(rows) % 2 == 0 or len(rows) > _LARGEST:
        raise ConfigError(f"--kernel must be {rule}; got {len(rows)} × {len(rows)}.")
    try:
        values = np.array(rows, float)
    except OverflowError:
        values = np.array([[np.inf]])
    if not np.isfinite(values).all():
        raise ConfigError(f"--kernel must be {rule}; got a number that is not finite.")
    return values


def compute_output_size(size: int, kernel_size: int, padding: int, stride: int) -> int:
    """Return how many places a kernel takes along a side: (W − K + 2P) / S + 1, rounded down.

    Raises:
        ConfigError: The kernel does not fit into the padded image, or a number is out of its range.
    """
    if padding < 0:
        raise ConfigError(f"--padding must be at least 0, got {padding}.")
    if stride < 1:
        raise ConfigError(f"--stride must be at least 1, got {stride}.")
    if size + 2 * padding < kernel_size:
        raise ConfigError(f"a kernel of {kernel_size} pixels does not fit into {size} pixels and --padding {padding}.")
    return (size - kernel_size + 2 * padding) // stride + 1


def convolve(image: Plane, weights: Kernel, padding: int = 0, stride: int = 1) -> Plane:
    """Slide a kernel over each channel of an image, and sum the products at each place.

    As in every network, the kernel is not mirrored first: strictly speaking this is a cross-correlation.

    Args:
        image: The image.
        weights: The kernel.
        padding: Rows of zeros around the image.
        stride: Pixels from one place to the next.

    Raises:
        ConfigError: The kernel does not fit, or a number is out of its range.
    """
    for length in image.shape[:2]:
        compute_output_size(length, len(weights), padding, stride)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape, axis=(0, 1))[::stride, ::stride]
    return np.einsum("hwcij,ij->hwc", windows, weights)


def pool(image: Plane, size: int, kind: Literal["max", "avg"]) -> Plane:
    """Keep the largest value of each patch, or the mean. What is left over at the right and the bottom is dropped.

    Raises:
        ConfigError: The patch is larger than the image.
    """
    height, width, channels = image.shape
    if not 1 <= size <= min(height, width):
        raise ConfigError(f"--size must be between 1 and {min(height, width)} pixels, got {size}.")
    rows, columns = height // size, width // size
    patches = image[: rows * size, : columns * size].reshape(rows, size, columns, size, channels)
    return patches.max((1, 3)) if kind == "max" else patches.mean((1, 3))


def to_grey(image: Plane) -> Plane:
    """Return the brightness of an image as its only channel (ITU-R BT.601's weights)."""
    if image.shape[2] == 1:
        return image
    return (image @ np.array([0.299, 0.587, 0.114]))[:, :, None]


def make_example() -> Float[np.ndarray, "4 4"]:
    """Return the 4×4 map on which pooling is explained."""
    return np.array([[1, 3, 2, 1], [5, 7, 0, 4], [2, 2, 9, 6], [0, 4, 3, 8]], float)
