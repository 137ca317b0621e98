"""`cnnlab predict`: what a run's network says of pictures."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from cnnlab.commands import Trust
from cnnlab.data.folder import Fit
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
    trust: Trust = None,
) -> None:
    """Say what pictures show, of any size and kind; those that cannot be read are named and left out (exit 7).

    Pictures are brought to the network's size, and `note` says from which. A file.onnx that `cnnlab export` wrote is
    asked with onnxruntime alone.
    """
    from cnnlab import prediction

    if format is None:
        format = "jsonl" if output and output.suffix.lower() in (".jsonl", ".json") else "csv"
    if output and output.suffix.lower() == ".npz":
        raise ConfigError(f"--output {output} must be a .csv or .jsonl file.")
    if output and output.exists() and not overwrite:
        raise ConfigError(f"{output} exists. Choose another name, or pass --overwrite to replace it.")
    oracle = prediction.oracle_for(run, accelerator, trust or ())
    found = prediction.predict(oracle, inputs, top_k=top_k, fit=fit, array=array, batch_size=batch_size)
    kept: list[prediction.Prediction] = []
    good = bad = 0
    top_k = min(top_k, len(oracle.classes))
    with _opened(output) as file, _bar(inputs, hidden=output is None and sys.stdout.isatty()) as shown:
        write = _table(file, top_k) if format == "csv" else _lines(file)
        for made in shown(found):
            if made.error is not None:
                bad += 1
                print(f"cnnlab: left out {made.image}: {made.error}", file=sys.stderr)
                continue
            good += 1
            write(made)
            if sheet and len(kept) < SHEET:
                kept.append(made)
        if not good:
            raise DataError(f"none of the {bad} inputs could be read." if bad else "the inputs hold no pictures.")
    if sheet:
        _draw(kept, sheet)
    if output:
        print(f"{output}: {good} pictures{f'; {sheet}' if sheet else ''}")
    if bad:
        raise PartialError(f"{bad} of {good + bad} pictures could not be read and are left out.")


def _table(file: TextIO, top_k: int) -> Callable[[Any], object]:
    writer = csv.writer(file, lineterminator="\n")
    columns = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    header = ["image", "class", "probability", *columns, "note"]

    def write(made: Any) -> None:
        if header:  # not before there is a row to stand above
            writer.writerow(header)
            header.clear()
        cells = [cell for name, share in made.top for cell in (name, f"{share:.6f}")]
        writer.writerow(map(csv_cell, [made.image, *cells, made.note]))

    return write


def _lines(file: TextIO) -> Callable[[Any], object]:
    def write(made: Any) -> None:
        top = [{"class": name, "probability": round(share, 6)} for name, share in made.top]
        file.write(json.dumps({"image": made.image, **top[0], "top": top, "note": made.note}) + "\n")

    return write


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Write to the terminal, or to a file that is there when it is whole and not before."""
    if output is None:
        yield sys.stdout
        return
    with replacing(output) as file, io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="") as text:
        yield text


@contextmanager
def _bar(inputs: list[str], *, hidden: bool) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]]]:
    """Show how many are done, if standard error is a terminal that does not show the results too."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    bar = Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=hidden or not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        yield lambda found: bar.track(found, total=None, description="Predicting")


def _draw(kept: list[Any], path: Path) -> None:
    import numpy as np

    from cnnlab import plots

    titles = [f"{Path(made.image).name}\n{made.top[0][0]}\n{made.top[0][1]:.0%} sure" for made in kept]
    write_bytes(path, plots.to_png(plots.image_grid(np.stack([made.pixels for made in kept]), titles)))
