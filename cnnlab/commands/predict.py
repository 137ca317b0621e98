"""`cnnlab predict`: the classes of pictures, by a run's network."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from cnnlab.commands import Trust
from cnnlab.console import say
from cnnlab.data.pictures import Fit
from cnnlab.errors import ConfigError, DataError, PartialError
from cnnlab.files import csv_cell, replacing, write_bytes

app = typer.Typer(add_completion=False)

# Pictures on a contact sheet at most.
SHEET = 64


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="A run's folder, a checkpoint file, `last`, `best`, or a file.onnx.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, patterns ('*.png'), npz files.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write, .csv or .jsonl. [default: the terminal]")
    ] = None,
    format: Annotated[  # the option's name
        Literal["csv", "jsonl"] | None,
        typer.Option(help="A table, or a JSON object a line. [default: as FILE is called, or csv]"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    fit: Annotated[
        Fit, typer.Option(help="Scale the shorter side and crop the middle; or pad with black; or stretch.")
    ] = "crop",
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help=f"Draw the first {SHEET} pictures with their classes.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    array: Annotated[str, typer.Option(metavar="NAME", help="The images' name in npz files.")] = "X_test",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 256,
    accelerator: Annotated[str, typer.Option(help="The device: cpu, gpu, mps, or what is there.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    trust: Trust = None,
) -> None:
    """Predict the classes of pictures of any size and kind; unreadable ones are named and left out (exit 7).

    Pictures are scaled to the network's size, and `note` says from which. A file.onnx that `cnnlab export` wrote needs
    onnxruntime alone.
    """
    from cnnlab import prediction

    if as_json:
        format = "jsonl"
    if format is None:
        format = "jsonl" if output and output.suffix.lower() in (".jsonl", ".json") else "csv"
    if output and output.suffix.lower() == ".npz":
        raise ConfigError(f"--output {output} must be a .csv or .jsonl file.")
    if output and output.exists() and not overwrite:
        raise ConfigError(f"{output} exists. Choose another name, or pass --overwrite to replace it.")
    predictor = prediction.load_predictor(run, accelerator, trust or ())
    predictions = prediction.predict(predictor, inputs, top_k=top_k, fit=fit, array=array, batch_size=batch_size)
    drawn: list[prediction.Prediction] = []
    readable = unreadable = 0
    top_k = min(top_k, len(predictor.classes))
    hidden = output is None and sys.stdout.isatty()  # the terminal shows the predictions themselves
    with _open_output(output) as file, _progress_bar(hidden) as track:
        write = _csv_writer(file, top_k) if format == "csv" else _jsonl_writer(file)
        for picture in track(predictions):
            if picture.error is not None:
                unreadable += 1
                say(f"cnnlab: left out {picture.image}: {picture.error}", file=sys.stderr)
                continue
            readable += 1
            write(picture)
            if sheet and len(drawn) < SHEET:
                drawn.append(picture)
        if not readable:
            raise DataError(
                f"none of the {unreadable} inputs could be read." if unreadable else "the inputs hold no pictures."
            )
    if sheet:
        _draw(drawn, sheet)
    if output:
        say(f"{output}: {readable} pictures{f'; {sheet}' if sheet else ''}")
    if unreadable:
        raise PartialError(f"{unreadable} of {readable + unreadable} pictures could not be read and are left out.")


def _csv_writer(file: TextIO, top_k: int) -> Callable[[Any], object]:
    writer = csv.writer(file, lineterminator="\n")
    columns = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    header = ["image", "class", "probability", *columns, "note"]

    def write(picture: Any) -> None:
        if header:  # only above a row
            writer.writerow(header)
            header.clear()
        cells = [cell for name, share in picture.top for cell in (name, f"{share:.6f}")]
        writer.writerow(map(csv_cell, [picture.image, *cells, picture.note]))

    return write


def _jsonl_writer(file: TextIO) -> Callable[[Any], object]:
    def write(picture: Any) -> None:
        top = [{"class": name, "probability": round(share, 6)} for name, share in picture.top]
        file.write(json.dumps({"image": picture.image, **top[0], "top": top, "note": picture.note}) + "\n")

    return write


@contextmanager
def _open_output(output: Path | None) -> Iterator[TextIO]:
    """Write to the terminal, or to a file that appears when it is complete."""
    if output is None:
        yield sys.stdout
        return
    with replacing(output) as file, io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="") as text:
        yield text


@contextmanager
def _progress_bar(hidden: bool) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]]]:
    """Count the pictures on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    bar = Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=hidden or not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        yield lambda predictions: bar.track(predictions, total=None, description="Predicting")


def _draw(pictures: list[Any], path: Path) -> None:
    import numpy as np

    from cnnlab import plots

    # With the folders that tell them apart: photos of several cameras have the same names.
    paths = [Path(picture.image).absolute() for picture in pictures]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    titles = [
        f"{path.relative_to(shared)}\n{picture.top[0][0]}\n{picture.top[0][1]:.1%} sure"
        for path, picture in zip(paths, pictures, strict=True)
    ]
    write_bytes(path, plots.to_png(plots.image_grid(np.stack([picture.pixels for picture in pictures]), titles)))
