"""`cnnlab data`: fetch a data set, pack a folder of pictures, check a file, find wrong labels."""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cnnlab.commands import AsJson, Trust, Wide
from cnnlab.console import say
from cnnlab.data import archive, cifar, folder, npz, pictures, splits
from cnnlab.errors import ConfigError, DataError, PartialError
from cnnlab.tables import Column, print_table
from cnnlab.wording import format_metric

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Fetch, pack and check the npz files that training reads, and find wrong labels in them.",
)


@app.command()
def fetch(
    name: Annotated[cifar.Name, typer.Argument(help="The data set.")],
    path: Annotated[Path | None, typer.Argument(help="The npz file to make. [default: data/NAME.npz]")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a data set from its authors and write it as an npz file; continues where it was interrupted."""
    path = path or Path("data") / f"{name}.npz"
    existed = path.exists()
    cifar.fetch(name, path)
    if as_json:
        say(json.dumps({"path": str(path), "existed": existed, "command": _command(name, path)}, indent=1))
    else:
        say(f"{path} {'was there already' if existed else 'is ready'}. Train: {_command(name, path)}")


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
    as_json: AsJson = False,
) -> None:
    """Pack a folder of pictures into an npz file; unreadable ones are listed and left out (exit 7)."""
    packed = folder.pack(source, output, size, fit, test_fraction, seed, overwrite)
    written = packed.num_train + packed.num_val + packed.num_test
    validation = f", {packed.num_val} validation" if packed.num_val else ""
    if as_json:
        content = vars(packed) | {"path": str(packed.path), "command": _command("npz", packed.path)}
        content["unreadable"] = [{"image": str(path), "reason": reason} for path, reason in packed.unreadable]
        say(json.dumps(content, indent=1))
    else:
        say(
            f"{packed.path}: {packed.num_train} training{validation} and {packed.num_test} test images of "
            f"{packed.size} × {packed.size}{' (--size)' if size is None else ''}, "
            f"{len(packed.classes)} classes. Train: {_command('npz', packed.path)}"
        )
    for note in packed.notes:
        say(f"cnnlab: {note}", file=sys.stderr)
    if packed.num_others:
        say(f"cnnlab: {packed.num_others} other files are no pictures", file=sys.stderr)
    if packed.unreadable:
        for path, reason in packed.unreadable:
            say(f"cnnlab: left out {path}: {reason}", file=sys.stderr)
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
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show what an npz file holds, and say whether it can be trained on (exit 3 or 8 if not)."""
    keys = dict(_parse_key(text) for text in key or ())
    content: dict[str, Any] = {"file": str(file), "arrays": _describe_arrays(file)}
    if not as_json:
        _print("In the file", content["arrays"], wide)
    data = archive.read(file, keys)
    # As a run would, with the settings of data=npz.
    splits.divide(
        data.targets["train"], seed=0, val_size=0.1, test_size=0 if "test" in data.images else 0.2, groups=data.groups
    )
    duplicates = _describe_duplicates(data)
    content |= {
        "images": _describe_images(data), "classes": _describe_classes(data), "duplicates": duplicates,
        "notes": _note_leaks(duplicates, data), "command": _command("npz", file, keys),
    }  # fmt: skip
    if as_json:
        say(json.dumps(content, indent=1))
        return
    _print("Images", content["images"], wide)
    _print("Classes", content["classes"], wide)
    _print("Exact duplicates", duplicates, wide)
    for note in content["notes"]:
        say(f"note: {note}")
    say("Usable, but see the notes." if content["notes"] else "Usable.", "Train:", content["command"])


@app.command()
def doctor(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="SWEEP | RUN...", help="A sweep over data.fold; or runs that held out images."),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write. [default: `doctor` in the first folder]")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="The device: cpu, gpu, mps, or what is there.")] = "auto",
    wide: Wide = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Find training images with wrong labels, by networks that did not train on them; and near-duplicates in the test.

    Writes suspects.csv, which data.exclude= takes, a sheet of the surest ones to look at, and doctor.json. A suspect is
    an image of which the networks are as sure that it is of another class as they are, on average, of that class
    (confident learning, Northcutt et al. 2021): look at them before you leave them out.
    """
    from cnnlab.doctor import examine

    names, folder = _find_runs(runs)
    content = examine(names, output or folder / "doctor", accelerator=accelerator, trusted=trust or ())
    if as_json:
        say(json.dumps(content, indent=1))
        return
    share = 100 / content["count"]
    suspects, hopeless, duplicates = content["suspects"], content["hopeless"], content["duplicates"]
    _print("The surest suspects", suspects[:10], wide)
    _print(
        "Classes that are taken for each other",
        [
            {"class": names[0], "and": names[1], "% of the first": f"{100 * shares[0]:.1f}",
             "% of the second": f"{100 * shares[1]:.1f}", "images": row["images"]}
            for row in content["confused"][:10] for names, shares in [(row["classes"], row["shares"])]
        ],
        wide,
    )  # fmt: skip
    _print("Test images nearly in the training array", duplicates[:10], wide)
    accuracies = [content[name]["metrics"].get("accuracy") for name in ("metrics", "metrics_without_suspects")]
    say(
        f"{len(suspects)} of {content['count']:,} labels are suspect ({share * len(suspects):.1f}%), "
        f"{len(hopeless)} images no run has right, {len(duplicates)} test images are nearly in the training array.",
        *([] if None in accuracies else
          ["out of fold {}; not counting the suspects {}".format(*(format_metric("accuracy", a) for a in accuracies))]),
        f"written: {', '.join(content['files'])}",
        f"train without the suspects: {content['command']}",
        sep="\n",
    )  # fmt: skip


def _find_runs(names: list[str]) -> tuple[list[str], Path]:
    """Return the runs that some words name, those of a sweep's folds one by one, and the folder of the first word."""
    from cnnlab.folds import find_folds
    from cnnlab.record import find_run, is_run

    first = Path(names[0])
    if first.is_dir() and not is_run(first):
        if len(names) > 1:
            raise ConfigError(f"{first} is no run: give one sweep, or runs.")
        return [str(record.folder) for records in find_folds(first).values() for record in records], first
    checkpoint, record = find_run(names[0])
    return names, record.folder if record else checkpoint.parent


def _command(option: str, path: Path, keys: Mapping[str, str] | None = None) -> str:
    """Return the command that trains on a file, to be pasted into a shell."""
    from cnnlab.config.lines import as_text

    settings = {"data.path": str(path), **{f"data.keys.{role}": name for role, name in (keys or {}).items()}}
    overrides = [f"{key}={as_text(value)}" for key, value in settings.items()]
    return shlex.join(["cnnlab", "train", f"data={option}", *overrides])


def _parse_key(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or role not in archive.KEYS:
        raise ConfigError(f"--key must be ROLE=NAME with one of {', '.join(archive.KEYS)}, got {text!r}.")
    return role, name


def _print(title: str, rows: list[dict[str, Any]], wide: bool) -> None:
    columns = [
        Column(name, [str(row[name]) for row in rows], number=isinstance(rows[0][name], int | float))
        for name in (rows[0] if rows else {})
    ]
    print_table(columns, title=title, wide=wide)
    say("")


def _describe_arrays(file: Path) -> list[dict[str, Any]]:
    return [
        {"array": name, "type": str(layout.dtype), "shape": " × ".join(map(str, layout.shape))}
        for name, layout in npz.layouts(file).items()
    ]


def _describe_images(data: archive.Archive) -> list[dict[str, Any]]:
    height, width, channels = data.image_shape
    rows = []
    for split, images in data.images.items():
        mean, std = archive.channel_statistics(images)
        if not np.isfinite([*mean, *std]).all():
            raise DataError(f"the {split} images must be finite numbers; some are NaN or infinite.")
        rows.append(
            {
                "split": split,
                "images": len(images),
                "size": f"{height} × {width} × {channels}",
                "values": f"{images.min():.6g}–{images.max():.6g}",
                "mean": " ".join(f"{value:.3f}" for value in mean),
                "sd": " ".join(f"{value:.3f}" for value in std),
            }
        )
    return rows


def _describe_classes(data: archive.Archive) -> list[dict[str, Any]]:
    counts = {split: np.bincount(targets, minlength=data.num_classes) for split, targets in data.targets.items()}
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(data.classes):
        rows.append({"label": label, "class": name})
        for split, count in counts.items():
            rows[-1] |= {split: int(count[label]), f"{split} %": round(float(100 * count[label] / count.sum()), 1)}
    return rows


def _describe_duplicates(data: archive.Archive) -> list[dict[str, Any]]:
    samples = {
        split: list(zip(_digests(images), data.targets[split].tolist(), strict=True))
        for split, images in data.images.items()
    }
    # The label of each picture's first appearance: of equal keys, a dict keeps the last value.
    first = {split: dict(reversed(pairs)) for split, pairs in samples.items()}
    places = [
        (f"within {split}", len(pairs) - len(first[split]), pairs, first[split]) for split, pairs in samples.items()
    ]
    for split, pairs in samples.items():
        if split != "train":
            copies = sum(digest in first["train"] for digest, _ in pairs)
            places.append((f"{split} images in train", copies, pairs, first["train"]))
    return [
        {
            "where": where,
            "copies": copies,
            "with another label": sum(labels.get(digest, label) != label for digest, label in pairs),
        }
        for where, copies, pairs, labels in places
    ]


def _note_leaks(duplicates: list[dict[str, Any]], data: archive.Archive) -> list[str]:
    """Return what is to be known before a result on this file is believed."""
    copies = {row["where"]: row["copies"] for row in duplicates}
    notes = []
    for split, images in data.images.items():
        leaks = copies.get(f"{split} images in train", 0)
        if leaks:
            part = f"every {split} image is" if leaks == len(images) else f"{leaks} of {len(images)} {split} images are"
            notes.append(f"{part} in the training set too: a result on them flatters the network.")
    return notes


def _digests(images: Iterable[np.ndarray]) -> Iterator[bytes]:
    return (hashlib.blake2b(image.data, digest_size=16).digest() for image in images)
