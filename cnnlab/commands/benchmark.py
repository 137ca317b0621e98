"""`cnnlab benchmark`: how fast a config trains here, where the time goes, and what would be faster."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cnnlab.config import composed
from cnnlab.console import say
from cnnlab.errors import ConfigError
from cnnlab.files import write_text
from cnnlab.tables import Column, print_table

app = typer.Typer(add_completion=False)


class _Loop(StrEnum):  # an enum, as typer takes no list of Literals
    PLAIN = "plain"
    DATALOADER = "dataloader"


@app.command(epilog="cnnlab benchmark model=resnet18 data.batch_size=512 --against plain")
def run(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for train.py.")] = None,
    against: Annotated[
        list[_Loop] | None,
        typer.Option(help="Train in turn with a plain PyTorch loop, or with Lightning over a DataLoader; repeatable."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SWITCHES",
            help="Try precision, channels_last, compile, batch_size (with commas between); prints the fastest.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of steps; medians over them are shown.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long a block takes.")] = 4.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file; - prints them instead of tables.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the parts of a step into this PNG file.")] = None,
) -> None:
    """Measure how fast a config trains on this machine."""
    from cnnlab import benchmark

    lines = overrides or []
    composed(lines)  # a mistake is reported at once
    console = Console(stderr=True)
    with console.status("starting") as status:
        if sweep is not None:
            if against or figure:
                raise ConfigError("--sweep compares settings with each other: leave out --against and --figure.")
            names = [name.strip() for name in sweep.split(",") if name.strip()]
            attempts, best = benchmark.try_switches(lines, names, seconds=seconds, progress=status.update)
            content: dict[str, Any] = {
                "overrides": lines, "tried": [vars(attempt) for attempt in attempts], "best": best,
                "versions": benchmark.list_versions(),
            }  # fmt: skip
        else:
            content = benchmark.measure(
                lines, [loop.value for loop in against or ()], rounds=rounds, seconds=seconds, progress=status.update
            )
    to_terminal = json_file == Path("-")
    if json_file and not to_terminal:
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    if figure:
        from cnnlab import plots

        figure.write_bytes(plots.to_png(plots.step_parts(content)))
    if to_terminal:
        print(json.dumps(content, indent=2))
    elif sweep is None:
        _print_step(content)
    else:
        _print_sweep(content)
        fastest = " ".join(content["best"]) or "nothing is faster than the config as it is"
        say(f"Fastest: {fastest}")


def _print_step(content: dict[str, Any]) -> None:
    hardware = content["hardware"]
    share = f"GFLOP/s, {content['share_of_matmul_rate']:.0%} of a matrix product's on this machine"
    rows = [
        ("training", f"{content['images_per_second']:,.0f}", "images/s"),
        ("a step", f"{content['step_ms']:.2f}", f"ms, {content['batch_size']} images"),
        *(
            (f"  {name}", f"{part:.2f}", f"ms, {part / content['step_ms']:.0%}")
            for name, part in content["parts_ms"].items()
        ),
        ("arithmetic", f"{content['flops_per_second'] / 1e9:,.0f}", share),
        ("evaluation", f"{content['evaluation_images_per_second']:,.0f}", "images/s"),
        *(("prediction", f"{ms:.2f}", f"ms, batch of {size}") for size, ms in content["prediction_ms"].items()),
        ("peak memory", f"{content['peak_mib']:,.0f}", "MiB"),
        *((f"start-up: {name}", f"{seconds:.2f}", "s") for name, seconds in content["start_up_seconds"].items()),
    ]
    for kind, other in content["against"].items():
        rounds = other["ratio_rounds"]
        spread = f"{len(rounds)} rounds: {min(rounds):.2f}–{max(rounds):.2f}"
        rows.append((f"against {kind}", f"{other['ratio']:.2f}", f"of its {other['step_ms']:.2f} ms ({spread})"))
    names, values, units = zip(*rows, strict=True)
    columns = [Column("what", names), Column("value", values, number=True), Column("unit", units)]
    print_table(columns, title=f"{hardware['cpu']}, {hardware['device']}", elsewhere="--json")


def _print_sweep(content: dict[str, Any]) -> None:
    """Print what was tried; each setting stands beside the best one so far, measured in turn with it."""
    rows = []
    measured = [attempt for attempt in content["tried"] if attempt["ratio"] is not None]
    if measured:
        speed = f"{measured[0]['baseline_images_per_second']:,.0f}"
        rows.append(("the config as it is", speed, "", "1.00", "baseline"))
    for attempt in content["tried"]:
        speeds = [attempt["images_per_second"], attempt["baseline_images_per_second"]]
        numbers = ["" if speed is None else f"{speed:,.0f}" for speed in speeds]
        ratio = "" if attempt["ratio"] is None else f"{attempt['ratio']:.2f}"
        rows.append((" ".join(attempt["overrides"]), *numbers, ratio, attempt["verdict"]))
    settings, images, baselines, ratios, verdicts = zip(*rows, strict=True)
    columns = [
        Column("setting", settings), Column("images/s", images, number=True),
        Column("baseline", baselines, number=True), Column("ratio", ratios, number=True), Column("verdict", verdicts),
    ]  # fmt: skip
    print_table(columns, elsewhere="--json")
