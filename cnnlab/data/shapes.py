"""The built-in data set: ten classes of procedurally drawn 32×32 colour scenes, for a machine without data.

Position, size, rotation, colours and background vary so much that single pixels say next to nothing about
the class: a linear classifier gets one image in six right, a small convolutional network nearly all.

Pixels are computed with operations that IEEE 754 rounds in one way only (+ − × ÷ √ and comparisons), not
with sine or exponential, whose last bit depends on the processor: the same seed gives the same bytes.
"""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy.random import PCG64, Generator

from cnnlab.data import archive, npz
from cnnlab.errors import ConfigError, DataError

SIZE = 32
"""Height and width of an image in pixels."""

# A chunk has a generator of its own, so that no image depends on the order of the work, and fits the
# processor's cache. A multiple of ten: every chunk holds all classes equally often.
_CHUNK = 200

Split = Literal["train", "test"]
Field = Float32[np.ndarray, "n height width"]
Vectors = Float32[np.ndarray, "n 2"]
Shape = Callable[[Field, Field], Field]


def generate(path: Path, num_train: int = 20_000, num_test: int = 4_000, seed: int = 0) -> Path:
    """Draw the data set into an npz file; where the file exists, check that it is the one asked for.

    Args:
        path: The file to write; never overwritten.
        num_train: Number of training images.
        num_test: Number of test images.
        seed: Which data set; the same seed gives the same bytes.

    Returns:
        `path`.

    Raises:
        ConfigError: A number is out of range.
        DataError: `path` exists and holds something else.
    """
    for name, number, least in (("num_train", num_train, 10), ("num_test", num_test, 10), ("seed", seed, 0)):
        if number < least:
            raise ConfigError(f"{name} must be at least {least}, got {number}.")
    if not path.exists():
        archive.write(path, *draw("train", num_train, seed), *draw("test", num_test, seed), CLASSES)
        return path
    expected = {
        archive.KEYS["train_targets"]: _labels("train", num_train, seed),
        archive.KEYS["test_targets"]: _labels("test", num_test, seed),
    }
    if not _holds(path, expected):
        raise DataError(
            f"{path} is not the data set of num_train={num_train}, num_test={num_test} and seed={seed}: its "
            "labels differ. Choose another data.path; data=npz reads a file of your own."
        )
    return path


def _holds(path: Path, expected: Mapping[str, Int64[np.ndarray, "n"]]) -> bool:
    """Say whether a file holds these labels. They take 20 ms, and no two seeds or sizes share them."""
    layouts = npz.layouts(path)
    if any(layouts.get(key) != (labels.dtype, labels.shape) for key, labels in expected.items()):
        return False
    # A damaged file is `archive.read`'s to report.
    with suppress(zipfile.BadZipFile), np.load(path) as file:
        return all(np.array_equal(file[key], labels) for key, labels in expected.items())
    return True


def draw(
    split: Split, num_images: int, seed: int
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int64[np.ndarray, "n"]]:
    """Draw one split: the images, and the class of each; all classes are equally frequent."""
    images = np.empty((num_images, SIZE, SIZE, 3), np.uint8)
    targets = np.empty(num_images, np.int64)
    for part, generator in _chunks(split, num_images, seed):
        targets[part] = _chunk_labels(part, generator)
        images[part] = _scenes(targets[part], generator)
    return images, targets


def _labels(split: Split, num_images: int, seed: int) -> Int64[np.ndarray, "n"]:
    return np.concatenate([_chunk_labels(*chunk) for chunk in _chunks(split, num_images, seed)])


def _chunks(split: Split, num_images: int, seed: int) -> Iterator[tuple[slice, Generator]]:
    for number, first in enumerate(range(0, num_images, _CHUNK)):
        part = slice(first, min(first + _CHUNK, num_images))
        yield part, Generator(PCG64([seed, split == "test", number]))


def _chunk_labels(part: slice, generator: Generator) -> Int64[np.ndarray, "n"]:
    return generator.permutation(np.arange(part.start, part.stop) % len(CLASSES))


def _scenes(targets: Int64[np.ndarray, "n"], generator: Generator) -> UInt8[np.ndarray, "n height width 3"]:
    """Draw one scene a target: background, the shape, something in front of it, noise."""
    num = len(targets)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * generator.random((num, *shape), np.float32)

    def turn(limit: float) -> Vectors:
        """Return (cos, sin) of an angle with |tan(angle / 2)| up to `limit`; 1 is a quarter turn."""
        t = uniform(-limit, limit)
        return np.stack([1 - t * t, 2 * t], axis=1) / (1 + t * t)[:, None]

    # The shape's colour is far from the background's in every channel, up or down: bright on dark is as
    # frequent as dark on bright, which leaves a linear classifier nothing to add up.
    ground = uniform(0, 1, 3)
    second_ground = np.clip(ground + uniform(-0.18, 0.18, 3), 0, 1)
    ink = (ground + uniform(0.35, 0.65, 3)) % 1
    front_ink = (ink + uniform(0.35, 0.65, 3)) % 1

    image = np.empty((num, 3, SIZE, SIZE), np.float32)
    image[:] = ground[:, :, None, None]
    _paint(image, second_ground, _texture(turn(1), uniform(5, 12), uniform(0, 1), generator))

    radius = uniform(9, 13)
    centre = SIZE / 2 + uniform(-1, 1, 2) * (SIZE / 2 - radius)[:, None]
    _paint(image, ink, _coverage(_shape(targets, centre, radius, turn(0.4))))

    # Around a point of the shape other than its centre, in a third of the scenes.
    behind = centre + (radius * uniform(0.3, 1))[:, None] * turn(1) * generator.choice([-1, 1], (num, 1))
    front = _bar_or_disc(behind, turn(1), uniform(0, 1), generator.random(num) < 0.5)
    hidden = generator.random(num) < 0.35
    _paint(image, front_ink, _coverage(front) * hidden[:, None, None])

    noise = generator.standard_normal(image.shape, np.float32)
    noise *= uniform(0.01, 0.05)[:, None, None, None]
    image += noise
    image *= 255
    image += 0.5
    return np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(0, 2, 3, 1)


def _coverage(distance: Field) -> Field:
    """Return how much of each pixel lies inside, from the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _paint(image: Float32[np.ndarray, "n 3 height width"], ink: Float32[np.ndarray, "n 3"], opacity: Field) -> None:
    """Paint one colour a scene over the images, in place."""
    change = ink[:, :, None, None] - image
    change *= opacity[:, None]
    image += change


def _frame(centre: Vectors, turn: Vectors) -> tuple[Field, Field]:
    """Return the pixels' coordinates in a frame with another origin and turned axes."""
    pixels = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    x = pixels[None, None, :] - centre[:, 0, None, None]
    y = pixels[None, :, None] - centre[:, 1, None, None]
    cos, sin = turn[:, 0, None, None], turn[:, 1, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _texture(
    turn: Vectors, period: Float32[np.ndarray, "n"], phase: Float32[np.ndarray, "n"], generator: Generator
) -> Field:
    """Return backgrounds from 0 to 1: a gradient, stripes, a checkerboard, or blobs."""
    x, y = _frame(np.full_like(turn, SIZE / 2), turn)
    period, phase = period[:, None, None], phase[:, None, None]
    stripes, crossing = _wave(x / period + phase), _wave(y / period)
    kind = generator.integers(4, size=(len(turn), 1, 1))
    texture = _blobs(generator.random((len(turn), 6, 6), np.float32))
    texture = np.where(kind == 1, np.clip(x / SIZE + 0.5, 0, 1), texture)
    texture = np.where(kind == 2, stripes, texture)
    return np.where(kind == 3, stripes + crossing - 2 * stripes * crossing, texture)


def _wave(phase: Field) -> Field:
    """Return a trapezoid wave from 0 to 1 with period 1."""
    return np.clip(4 * np.abs(phase - np.floor(phase) - 0.5) - 0.5, 0, 1)


def _blobs(knots: Float32[np.ndarray, "n knot knot"]) -> Field:
    """Interpolate a coarse grid of values linearly."""
    place = np.arange(SIZE, dtype=np.float32) * np.float32((knots.shape[1] - 1) / SIZE)
    left = place.astype(int)
    weight = place - left
    rows = knots[:, left] + weight[:, None] * (knots[:, left + 1] - knots[:, left])
    return rows[:, :, left] + weight * (rows[:, :, left + 1] - rows[:, :, left])


def _bar_or_disc(centre: Vectors, turn: Vectors, thickness: Float32[np.ndarray, "n"], is_bar: np.ndarray) -> Field:
    """Return the signed distance to a bar across the scene, or to a small disc, in pixels."""
    x, y = _frame(centre, turn)
    thickness = thickness[:, None, None]
    return np.where(is_bar[:, None, None], np.abs(x) - (1 + thickness), np.sqrt(x * x + y * y) - (2 + 2.5 * thickness))


def _shape(targets: Int64[np.ndarray, "n"], centre: Vectors, radius: Float32[np.ndarray, "n"], turn: Vectors) -> Field:
    """Return the signed distance to the shape of each scene's class, in pixels."""
    radius = radius[:, None, None]
    x, y = _frame(centre, turn)
    x /= radius
    y /= radius
    distance = np.empty_like(x)
    for label, shape in enumerate(_SHAPES.values()):
        members = targets == label
        distance[members] = shape(x[members], y[members])
    return distance * radius


# Signed distances to the shapes, negative inside, where the shape about fills the unit circle; y points down.


def _circle(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y) - 0.85


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.2


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(np.sqrt(x * x + y * y) - 0.95, 0.75 - np.sqrt((x - 0.5) ** 2 + y * y))


def _heart(x: Field, y: Field) -> Field:
    # Two discs, and a wedge whose sides, of slope 4:3, touch them and meet at the tip.
    x = np.abs(x)
    discs = np.sqrt((x - 0.42) ** 2 + (y + 0.42) ** 2) - 0.53
    wedge = np.maximum(0.8 * x + 0.6 * y - 0.614, 0.6 * (x - 0.42) - 0.8 * (y + 0.42))
    return np.minimum(discs, wedge)


def _polygon(*corners: tuple[float, float]) -> Shape:
    """Return the signed distance to a polygon, convex or not.

    Source: I. Quilez, "2D distance functions", sdPolygon: the nearest edge, and the crossing number.
    """

    def distance(x: Field, y: Field) -> Field:
        squared = np.full_like(x, np.inf)
        outside = np.ones(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, corners[-1:] + corners[:-1], strict=True):
            edge_x, edge_y = bx - ax, by - ay
            from_x, from_y = x - ax, y - ay
            along = np.clip((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
            squared = np.minimum(squared, (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2)
            if ay != by:
                # A ray to the right crosses the edge between its ends' heights, left of the edge.
                between = (y >= ay) != (y >= by)
                outside ^= between & (x < ax + from_y * (edge_x / edge_y))
        return np.sqrt(squared) * np.where(outside, np.float32(1), np.float32(-1))

    return distance


def _star(points: int, waist: float) -> Shape:
    angles = [math.pi * corner / points for corner in range(2 * points)]
    radii = [1.0, waist] * points
    return _polygon(
        *((radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True))
    )


_SHAPES: Mapping[str, Shape] = {
    "circle": _circle,
    "square": _polygon((-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)),
    "triangle": _polygon((0, -1), (0.87, 0.5), (-0.87, 0.5)),
    "star": _star(points=5, waist=0.42),
    "cross": _polygon(
        *((-0.28, -0.95), (0.28, -0.95), (0.28, -0.28), (0.95, -0.28), (0.95, 0.28), (0.28, 0.28)),
        *((0.28, 0.95), (-0.28, 0.95), (-0.28, 0.28), (-0.95, 0.28), (-0.95, -0.28), (-0.28, -0.28)),
    ),
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "bolt": _polygon((0.35, -1), (-0.7, 0.2), (-0.1, 0.2), (-0.35, 1), (0.7, -0.2), (0.1, -0.2)),
    "arrow": _polygon(
        *((0, -1), (0.75, -0.1), (0.25, -0.1), (0.25, 0.95), (-0.25, 0.95), (-0.25, -0.1), (-0.75, -0.1))
    ),
}

CLASSES = tuple(_SHAPES)
"""Names of the classes, in label order."""
