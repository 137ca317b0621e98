"""What is probably wrong with the training images of some runs, by what networks say that did not train on them.

`examine` writes into a folder `suspects.csv`, which `data.exclude` takes, `suspects.png`, a contact sheet of the first
of them, and `doctor.json`:

| key | holds |
|---|---|
| `format` | 1: the version of this layout |
| `runs`, `count` | folders of the runs; how many training images were held out by one of them |
| `suspects` | images whose label is probably wrong, the surest first: `index` (row of the training array), `label`,
  `answer`, `label_probability`, `answer_probability` |
| `thresholds` | of each class: how sure the networks are of it on average, where it is the label |
| `confused` | pairs of classes that are taken for each other: `classes`, the `shares` of each, and `images` |
| `hopeless` | rows of images that no run has right, those that trained on them included |
| `duplicates` | test images that are nearly in the training array: `test`, `train`, their classes, `similarity` |
| `metrics`, `metrics_without_suspects` | of the images held out, all of them and without the suspects |
| `files`, `command` | what was written; what trains without the suspects |
"""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from cnnlab import plots
from cnnlab.batch import Batch
from cnnlab.config.lines import as_text
from cnnlab.data import DataModule
from cnnlab.errors import ConfigError
from cnnlab.evaluation import answer, fabric_of, tta_of
from cnnlab.files import csv_cell, finite, read_csv, write_bytes, write_json, write_text
from cnnlab.folds import HeldOut, answer_runs, hold_out, score
from cnnlab.record import program, typed, without
from cnnlab.restore import Restored, find_data_file, restore, restore_data

SHEET = 48
"""Images of the contact sheet."""
SIMILAR = 0.95
"""Correlation of two images from which on they count as nearly the same, see `find_duplicates`."""
CONFUSED = 0.01
"""Share of a class that must be taken for another, and the other way, to be named."""


class Diagnosis(NamedTuple):
    """Which labels are probably wrong.

    Attributes:
        order: Positions of all images, the most suspect first.
        num_suspects: How many of them are suspects.
        answers: The class that each image is rather of.
        thresholds: Of each class, the mean probability of it among the images with this label; NaN without images.
    """

    order: Int64[np.ndarray, "n"]
    num_suspects: int
    answers: Int64[np.ndarray, "n"]
    thresholds: Float[np.ndarray, "classes"]


def suspect(probabilities: Float[np.ndarray, "n classes"], labels: Int64[np.ndarray, "n"]) -> Diagnosis:
    """Find labels that are probably wrong, from probabilities by networks that did not train on the images.

    An image is counted for the likeliest class whose probability reaches that class' threshold; a suspect is counted
    for another class than its label's. Suspects come first, then the others, each by the probability of their labels.

    Source: Northcutt, Jiang & Chuang 2021, arXiv:1911.00068, equations 1 and 2; the order is by self-confidence.
    """
    count, num_classes = probabilities.shape
    each = np.arange(count)
    self_confidence = probabilities[each, labels]
    sums = np.bincount(labels, self_confidence, minlength=num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    thresholds = np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    confident = probabilities >= np.nan_to_num(thresholds, nan=np.inf) - 1e-6  # of rounding
    counted_for = np.where(confident, probabilities, -1.0).argmax(1)
    others = probabilities.copy()
    others[each, labels] = -1.0
    suspects = confident.any(1) & (counted_for != labels)
    answers = np.where(suspects, counted_for, others.argmax(1))
    order = np.lexsort((self_confidence, ~suspects))
    return Diagnosis(order, int(suspects.sum()), answers, thresholds)


def find_confusions(predicted: Int64[np.ndarray, "n"], labels: Int64[np.ndarray, "n"], num_classes: int) -> list[Any]:
    """Return pairs of classes that are taken for each other: (first, second, shares of each, images), worst first."""
    matrix = np.zeros((num_classes, num_classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    both = np.triu(np.minimum(shares, shares.T), 1)
    pairs = sorted(np.argwhere(both >= CONFUSED).tolist(), key=lambda pair: -both[pair[0], pair[1]])
    return [(i, j, (shares[i, j], shares[j, i]), int(matrix[i, j] + matrix[j, i])) for i, j in pairs]


def find_duplicates(data: DataModule) -> list[tuple[int, int, float]]:
    """Find test images that are nearly in the training array: (place in the test, row of the array, similarity).

    Candidates are nearest neighbours of 8 × 8 pixels; two images are nearly the same if at 32 × 32 pixels the
    correlation of their pixels, each channel less its mean, is at least `SIMILAR`. Moved, mirrored and cropped copies
    escape.
    """

    def tests(places: Int64[Tensor, "n"]) -> Tensor:
        return data.images("test", places)

    if not data.count("test"):
        return []
    rows = torch.cat([data.rows("train"), data.rows("val")])
    stored = _thumbnails(partial(take, data), rows, 8)
    pairs = []
    for chosen in torch.arange(data.count("test")).split(500):
        closeness, nearest = (_thumbnails(tests, chosen, 8) @ stored.T).max(1)
        close = closeness >= SIMILAR - 0.05  # noise that is gone at 8 pixels is not at 32
        chosen, originals = chosen[close], rows[nearest[close]]
        if len(chosen):
            products = _thumbnails(tests, chosen, 32) * _thumbnails(partial(take, data), originals, 32)
            pairs += list(zip(chosen.tolist(), originals.tolist(), products.sum(1).tolist(), strict=True))
    return sorted((pair for pair in pairs if pair[2] >= SIMILAR), key=lambda pair: -pair[2])


def take(data: DataModule, rows: Int64[Tensor, "n"]) -> Tensor:
    """Return images by their rows in the training array, whichever of them train and which validate.

    Raises:
        ConfigError: One does neither, as where runs of another division hold other images out.
    """
    present = torch.cat([data.rows("train"), data.rows("val")])
    if (absent := ~torch.isin(rows, present)).any():
        raise ConfigError(
            f"{data.path}: row {int(rows[absent][0])} of the training array neither trains nor validates in the first "
            "run: give runs with the same test images and the same data.exclude."
        )
    rows_in_order, order = present.sort()
    places, count = order[torch.searchsorted(rows_in_order, rows)], data.count("train")
    trains = places < count
    first, second = data.images("train", places[trains]), data.images("val", places[~trains] - count)
    images = first.new_empty((len(rows), *first.shape[1:]))
    images[trains], images[~trains] = first, second
    return images


def _thumbnails(
    images_at: Callable[[Int64[Tensor, "n"]], Tensor], places: Int64[Tensor, "n"], side: int
) -> Float[Tensor, "n pixels"]:
    """Return images of at most `side` pixels as vectors of length 1, each channel less its mean."""
    vectors = []
    for part in places.split(2000):
        images = images_at(part).permute(0, 3, 1, 2).float()
        images = F.adaptive_avg_pool2d(images, (min(side, images.shape[2]), min(side, images.shape[3]))).flatten(2)
        vectors.append(F.normalize((images - images.mean(2, keepdim=True)).flatten(1), dim=1))
    return torch.cat(vectors)


def examine(
    names: Sequence[str], output: Path, *, accelerator: str = "auto", trusted: Sequence[str] = ()
) -> dict[str, Any]:
    """Examine the training images that some runs held out; return the content of `doctor.json`.

    Args:
        names: The runs: folders or checkpoints.
        output: The folder to write into.
        accelerator: In Lightning's words.
        trusted: Packages that may be imported although a run's folder names them.

    Raises:
        ConfigError: As `folds.hold_out` does.
        CheckpointError, DataError, UnsafeError, MachineError: As `evaluation.evaluate` does.
    """
    parts = list(answer_runs(names, ("val",), accelerator=accelerator, trusted=trusted))
    held_out, classes, metrics = hold_out(parts), parts[0].classes, parts[0].metrics
    probabilities, labels = held_out.logits.double().exp().numpy(), held_out.labels
    predicted = probabilities.argmax(1)
    wrong = predicted != labels
    diagnosis = suspect(probabilities, labels)
    sound = np.ones(len(labels), bool)
    sound[diagnosis.order[: diagnosis.num_suspects]] = False
    suspects = _list_suspects(held_out, probabilities, diagnosis, classes)
    state = restore(names[0], trusted)
    data = _whole_data(state, trusted)
    content: dict[str, Any] = finite({
        "format": 1,
        "runs": [str(part.folder) for part in parts],
        "count": len(labels),
        "suspects": suspects,
        "thresholds": dict(zip(classes, map(float, diagnosis.thresholds), strict=True)),
        "confused": [
            {"classes": [classes[first], classes[second]], "shares": list(shares), "images": images}
            for first, second, shares, images in find_confusions(predicted, labels, len(classes))
        ],
        "hopeless": _answered_wrong_by_all(names, data, held_out.rows[wrong], labels[wrong], accelerator, trusted),
        "duplicates": _list_duplicates(data, held_out, classes),
        "metrics": score(held_out.logits, labels, metrics),
        "metrics_without_suspects": score(held_out.logits, labels, metrics, sound),
        "files": [str(output / name) for name in ("doctor.json", "suspects.csv", "suspects.png")],
        "command": _command(state, output / "suspects.csv"),
    })  # fmt: skip
    exclude = state.config["data"].get("exclude")
    _write_suspects(
        output / "suspects.csv", suspects, None if exclude is None else find_data_file(Path(exclude), state)
    )
    _draw_suspects(output / "suspects.png", suspects[:SHEET], data)
    write_json(output / "doctor.json", content)
    return content


def _list_suspects(
    held_out: HeldOut, probabilities: Float[np.ndarray, "n classes"], diagnosis: Diagnosis, classes: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "index": int(held_out.rows[place]),
            "label": classes[held_out.labels[place]],
            "answer": classes[diagnosis.answers[place]],
            "label_probability": round(float(probabilities[place, held_out.labels[place]]), 6),
            "answer_probability": round(float(probabilities[place, diagnosis.answers[place]]), 6),
        }
        for place in diagnosis.order[: diagnosis.num_suspects]
    ]


def _whole_data(state: Restored, trusted: Sequence[str]) -> DataModule:
    """Return a run's images, with those of the training array that `data.train_size` left out."""
    config = state.config | {"data": state.config["data"] | {"train_size": None}}
    return restore_data(state._replace(config=config), trusted=trusted)


def _list_duplicates(data: DataModule, held_out: HeldOut, classes: Sequence[str]) -> list[dict[str, Any]]:
    tests = data.labels("test").tolist()
    names = dict(zip(held_out.rows.tolist(), (classes[label] for label in held_out.labels), strict=True))
    return [
        {
            "test": test, "train": row, "test_class": classes[tests[test]], "train_class": names.get(row),
            "similarity": round(similarity, 4),
        }
        for test, row, similarity in find_duplicates(data)
    ]  # fmt: skip


def _draw_suspects(path: Path, suspects: Sequence[dict[str, Any]], data: DataModule) -> None:
    titles = [
        f"{line['label']}\n✗ {line['answer']}\n{line['answer_probability']:.1%}, #{line['index']}" for line in suspects
    ]
    rows = torch.tensor([line["index"] for line in suspects], dtype=torch.int64)
    note = "Label; ✗ what the networks say; how sure they are, and the row of the training array"
    write_bytes(path, plots.to_png(plots.image_grid(data.displayable(take(data, rows)), titles, note=note)))


def _answered_wrong_by_all(
    names: Sequence[str],
    data: DataModule,
    rows: Int64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    accelerator: str,
    trusted: Sequence[str],
) -> list[int]:
    """Return those rows of the training array that no run has right, those that trained on them included."""
    for name in names:
        state = restore(name, trusted, exact=True)
        pairs = zip(torch.from_numpy(rows).split(1000), torch.from_numpy(labels).split(1000), strict=True)
        batches = [Batch(take(data, part).permute(0, 3, 1, 2), targets, part) for part, targets in pairs if len(part)]
        if not batches:
            break
        fabric = fabric_of(state, accelerator)
        answers = answer(state.network, batches, len(state.classes), metrics={}, fabric=fabric, tta=tta_of(state))
        still = (answers.predicted != answers.targets).numpy()
        rows, labels = rows[still], labels[still]
    return rows.tolist()


def _write_suspects(path: Path, suspects: Sequence[dict[str, Any]], before: Path | None) -> None:
    """Write the table that `data.exclude` takes, with the rows of the one that the runs left out."""
    columns = ["index", "split", "label", "answer", "label_probability", "answer_probability"]
    lines = [line | {"split": "train"} for line in suspects]
    lines += [] if before is None else [{**line, "split": line.get("split", "train")} for line in read_csv(before)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(line.get(column, "")) for column in columns] for line in lines)
    write_text(path, text.getvalue())


def _command(state: Restored, suspects: Path) -> str:
    """Return what trains a run's recipe on all images but the suspects."""
    overrides = state.record.overrides if state.record else []
    words = without(overrides, ("data.folds", "data.fold", "data.exclude", "resume", "reuse", "callbacks.prune"))
    return f"{program()} {typed([*words, f'data.exclude={as_text(str(suspects))}'])}"
