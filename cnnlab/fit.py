"""Train what was built: from the beginning or from a checkpoint, and again from there where it diverges."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from pytorch_lightning.utilities.model_helpers import is_overridden

from cnnlab.build import Lab, build_lab, composition
from cnnlab.callbacks import AtomicCheckpointIO, Checkpoint, Divergence
from cnnlab.callbacks.budget import evaluated, find_budget
from cnnlab.callbacks.checkpoint import as_numbers, find_checkpoint
from cnnlab.checkpoint import Loaded, read_checkpoint, read_last
from cnnlab.classifier import callbacks_of
from cnnlab.console import Waiting
from cnnlab.errors import ConfigError, DivergedError, MachineError, is_out_of_memory
from cnnlab.identity import identify
from cnnlab.machine import describe_device
from cnnlab.record import Record, precision_of
from cnnlab.run import Run, versions

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 8
"""Of one run: 1/256 of the learning rate that was asked for has another cause."""


class Attempt:
    """One training of a run, to its end or to where it diverges.

    Used as a context manager around `trainer.fit`, which stands in the caller: nothing of ours lies between the entry
    point and Lightning.

    Args:
        cfg: The run's config.
        lab: What it was built to.
        checkpoint: Where it starts from; None is the beginning.
    """

    def __init__(self, cfg: Any, lab: Lab, checkpoint: Path | None) -> None:
        self.cfg = cfg
        self.lab = lab
        self.checkpoint = checkpoint
        self.diverged: DivergedError | None = None

    @property
    def rollbacks(self) -> int:
        """How often the run went back to an earlier state since its loss was not finite."""
        return max(callback.rollbacks for callback in callbacks_of(self.lab.trainer, Divergence))

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Note a divergence that the run may go back from; name the batch size where the memory was too small."""
        if isinstance(error, DivergedError):
            if self.cfg.on_divergence != "rollback" or self.rollbacks == MOST_ROLLBACKS:
                return False
            if find_checkpoint(self.lab.trainer) is None:
                raise DivergedError(
                    f"{error}\non_divergence=rollback found no checkpoint to go back to: give "
                    "trainer.enable_checkpointing=true and callbacks=[default], or on_divergence=stop."
                ) from error
            self.diverged = error
            return True
        size = self.lab.data.batch_size
        if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error) and size > 1:
            raise MachineError(
                f"out of memory with data.batch_size={size}: try data.batch_size={size // 2}."
            ) from error
        return False


def attempts(cfg: Any, run: Run, *, resume: bool = False) -> Iterator[Attempt]:
    """Build a run and yield it to be trained, with `resume` from its last checkpoint.

    With `on_divergence=rollback`, a loss or a gradient that is not finite sends it back to the last checkpoint, which
    never holds such a state, or to its beginning, with half the learning rate: another attempt is yielded.

    Raises:
        ConfigError: It would see other batches than before.
        DivergedError: It diverged, and `MOST_ROLLBACKS` had been made where any are allowed, or no checkpoint is kept.
        MachineError: A batch does not fit into memory.
    """
    record = Record(run.folder)
    loaded = read_last(record, completed=run.was_completed) if resume else None
    rollbacks, ending = 0, 0.0
    while True:
        lab = build_lab(cfg, rollbacks=rollbacks, resumed=loaded is not None, began=run.began)
        if budget := find_budget(lab.trainer):
            budget.ending = ending
        if loaded is not None:
            check_batches(lab, loaded)
            check_device(lab, loaded)
            check_precision_kept(lab, loaded)
            checkpoint_io = lab.trainer.strategy.checkpoint_io
            if isinstance(checkpoint_io, AtomicCheckpointIO):  # else a plugin of the user's reads it in its own way
                checkpoint_io.loaded = loaded
        run.describe(**facts(lab))
        attempt = Attempt(cfg, lab, loaded.path if loaded else None)
        yield attempt
        if attempt.diverged is None:
            return
        rollbacks, ending = attempt.rollbacks + 1, budget.ending if budget else 0.0
        log.warning(f"{attempt.diverged}")
        log.warning(f"rollback {rollbacks} of {MOST_ROLLBACKS}: optimizer.lr times {0.5**rollbacks:g}")
        run.describe(rollbacks=rollbacks)
        loaded = read_last_scheduled(Record(run.folder))


def read_last_scheduled(record: Record) -> Loaded | None:
    """Read the checkpoint that a run goes back to when it diverges; None is its beginning.

    A state that was saved since a signal came may be one of those in which the weights blow up: without the signal
    there would be no such state, but the one before it.
    """
    loaded = read_last(record)
    if loaded is None or not loaded.content["callbacks"]["Checkpoint"]["is_interrupted"]:
        return loaded
    return Loaded(record.previous, read_checkpoint(record.previous)) if record.previous.is_file() else None


class Result(NamedTuple):
    """What a run comes to.

    Attributes:
        metrics: The validation and test metrics of the state that was tested, by name.
        best: Which state that is: `epoch` (from 0, as in history.csv), `step`, `metric` and its `value`, which is None
            where it was never measured; empty where no checkpoint is kept, and the last state is tested.
        budget: The time that a run had (`asked`, as typed), and what it made of that (`used` seconds, `steps`).
    """

    metrics: dict[str, float]
    best: dict[str, Any]
    budget: dict[str, Any]


def test(lab: Lab) -> Result:
    """Test the best state of the fitted classifier, as its checkpoint has it and every command will read it."""
    checkpoint = find_checkpoint(lab.trainer)
    metrics, best = as_numbers(lab.trainer.callback_metrics), {}
    if checkpoint is not None and checkpoint.best.exists():
        # Not by `ckpt_path`: callbacks that average weights would put the raw ones back over those of the file.
        content = read_checkpoint(checkpoint.best)
        lab.classifier.load_state_dict(content["state_dict"])
        # As best.ckpt itself has them: a rollback leaves the best state where it is and goes back to metrics from
        # before it.
        kept = content["callbacks"]["Checkpoint"]
        metrics = kept["best_metrics"]
        best = {
            "epoch": kept["best_epoch"], "step": kept["best_step"], "metric": checkpoint.monitor,
            "value": kept["best_score"],
        }  # fmt: skip
    else:
        log.info("no checkpoint was kept: the last state is tested")
    if not is_overridden("test_step", lab.classifier):
        log.info(f"no test: {type(lab.classifier).__name__} has no test_step")
        return Result(metrics, best, describe_budget(lab))
    with Waiting.start("testing the best state"):
        lab.trainer.test(lab.classifier, lab.data, verbose=False)
    for path in sorted(Path(lab.trainer.default_root_dir).glob("*-profile*.txt")):
        log.info(f"{path}\n{path.read_text()}")
    return Result(as_numbers(lab.trainer.callback_metrics) | metrics, best, describe_budget(lab))


def describe_budget(lab: Lab) -> dict[str, Any]:
    """Return what a run's record says of its budget; nothing without one."""
    budget = find_budget(lab.trainer)
    return budget.describe() if budget else {}


def facts(lab: Lab) -> dict[str, Any]:
    """Return what a run's record says of what was built."""
    objects, data, processes = lab.classifier.hparams["objects"], lab.data, lab.trainer.world_size
    images = {
        split: min(data.count(split), processes * evaluated(lab.trainer, data, split)) for split in ("val", "test")
    }
    return {
        "device": describe_device(lab.trainer.strategy.root_device),
        "precision": lab.trainer.precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "num_parameters": sum(parameter.numel() for parameter in lab.classifier.parameters()),
        "images": {"train": data.count("train"), **images},  # what the metrics are of
        # Objects that were given from Python stand in place of what the config says: two such runs may differ.
        "identity": None if objects else identify(lab.classifier.hparams["config"], versions()),
        "objects": objects,
        **composition(lab.classifier.hparams["config"]),
    }


def check_device(lab: Lab, loaded: Loaded) -> None:
    """Check that random numbers come from the same kind of device as before: another kind draws others.

    Raises:
        ConfigError: They do not.
    """
    now = lab.trainer.strategy.root_device.type
    try:
        before = str(loaded.content["callbacks"][Checkpoint.__qualname__]["device"])
    except (KeyError, TypeError):
        return  # of an earlier version, or kept by a callback of the user's
    if before != now:
        raise ConfigError(
            f"resume: this run was trained on {before}, and {now} draws other augmentations and dropout: it would not "
            f"be the same run. Give trainer.accelerator={before}, or begin a run of its own with "
            f"init_from={loaded.path}."
        )


def check_precision_kept(lab: Lab, loaded: Loaded) -> None:
    """Check that `trainer.precision=auto` stands for what it stood for before.

    Raises:
        ConfigError: It does not: this machine has other products.
    """
    settings = loaded.content.get("hyper_parameters")
    before = settings.get("config") if isinstance(settings, dict) else None
    now = lab.classifier.hparams["config"]
    if isinstance(before, dict) and precision_of(before) != precision_of(now):
        raise ConfigError(
            f"resume: this run was trained in {precision_of(before)}, and trainer.precision=auto is "
            f"{precision_of(now)} here: resume it on a machine of the same kind, or begin a run of its own with "
            f"init_from={loaded.path}."
        )


def check_batches(lab: Lab, loaded: Loaded) -> None:
    """Check that a step sees as many images, over all devices, as before: others would be skipped or seen twice.

    Raises:
        ConfigError: It does not.
    """
    now = lab.data.batch_size * lab.trainer.world_size
    try:
        before = int(loaded.content[type(lab.data).__qualname__]["train"]["images"])
    except (KeyError, TypeError, ValueError):
        return  # saved after no training batch; what is no checkpoint of this data, loading it says
    if before != now:
        devices = before / lab.data.batch_size
        raise ConfigError(
            f"resume: a step of this run sees {before} images, data.batch_size={lab.data.batch_size} on {devices:g} "
            f"device{'s' if devices > 1 else ''}; here it would see {now}, on {lab.trainer.world_size}. Give "
            f"trainer.devices={devices:g}, or begin a run of its own with init_from={loaded.path}."
        )
