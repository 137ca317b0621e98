"""The page about a run, evaluated anew on its test images."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab import anatomy, evaluation
from cnnlab.checkpoint import read_checkpoint
from cnnlab.data import DataModule
from cnnlab.errors import CnnlabError, ConfigError, UnsafeError
from cnnlab.files import write_text
from cnnlab.record import Record, check_links, find_run, is_run, program, typed
from cnnlab.report.chart import Chart, Line, draw
from cnnlab.report.page import Page, embed, render
from cnnlab.restore import restore, restore_data

IMAGES = 10  # first test images
MISTAKES = 24
FILTERS = 64
# More classes than this are no table to read: the matrix becomes a picture, and the commonest confusions a list.
MATRIX = 20
POINTS = 400  # of the curve of every step
_BADGES = {"completed": "good", "failed": "bad", "interrupted": "bad"}


def report_run(
    name: str, output: Path | None = None, data: str | Path | None = None, trusted: Sequence[str] = ()
) -> Page:
    """Write a page about a run.

    Args:
        name: The run: its folder, which need not have a checkpoint yet, or what `record.find_run` takes.
        output: The file; by default `report.html` in the run's folder.
        data: The file with its images, where it is no longer where it was.
        trusted: Packages that the person at the keyboard vouches for, for networks that are none of cnnlab's.

    Raises:
        ConfigError: There is no such run, or its record is damaged.
        UnsafeError: It asks for code to be run; nothing is written.
        MachineError: The file could not be written.
    """
    folder = Path(name).expanduser()
    record = Record(folder) if name not in ("last", "best") and is_run(folder) else find_run(name).record
    if record is None:
        raise ConfigError(f"{name} stands alone: a report is about a run's folder.")
    check_links(record.folder)  # of a run without a checkpoint too
    content, sections, missing = _evaluate(record, data, trusted)
    page = render(
        "run.html",
        kind="Report of a run",
        title=record.folder.absolute().name,
        badge={"word": record.status, "style": _BADGES.get(record.status, "plain")} if record.status else None,
        sections={
            "Result": _result(record, content, missing),
            "What ran": _settings(record),
            "The same again": command(record),
            "Curves": _curves(record),
            **sections,
            "Throughput": _throughput(record, content),
            "Environment": _environment(record),
            "Config": (record.folder / ".hydra" / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        },
    )
    path = output or record.folder / "report.html"
    write_text(path, page)
    return Page(path, missing)


def command(record: Record) -> str:
    """Return the command that makes a run again, in a folder of its own."""
    lines = [line for line in record.overrides if not line.lstrip("+~").startswith(("hydra.run.dir", "hydra.sweep"))]
    return f"{program()} {typed(lines)}".rstrip()


def _evaluate(
    record: Record, data: str | Path | None, trusted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return the evaluation, the sections that need the network and its images, or why these are missing."""
    if not record.best.is_file() and not record.last.is_file():
        return {}, {}, None
    sections: dict[str, Any] = {}
    try:
        state = restore(str(record.folder), trusted)
        filters = _filters(*anatomy.read_filters(state.network))
        sections = {"Learned filters": filters}
        result = evaluation.evaluate(str(record.folder), data=data, figures=False, trusted=trusted)
        images = restore_data(state, data)
    except UnsafeError:
        raise
    except CnnlabError as error:
        return {}, sections, str(error)
    content = result.content
    first = [
        _answer(images, index, result.predicted[index], result.targets[index])
        for index in range(min(IMAGES, len(result.targets)))
    ]
    mistakes = [
        _answer(images, entry["index"], entry["predicted"], entry["target"], entry["confidence"])
        for entry in content["mistakes"][:MISTAKES]
    ]
    sections = {
        "Confusion matrix": _matrix(np.array(content["confusion"]), images.classes),
        "Classes": content["per_class"],
        "Calibration": _calibration(content),
        "Predictions": first,
        "Mistakes": {"images": mistakes},
        **sections,
    }
    return content, sections, None


def _result(record: Record, content: Mapping[str, Any], missing: str | None) -> dict[str, Any]:
    """Return the result at a glance."""
    metrics, tiles = record.metrics, []
    if content:
        low, high = content["accuracy_interval"]
        tested = content["metrics"]
        tiles.append(("test accuracy", f"{tested['accuracy']:.2%}"))
        tiles.append((f"its 95 % interval, {content['count']:,} images", f"{100 * low:.1f}–{high:.1%}"))
        tiles += [(f"test {_spoken(name)}", f"{tested[name]:.4f}") for name in tested if name != "accuracy"]
    else:
        tested = {name: value for name, value in metrics.items() if name.startswith("test/") and _is_finite(value)}
        tiles += [(_spoken(name), f"{value:.4f}") for name, value in tested.items()]
    for name in ("val/accuracy", "val/loss"):
        if _is_finite(metrics.get(name)):
            value = f"{metrics[name]:.2%}" if name.endswith("accuracy") else f"{metrics[name]:.4f}"
            tiles.append((f"validation {_spoken(name.partition('/')[2])}, best state", value))
    run = record.run
    if _is_finite(run.get("seconds")):
        tiles.append((f"whole run, {_epochs_in_words(len(record.history))}", _duration(run["seconds"])))
    if _is_finite(run.get("num_parameters")):
        tiles.append(("parameters", f"{run['num_parameters']:,}"))
    problem = note = None
    if missing:
        problem = f"Not evaluated: {missing}"
    elif record.status == "failed" and run.get("error"):
        problem = f"Failed: {run['error']}"
    elif not record.best.is_file() and not record.last.is_file():
        note = "There is no checkpoint, and so nothing to evaluate."
    return {"tiles": tiles, "problem": problem, "note": note}


def _settings(record: Record) -> list[tuple[str, Any]]:
    config = record.config

    def part(name: str, *keys: str) -> str | None:
        node = config.get(name)
        if not isinstance(node, Mapping):
            return None
        settings = ", ".join(f"{key} {node[key]}" for key in keys if node.get(key) is not None)
        return f"{str(node.get('_target_', '')).rpartition('.')[2]}{', ' * bool(settings)}{settings}"

    augment = config.get("augment")
    names = [name for name, node in augment.items() if node is not None] if isinstance(augment, Mapping) else []
    val_size = _get(config, "data", "val_size")
    held_out = f"{val_size:,} training images for validation" if _is_finite(val_size) else val_size
    return [
        ("Data", _get(config, "data", "path")),
        ("Network", part("model", "channels", "blocks", "kernel_size", "hidden", "dropout")),
        ("Optimizer", part("optimizer", "lr", "momentum", "weight_decay")),
        ("Schedule", part("schedule", "warmup", "every", "milestones", "gamma", "end_factor")),
        ("Augmentation", ", ".join(map(str, names)) or "none"),
        ("Batch size", _get(config, "data", "batch_size")),
        ("Epochs", _get(config, "trainer", "max_epochs")),
        ("Held out", held_out),
        ("Seed", config.get("seed")),
        ("Best by", _get(config, "objective", "metric")),
        ("Started", record.run.get("started")),
        ("Command", record.run.get("command")),
    ]


def _curves(record: Record) -> list[Chart]:
    rows = record.history
    epochs = epochs_of(record)

    def column(name: str) -> list[float]:
        return [as_number(row.get(name)) for row in rows]

    charts = [
        draw(
            metric.capitalize(),
            [
                Line("training", epochs, column(f"train/{metric}")),
                Line("validation", epochs, column(f"val/{metric}"), "b"),
            ],
            "epoch",
            percent=metric == "accuracy",
        )
        for metric in ("loss", "accuracy")
    ]
    losses = _losses(record)
    if len(losses):
        steps, extremes, places, means = _condense(losses)
        curves = [Line("each step", steps, extremes, "pale"), Line("mean", places, means)]
        charts.append(draw("Training loss of every step", curves, "step"))
    charts.append(draw("Learning rate, at each epoch's end", [Line("lr", epochs, column("lr"))], "epoch"))
    return [chart for chart in charts if chart]


def _losses(record: Record) -> np.ndarray:
    """Return the loss of every training step, from the last checkpoint."""
    try:
        losses = read_checkpoint(record.last)["callbacks"]["History"]["losses"]
        return np.asarray(losses, dtype=float).reshape(-1)
    except (CnnlabError, KeyError, TypeError, ValueError):
        return np.empty(0)


def _condense(values: np.ndarray) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return a long curve's smallest and largest values, part by part, and each part's mean."""
    parts = np.array_split(values, min(len(values), POINTS // 2))
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])]).astype(float)
    extremes = [value for part in parts for value in (float(part.min()), float(part.max()))]
    # Fewer means than parts: the curve is there to be smooth.
    pieces = np.array_split(values, min(len(values), 60))
    ends = np.cumsum([len(piece) for piece in pieces])
    middles = [float(end - len(piece) / 2) for end, piece in zip(ends, pieces, strict=True)]
    return np.repeat(starts, 2).tolist(), extremes, middles, [float(piece.mean()) for piece in pieces]


def _matrix(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    # The root of the share, as a good network's mistakes are a few per cent.
    shades = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    if len(classes) <= MATRIX:
        cells = [
            [(count, f"{shade:.2f}") for count, shade in zip(*row, strict=True)]
            for row in zip(matrix.tolist(), shades.tolist(), strict=True)
        ]
        return {"rows": [{"name": name, "cells": row} for name, row in zip(classes, cells, strict=True)]}
    # Blue that lets the page's ground through: light in the light, dark in the dark.
    image = np.zeros((*matrix.shape, 4), np.uint8)
    image[:, :, :3] = (40, 140, 205)
    image[:, :, 3] = np.rint(255 * shades)
    wrong = matrix * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    common = [divmod(int(place), len(classes)) for place in order if wrong.flat[place]]
    return {
        "image": _image(image, "Confusion matrix, rows are true classes"),
        "confusions": [(classes[true], classes[guess], f"{wrong[true, guess]:,}") for true, guess in common],
    }


def _calibration(content: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part for part in content["calibration"] if part["count"]]
    measured = Line("network", [part["confidence"] for part in parts], [part["accuracy"] for part in parts])
    edges = [edge for part in content["calibration"] for edge in (part["low"], part["high"])]
    counts = [part["count"] for part in content["calibration"] for _ in range(2)]
    x = "probability of the predicted class"
    charts = [
        draw(
            "Accuracy by confidence", [Line("ideal", [0, 1], [0, 1], "b", dots=False), measured], x,
            percent=True, y_range=(0, 1),
        ),
        draw("Images by confidence", [Line("images", edges, counts, dots=False)], x),
    ]  # fmt: skip
    return {"error": content["metrics"]["calibration_error"], "charts": [chart for chart in charts if chart]}


def _answer(images: DataModule, index: int, guess: int, target: int, sure: float | None = None) -> dict[str, Any]:
    """Return a test image with the network's answer."""
    return {
        **_image(images.pictures("test", slice(index, index + 1))[0], f"test image {index}"),
        "guess": images.classes[guess],
        "target": images.classes[target],
        "sure": None if sure is None else f"{sure:.1%}",
    }


def _filters(layer: str, weights: np.ndarray) -> dict[str, Any]:
    """Return a convolution's filters as images, each scaled by itself; in colour where they read colours."""
    first = weights[:FILTERS]
    scaled = np.rint(255 * (0.5 + first / np.maximum(np.abs(first).max((1, 2, 3), keepdims=True), 1e-12) / 2))
    planes = scaled if weights.shape[1] in (1, 3) else scaled[:, :1]
    note = "" if weights.shape[1] in (1, 3) else ", of which the first channel is shown"
    size = " × ".join(map(str, weights.shape[2:]))
    return {
        "caption": f"{layer}: {len(weights)} filters of {size} over {weights.shape[1]} channels{note}; grey is zero.",
        "images": [
            _image(plane.transpose(1, 2, 0).astype(np.uint8), f"filter {number}") for number, plane in enumerate(planes)
        ],
    }


def _image(pixels: np.ndarray, alternative: str) -> dict[str, Any]:
    return {"source": embed(pixels), "alternative": alternative}


def _throughput(record: Record, content: Mapping[str, Any]) -> dict[str, Any]:
    speeds = [as_number(row.get("images_per_second")) for row in record.history]
    seconds = [as_number(row.get("train_seconds")) for row in record.history]
    finite = [speed for speed in speeds if math.isfinite(speed)]
    facts = []
    if finite:
        facts.append(
            ("Training", f"{statistics.median(finite):,.0f} images/s, median of {_epochs_in_words(len(finite))}")
        )
        facts.append(("In all", f"{_duration(sum(filter(math.isfinite, seconds)))} of training"))
    if content:
        facts.append(("Evaluation", f"{content['images_per_second']:,.0f} images/s on {content['device']}"))
    chart = draw("Training images per second", [Line("images/s", epochs_of(record), speeds)], "epoch")
    return {"facts": facts, "charts": [chart]} if chart else {"facts": facts, "charts": []} if facts else {}


def _environment(record: Record) -> list[tuple[str, Any]]:
    run = record.run
    versions = run.get("versions")
    git = run.get("git")
    commit = f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}" if isinstance(git, Mapping) else None
    rows = [("Device", run.get("device")), ("Precision", run.get("precision")), ("Commit", commit)]
    return [*rows, *(versions.items() if isinstance(versions, Mapping) else ())]


def as_number(value: object) -> float:
    """Return a csv file's cell as a number, NaN where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def epochs_of(record: Record) -> list[float]:
    """Return the epochs of a run's history as people count them, from 1; the file counts from 0."""
    return [as_number(row.get("epoch")) + 1 for row in record.history]


def _get(config: Mapping[str, Any], section: str, key: str) -> Any:
    node = config.get(section)
    return node.get(key) if isinstance(node, Mapping) else None


def _epochs_in_words(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
