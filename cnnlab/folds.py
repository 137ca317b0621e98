"""Folds put together: what networks say of images that they did not train on, and as an ensemble on the test set.

`evaluate_folds` writes into the folder that holds the runs an `evaluation.json`:

| key | holds |
|---|---|
| `format` | 1: the version of this layout |
| `groups` | one for each recipe and seed of which there are folds: |
| `settings` | what tells the group from the others, as overrides |
| `folds` | how many |
| `out_of_fold` | each training image by the network that had held it out: `count`, `metrics`, `accuracy_interval` |
| `runs` | each fold's network on the test images: `fold`, `folder`, and the same; empty where there are none |
| `ensemble` | the mean of their probabilities on the test images: the same; null where there are none |

Metrics are those of the runs, computed over all images at once; intervals are Wilson's, of 95 %.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cnnlab.data.protocol import Split
from cnnlab.errors import ConfigError
from cnnlab.evaluation import Answers, answer, fabric_of, tta_of
from cnnlab.files import finite, look_up, write_json
from cnnlab.metrics import MetricBuilder, SplitMetrics
from cnnlab.record import Record, runs
from cnnlab.restore import mean_of_probabilities, restore, restore_data, restore_metrics
from cnnlab.stats import wilson

FOLD = "data.fold"


class RunAnswers(NamedTuple):
    """What one run's network says, and of which images.

    Attributes:
        folder: The run's folder.
        classes: The classes' names in label order.
        held_out: Rows of the training array that validated.
        trained: Rows of the training array that trained.
        labels: The labels that these were trained with.
        answers: By split; an empty split is left out.
        metrics: What builds the run's metrics.
    """

    folder: Path
    classes: tuple[str, ...]
    held_out: Int64[np.ndarray, "n"]
    trained: Int64[np.ndarray, "m"]
    labels: Int64[np.ndarray, "m"]
    answers: dict[Split, Answers]
    metrics: Mapping[str, MetricBuilder] | None


class HeldOut(NamedTuple):
    """What networks say of training images that they did not train on, an element an image.

    Attributes:
        rows: Where the images stand in the training array, ascending.
        logits: The logarithm of the mean of the probabilities that these networks give.
        times: How many networks these are.
        targets: Labels that they were validated with.
        labels: Labels that other networks were trained with, which differ where `data.label_noise` changed them.
    """

    rows: Int64[np.ndarray, "n"]
    logits: Float[Tensor, "n classes"]
    times: Int64[np.ndarray, "n"]
    targets: Int64[np.ndarray, "n"]
    labels: Int64[np.ndarray, "n"]


def find_folds(folder: Path) -> dict[tuple[str, ...], list[Record]]:
    """Return the completed runs in a folder and below it that held a fold out, by what else they were begun with.

    Raises:
        ConfigError: There is none; or one of the folds is missing, or is there twice.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in runs(folder):
        if record.status == "completed" and look_up(record.config, "data", "folds") is not None:
            others = tuple(sorted(line for line in record.overrides if not line.startswith(f"{FOLD}=")))
            groups.setdefault(others, []).append(record)
    if not groups:
        raise ConfigError(f"{folder} holds no completed run with data.folds; give the folder of one of its runs.")
    shared = set.intersection(*map(set, groups))
    for words, records in groups.items():
        records.sort(key=lambda record: record.config["data"]["fold"])
        folds, numbers = records[0].config["data"]["folds"], [record.config["data"]["fold"] for record in records]
        if numbers != list(range(folds)):
            what = " ".join(word for word in words if word not in shared)
            raise ConfigError(
                f"{folder}{f' ({what})' if what else ''} must hold each fold from 0 to {folds - 1} once, it holds "
                f"{', '.join(map(str, numbers))}: resume the sweep with resume={folder}."
            )
    return {tuple(word for word in words if word not in shared): records for words, records in groups.items()}


def answer_runs(
    names: Iterable[str | Path], splits: Sequence[Split], *, accelerator: str = "auto", trusted: Sequence[str] = ()
) -> Iterator[RunAnswers]:
    """Put splits through the network of one run after the other, each as its own test would."""
    for name in names:
        state = restore(str(name), trusted, exact=True)
        images = restore_data(state, trusted=trusted)
        metrics, fabric = restore_metrics(state, trusted), fabric_of(state, accelerator)
        answers = {
            split: answer(
                state.network, images.batches(split), images.num_classes, metrics=metrics, fabric=fabric,
                tta=tta_of(state),
            )
            for split in splits if images.count(split)
        }  # fmt: skip
        folder = state.record.folder if state.record else state.checkpoint
        held_out, trained = images.rows("val").numpy(), images.rows("train").numpy()
        yield RunAnswers(folder, state.classes, held_out, trained, images.labels("train").numpy(), answers, metrics)


def hold_out(parts: Sequence[RunAnswers]) -> HeldOut:
    """Gather what networks say of the images that each of them did not train on.

    Raises:
        ConfigError: The validation images are none of the training array's, or the runs have other images or labels.
    """
    size = 1 + max(int(rows.max(initial=-1)) for part in parts for rows in (part.held_out, part.trained))
    probabilities = torch.zeros(size, len(parts[0].classes), dtype=torch.float64)
    times, targets, labels = np.zeros(size, int), np.full(size, -1), np.full(size, -1)
    for part in parts:
        if "val" not in part.answers or np.intersect1d(part.held_out, part.trained).size:
            raise ConfigError(
                f"{part.folder} holds no images of its training array out: train with data.folds and data.fold."
            )
        validated = part.answers["val"]
        probabilities[part.held_out] += validated.logits.double().softmax(1)
        times[part.held_out] += 1
        pairs = (labels, part.trained, part.labels), (targets, part.held_out, validated.targets.numpy())
        for whole, rows, values in pairs:
            before = whole[rows]
            if part.classes != parts[0].classes or ((before >= 0) & (before != values)).any():
                raise ConfigError(f"{part.folder} and {parts[0].folder} are not about the same images and labels.")
            whole[rows] = values
    rows = np.flatnonzero(times)
    never_trained = labels[rows] < 0
    labels[rows[never_trained]] = targets[rows[never_trained]]
    logits = (probabilities[rows] / torch.from_numpy(times[rows, None])).log().float()
    return HeldOut(rows, logits, times[rows], targets[rows], labels[rows])


def score(
    logits: Float[Tensor, "n classes"],
    targets: Int64[np.ndarray, "n"],
    metrics: Mapping[str, MetricBuilder] | None,
    chosen: Bool[np.ndarray, "n"] | slice = slice(None),
) -> dict[str, Any]:
    """Return `count`, `metrics` and `accuracy_interval` of some answers."""
    logits, labels = logits[chosen], torch.from_numpy(targets[chosen])
    measured = SplitMetrics(logits.shape[1], builders=metrics)
    measured.update(logits, labels)
    right = int((logits.argmax(1) == labels).sum())
    return {
        "count": len(labels),
        "metrics": {name: float(value) for name, value in measured.compute().items()},
        "accuracy_interval": list(wilson(right, len(labels))),
    }


def evaluate_folds(
    folder: Path, *, accelerator: str = "auto", output: Path | None = None, trusted: Sequence[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """Evaluate the folds below a folder together, and write the result into it.

    Returns:
        The file, and its content.

    Raises:
        ConfigError: As `find_folds` and `hold_out` do; or an image was not held out exactly once.
        CheckpointError, DataError, UnsafeError, MachineError: As `evaluation.evaluate` does.
    """
    groups = []
    for settings, records in find_folds(folder).items():
        names = [record.folder for record in records]
        parts = list(answer_runs(names, ("val", "test"), accelerator=accelerator, trusted=trusted))
        everything = hold_out(parts)
        if (everything.times != 1).any() or np.setdiff1d(parts[0].trained, everything.rows).size:
            raise ConfigError(f"{folder}: each training image must be held out once; its folds are of other divisions.")
        metrics = parts[0].metrics
        tests = [part.answers["test"] for part in parts if "test" in part.answers]
        joint = mean_of_probabilities([test.logits for test in tests]) if tests else None
        groups.append(
            {
                "settings": list(settings),
                "folds": len(records),
                "out_of_fold": score(everything.logits, everything.targets, metrics),
                "runs": [
                    {"fold": fold, "folder": str(name), **score(test.logits, test.targets.numpy(), metrics)}
                    for fold, (name, test) in enumerate(zip(names, tests, strict=bool(tests)))
                ],
                "ensemble": None if joint is None else score(joint, tests[0].targets.numpy(), metrics),
            }
        )
    content = finite({"format": 1, "groups": groups})
    path = (output or folder) / "evaluation.json"
    write_json(path, content)
    return path, content
