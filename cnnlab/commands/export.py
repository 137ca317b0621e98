"""`cnnlab export`: a run's network as a file that others can run."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cnnlab.commands import AsJson, RunName, Trust
from cnnlab.console import say
from cnnlab.run import importing

app = typer.Typer(add_completion=False)


@app.command()
def export(
    run: RunName,
    format: Annotated[Literal["onnx", "torch_export", "safetensors"], typer.Option(help="What to write.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file. [default: model.onnx, .pt2, ... in the run's folder]")
    ] = None,
    input: Annotated[
        Literal["uint8", "float"] | None,
        typer.Option(help="It takes images as 0 to 255, or as 0.0 to 1.0. [default: as training did]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An npz file to compare on. [default: the run's data]")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference of a probability let through.")] = 1e-5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Export a run's network, with its normalisation and its class names inside; extra `export`.

    The file is loaded again and compared with the network on real images before it is kept. `cnnlab predict file.onnx`
    asks it with onnxruntime alone.
    """
    with importing():
        from cnnlab.export import export

    done = export(
        run, format=format, output=output, input=input, data=data, tolerance=tolerance,
        overwrite=overwrite, trusted=trust or (),
    )  # fmt: skip
    if as_json:
        print(json.dumps({**done._asdict(), "path": str(done.path), "bytes": done.path.stat().st_size}, indent=1))
        return
    say(
        f"{done.path}: {done.path.stat().st_size / 2**20:.2f} MiB; loaded again, its probabilities differ by at most "
        f"{done.difference:.1e} over {done.images} images"
    )
    for size, (eager, exported) in done.milliseconds.items():
        say(f"batch {size:>3}: PyTorch {eager:.2f} ms, onnxruntime {exported:.2f} ms, ratio {exported / eager:.2f}")
