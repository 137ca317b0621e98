"""`cnnlab data`: fetch a data set, pack a folder of pictures, check a file."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from jaxtyping import UInt8
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cnnlab.data import archive, cifar, folder, npz
from cnnlab.errors import ConfigError, PartialError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Fetch, pack and check the npz files that training reads.",
)


@app.command()
def fetch(
    name: Annotated[cifar.Name, typer.Argument(help="The data set.")],
    path: Annotated[Path | None, typer.Argument(help="The npz file to make. [default: data/NAME.npz]")] = None,
) -> None:
    """Download a data set from its authors and write it as an npz file; continues where it was interrupted."""
    path = path or Path("data") / f"{name}.npz"
    existed = path.exists()
    cifar.fetch(name, path)
    print(f"{path} {'was there already' if existed else 'is ready'}. Train: cnnlab train data={name} data.path={path}")


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder for each class; or train and test, which hold those."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The file to write.")],
    size: Annotated[int, typer.Option(help="Height and width of the images, in pixels.")] = 32,
    fit: Annotated[
        folder.Fit,
        typer.Option(help="Scale the shorter side and crop the middle; or pad with black; or stretch."),
    ] = "crop",
    test_fraction: Annotated[float, typer.Option(help="Share of each class for the test set.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides split and order.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.npz.")] = False,
) -> None:
    """Pack a folder of pictures into an npz file; unreadable ones are named and left out (exit 7)."""
    packed = folder.pack(source, output, size, fit, test_fraction, seed, overwrite)
    written = packed.num_train + packed.num_test
    print(
        f"{packed.path}: {packed.num_train} training and {packed.num_test} test images, "
        f"{len(packed.classes)} classes. Train: cnnlab train data=npz data.path={packed.path}"
    )
    if packed.unreadable:
        for path, reason in packed.unreadable:
            print(f"cnnlab: left out {path}: {reason}", file=sys.stderr)
        raise PartialError(
            f"{len(packed.unreadable)} of {written + len(packed.unreadable)} pictures could not be read "
            f"and are left out; {packed.path} holds the other {written}."
        )


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The npz file.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME",
            help=f"An array's name in the file, where it differs: {', '.join(archive.KEYS)}. Repeatable.",
        ),
    ] = None,
) -> None:
    """Show what an npz file holds, and say whether it can be trained on (exit 3 or 8 if not)."""
    keys = dict(_parsed(text) for text in key or ())
    console = Console()
    console.print(_array_table(file))
    data = archive.read(file, keys)
    console.print(_image_table(data), _class_table(data), _duplicate_table(data))
    console.print("Usable. Train:", f"cnnlab train data=npz data.path={file}", markup=False, soft_wrap=True)


def _parsed(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or role not in archive.KEYS:
        raise ConfigError(f"--key must be ROLE=NAME with one of {', '.join(archive.KEYS)}, got {text!r}.")
    return role, name


def _array_table(file: Path) -> Table:
    table = Table("array", "type", "shape", title="In the file", title_justify="left")
    for name, layout in npz.layouts(file).items():
        table.add_row(escape(name), str(layout.dtype), " × ".join(map(str, layout.shape)))
    return table


def _image_table(data: archive.Archive) -> Table:
    table = Table("split", _number("images"), "size", "values", "mean", "sd", title="Images", title_justify="left")
    height, width, channels = data.image_shape
    for split, images in (("train", data.train_images), ("test", data.test_images)):
        mean, std = archive.channel_statistics(images)
        table.add_row(
            split,
            str(len(images)),
            f"{height} × {width} × {channels}",
            f"{images.min()}–{images.max()}",
            " ".join(f"{value:.3f}" for value in mean),
            " ".join(f"{value:.3f}" for value in std),
        )
    return table


def _class_table(data: archive.Archive) -> Table:
    table = Table("label", "class", "train", "train %", "test", "test %", title="Classes", title_justify="left")
    counts = [np.bincount(targets, minlength=data.num_classes) for targets in (data.train_targets, data.test_targets)]
    for label, name in enumerate(data.classes):
        cells = [cell for count in counts for cell in (str(count[label]), f"{100 * count[label] / count.sum():.1f}")]
        table.add_row(str(label), escape(name), *cells)
    return table


def _duplicate_table(data: archive.Archive) -> Table:
    train = list(zip(_digests(data.train_images), data.train_targets.tolist(), strict=True))
    test = list(zip(_digests(data.test_images), data.test_targets.tolist(), strict=True))
    # The label of each picture's first appearance: of equal keys, a dict keeps the last value.
    first_train, first_test = dict(reversed(train)), dict(reversed(test))
    table = Table(
        "where",
        *map(_number, ("copies", "with another label")),
        title="Exact duplicates",
        title_justify="left",
    )
    for where, copies, samples, first in (
        ("within train", len(train) - len(first_train), train, first_train),
        ("within test", len(test) - len(first_test), test, first_test),
        ("test images in train", sum(digest in first_train for digest, _ in test), test, first_train),
    ):
        other_label = sum(first.get(digest, label) != label for digest, label in samples)
        table.add_row(where, str(copies), str(other_label))
    return table


def _number(header: str) -> Column:
    return Column(header, justify="right")


def _digests(images: UInt8[np.ndarray, "n height width channel"]) -> Iterator[bytes]:
    return (hashlib.blake2b(image.data, digest_size=16).digest() for image in images)
