"""`cnnlab ablate`: which of a recipe's settings matter."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.commands import AsJson, Wide
from cnnlab.console import say
from cnnlab.files import write_bytes, write_json
from cnnlab.tables import Column, print_table
from cnnlab.wording import format_difference, format_metric

app = typer.Typer(add_completion=False)


@app.command()
def ablate(
    recipe: Annotated[list[str], typer.Argument(metavar="RUN|OVERRIDE...", help="A run, or what the recipe sets.")],
    drop: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Leave out this setting, and those given so, only.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of the recipe, and of the recipe without each setting.")] = 5,
    metric: Annotated[str | None, typer.Option(help="What is compared. [default: the objective]")] = None,
    budget: Annotated[str | None, typer.Option(help="The time of each run, as 60s or 10min.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the runs stand. [default: below outputs/ablations]")
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Leave each of a recipe's settings out in turn, back to its default: which help, which harm, which do nothing.

    The same seeds with and without a setting are compared in pairs (Student's t, with Holm's correction for the number
    of settings). The same command resumes an ablation that was stopped; more --seeds add to it. Writes ablation.json
    and ablation.png.
    """
    from cnnlab import ablation, decision

    words = decision.recipe(recipe)
    words += [f"budget={budget}"] if budget else []
    settings, left_alone = ablation.settings_of(words, drop or ())
    name, larger_is_better = decision.compared_metric(words, metric)
    folder = folder or decision.folder_of("ablations", words)

    def show(key: str, seed: int, value: float) -> None:
        say(f"seed {seed}, {key if key == 'recipe' else f'without {key}'}: {format_metric(name, value)}", flush=True)

    content = ablation.ablate(
        words, settings, name, folder.absolute(), seeds=seeds, larger_is_better=larger_is_better,
        left_alone=left_alone, after_each=None if as_json else show,
    )  # fmt: skip
    from cnnlab import plots  # after the runs: it takes a second

    write_bytes(folder / "ablation.png", plots.to_png(plots.forest(content["settings"], name)))
    write_json(folder / "ablation.json", content)
    if as_json:
        print(json.dumps(content, indent=1))
        return
    _print(name, content, wide)
    for key, reason in content["left_alone"].items():
        say(f"note: {key} cannot be left out alone: {reason}")
    say(f"written: {folder / 'ablation.json'}, ablation.png")


def _print(metric: str, content: dict[str, Any], wide: bool) -> None:
    rows = content["settings"]
    intervals = [
        " to ".join(format_difference(metric, row[end], "+").removesuffix(" points") for end in ("low", "high"))
        for row in rows
    ]
    print_table(
        [
            Column("setting", [row["setting"] for row in rows], least=24),
            Column("answer", [row["answer"] for row in rows]),
            Column("adds", [format_difference(metric, row["difference"], "+") for row in rows], number=True),
            Column("95% interval", intervals, number=True),
            Column("p (Holm)", [f"{row['holm']:.2g}" for row in rows], number=True),
        ],
        title=f"{metric} {format_metric(metric, content['value'])} with all of them, mean of {content['seeds']} seeds",
        wide=wide,
    )
