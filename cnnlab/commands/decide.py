"""`cnnlab decide`: whether one recipe is better than another."""

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.commands import AsJson
from cnnlab.console import say
from cnnlab.errors import ConfigError
from cnnlab.files import write_json
from cnnlab.stats import LEVEL

if TYPE_CHECKING:
    from cnnlab.decision import Decision

app = typer.Typer(add_completion=False)


@app.command()
def decide(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN_A RUN_B | OVERRIDE...]", help="Two runs; or, with --a and --b, what both have."),
    ] = None,
    a: Annotated[str, typer.Option("--a", metavar="OVERRIDES", help="Overrides of the first recipe.")] = "",
    b: Annotated[str, typer.Option("--b", metavar="OVERRIDES", help="Overrides of the second recipe.")] = "",
    metric: Annotated[str | None, typer.Option(help="What is compared. [default: the objective]")] = None,
    margin: Annotated[float, typer.Option(help="Differences up to this size do not matter.")] = 0.002,
    alpha: Annotated[float, typer.Option(help="The error rate.")] = LEVEL,
    max_seeds: Annotated[int, typer.Option(help="Pairs of runs after which it is given up.")] = 40,
    ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Spread the error rate over a campaign of decisions.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the runs stand. [default: below outputs/decisions]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide whether recipe B is better than A: paired seeds of both, until the answer is certain, and no longer.

    The answer is better, worse, no difference that matters, or undecided after --max-seeds; the exit code is 0 for all
    of them. The interval may be looked at after every pair: an answer is wrong in a share --alpha of all cases at most.
    That is about these images, which are the same for both; how it is on others of their kind is said beside it. The
    same command resumes a decision that was stopped.
    """
    from cnnlab import decision

    words = recipes or []
    if a or b:
        first, second = (decision.recipe([*words, *shlex.split(differing)]) for differing in (a, b))
    elif len(words) == 2:
        first, second = (decision.recipe([word]) for word in words)
    else:
        raise ConfigError("decide needs two runs, or --a OVERRIDES --b OVERRIDES beside what both have.")
    name, larger_is_better = decision.compared_metric(first, metric)
    decision.compared_metric(second, metric)
    folder = folder or decision.folder_of("decisions", [first, second])
    if ledger is not None:
        alpha = decision.share_alpha(ledger, alpha)

    result = decision.decide(
        decision.train_pairs(first, second, name, folder.absolute()),
        larger_is_better=larger_is_better,
        margin=margin,
        alpha=alpha,
        max_seeds=max_seeds,
        after_each=None if as_json else _show,
    )
    by_image = decision.differences_by_image(folder.absolute(), result.pairs, name)
    new_images = None if by_image is None else decision.widen(result, by_image, margin, alpha)
    content = decision.describe(
        result, first=first, second=second, metric=name, margin=margin, alpha=alpha, new_images=new_images
    )
    write_json(folder / "decision.json", content)
    if ledger is not None:
        decision.note_in_ledger(ledger, {"sentence": content["sentence"], "alpha": alpha, "folder": str(folder)})
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        say(f"{content['sentence']}\nwritten: {folder / 'decision.json'}")


def _show(state: "Decision") -> None:
    pair = state.pairs[-1]
    interval = "" if math.isinf(state.low) else f", interval {state.low:+.4f} to {state.high:+.4f}"
    say(
        f"seed {pair.seed}: A {pair.first:.4f}, B {pair.second:.4f}; difference {state.difference:+.4f}{interval}",
        flush=True,
    )
