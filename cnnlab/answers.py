"""An evaluation as it stands in a run's folder: read back without torch, and nothing in it is executed."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from cnnlab.errors import DamagedError
from cnnlab.files import look_up, read_json
from cnnlab.record import Record, precision_of

MOST_BYTES = 256 << 20  # of the arrays; those of a million images have a tenth of it
FIRST_IMAGES, SURE_MISTAKES = 10, 24  # of which the pictures are kept

_Class = TypedDict(
    "_Class", {"class": str, "count": int, "precision": float | None, "recall": float | None, "f1": float | None}
)


class _Part(TypedDict):
    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class _Mistake(TypedDict):
    index: int
    target: int
    predicted: int
    confidence: float


class _Shown(TypedDict):
    counts: dict[str, int]
    image_shape: list[int]
    layer: str | None


class Content(TypedDict):
    """What a page needs of `evaluation.json`; `cnnlab/evaluation.py` lists all of it."""

    data_digest: str
    count: int
    classes: list[str]
    metrics: dict[str, float]
    accuracy_interval: list[float]
    confusion: list[list[int]]
    per_class: list[_Class]
    calibration: list[_Part]
    mistakes: list[_Mistake]
    device: str
    images_per_second: float
    shown: _Shown


class Evaluation(NamedTuple):
    """An evaluation as it was written: its path, its content, and the arrays beside it."""

    path: Path
    content: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image."""
        return self.arrays["predicted"]

    @property
    def targets(self) -> np.ndarray:
        """The true class of each image."""
        return self.arrays["targets"]


def read_evaluation(record: Record, checkpoint: Path, split: str = "test") -> Evaluation | None:
    """Return the evaluation of a run's present state, with the settings of its own test; None if there is none.

    Args:
        record: The run.
        checkpoint: The state: its best one or its last.
        split: Which images.
    """
    state = [] if checkpoint == record.best else [checkpoint.stem]
    path = record.folder / f"{'-'.join(['evaluation', *state, *([] if split == 'test' else [split])])}.json"
    try:
        content = read_json(path, Content)
        if not content or not _is_current(content, path, record, split):
            return None
        with zipfile.ZipFile(path.with_suffix(".npz")) as file:
            if sum(member.file_size for member in file.infolist()) > MOST_BYTES:
                return None
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            evaluation = Evaluation(path, content, dict(file))
        return evaluation if _is_whole(evaluation) else None
    except (DamagedError, OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # damaged, half copied, or of an earlier version: it is made again


def _is_current(content: Mapping[str, Any], path: Path, record: Record, split: str) -> bool:
    tta = look_up(record.config, "eval", "tta") or "none"
    expected = {"format": 1, "split": split, "tta": tta, "precision": precision_of(record.config)}
    sources = (record.best, record.last, Path(str(content.get("data"))))
    return all(content.get(name) == value for name, value in expected.items()) and all(
        path.stat().st_mtime_ns >= place.stat().st_mtime_ns for place in sources if place.is_file()
    )


def _is_whole(evaluation: Evaluation) -> bool:
    """Whether an evaluation's parts fit each other."""
    content, arrays, num_classes = evaluation.content, evaluation.arrays, len(evaluation.content["classes"])
    labels = [*evaluation.predicted, *evaluation.targets]
    labels += [mistake[name] for mistake in content["mistakes"] for name in ("predicted", "target")]
    images = min(FIRST_IMAGES, content["count"]) + min(SURE_MISTAKES, len(content["mistakes"]))
    return (
        evaluation.predicted.shape == evaluation.targets.shape == (content["count"],)
        and np.shape(content["confusion"]) == (num_classes, num_classes)
        and len(content["per_class"]) == num_classes and len(content["accuracy_interval"]) == 2
        and {"accuracy", "calibration_error"} <= content["metrics"].keys()
        and len(content["shown"]["image_shape"]) == 3
        and min(labels, default=0) >= 0 and max(labels, default=0) < num_classes
        and arrays["images"].ndim == 4 and arrays["images"].dtype == np.uint8
        and len(arrays["images"]) == images and arrays["images"].shape[3] in (1, 3)
        and arrays["filters"].ndim == 4 and arrays["losses"].ndim == 1 and arrays["lrs"].ndim == 1
    )  # fmt: skip
