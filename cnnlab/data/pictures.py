"""One picture file: told from other files, decoded, brought to a size."""

import contextlib
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]

# Named, since Pillow would also hand a disguised EPS file to Ghostscript, which runs programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".mpo"),
    *(".png", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".webp"),
)
# Pillow's own limit, at which it only warns: 256 MiB once decoded to RGB.
MAX_PIXELS = 2**28 // 3
WHITE = 65535
"""White of a picture of 16 bits, unless its set says otherwise."""


class Decoded(NamedTuple):
    """A picture as an RGB image of the size that was asked for, and what it was.

    Attributes:
        image: The image.
        size: (height, width) of the picture.
        frames: Of an animation; else 1.
        highest: The highest value in a picture of 16 bits; None for others.
    """

    image: UInt8[np.ndarray, "height width 3"]
    size: tuple[int, int]
    frames: int
    highest: int | None = None


def formats() -> tuple[str, ...]:
    """Return the formats that can be decoded here: HEIC needs the package pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def is_picture(path: Path) -> bool:
    """Whether a file is one to decode: its name has a picture's ending, or its first bytes are a picture's."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in EXTENSIONS:
        return True
    return size_of(path) is not None


def size_of(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from a picture's header, or None if it has none."""
    with warnings.catch_warnings(action="ignore"):
        try:
            with Image.open(path, formats=formats()) as picture:
                return picture.height, picture.width
        except Exception:  # decoders of broken files raise whatever they come across
            return None


def decode(path: Path, size: tuple[int, int], fit: Fit = "crop", white: int = WHITE) -> Decoded:
    """Decode one picture to an RGB image of a given size, and say what it was.

    Any size and mode: the picture is turned as its EXIF data says, transparency is laid on white, 16 bits
    become 8, an animation gives its first frame.

    Args:
        path: The picture.
        size: Height and width of the result.
        fit: `crop` scales the picture to cover the size and cuts off what stands out, the same on both sides;
            `pad` scales it to fit inside and fills up with black; `stretch` changes its proportions.
        white: What becomes 255 in a picture of 16 bits.

    Raises:
        Exception: Whatever Pillow finds wrong with the file.
    """
    height, width = size
    readable = formats()
    if path.suffix.lower() in (".heic", ".heif") and "HEIF" not in readable:
        raise ValueError("HEIC needs the package pillow-heif, which is not installed: pip install 'cnnlab[heic]'")
    with Image.open(path, formats=readable) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
        before = picture.size
        # JPEG decodes at a fraction of its size several times faster; twice the target leaves a clean resize.
        picture.draft(None, (2 * width, 2 * height))
        picture.load()
        drafted = picture.size
        with contextlib.suppress(Exception):  # broken EXIF data turns nothing
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.size == drafted[::-1]:
            before = before[::-1]
        upright, highest = _rgb(picture, white)
        frames = 1
        with contextlib.suppress(Exception):  # a later frame may be broken: the first is there
            frames = getattr(picture, "n_frames", 1)
    return Decoded(fitted(upright, size, fit), before[::-1], frames, highest)


def fitted(picture: Image.Image, size: tuple[int, int], fit: Fit = "crop") -> UInt8[np.ndarray, "height width 3"]:
    """Bring an RGB picture to a size (height, width), as `decode` says."""
    height, width = size
    if fit == "stretch":
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    fitting = ImageOps.fit if fit == "crop" else ImageOps.pad
    return np.asarray(fitting(picture, (width, height), Image.Resampling.BICUBIC))


def as_floats(images: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return images as a network's first layer takes floats: bytes and 16 bits from 0 to 1, floats as they are."""
    most = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(images.dtype)
    return images if most is None else images.astype(np.float32) / np.float32(most)


def displayable(
    images: np.ndarray, span: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "n height width channel"]:
    """Turn images into bytes with 1 or 3 channels, the first three of any others, to look at.

    Args:
        images: (n, height, width, channels) in uint8, uint16 or float.
        span: What becomes black and white in floats; by default the lowest and the highest value.
    """
    images = images[..., :3] if images.shape[-1] >= 3 else images[..., :1]
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.uint16:
        return (images // 257).astype(np.uint8)
    low, high = span or (float(images.min()), float(images.max()))
    return np.rint((images - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)


def _rgb(picture: Image.Image, white: int) -> tuple[Image.Image, int | None]:
    """Convert any mode to RGB; of 16 bits, also return the highest value."""
    if picture.mode.startswith("I"):
        # 16 bits, by themselves or in a 32-bit integer; Pillow's own conversion would clip at 255.
        deep = np.asarray(picture)
        low, high = int(deep.min()), int(deep.max())
        if low < 0 or high > WHITE:
            raise ValueError(f"its pixels must be in 0 to 65535, got {low} to {high}")
        shallow = (deep.astype(np.uint32) * 255 // white).clip(max=255).astype(np.uint8)
        return Image.fromarray(shallow).convert("RGB"), high
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        background = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(background, picture).convert("RGB"), None
    return picture.convert("RGB"), None
