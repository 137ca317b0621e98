"""`cnnlab evaluate`: how good a run's network is."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cnnlab.commands import RunName, Trust
from cnnlab.tta import TTA

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    run: RunName,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Another npz file with the same classes.")] = None,
    split: Annotated[Literal["test", "val", "train"], typer.Option(help="Which of its images.")] = "test",
    tta: Annotated[
        TTA | None,
        typer.Option(
            help="Average over each image and its mirror image, and these moved by a pixel. [default: the run's]"
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="The device: cpu, gpu, mps, or what is there.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, ... [default: the run's]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time. [default: the run's]")] = None,
    figures: Annotated[bool, typer.Option(help="Draw confusion matrix, calibration and worst mistakes.")] = True,
    trust: Trust = None,
) -> None:
    """Evaluate a run: metrics with their uncertainty, confusion matrix, calibration, worst mistakes.

    Writes evaluation.json, evaluation.npz and figures into the run's folder; evaluations of another split, file or
    checkpoint, or with other settings, stand beside them under names of their own.
    """
    from cnnlab.data import archive, npz
    from cnnlab.evaluation import evaluate

    done = evaluate(
        run, data=data, split=split, tta=tta, accelerator=accelerator, precision=precision,
        batch_size=batch_size, figures=figures, trusted=trust or (),
    )  # fmt: skip
    _show(done.content)
    if data is not None and archive.CLASSES not in npz.layouts(data):
        print(
            f"note: {data} has no class names that could be compared, only labels up to {done.targets.max()}: "
            f"they are taken for the network's {len(done.content['classes'])} classes in their order."
        )
    print(f"written: {done.path}, {done.content['answers']}", *done.content["figures"], sep="\n         ")


def _show(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    low, high = content["accuracy_interval"]
    how = "" if content["tta"] == "none" else f", {content['tta']}"
    table = Table(
        "metric", Column("value", justify="right"), "95 % interval", title_justify="left",
        title=f"{content['count']:,} {content['split']} images{how}, {content['images_per_second']:,.0f} a second",
    )  # fmt: skip
    for name, value in content["metrics"].items():
        table.add_row(name, f"{value:.4f}", f"{low:.4f} – {high:.4f}" if name == "accuracy" else "")
    console.print(table)
    rows = content["per_class"]
    title = "Classes"
    if len(rows) > 20:
        rows = sorted((row for row in rows if row["f1"] is not None), key=lambda row: row["f1"])[:10]
        title = "The ten classes with the lowest F1"
    number = [Column(name, justify="right") for name in ("images", "precision", "recall", "F1")]
    table = Table("class", *number, title=title, title_justify="left")
    for row in rows:
        shares = ("–" if row[name] is None else f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["class"]), str(row["count"]), *shares)
    console.print(table)
