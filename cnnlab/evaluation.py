"""How good a trained network is: its answers on a split, and what they add up to.

`evaluate` writes, for the run's own test images, `evaluation.json` into the run's folder:

| key | holds |
|---|---|
| `format` | 1: the version of this layout |
| `checkpoint`, `data`, `split`, `tta` | what was evaluated, on what, and how |
| `members` | the checkpoints of an ensemble; empty for a single network |
| `data_digest` | of the split's images and labels: equal digests, equal images in equal order |
| `count`, `classes` | number of images; the classes' names in label order |
| `metrics` | by name, without the split: `accuracy`, `loss`, `macro_f1`, `calibration_error`, `top5_accuracy` |
| `accuracy_interval` | [low, high]: 95 %, Wilson's |
| `confusion` | a row for each true class, a column for each predicted one, counts |
| `per_class` | `class`, `count`, `precision`, `recall`, `f1`; null where there is nothing to divide by |
| `calibration` | 15 parts of the probability scale: `low`, `high`, `count`, `confidence`, `accuracy` |
| `mistakes` | up to 100, the surest first: `index` in the split, `target`, `predicted`, `confidence` |
| `device`, `precision`, `seconds`, `images_per_second` | how it was computed |
| `shown` | for a report: `counts` of the images by split, `image_shape`, `layer` (the first convolution's name) |
| `answers`, `figures` | the files beside it, relative to it |

and `evaluation.npz` with an element an image: `predicted`, `targets`, `confidence`; and for a report `images` (the
first ten, and the 24 surest mistakes), `filters` of the first convolution, `losses` and `lrs` of every training step.
Evaluations of anything else stand beside it, under names that say of what: `evaluation-val.json`,
`evaluation-last-mirror.json`.
"""

import hashlib
import io
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnnlab import plots
from cnnlab.anatomy import read_filters
from cnnlab.answers import FIRST_IMAGES, SURE_MISTAKES, Evaluation
from cnnlab.batch import Batch
from cnnlab.checkpoint import read_steps
from cnnlab.data import DataModule, Gallery
from cnnlab.data.protocol import Split
from cnnlab.errors import ConfigError, DataError
from cnnlab.files import finite, write_bytes, write_text
from cnnlab.machine import check_accelerator, describe_device, keep_freed_memory
from cnnlab.metrics import MetricBuilder, SplitMetrics
from cnnlab.record import precision_of
from cnnlab.restore import Restored, restore, restore_data, restore_metrics
from cnnlab.stats import wilson
from cnnlab.tta import TTA, average_views
from cnnlab.wording import channels_note

MISTAKES = 100
BINS = 15
FIGURES = ("confusion_matrix", "reliability", "worst_mistakes")


class Answers(NamedTuple):
    """A network's logits for a split's images, in their order, and what they add up to."""

    logits: Float[Tensor, "n classes"]
    targets: Int64[Tensor, "n"]
    metrics: dict[str, float]
    seconds: float

    @property
    def predicted(self) -> Int64[Tensor, "n"]:
        """The likeliest class of each image."""
        return self.logits.argmax(1)

    @property
    def confidence(self) -> Float[Tensor, "n"]:
        """The probability of the likeliest class of each image."""
        return self.logits.softmax(1).amax(1)


def evaluate(
    run: str,
    *,
    data: str | Path | None = None,
    split: Split = "test",
    tta: TTA | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    figures: bool = True,
    output: Path | None = None,
    trusted: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a run's best state, and write the result into its folder.

    Without options it repeats the test that ended the training, to the last digit on the same device.

    Args:
        run: What `record.find_run` takes: a run's folder, a checkpoint file, `last` or `best`.
        data: Another npz file with the same classes.
        split: Which of its images.
        tta: Test-time augmentation, see `tta.average_views`; by default the run's.
        accelerator: In Lightning's words.
        precision: In Lightning's words; by default the run's.
        batch_size: Images at a time; by default the run's.
        figures: Whether to draw.
        output: Another folder to write into.
        trusted: Packages that may be imported although a run's folder names them.

    Raises:
        ConfigError, CheckpointError, UnsafeError: As `restore.restore` does.
        DataError: The file is missing, or of other classes; or the split is empty; or the loss is not finite.
        MachineError: The machine lacks the accelerator.
    """
    state = restore(run, trusted, exact=precision is None)
    images = restore_data(state, data, eval_batch_size=batch_size, trusted=trusted)
    tta = tta or tta_of(state)
    fabric = fabric_of(state, accelerator, precision)
    batches = images.batches(split)
    if len(batches) == 0:
        raise DataError(f"{images.path}: the {split} split holds no images.")
    answers = answer(
        state.network, batches, images.num_classes, metrics=restore_metrics(state, trusted), fabric=fabric, tta=tta
    )
    digest, computed_precision = _digest(images, split), str(fabric.strategy.precision.precision)
    stem = _stem(state, split, tta, computed_precision, None if data is None else (Path(data).stem, digest))
    stem = output / stem.name if output else stem
    layer, filters = _filters(state.network)
    content = finite(
        _describe(state, images, split, answers, layer)
        | {
            "tta": tta,
            "data_digest": digest,
            "device": describe_device(fabric.device),
            "precision": computed_precision,
            "answers": f"{stem.name}.npz",
            "figures": [f"figures/{stem.name}/{name}.png" for name in FIGURES] if figures else [],
        }
    )
    gallery = Gallery(images, split)
    if figures:
        _draw(stem.parent / "figures" / stem.name, content, answers, gallery)
    positions = [*range(min(FIRST_IMAGES, len(answers.targets)))]
    positions += [mistake["index"] for mistake in content["mistakes"][:SURE_MISTAKES]]
    return _write(
        stem, content, answers, {"images": gallery[positions], "filters": filters, **read_steps(state.record)}
    )


def _describe(state: Restored, images: DataModule, split: Split, answers: Answers, layer: str | None) -> dict[str, Any]:
    """Return what of `evaluation.json` the network and its answers say."""
    summary = summarise(answers.logits, answers.targets, images.classes)
    return {
        "format": 1,
        "checkpoint": str(state.checkpoint),
        "members": [str(member) for member in state.members],
        "data": str(images.path),
        "split": split,
        "count": len(answers.targets),
        "classes": list(images.classes),
        "metrics": _usual_metrics(summary) | answers.metrics,
        **summary,
        "seconds": round(answers.seconds, 4),
        "images_per_second": round(len(answers.targets) / answers.seconds, 1),
        "shown": {
            "counts": {name: images.count(name) for name in get_args(Split)},
            "image_shape": list(images.image_shape),
            "layer": layer,
        },
    }


def tta_of(state: Restored) -> TTA:
    """Return the test-time augmentation of a run's own test."""
    return state.config.get("eval", {}).get("tta", "none")


def _filters(network: nn.Module) -> tuple[str | None, np.ndarray]:
    """Return the name of the first convolution and its filters; none of a network without one."""
    try:
        layer, weights = read_filters(network)
    except ConfigError:
        return None, np.empty((0, 1, 1, 1), np.float32)
    return layer, weights


def _draw(folder: Path, content: dict[str, Any], answers: Answers, gallery: Gallery) -> None:
    classes, images = content["classes"], cast(Any, gallery)  # an array, as far as drawing goes
    guesses = answers.predicted.numpy(), answers.targets.numpy(), answers.confidence.numpy()
    drawings = (
        plots.confusion_matrix(np.array(content["confusion"]), classes),
        plots.reliability(content["calibration"], content["metrics"]["calibration_error"]),
        plots.worst_mistakes(images, *guesses, classes, note=channels_note(gallery.data.image_shape[2])),
    )
    for name, drawing in zip(FIGURES, drawings, strict=True):
        write_bytes(folder / f"{name}.png", plots.to_png(drawing))


def _write(stem: Path, content: dict[str, Any], answers: Answers, arrays: dict[str, np.ndarray]) -> Evaluation:
    """Write the answers, and after them the content that names them: a reader who finds it finds the rest."""
    predicted, targets = answers.predicted.numpy(), answers.targets.numpy()
    dtype = np.uint16 if len(content["classes"]) <= 2**16 else np.int64
    arrays = {
        "predicted": predicted.astype(dtype), "targets": targets.astype(dtype),
        "confidence": answers.confidence.numpy(), **arrays,
    }  # fmt: skip
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_bytes(stem.with_name(content["answers"]), file.getvalue())
    path = stem.with_name(f"{stem.name}.json")
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return Evaluation(path, content, arrays)


def fabric_of(state: Restored, accelerator: str, precision: str | None = None) -> Fabric:
    """Return the device and the precision to compute with as a run's own test does.

    Raises:
        MachineError: The machine lacks the accelerator.
    """
    check_accelerator(accelerator, "--accelerator ")
    keep_freed_memory()
    fabric = fabric_for(accelerator, precision or precision_of(state.config))
    matmul_precision = state.config.get("matmul_precision")
    if fabric.device.type == "cuda" and matmul_precision in ("highest", "high", "medium"):
        # As in the run's own test: products of 32-bit numbers are rounded to TF32 by default.
        torch.set_float32_matmul_precision(matmul_precision)
    return fabric


def fabric_for(accelerator: str, precision: str | None) -> Fabric:
    """Return the device and the precision to compute with."""
    for name in ("lightning_fabric", "pytorch_lightning"):  # the latter speaks for both once it is imported
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision or "32-true")  # type: ignore[arg-type]
    except ValueError as error:
        text = f"--accelerator {accelerator}, --precision {precision}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(text) from error


def answer(
    network: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    *,
    metrics: Mapping[str, MetricBuilder] | None = None,
    fabric: Fabric | None = None,
    tta: TTA = "none",
) -> Answers:
    """Put a split's images through a network; metrics are those of training's test, updated in the same order.

    Args:
        network: Takes images, returns logits.
        batches: The split, in order.
        num_classes: Number of classes.
        metrics: What is measured beside the loss, by name; by default that of `SplitMetrics`.
        fabric: Device and precision; by default Lightning chooses a device, and 32 bits.
        tta: Test-time augmentation, see `tta.average_views`.
    """
    fabric = fabric or fabric_for("auto", None)
    model = fabric.setup_module(network.eval())
    predict = average_views(model, tta)
    measured = SplitMetrics(num_classes, builders=metrics).to(fabric.device)
    logits, targets = [], []
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in _with_progress(batches):
            batch = Batch(*(tensor.to(fabric.device, non_blocking=True) for tensor in batch))
            logits.append(predict(batch.images).float())
            targets.append(batch.targets)
            measured.update(logits[-1], batch.targets)
        values = {name: float(value) for name, value in measured.compute().items()}
        if not math.isfinite(values["loss"]):
            raise DataError(
                f"the network's loss is {values['loss']}: its weights, the precision, or an image are not usable."
            )
        answers = torch.cat(logits).cpu(), torch.cat(targets).cpu()
    return Answers(*answers, values, time.perf_counter() - started)


def summarise(
    logits: Float[Tensor, "n classes"], targets: Int64[Tensor, "n"], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the middle part of `evaluation.json`: interval, confusion, classes, calibration and mistakes."""
    predicted = logits.argmax(1)
    matrix = multiclass_confusion_matrix(predicted, targets, len(classes)).numpy()
    confidence = logits.softmax(1).amax(1).numpy()
    right = (predicted == targets).numpy()
    wrong = np.flatnonzero(~right)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    return {
        "accuracy_interval": list(wilson(int(right.sum()), len(right))),
        "confusion": matrix.tolist(),
        "per_class": [_rate_class(matrix, label, name) for label, name in enumerate(classes)],
        "calibration": calibrate(confidence, right),
        "mistakes": [
            {
                "index": int(index),
                "target": int(targets[index]),
                "predicted": int(predicted[index]),
                "confidence": round(float(confidence[index]), 6),
            }
            for index in surest
        ],
    }


def _usual_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what every evaluation says, also where the run measures other things."""
    matrix = np.array(summary["confusion"])
    parts = [part for part in summary["calibration"] if part["count"]]
    distance = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in parts)
    return {"accuracy": float(np.trace(matrix) / matrix.sum()), "calibration_error": float(distance / matrix.sum())}


def calibrate(confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"]) -> list[dict[str, Any]]:
    """Return, for equal parts of the probability scale, the mean confidence and the accuracy of the images in it."""
    edges = np.linspace(0, 1, BINS + 1)
    part_of_image = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    parts = []
    for number in range(BINS):
        inside = part_of_image == number
        count = int(inside.sum())
        parts.append(
            {
                "low": round(float(edges[number]), 6),
                "high": round(float(edges[number + 1]), 6),
                "count": count,
                "confidence": float(confidence[inside].mean(dtype=float)) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return parts


def _rate_class(matrix: np.ndarray, label: int, name: str) -> dict[str, Any]:
    hits, count, guesses = (int(value) for value in (matrix[label, label], matrix[label].sum(), matrix[:, label].sum()))
    return {
        "class": name,
        "count": count,
        "precision": hits / guesses if guesses else None,
        "recall": hits / count if count else None,
        "f1": 2 * hits / (count + guesses) if count + guesses else None,
    }


def _digest(images: DataModule, split: Split) -> str:
    """Return the digest of a split's images and their labels."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in images.batches(split):
        digest.update(batch.images.permute(0, 2, 3, 1).contiguous().numpy().data)
    digest.update(images.labels(split).numpy().data)
    return digest.hexdigest()


def _stem(state: Restored, split: Split, tta: TTA, precision: str, data: tuple[str, str] | None) -> Path:
    """Return the path of an evaluation's files without their endings: a name for each thing that can be evaluated.

    Args:
        state: The network.
        split: Which images.
        tta: Test-time augmentation.
        precision: What it was computed in.
        data: Name and digest of another file, None for the run's.
    """
    parts = ["evaluation"]
    if state.members:
        paths = "\n".join(str(path.absolute()) for path in state.members)
        parts += [f"ensemble{len(state.members)}", hashlib.sha256(paths.encode()).hexdigest()[:6]]
    if state.record is None:
        parts.insert(0, state.checkpoint.stem)
    elif state.checkpoint.stem != "best":
        parts.append(state.checkpoint.stem)
    if split != "test":
        parts.append(split)
    if tta != tta_of(state):
        parts.append(tta if tta != "none" else "plain")
    if precision != precision_of(state.config):
        parts.append(precision)
    if data is not None:
        name, digest = data
        parts += [name, digest[:6]]
    folder = state.record.folder if state.record else state.checkpoint.parent
    return folder / "-".join(parts)


def _with_progress(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Yield the batches, with a progress bar where there is a terminal."""
    if not sys.stderr.isatty():
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, "Evaluating", console=Console(stderr=True), transient=True)
