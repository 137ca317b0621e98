"""history.csv, a line an epoch in the log, and the curves in the loggers."""

import csv
import io
import logging
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from cnnlab.batch import Batch
from cnnlab.bounds import PositiveInt, within_bounds
from cnnlab.callbacks.divergence import read_back
from cnnlab.classifier import first_group
from cnnlab.files import write_text
from cnnlab.metrics import begun_states, set_begun_states
from cnnlab.patches import add_logged, just_logged, logged_so_far, write_event
from cnnlab.wording import format_metric

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch", "step", "lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "train_seconds",
    "images_per_second",
)  # fmt: skip


SUMS = 4  # over an epoch: loss times images, correct images, images, and those whose loss is known


@within_bounds("callbacks.history")
class History(Callback):
    """Record every training step's loss and every epoch's metrics.

    A step's loss and logits stay on the device until `flush_every` steps have gathered, and are read back
    together: the training loop never waits for a value.

    Args:
        flush_every: Steps between two readings.
    """

    logs_epochs = True
    """The loggers get an epoch's metrics from here."""

    def __init__(self, flush_every: PositiveInt = 50) -> None:
        self.flush_every = flush_every
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.rows: list[dict[str, Any]] = []
        self._pending: list[tuple[Tensor | None, Tensor | None, Tensor, float]] = []
        self._captured = False
        self._sums = [0.0] * SUMS
        self._seconds = 0.0
        self._validation: dict[str, float] = {}  # the metrics of this epoch's last validation
        self._logged: dict[str, tuple[float, int]] = {}  # what a resumed epoch had before
        self._begun: dict[str, tuple[int, dict[str, Any]]] = {}  # likewise of the LightningModule's own metrics
        self._measured: tuple[dict[str, float], dict[str, float]] = {}, {}  # of the epoch that ends
        self._clock = time.perf_counter()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self.path = Path(trainer.default_root_dir) / "history.csv"
        if stage == "fit":
            # Lightning calls it when every callback's has been called but those that monitor something. By weak
            # references, as averages of the weights begin with a copy of the module and all that it refers to.
            hook = partial(_record_behind, weakref.ref(pl_module), weakref.ref(self))
            pl_module.on_train_epoch_end = hook  # type: ignore[method-assign]

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("on_train_epoch_end", None)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What a killed run recorded after its last checkpoint comes again: TensorBoard forgets it at a second start.
        start = Event(step=len(self.losses), session_log=SessionLog(status=SessionLog.START))
        for writer in writers(trainer):
            write_event(writer, start)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = pl_module.hparams.get("config") or {}
        self._captured = config.get("model", {}).get("compile") in ("reduce-overhead", "max-autotune")
        self._group = first_group(trainer)
        self._lr = self._group["lr"]
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if 0 < batches.ready < trainer.num_training_batches:  # else the epoch is over, and Lightning's reset with it
            set_begun_states(pl_module, self._begun)
        self._clock = time.perf_counter()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums = [0.0] * SUMS
        self._seconds = 0.0
        self._validation = {}
        self._logged = {}
        self._clock = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._logged:
            add_logged(trainer, self._logged)
            self._logged = {}
        logits = outputs.get("logits")
        if logits is not None and self._captured:
            logits = logits.clone()  # a captured network writes each step's where it wrote the last one's
        self._pending.append((outputs.get("loss"), logits, batch.targets, self._lr))
        # The schedule has moved on already: what stands in the optimizer is the next step's.
        self._lr = self._group["lr"]
        if len(self._pending) >= self.flush_every:
            self._flush()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._flush()
            self._pause()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = just_logged(trainer, trainer.fit_loop.epoch_loop.val_loop)
        self._clock = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        self._pause()
        # Processes on GPUs have no way to add up what lies elsewhere; and not every single device has doubles.
        device = trainer.strategy.root_device if trainer.world_size > 1 else "cpu"
        sums = trainer.strategy.reduce(torch.tensor(self._sums, dtype=torch.float64, device=device), reduce_op="sum")
        train = {f"train/{name}": value for name, value in means(sums.tolist()).items()}
        pl_module.log_dict(train, logger=False)  # so that an objective or early stopping can be about them
        self._measured = train, {"train_seconds": self._seconds, "images_per_second": float(sums[2]) / self._seconds}

    def _end_epoch(self, trainer: Trainer) -> None:
        """Record the epoch, with what the LightningModule and other callbacks have logged."""
        (train, speed), val = self._measured, self._validation
        train |= just_logged(trainer, trainer.fit_loop.epoch_loop)
        lr = self.lrs[-1] if self.lrs else math.nan
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": lr}
        measured = train | val | speed
        row |= {column: measured.pop(column, None) for column in COLUMNS[len(row) :]} | measured
        # A run that is resumed inside an epoch that `max_steps` had cut short has a row of its beginning.
        self.rows = [*(before for before in self.rows if before["epoch"] < row["epoch"]), row]
        if trainer.is_global_zero:
            self._write()
            self._log_epoch(train | val | speed)
            log.info(describe(row, trainer.max_epochs))

    @override
    def state_dict(self) -> dict[str, Any]:
        self._flush()
        self._pause()
        # A run that is killed resumes after these steps: nobody would write them again.
        for writer in writers(self._trainer):
            writer.flush()
        return {
            "losses": torch.tensor(self.losses),
            "lrs": torch.tensor(self.lrs, dtype=torch.float64),
            "rows": self.rows,
            "sums": gather(self._trainer, self._sums),
            "seconds": self._seconds,
            "validation": self._validation,
            **self._logged_so_far(),
        }

    def _logged_so_far(self) -> dict[str, Any]:
        if self._trainer.world_size > 1:  # a checkpoint has the first process' only
            return {"logged": {}, "begun": {}}
        return {
            "logged": self._logged or logged_so_far(self._trainer),
            "begun": begun_states(self._trainer.lightning_module),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = state_dict["losses"].tolist()
        # Checkpoints of before have none: a picture of the rest of the run would be taken for the whole.
        self.lrs = state_dict["lrs"].tolist() if "lrs" in state_dict else [math.nan] * len(self.losses)
        self.rows = list(state_dict["rows"])
        # Earlier versions had a loss of every image.
        sums = [part if len(part) == SUMS else [*part, part[2]] for part in state_dict["sums"]]
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        if len(sums) == world_size:
            self._sums = list(sums[rank])
        else:  # on another number of processes, the first one has what all of them had
            self._sums = [sum(column) for column in zip(*sums, strict=True)] if rank == 0 else [0.0] * SUMS
        self._seconds = state_dict["seconds"]
        self._validation = dict(state_dict["validation"])
        self._logged = dict(state_dict.get("logged", {}))
        self._begun = dict(state_dict.get("begun", {}))

    def so_far(self) -> dict[str, float]:
        """Return the epoch's mean `loss` and `accuracy` over the steps that were read back; empty before the first."""
        return means(self._sums)

    def _pause(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now

    def _flush(self) -> None:
        """Read back the losses and logits of the steps since the last flush."""
        if not self._pending:
            return
        losses, logits, targets, lrs = zip(*self._pending, strict=True)
        self._pending.clear()
        # Lightning hands out the loss divided for accumulation.
        values = read_back(losses, self._trainer.accumulate_grad_batches)
        sizes = [len(part) for part in targets]
        labels = torch.cat([part.argmax(1) if part.is_floating_point() else part for part in targets])
        # A LightningModule of the user's own may keep its logits to itself.
        correct = (
            math.nan if any(part is None for part in logits) else int((torch.cat(logits).argmax(1) == labels).sum())
        )
        first = len(self.losses)
        self.losses.extend(math.nan if value is None else value for value in values)
        self.lrs.extend(lrs)
        lost = [(value, size) for value, size in zip(values, sizes, strict=True) if value is not None]
        self._sums[0] += sum(value * size for value, size in lost)
        self._sums[1] += correct
        self._sums[2] += sum(sizes)
        self._sums[3] += sum(size for _, size in lost)
        self._log_steps(first, values, lrs[-1])

    def _log_steps(self, first: int, losses: list[float | None], lr: float) -> None:
        """Give the loggers the steps' losses and the learning rate."""
        if not self._trainer.is_global_zero:
            return
        every: int = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        measured = [(step, loss) for step, loss in enumerate(losses, first) if loss is not None]
        for logger in self._trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer = logger.experiment
                for step, loss in measured:
                    writer.add_scalar("train/loss", loss, step)
                if not math.isnan(lr):
                    writer.add_scalar("lr", lr, first + len(losses) - 1)
            else:
                for step, loss in measured:
                    if every and step % every == 0:
                        logger.log_metrics({"train/loss": loss, "lr": lr}, step=step)

    def _log_epoch(self, metrics: dict[str, float]) -> None:
        """Give the loggers an epoch's metrics; on an epoch axis where the logger can have several axes."""
        # A step's loss has the other name.
        metrics = {"train/loss_epoch" if name == "train/loss" else name: value for name, value in metrics.items()}
        for logger in self._trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(metrics, step=self._trainer.current_epoch)
            else:
                logger.log_metrics(
                    metrics | {"epoch": float(self._trainer.current_epoch)}, step=self._trainer.global_step
                )

    def _write(self) -> None:
        """Write history.csv anew, with all rows."""
        text = io.StringIO(newline="")
        columns = dict.fromkeys([*COLUMNS, *(name for row in self.rows for name in row)])
        writer = csv.DictWriter(text, list(columns))
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


def means(sums: Sequence[float]) -> dict[str, float]:
    """Return the mean `loss` and `accuracy` that an epoch's sums give, as far as they were measured."""
    loss, correct, images, images_with_loss = sums
    measured = {"loss": loss / images_with_loss} if images_with_loss else {}
    return measured | ({"accuracy": correct / images} if images and not math.isnan(correct) else {})


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """Yield the TensorBoard writers of the process that writes."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment


def gather(trainer: Trainer, sums: list[float]) -> list[list[float]]:
    """Return the sums of each process, so that each has its own back when the run is resumed."""
    if trainer.world_size == 1:
        return [sums]
    everyone = trainer.strategy.all_gather(torch.tensor(sums, dtype=torch.float64, device=trainer.strategy.root_device))
    return everyone.tolist()


def _record_behind(module: "weakref.ref[LightningModule]", history: "weakref.ref[History]") -> None:
    """Call a module's own hook at the end of an epoch, then record the epoch."""
    hooked, recorder = module(), history()
    assert hooked is not None
    assert recorder is not None
    type(hooked).on_train_epoch_end(hooked)
    recorder._end_epoch(recorder._trainer)


def describe(row: Mapping[str, Any], max_epochs: int | None) -> str:
    """Return an epoch's row as a line for the log."""
    of = f"/{max_epochs}" if max_epochs and max_epochs > 0 else ""
    parts = []
    for split in ("train", "val"):
        loss, accuracy = row[f"{split}/loss"], row[f"{split}/accuracy"]
        values = [] if loss is None else [f"loss {format_metric('loss', loss)}"]
        values += [] if accuracy is None else [format_metric("accuracy", accuracy)]
        if values:
            parts.append(f"{split} {', '.join(values)}")
    return f"epoch {row['epoch'] + 1}{of}: {'; '.join(parts)}; {row['images_per_second']:,.0f} images/s"
