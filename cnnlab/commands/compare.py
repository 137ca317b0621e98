"""`cnnlab compare`: how runs differ, and whether it is more than chance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.commands import Trust
from cnnlab.errors import CnnlabError, ConfigError, DataError

if TYPE_CHECKING:
    from cnnlab.comparison import ComparedRun

app = typer.Typer(add_completion=False)
AGAINST = "--against"


# An option that takes several words is none of click's: it arrives among the arguments.
@app.command(context_settings={"ignore_unknown_options": True})
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar=f"RUN... [{AGAINST} RUN...]", help="Folders, checkpoint files, `last`, `best`."),
    ],
    metric: Annotated[str, typer.Option(metavar="KEY", help="What groups are compared by.")] = "test/accuracy",
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Test on the test images of this npz file instead.")
    ] = None,
    figure: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the curves go.")] = Path("comparison.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    trust: Trust = None,
) -> None:
    """Compare runs: config, code, environment, metrics, curves, and whether the difference is real.

    Two or more runs are compared with the first, image by image. Two groups, A1 A2 A3 --against B1 B2 B3, such as
    seeds of two recipes, are compared by the runs' results.
    """
    from cnnlab import comparison

    first, second = _groups(runs)
    compared = comparison.find_runs([*first, *second])
    if second:
        left, right = compared[: len(first)], compared[len(first) :]
        verdict = comparison.compare_groups(left, right, metric)
        verdicts = {f"{len(right)} runs": (verdict, f"the first {len(left)}", f"the other {len(right)}", metric)}
    else:
        try:
            image_verdicts = comparison.compare_with_first(compared, data, trust or ())
        except DataError as error:
            image_verdicts = {}
            missing: CnnlabError | None = error
        else:
            missing = None
        verdicts = {label: (verdict, compared[0].label, label, "accuracy") for label, verdict in image_verdicts.items()}
    tables: dict[str, Mapping[str, Sequence[Any]]] = {
        "Config": comparison.compare_configs(compared),
        "Environment": comparison.compare_environments(compared),
        "Metrics": comparison.compare_metrics(compared),
    }
    words = [verdict.words(*names) for verdict, *names in verdicts.values()]
    curves = comparison.read_curves(compared)
    if curves:
        _draw(curves, [0] * len(first) + [1] * len(second) if second else list(range(len(compared))), figure)
    if as_json:
        content = {
            "runs": [run.label for run in compared], **{name.lower(): table for name, table in tables.items()},
            "verdicts": [{**verdict._asdict(), "words": text} for (verdict, *_), text in
                         zip(verdicts.values(), words, strict=True)],
            "figure": str(figure) if curves else None,
        }  # fmt: skip
        print(json.dumps(content, indent=1))
    else:
        _print(compared, tables)
        print(*words, *([f"curves: {figure}"] if curves else []), sep="\n")
        if verdicts and not second:
            print(f"This is about these networks. About their recipes, give several seeds of each, with {AGAINST}.")
    if not second and missing is not None:
        raise missing


def _groups(words: list[str]) -> tuple[list[str], list[str]]:
    if unknown := [word for word in words if word.startswith("--") and word != AGAINST]:
        raise ConfigError(f"{unknown[0]} is no option of compare: see `cnnlab compare --help`.")
    if words.count(AGAINST) > 1:
        raise ConfigError(f"{AGAINST} stands once, between two groups of runs.")
    if AGAINST not in words:
        if len(words) < 2:
            raise ConfigError("compare takes two runs or more.")
        return words, []
    place = words.index(AGAINST)
    first, second = words[:place], words[place + 1 :]
    if min(len(first), len(second)) < 2:
        raise ConfigError(f"a comparison over seeds needs at least two runs on each side of {AGAINST}.")
    return first, second


def _print(compared: "Sequence[ComparedRun]", tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    for title, rows in tables.items():
        if not rows:
            console.print(f"{title}: no difference", highlight=False)
            continue
        heads = [Column(escape(run.label), overflow="fold") for run in compared]
        table = Table(
            "", *heads, title=title, title_justify="left",
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for name, values in rows.items():
            # What is the same everywhere need not be read once a run.
            same = title == "Environment" and all(value == values[0] for value in values)
            cells = [_cell(values[0]), *["″"] * (len(values) - 1)] if same else [_cell(value) for value in values]
            table.add_row(escape(name), *map(escape, cells))
        console.print(table)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _draw(curves: Mapping[str, Mapping[str, Sequence[float]]], groups: list[int], path: Path) -> None:
    from cnnlab import plots
    from cnnlab.files import write_bytes

    write_bytes(path, plots.to_png(plots.compared_curves(curves, groups)))
