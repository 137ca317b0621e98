"""`cnnlab evaluate`: how good a run's network is."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cnnlab.commands import AsJson, Trust, Wide
from cnnlab.console import say
from cnnlab.errors import ConfigError
from cnnlab.record import is_run
from cnnlab.run import importing
from cnnlab.tables import Column, print_table
from cnnlab.tta import TTA
from cnnlab.wording import format_metric

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, a checkpoint file, `last` or `best`; or a folder with all folds of runs.",
        ),
    ],
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
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write. [default: the run's folder]")
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Evaluate a run: metrics with their uncertainty, confusion matrix, calibration, worst mistakes.

    Writes evaluation.json, evaluation.npz and figures into the run's folder; evaluations of another split, file or
    checkpoint, or with other settings, stand beside them under names of their own. Of a sweep over data.fold: every
    training image by the network that had held it out, and the ensemble of the folds beside each on the test images.
    """
    if (folder := Path(run)).is_dir() and not is_run(folder):
        if data or precision or batch_size or tta or split != "test":
            raise ConfigError("folds are evaluated as their runs were tested: --accelerator and --output can be given.")
        with importing():
            from cnnlab.folds import evaluate_folds
        path, content = evaluate_folds(folder, accelerator=accelerator, output=output, trusted=trust or ())
        if as_json:
            say(json.dumps(content | {"path": str(path)}, indent=1))
        else:
            for group in content["groups"]:
                _print_folds(group, wide)
            say(f"written: {path}")
        return
    with importing():
        from cnnlab.data import archive, npz
        from cnnlab.evaluation import evaluate

    evaluation = evaluate(
        run, data=data, split=split, tta=tta, accelerator=accelerator, precision=precision,
        batch_size=batch_size, figures=figures, output=output, trusted=trust or (),
    )  # fmt: skip
    content = evaluation.content
    if as_json:
        say(json.dumps(content | {"path": str(evaluation.path)}, indent=1))
        return
    _print(content, wide)
    if data is not None and archive.CLASSES not in npz.layouts(data):
        say(
            f"note: {data} has no class names that could be compared, only labels up to {evaluation.targets.max()}: "
            f"they are taken for the network's {len(content['classes'])} classes in their order."
        )
    say(f"written: {evaluation.path}, {content['answers']}", *content["figures"], sep="\n         ")


def _print_folds(group: dict[str, Any], wide: bool) -> None:
    rows = {f"{group['folds']} folds, images held out": group["out_of_fold"]}
    rows |= {f"fold {run['fold']}, test": run for run in group["runs"]}
    if group["ensemble"]:
        rows["ensemble of the folds, test"] = group["ensemble"]
    names = list(group["out_of_fold"]["metrics"])
    names.sort(key=lambda name: name != "accuracy")  # next to its interval
    columns = [Column(" ".join(group["settings"]) or "network", list(rows), least=28)]
    for name in names:
        columns.append(Column(name, [format_metric(name, row["metrics"][name]) for row in rows.values()], number=True))
        if name == "accuracy":
            intervals = [" – ".join(f"{100 * end:.2f}" for end in row["accuracy_interval"]) for row in rows.values()]
            columns.append(Column("95% interval", intervals, number=True))
    columns.append(Column("images", [f"{row['count']:,}" for row in rows.values()], number=True))
    print_table(columns, wide=wide)
    say("")


def _print(content: dict[str, Any], wide: bool) -> None:
    low, high = (f"{100 * share:.2f}" for share in content["accuracy_interval"])
    tta = "" if content["tta"] == "none" else f", {content['tta']}"
    metrics = content["metrics"]
    print_table(
        [
            Column("metric", list(metrics)),
            Column("value", [format_metric(name, value) for name, value in metrics.items()], number=True),
            Column("95% interval", [f"{low} – {high}%" if name == "accuracy" else "" for name in metrics]),
        ],
        title=f"{content['count']:,} {content['split']} images{tta}, {content['images_per_second']:,.0f} a second",
        wide=wide,
    )
    say("")
    classes = content["per_class"]
    title = "Classes"
    if len(classes) > 20:
        classes = sorted((row for row in classes if row["f1"] is not None), key=lambda row: row["f1"])[:10]
        title = "The ten classes with the lowest F1"
    print_table(
        [
            Column("class", [row["class"] for row in classes]),
            Column("F1", [format_metric("f1", row["f1"]) for row in classes], number=True),
            Column("precision", [format_metric("precision", row["precision"]) for row in classes], number=True),
            Column("recall", [format_metric("recall", row["recall"]) for row in classes], number=True),
            Column("images", [str(row["count"]) for row in classes], number=True),
        ],
        title=title,
        wide=wide,
    )
