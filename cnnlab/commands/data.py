"""`cnnlab data`: fetch a data set, pack a folder of pictures, check a file."""

import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cnnlab.data import archive, cifar, folder, npz, pictures, splits
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
    print(f"{path} {'was there already' if existed else 'is ready'}. Train: {_command(name, path)}")


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder for each class; or train and test, which hold those."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The file to write.")],
    size: Annotated[
        int | None,
        typer.Option(help="Height and width of the images, in pixels. [default: by the pictures, at most 64]"),
    ] = None,
    fit: Annotated[
        pictures.Fit,
        typer.Option(help="Scale the shorter side and crop the middle; or pad with black; or stretch."),
    ] = "crop",
    test_fraction: Annotated[float, typer.Option(help="Share of each class for the test set.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides split and order.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.npz.")] = False,
) -> None:
    """Pack a folder of pictures into an npz file; unreadable ones are listed and left out (exit 7)."""
    packed = folder.pack(source, output, size, fit, test_fraction, seed, overwrite)
    written = packed.num_train + packed.num_val + packed.num_test
    validation = f", {packed.num_val} validation" if packed.num_val else ""
    print(
        f"{packed.path}: {packed.num_train} training{validation} and {packed.num_test} test images of "
        f"{packed.size} × {packed.size}{' (--size)' if size is None else ''}, "
        f"{len(packed.classes)} classes. Train: {_command('npz', packed.path)}"
    )
    for note in packed.notes:
        print(f"cnnlab: {note}", file=sys.stderr)
    if packed.num_others:
        print(f"cnnlab: {packed.num_others} other files are no pictures", file=sys.stderr)
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
    # As a run would, with the settings of data=npz.
    splits.divide(
        data.targets["train"], seed=0, val_size=0.1, test_size=0 if "test" in data.images else 0.2, groups=data.groups
    )
    repeated = sum(map(set(_digests(data.images["train"])).__contains__, _digests(data.images.get("test", ()))))
    console.print(_image_table(data), _class_table(data), _duplicate_table(data))
    if repeated:
        count = len(data.images["test"])
        console.print(
            f"Look: {repeated} of the {count} test images are among the training images, which flatters the test."
        )
    console.print("Usable. Train:", _command("npz", file, keys), markup=False, soft_wrap=True)


def _command(option: str, path: Path, keys: Mapping[str, str] | None = None) -> str:
    """Return the command that trains on a file, to be pasted into a shell."""
    from cnnlab.config.lines import as_text

    settings = {"data.path": str(path), **{f"data.keys.{role}": name for role, name in (keys or {}).items()}}
    overrides = [f"{key}={as_text(value)}" for key, value in settings.items()]
    return shlex.join(["cnnlab", "train", f"data={option}", *overrides])


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
    for split, images in data.images.items():
        mean, std = archive.channel_statistics(images)
        table.add_row(
            split,
            str(len(images)),
            f"{height} × {width} × {channels}",
            f"{images.min():.6g}–{images.max():.6g}",
            " ".join(f"{value:.3f}" for value in mean),
            " ".join(f"{value:.3f}" for value in std),
        )
    return table


def _class_table(data: archive.Archive) -> Table:
    columns = [name for split in data.targets for name in (split, f"{split} %")]
    table = Table("label", "class", *columns, title="Classes", title_justify="left")
    counts = [np.bincount(targets, minlength=data.num_classes) for targets in data.targets.values()]
    for label, name in enumerate(data.classes):
        cells = [cell for count in counts for cell in (str(count[label]), f"{100 * count[label] / count.sum():.1f}")]
        table.add_row(str(label), escape(name), *cells)
    return table


def _duplicate_table(data: archive.Archive) -> Table:
    samples = {
        split: list(zip(_digests(images), data.targets[split].tolist(), strict=True))
        for split, images in data.images.items()
    }
    # The label of each picture's first appearance: of equal keys, a dict keeps the last value.
    first = {split: dict(reversed(pairs)) for split, pairs in samples.items()}
    table = Table(
        "where", *map(_number, ("copies", "with another label")), title="Exact duplicates", title_justify="left"
    )
    rows = [
        (f"within {split}", len(pairs) - len(first[split]), pairs, first[split]) for split, pairs in samples.items()
    ]
    for split, pairs in samples.items():
        if split != "train":
            copies = sum(digest in first["train"] for digest, _ in pairs)
            rows.append((f"{split} images in train", copies, pairs, first["train"]))
    for where, copies, pairs, labels in rows:
        other_label = sum(labels.get(digest, label) != label for digest, label in pairs)
        table.add_row(where, str(copies), str(other_label))
    return table


def _number(header: str) -> Column:
    return Column(header, justify="right")


def _digests(images: Iterable[np.ndarray]) -> Iterator[bytes]:
    return (hashlib.blake2b(image.data, digest_size=16).digest() for image in images)
