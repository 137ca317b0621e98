"""`cnnlab report`: one HTML file about a run or a sweep."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.commands import AsJson, Trust
from cnnlab.console import say
from cnnlab.errors import MachineError, PartialError
from cnnlab.record import check_links, is_sweep

app = typer.Typer(add_completion=False)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN|SWEEP", help="A run's or a sweep's folder, `last` or `best`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. [default: report.html in the folder]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The npz file, where it is no longer where it was.")] = None,
    any_length: Annotated[
        bool, typer.Option(help="Of a sweep: count trials that were trained to other limits than the sweep's too.")
    ] = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Write one HTML file that needs nothing else: what ran, what came out, and the command to repeat it.

    Of a sweep, which may still be running, sweep.csv, sweep.json, sweep.md and the pictures are made anew before.
    """
    from cnnlab.report import report_run, report_sweep

    folder = Path(run).expanduser()
    try:
        if is_sweep(folder):
            from cnnlab.sweep import summary  # which imports Hydra

            check_links(folder)
            table = summary.write(folder, any_length=any_length)
            if not as_json:
                say(summary.describe(table))
            written = report_sweep(folder, output)
        else:
            written = report_run(run, output, data, trust or ())
    except OSError as error:
        place = error.filename or output or run
        raise MachineError(f"cannot write {place}: {error.strerror}. Give another --output.") from error
    if as_json:
        print(json.dumps({"path": str(written.path), "missing": written.missing}, indent=1))
    else:
        say(written.path)
    if written.missing:
        raise PartialError(f"{written.path} lacks the evaluation: {written.missing}")
