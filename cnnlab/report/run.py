"""The page about a run and what it answers to its test images."""

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab.answers import FIRST_IMAGES, SURE_MISTAKES, read_evaluation
from cnnlab.checkpoint import read_steps
from cnnlab.errors import CnnlabError, ConfigError, UnsafeError
from cnnlab.files import look_up, read_bytes, write_text
from cnnlab.record import Record, check_links, find_run, is_run, program, typed
from cnnlab.report.chart import Chart, Line, draw
from cnnlab.report.page import Page, embed, render
from cnnlab.run import importing
from cnnlab.wording import channels_note, count, format_duration, format_metric, shorten_all

FILTERS = 64
CONFUSIONS = 20
NAME = 24  # letters of a class's name, where there are many of them
# More classes than this are no table of counts to read: the matrix becomes a picture with names, and the commonest
# confusions a list.
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
    status = record.status
    page = render(
        "run.html",
        kind="Report of a run",
        title=_title(record, content),
        subtitle=f"{record.folder.absolute().name}, started {_when(record)}",
        badge={"word": status, "style": _BADGES.get(status, "plain")} if status else None,
        sections={
            "Result": _result(record, content, missing),
            "Curves": _curves(record, content.get("steps")),
            **sections,
            "What ran": _settings(record, content),
            "The same again": command(record),
            "Throughput": _throughput(record, content),
            "Environment": _environment(record),
            "Config": read_bytes(record.folder / ".hydra" / "config.yaml").decode(errors="replace"),
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
    """Return the evaluation, the sections about it, or why these are missing; it is made where there is none."""
    checkpoint = next((path for path in (record.best, record.last) if path.is_file()), None)
    if checkpoint is None:
        return {}, {}, None
    evaluation = read_evaluation(record, checkpoint) if data is None else None
    if evaluation is None:
        with importing():
            from cnnlab.anatomy import read_filters
            from cnnlab.evaluation import evaluate
            from cnnlab.restore import restore
        try:
            evaluation = evaluate(str(record.folder), data=data, figures=False, trusted=trusted)
        except UnsafeError:
            raise
        except CnnlabError as error:
            sections = {}
            with suppress(CnnlabError):  # the network may be there without its data
                sections = {"Learned filters": _filters(*read_filters(restore(str(record.folder), trusted).network))}
            return {}, sections, str(error)
    content, arrays = evaluation.content, evaluation.arrays
    height, width, channels = content["shown"]["image_shape"]
    note = channels_note(channels)
    names = shorten_all(content["classes"], NAME)
    numbers = range(min(FIRST_IMAGES, content["count"]))
    first = [(number, evaluation.predicted[number], evaluation.targets[number], None) for number in numbers]
    mistakes = [(*(entry[key] for key in ("index", "predicted", "target", "confidence")),)
                for entry in content["mistakes"][:SURE_MISTAKES]]  # fmt: skip
    drawn = [_answer(pixels, names, *answer) for pixels, answer in zip(arrays["images"], first + mistakes, strict=True)]
    sections = {
        "Mistakes": {"images": drawn[len(first) :], "note": note},
        "Classes": _classes(content["per_class"]),
        "Confusion matrix": _matrix(np.array(content["confusion"]), content["classes"]),
        "Calibration": _calibration(content),
        "First test images": {"images": drawn[: len(first)], "note": note},
        "Learned filters": _filters(content["shown"]["layer"], arrays["filters"]),
    }
    counts = ", ".join(
        f"{content['shown']['counts'].get(split, 0):,} for {word}"
        for split, word in (("train", "training"), ("val", "validation"), ("test", "test"))
        if content["shown"]["counts"].get(split)
    )
    images = f"{counts}; {height} × {width} pixels, {count(channels, 'channel')}; {count(len(names), 'class')}"
    return content | {"images": images, "steps": arrays}, sections, None


def _title(record: Record, content: Mapping[str, Any]) -> str:
    """Return what the run is: network, data, result."""
    model = record.choices.get("model")
    if model in (None, "custom"):
        model = str(look_up(record.config, "model", "_target_") or "a network").rpartition(".")[2]
    data = record.choices.get("data")
    if data in (None, "npz", "folder", "dataset"):
        data = Path(str(look_up(record.config, "data", "path") or "unknown data")).stem
    accuracy = content["metrics"]["accuracy"] if content else record.metrics.get("test/accuracy")
    result = f": {format_metric('accuracy', accuracy)} of the test images right" if accuracy is not None else ""
    return f"{model} on {data}{result}"


def _when(record: Record) -> str:
    started = record.run.get("started")
    return str(started).replace("T", " ") if started else "at an unknown time"


def _result(record: Record, content: Mapping[str, Any], missing: str | None) -> dict[str, Any]:
    """Return the answer in sentences, and the result at a glance."""
    metrics, tiles, best = record.metrics, [], best_of(record)
    if content:
        measured = {f"test/{name}": value for name, value in content["metrics"].items()}
    else:
        measured = {name: value for name, value in metrics.items() if name.startswith("test/") and value is not None}
    tiles += [(_spoken(name), format_metric(name, value)) for name, value in measured.items()]
    for name in ("val/accuracy", "val/loss"):
        if metrics.get(name) is not None:
            tiles.append((_spoken(name), format_metric(name, metrics[name])))
    if best:
        tiles.append((f"best epoch, of {len(record.history)}", f"{best['epoch'] + 1}"))
    run = record.run
    if "seconds" in run:
        tiles.append((f"whole run, {count(len(record.history), 'epoch')}", format_duration(run["seconds"])))
    if run.get("num_parameters") is not None:
        tiles.append(("parameters", f"{run['num_parameters']:,}"))
    problem = note = None
    if missing:
        problem = f"Not evaluated: {missing}"
    elif record.status == "failed" and run.get("error"):
        problem = f"Failed: {run['error']}"
    elif not record.best.is_file() and not record.last.is_file():
        note = "There is no checkpoint, and so nothing to evaluate."
    return {"answer": _answer_in_words(content, best), "tiles": tiles, "problem": problem, "note": note}


def _answer_in_words(content: Mapping[str, Any], best: Mapping[str, Any] | None) -> list[str]:
    """Say how good the network is, how sure that is, and what it gets wrong most."""
    if not content:
        return []
    low, high = (format_metric("accuracy", end) for end in content["accuracy_interval"])
    accuracy = format_metric("accuracy", content["metrics"]["accuracy"])
    sentences = [
        f"Right on {accuracy} of {content['count']:,} test images; other images like these would give "
        f"{low} to {high} (95% interval)."
    ]
    # Isolated, so that a name written from right to left leaves the sentence as it is.
    matrix, classes = np.array(content["confusion"]), [f"\u2068{name}\u2069" for name in content["classes"]]
    commonest = _confusions(matrix)[:1]
    for target, guess in commonest:
        sentences.append(
            f"The commonest mistake: {classes[target]} taken for {classes[guess]}, {matrix[target, guess]:,} of "
            f"{count(int(matrix[target].sum()), 'image')}."
        )
    worst = _classes(content["per_class"])["worst"][:1]
    if commonest and worst[0]["f1"] is not None:
        sentences.append(
            f"The weakest class: \u2068{worst[0]['class']}\u2069, F1 {format_metric('f1', worst[0]['f1'])}."
        )
    if best:
        metric, value = str(best.get("metric")), best.get("value")
        has_value = isinstance(value, int | float)
        why = f"the best by {metric} ({format_metric(metric, value)})" if has_value else "the last one"
        sentences.append(f"The state that was kept is that of epoch {best['epoch'] + 1}, {why}.")
    return sentences


def best_of(record: Record) -> Mapping[str, Any] | None:
    """Return which state of a run was kept: `epoch` (from 0), `metric`, `value`; None where its record lacks it."""
    best = record.run.get("best")
    return best if best and isinstance(best.get("epoch"), int) else None


def _settings(record: Record, content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    config = record.config

    def part(name: str, *keys: str) -> str | None:
        node = config.get(name)
        if not isinstance(node, Mapping):
            return None
        settings = ", ".join(f"{key} {node[key]}" for key in keys if node.get(key) is not None)
        return f"{str(node.get('_target_', '')).rpartition('.')[2]}{', ' * bool(settings)}{settings}"

    augment = config.get("augment")
    names = [name for name, node in augment.items() if node is not None] if isinstance(augment, Mapping) else []
    return [
        ("Data", look_up(config, "data", "path")),
        ("Images", content.get("images")),
        ("Network", part("model", "channels", "blocks", "kernel_size", "hidden", "dropout")),
        ("Optimizer", part("optimizer", "lr", "momentum", "weight_decay")),
        ("Schedule", part("schedule", "warmup", "every", "milestones", "gamma", "end_factor")),
        ("Augmentation", ", ".join(map(str, names)) or "none"),
        ("Batch size", look_up(config, "data", "batch_size")),
        ("Epochs", None if config.get("budget") else look_up(config, "trainer", "max_epochs")),
        ("Budget", config.get("budget")),
        ("Held out", look_up(config, "data", "val_size")),
        ("Seed", config.get("seed")),
        ("Best by", look_up(config, "objective", "metric")),
        ("Tags", ", ".join(record.run.get("tags", [])) or None),
        ("Note", record.run.get("note")),
        ("Command", record.run.get("command")),
    ]


def _curves(record: Record, recorded: Mapping[str, np.ndarray] | None) -> list[Chart]:
    epochs = epochs_of(record)
    best = best_of(record)
    mark = (float(best["epoch"] + 1), f"best: epoch {best['epoch'] + 1}") if best and epochs else None
    charts = [
        draw(
            metric.capitalize(),
            [
                Line("training", epochs, record.column(f"train/{metric}")),
                Line("validation", epochs, record.column(f"val/{metric}"), "b"),
            ],
            "epoch",
            percent=metric == "accuracy",
            y_range=(0, 1) if metric == "accuracy" else None,
            mark=mark,
        )
        for metric in ("loss", "accuracy")
    ]
    recorded = read_steps(record) if recorded is None else recorded
    losses, rates = recorded["losses"], recorded["lrs"]
    if len(losses):
        steps, extremes, places, means = _condense(losses)
        curves = [Line("each step", steps, extremes, "pale"), Line("mean", places, means)]
        if len(means) == len(losses):  # each is its own mean
            curves = [Line("each step", places, means)]
        charts.append(draw("Training loss by step", curves, "step"))
    if len(rates):
        steps, extremes, _, _ = _condense(rates)
        charts.append(draw("Learning rate by step", [Line("lr", steps, extremes, dots=False)], "step"))
    else:
        charts.append(draw("Learning rate, at each epoch's end", [Line("lr", epochs, record.column("lr"))], "epoch"))
    return [chart for chart in charts if chart]


def _condense(values: np.ndarray) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return a long curve's smallest and largest values, part by part, and each part's mean; steps count from 1."""
    parts = np.array_split(values, min(len(values), POINTS // 2))
    starts = np.cumsum([1, *(len(part) for part in parts[:-1])]).astype(float)
    extremes = [value for part in parts for value in (float(part.min()), float(part.max()))]
    # Fewer means than parts: the curve is there to be smooth.
    pieces = np.array_split(values, min(len(values), 60))
    ends = np.cumsum([len(piece) for piece in pieces])
    middles = [float(end - (len(piece) - 1) / 2) for end, piece in zip(ends, pieces, strict=True)]
    return np.repeat(starts, 2).tolist(), extremes, middles, [float(piece.mean()) for piece in pieces]


def _confusions(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Return (true class, predicted class) of the mistakes, the commonest first."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")
    return [divmod(int(place), len(matrix)) for place in order[:CONFUSIONS] if wrong.flat[place]]


def _matrix(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    # The root of the share, as a good network's mistakes are a few per cent.
    shades = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    names = shorten_all(classes, NAME)
    if len(classes) <= MATRIX:
        cells = [
            [(number, f"{shade:.2f}") for number, shade in zip(*row, strict=True)]
            for row in zip(matrix.tolist(), shades.tolist(), strict=True)
        ]
        return {"rows": [{"name": name, "cells": row} for name, row in zip(names, cells, strict=True)]}
    # Blue that lets the page's ground through: light in the light, dark in the dark.
    image = np.zeros((*matrix.shape, 4), np.uint8)
    image[:, :, :3] = (40, 140, 205)
    image[:, :, 3] = np.rint(255 * shades)
    return {
        "image": _image(image, "Confusion matrix, rows are true classes"),
        "names": names,
        "step": max(9, min(13, 960 // len(classes))),  # pixels a class
        "scale": [(f"{share:.0%}", f"{math.sqrt(share):.2f}") for share in (0, 0.01, 0.05, 0.2, 0.5, 1)],
        "confusions": [
            (classes[target], classes[guess], f"{matrix[target, guess]:,} of {matrix[target].sum():,}")
            for target, guess in _confusions(matrix)
        ],
    }


def _classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the classes, the worst first; those without anything to measure last."""
    ordered = sorted(rows, key=lambda row: math.inf if row["f1"] is None else row["f1"])
    return {"worst": ordered[:MATRIX], "others": ordered[MATRIX:]}


def _calibration(content: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part for part in content["calibration"] if part["count"]]
    measured = Line("network", [100 * part["confidence"] for part in parts], [part["accuracy"] for part in parts])
    edges = [100 * edge for part in content["calibration"] for edge in (part["low"], part["high"])]
    counts = [part["count"] for part in content["calibration"] for _ in range(2)]
    x = "probability of the predicted class, per cent"
    charts = [
        draw(
            "Accuracy by confidence", [Line("ideal", [0, 100], [0, 1], "b", dots=False), measured], x,
            percent=True, y_range=(0, 1),
        ),
        draw("Images by confidence", [Line("images", edges, counts, dots=False)], x),
    ]  # fmt: skip
    error = format_metric("calibration_error", content["metrics"]["calibration_error"])
    return {"error": error, "charts": [chart for chart in charts if chart]}


def _answer(
    pixels: np.ndarray, names: Sequence[str], index: int, guess: int, target: int, sure: float | None
) -> dict[str, Any]:
    """Return a test image with the network's answer."""
    return {
        **_image(pixels, f"test image {index}"),
        "guess": names[guess],
        "target": names[target],
        "sure": None if sure is None else f"{sure:.1%}",
    }


def _filters(layer: str | None, weights: np.ndarray) -> dict[str, Any]:
    """Return a convolution's filters as images, each scaled by itself; in colour where they read colours."""
    if not len(weights):
        return {}
    first = weights[:FILTERS]
    scaled = np.rint(255 * (0.5 + first / np.maximum(np.abs(first).max((1, 2, 3), keepdims=True), 1e-12) / 2))
    planes = scaled if weights.shape[1] in (1, 3) else scaled[:, :1]
    note = "" if weights.shape[1] in (1, 3) else ", of which the first channel is shown"
    size = " × ".join(map(str, weights.shape[2:]))
    number, channels = count(len(weights), "filter"), count(weights.shape[1], "channel")
    return {
        "caption": f"{layer}: {number} of {size} over {channels}{note}; grey is zero.",
        "images": [
            _image(plane.transpose(1, 2, 0).astype(np.uint8), f"filter {index}") for index, plane in enumerate(planes)
        ],
    }


def _image(pixels: np.ndarray, alternative: str) -> dict[str, Any]:
    return {"source": embed(pixels), "alternative": alternative}


def _throughput(record: Record, content: Mapping[str, Any]) -> dict[str, Any]:
    speeds, seconds = record.column("images_per_second"), record.column("train_seconds")
    finite = [speed for speed in speeds if math.isfinite(speed)]
    facts = []
    if finite:
        facts.append(
            ("Training", f"{statistics.median(finite):,.0f} images/s, median of {count(len(finite), 'epoch')}")
        )
        facts.append(("In all", f"{format_duration(sum(filter(math.isfinite, seconds)))} of training"))
    if content:
        facts.append(("Evaluation", f"{content['images_per_second']:,.0f} images/s on {content['device']}"))
    chart = draw("Training images per second", [Line("images/s", epochs_of(record), speeds)], "epoch")
    return {"facts": facts, "charts": [chart]} if chart else {"facts": facts, "charts": []} if facts else {}


def _environment(record: Record) -> list[tuple[str, Any]]:
    run = record.run
    git = run.get("git")
    commit = f"{git['commit']}{', with changes' if git['dirty'] else ''}" if git else None
    rows = [("Device", run.get("device")), ("Precision", run.get("precision")), ("Commit", commit)]
    return [*rows, *run.get("versions", {}).items()]


def epochs_of(record: Record) -> list[float]:
    """Return the epochs of a run's history as people count them, from 1; the file counts from 0."""
    return [epoch + 1 for epoch in record.column("epoch")]


def _spoken(name: str) -> str:
    """Return a metric's name as people say it."""
    split, _, metric = name.partition("/")
    split = {"val": "validation"}.get(split, split)
    return f"{split} {metric.replace('_', ' ').replace('f1', 'F1')}"
