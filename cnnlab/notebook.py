"""Runs from Python: the same folder, records and guarantees as from the command line, and the objects at the end."""

import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnlab import config, ledger
from cnnlab.errors import CnnlabError, ConfigError, Stopped, translate
from cnnlab.record import Record

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import Tensor, nn

    from cnnlab.data.protocol import DataModule


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: Where it stands.
        metrics: What `metrics.json` holds, `objective` among them.
        history: The rows of `history.csv`, numbers as numbers; empty cells are None.
        classifier: The LightningModule with its last weights; None for a run that was completed before.
        data: The data module; None likewise.
    """

    folder: Path
    metrics: dict[str, float]
    history: list[dict[str, float | None]]
    classifier: "LightningModule | None"
    data: "DataModule | None"


def train(
    overrides: Sequence[str] = (),
    *,
    network: "nn.Module | None" = None,
    loss: "Callable[[Tensor, Tensor], Tensor] | None" = None,
    data: "DataModule | None" = None,
) -> Run:
    """Train a run as `python train.py OVERRIDES` does.

    Objects take the place of what the config would build, and the record says so: such a run is resumed from Python
    only, with the same objects.

    Args:
        overrides: As on the command line, `resume=FOLDER` among them.
        network: Turns normalised images into logits.
        loss: Loss of (logits, targets).
        data: The data module.

    Raises:
        CnnlabError: Whatever would end the command, as an exception.
        KeyboardInterrupt: The run was interrupted; it can be resumed.
    """
    objects = {"network": network, "loss": loss, "data": data}
    replacements = {name: value for name, value in objects.items() if value is not None}
    arguments = config.preflight(list(overrides), verify_presence=True, objects=sorted(replacements))
    if any(word in ("-m", "--multirun") for word in arguments):
        raise ConfigError("a sweep runs from the command line: python train.py -m ...")
    if replacements and config.value_of("reuse", arguments) is True:
        raise ConfigError("reuse=true is for runs that their config describes alone, without objects from Python.")
    from cnnlab import build

    script = config.ROOT / "train.py"
    with _as_command([str(script), *arguments]), build.using(replacements) as session:
        main = runpy.run_path(str(script), run_name="cnnlab_train")["main"]
        try:
            main()
        except SystemExit as end:
            raise _cause(end) from None
    if session.lab is None:  # the run was completed before
        session.folder = Path(str(config.value_of("hydra.run.dir", arguments)))
    record = Record(session.folder)
    history = [{name: float(value) if value else None for name, value in row.items()} for row in record.history]
    lab = session.lab
    return Run(session.folder, record.metrics, history, lab and lab.classifier, lab and lab.data)


def runs(folder: str | Path = "outputs") -> list[dict[str, Any]]:
    """Return the runs in a folder and below it, newest first, as rows of plain values, which pandas reads.

    Raises:
        ConfigError: There is no such folder.
    """
    return [dict(row) for row in ledger.list_runs(Path(folder))]


@contextmanager
def _as_command(argv: list[str]) -> Iterator[None]:
    """Run a block as a command of its own: its arguments, and its handlers of the log, which Hydra sets."""
    arguments, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = arguments
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _cause(end: SystemExit) -> BaseException:
    """Return the error that made a run exit."""
    error = end.__context__
    if isinstance(error, Stopped):
        return KeyboardInterrupt(f"the run was {error}")
    return translate(error) if error is not None else CnnlabError(f"the run ended with exit code {end.code}")
