"""What TensorBoard shows besides curves and pictures: layout, graph, precision and recall, summary, HParams tab."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.jit import TracerWarning
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from cnnlab.callbacks.checkpoint import as_numbers, find_checkpoint
from cnnlab.callbacks.figures import data_of, first_batch, gathered
from cnnlab.callbacks.history import writers
from cnnlab.classifier import Classifier
from cnnlab.files import flatten, read_json
from cnnlab.patches import write_summary
from cnnlab.wording import format_metric

log = logging.getLogger(__name__)

LAYOUT = {
    "Training": {
        # The charts' horizontal axes have no names.
        "loss by epoch, from 0": ["Multiline", ["train/loss_epoch", "val/loss"]],
        "accuracy by epoch, from 0": ["Multiline", ["train/accuracy", "val/accuracy"]],
        "training loss by step": ["Multiline", ["^train/loss$"]],
        "learning rate by step": ["Multiline", ["^lr$"]],
        "images per second by epoch, from 0": ["Multiline", ["images_per_second"]],
    }
}

# What the HParams tab compares runs by.
SETTINGS = (
    "seed", "data.path", "data.batch_size", "data.val_size", "data.split_seed", "augment.*", "model.*", "optimizer.*",
    "schedule.*", "loss.*", "callbacks.ema.*", "callbacks.early_stopping.*", "trainer.max_*", "trainer.precision",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_*", "trainer.limit_train_batches",
)  # fmt: skip
PR_CURVES = 20  # classes at most that get a curve each
RESULTS = ".results"  # how the event file ends that holds them


class Dashboard(Callback):
    """Arrange TensorBoard for a run: train and validation on one chart, the graph, the run's real results.

    After the test come a curve of precision and recall for each class (up to 20, and one of all together) and a text
    with the run's results and settings.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = pl_module.hparams.get("config", {})
        for logger in trainer.loggers:
            logger.log_hyperparams(settings(config) | varied(trainer))
        if trainer.ckpt_path:
            return  # a resumed run has the rest already
        data = data_of(trainer)
        for writer in writers(trainer):
            writer.add_custom_scalars(LAYOUT)
            # A compiled network can't be traced.
            if data is not None and not config.get("model", {}).get("compile"):
                add_graph(writer, pl_module, first_batch(data).images[:1].to(pl_module.device))

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = find_checkpoint(trainer)
        best = checkpoint.best_metrics if checkpoint else {}
        # Not as `val/...`: that name is a curve's, and this would be its last point.
        results = {f"best/{name}": value for name, value in best.items() if name.startswith("val/")}
        results |= as_numbers(trainer.callback_metrics)
        data = data_of(trainer)
        answers = gathered(pl_module) if data is not None and isinstance(pl_module, Classifier) else None
        for writer in writers(trainer):
            # TensorBoard leaves a file for good when there is a newer one.
            writer.flush()
            # It believes the first settings that it reads, so those of an earlier end of the run have to go.
            for earlier in Path(writer.log_dir).glob(f"*{RESULTS}"):
                earlier.unlink()
            with SummaryWriter(writer.log_dir, filename_suffix=RESULTS) as last:
                for name, value in results.items():
                    last.add_scalar(name, value, trainer.current_epoch)
                last.add_text("summary", as_tables(results, settings(pl_module.hparams.get("config", {}))))
                if data is not None and answers is not None and len(answers[1]):
                    for name, right, probabilities in curves(answers[0], answers[1], data.classes):
                        last.add_pr_curve(f"precision_recall/{name}", right, probabilities, trainer.current_epoch)
                # Without the list of an experiment's settings and metrics: TensorBoard makes one of all runs' then,
                # and shows first in which settings they differ; a run's own list would hide the others'.
                _, start, end = hparams(settings(pl_module.hparams.get("config", {})) | varied(trainer), {})
                for summary in (with_name(start, run_name(Path(trainer.default_root_dir))), end):
                    write_summary(last, summary)


def run_name(folder: Path) -> str:
    """Return a run's name in the HParams tab, whose narrow column cuts a path after the date: the last part first."""
    folder = folder.absolute()
    return f"{folder.name} ({folder.parent.name})"


def with_name(start: Summary, name: str) -> Summary:
    """Give a name to the row that a run has in the HParams tab."""
    plugin_data = start.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    content.session_start_info.group_name = name
    plugin_data.content = content.SerializeToString()
    return start


def add_graph(writer: SummaryWriter, classifier: LightningModule, images: Tensor) -> None:
    """Add the network's graph; in its place, a line in the log where a network of the user's can't be traced."""
    training = {module: module.training for module in classifier.modules()}
    classifier.eval()
    with warnings.catch_warnings():
        # Tracing fixes sizes that are decided in Python; the graph is only looked at.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*already a ScriptModule")
        try:
            # The writer would run the network again to check the trace, which takes ten times as long.
            traced = torch.jit.trace(classifier.network, images, check_trace=False)
        except Exception as error:
            log.warning(
                f"TensorBoard shows no graph, the network can't be traced: {' '.join(str(error).split())[:200]}"
            )
        else:
            writer.add_graph(traced, images)
    for module, mode in training.items():  # a layer that its network froze stays so
        module.training = mode


def varied(trainer: Trainer) -> dict[str, str | float]:
    """Return what tells a trial from the others of its sweep; nothing where the run is none of a sweep's."""
    values: dict[str, str | float] = {}
    for key, value in read_json(Path(trainer.default_root_dir) / "trial.json").get("settings", {}).items():
        try:
            values[key] = float(value)
        except ValueError:
            values[key] = value
    return values


def curves(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, whether it is of the class, probability of the class) for all classes together and for each."""
    probabilities = logits.softmax(1)
    right = torch.nn.functional.one_hot(targets, len(classes))
    yield "all classes", right.flatten(), probabilities.flatten()
    if len(classes) <= PR_CURVES:
        for label, name in enumerate(classes):
            yield name, right[:, label], probabilities[:, label]


def as_tables(results: Mapping[str, float], settings: Mapping[str, str | float]) -> str:
    """Return a run's results and settings as tables in Markdown."""

    def table(left: str, right: str, rows: Iterable[tuple[str, object]]) -> str:
        # As code, so that no name becomes a link or a picture.
        lines = (f"| {name} | `{str(value).replace('|', '/').replace('`', '')}` |" for name, value in rows)
        return "\n".join([f"| {left} | {right} |", "|---|---|", *lines])

    rounded = ((name, format_metric(name, value)) for name, value in sorted(results.items()))
    return f"{table('result', 'value', rounded)}\n\n{table('setting', 'value', settings.items())}"


def settings(config: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the values of a config that tell runs apart; a section's class under the section's name."""
    augment = config.get("augment") or {}
    values: dict[str, str | float] = {"augment": ", ".join(name for name, node in augment.items() if node) or "none"}
    for key, value in flatten(config):
        section, _, name = key.partition(".")
        if value in (None, {}) or not any(fnmatchcase(key, pattern) for pattern in SETTINGS):
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        if name == "_target_":
            values[section] = value.rpartition(".")[2]
        elif not name.endswith("._target_"):
            values[key] = value if isinstance(value, (int, float)) else str(value)
    return values
