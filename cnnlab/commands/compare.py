"""`cnnlab compare`: how runs differ, and whether it is more than chance."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.commands import AsJson, Trust, Wide
from cnnlab.console import say
from cnnlab.errors import CnnlabError, ConfigError, DataError
from cnnlab.stats import Verdict
from cnnlab.tables import Column, print_table
from cnnlab.wording import format_metric, format_value

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
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Where the curves go. [default: the first run's figures]")
    ] = None,
    any_length: Annotated[bool, typer.Option("--any-length", help="Groups may hold runs of other lengths.")] = False,
    wide: Wide = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Compare runs: config, code, environment, metrics, curves, and whether the difference is real.

    Two or more runs are compared with the first, image by image. Two groups, A1 A2 A3 --against B1 B2 B3, such as
    seeds of two recipes, are compared by the runs' results.
    """
    from cnnlab import comparison

    first, second = _groups(runs)
    compared = comparison.find_runs([*first, *second])
    verdicts: list[Verdict] = []
    missing: CnnlabError | None = None
    if second:
        left, right = compared[: len(first)], compared[len(first) :]
        verdicts = [comparison.compare_groups(left, right, metric, any_length=any_length)]
        words = [verdicts[0].words(f"the first {len(left)}", f"the other {len(right)}", metric)]
    else:
        try:
            verdicts = comparison.compare_with_first(compared, data, trust or ())
        except DataError as error:
            missing = error
        pairs = zip(compared[1:], verdicts, strict=not missing)
        words = [verdict.words(compared[0].label, run.label) for run, verdict in pairs]
    tables, code = comparison.tabulate(compared), comparison.compare_code(compared)
    numbers = [0] * len(first) + [1] * len(second) if second else range(len(compared))
    figure = _draw(compared, numbers, figure)
    if as_json:
        content = {
            "runs": [run.label for run in compared], **{name.lower(): table for name, table in tables.items()},
            "code": code, "verdicts": [
                {**verdict._asdict(), "words": text} for verdict, text in zip(verdicts, words, strict=True)
            ],
            "figure": figure and str(figure),
        }  # fmt: skip
        say(json.dumps(content, indent=1))
    else:
        _print(compared, tables, wide)
        for label, lines in code.items():
            say(f"Code of {label}, unlike that of {compared[0].label}:", *lines, "", sep="\n")
        say(*words, *([f"curves: {figure}"] if figure else []), sep="\n")
        if verdicts and not second:
            say(f"This is about these networks. About their recipes, give several seeds of each, with {AGAINST}.")
    if missing is not None:
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


def _print(compared: "Sequence[ComparedRun]", tables: Mapping[str, Mapping[str, Sequence[Any]]], wide: bool) -> None:
    for title, rows in tables.items():
        if not rows:
            say(f"{title}: no difference")
            continue
        columns = [Column(title.lower(), list(rows), least=28)]
        for index, run in enumerate(compared):
            cells = []
            for name, values in rows.items():
                # What is the same in every run is printed once.
                same = index and title == "Environment" and all(value == values[0] for value in values)
                value = values[index]
                text = format_metric(name, value) if title == "Metrics" else format_value(value)
                cells.append("″" if same else text)
            columns.append(Column(run.label, cells, least=9))
        print_table(columns, wide=wide)
        say("")


def _figure_path(compared: "Sequence[ComparedRun]") -> Path:
    """Return a picture's path in the first run's folder that belongs to this comparison alone."""
    names = "\n".join(str(run.checkpoint.resolve()) for run in compared)
    digest = hashlib.blake2b(names.encode(), digest_size=4).hexdigest()
    return compared[0].record.folder / "figures" / f"comparison-{digest}.png"


def _draw(compared: "Sequence[ComparedRun]", numbers: Sequence[int], path: Path | None) -> Path | None:
    """Draw the runs' curves, a colour for each number; return the picture's path, None where no run has any."""
    from cnnlab import comparison, plots
    from cnnlab.files import write_bytes

    curves = comparison.read_curves(compared)
    if not curves:
        return None
    path = path or _figure_path(compared)
    colours = [number for run, number in zip(compared, numbers, strict=True) if run.label in curves]
    write_bytes(path, plots.to_png(plots.compared_curves(curves, colours)))
    return path
