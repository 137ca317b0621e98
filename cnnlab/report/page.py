"""The page: templates filled with a folder's words, none of which is anybody else's code.

The file needs no network and no script, follows the reader's choice of dark or light, and prints.
"""

import io
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cnnlab.wording import CONVENTION

# What may stand in a file but means nothing in a page, or turns the text after it around; HTML forbids most of it, and
# a lone surrogate can't be written.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Page(NamedTuple):
    """A page that was written.

    Attributes:
        path: The file.
        missing: Why the run could not be evaluated; None if it was, or has no checkpoint.
    """

    path: Path
    missing: str | None


def render(template: str, *, title: str, sections: Mapping[str, Any], **content: object) -> str:
    """Fill a template; all words are escaped where they enter it.

    Args:
        template: The file's name.
        title: What the page is about.
        sections: What stands under each heading; sections without content are left out.
        content: The template's other variables.
    """
    filled = {heading: part for heading, part in sections.items() if part}
    words = {"title": title, "sections": filled, "convention": CONVENTION, **content}
    return _ENVIRONMENT.get_template(template).render(words)


def embed(pixels: UInt8[np.ndarray, "height width channel"]) -> str:
    """Return an image as an address that holds the image itself."""
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG", optimize=True)
    return embed_png(content.getvalue())


def embed_png(content: bytes) -> str:
    """Return a PNG file's content as an address that holds the image itself."""
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _printable(value: object) -> object:
    """Return what a template writes for a value: HTML that a template made as it is, all else as clean text."""
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else _NO_TEXT.sub("�", str(value))


_ENVIRONMENT = Environment(
    loader=PackageLoader("cnnlab.report"), autoescape=True, finalize=_printable, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_ENVIRONMENT.filters["anchor"] = lambda heading: re.sub(r"\W+", "-", heading.lower())
