"""One HTML file about a run, or about a sweep; what stands in a folder is text and numbers, whoever wrote it."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnlab import anatomy, build, evaluation
from cnnlab.callbacks.checkpoint import read_checkpoint
from cnnlab.chart import Line, lines, side_by_side
from cnnlab.data import ImageData
from cnnlab.errors import CnnlabError, ConfigError, UnsafeError
from cnnlab.files import read_json, write_text
from cnnlab.page import (
    Html,
    code,
    document,
    facts,
    gallery,
    joined,
    picture,
    png,
    section,
    table,
    tag,
    text,
)  # fmt: skip
from cnnlab.record import Record, check_links, find, is_run, program, typed

IMAGES = 10  # first test images
MISTAKES = 24
# More classes than this are no table to read: the matrix becomes a picture, and the commonest confusions a list.
MATRIX = 20
POINTS = 400  # of the curve of every step
_BADGES = {"completed": "good", "failed": "bad", "interrupted": "bad"}


class Report(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        missing: Why the run could not be evaluated; None if it was, or has no checkpoint.
    """

    path: Path
    missing: str | None


def of_run(
    named: str, output: Path | None = None, data: str | Path | None = None, trusted: Sequence[str] = ()
) -> Report:
    """Write a page about a run, evaluated anew on its test images.

    Args:
        named: The run: its folder, which need not have a checkpoint yet, or what `record.find` takes.
        output: The file; by default `report.html` in the run's folder.
        data: The file with its images, where it is no longer where it was.
        trusted: Packages that the person at the keyboard vouches for, for networks that are none of cnnlab's.

    Raises:
        ConfigError: There is no such run, or its record is damaged.
        UnsafeError: It asks for code to be run; nothing is written.
        MachineError: The file could not be written.
    """
    folder = Path(named).expanduser()
    record = Record(folder) if named not in ("last", "best") and is_run(folder) else find(named).record
    if record is None:
        raise ConfigError(f"{named} stands alone: a report is about a run's folder.")
    check_links(record.folder)  # of a run without a checkpoint too
    parts, missing = _evaluated(record, data, trusted)
    title = record.folder.absolute().name
    page = document(
        title,
        "Report of a run",
        (record.status, _BADGES.get(record.status, "plain")) if record.status else None,
        section("Result", _numbers(record, parts.get("content")), _why(record, missing)),
        section("What ran", _what(record)),
        section("The same again", code(command(record))),
        section("Curves", _curves(record)),
        *parts.get("sections", ()),
        section("Throughput", _throughput(record, parts.get("content"))),
        section("Environment", _environment(record)),
        section("Config", _config(record)),
    )
    path = output or record.folder / "report.html"
    write_text(path, page)
    return Report(path, missing)


def of_sweep(folder: Path, output: Path | None = None) -> Report:
    """Write a page about a sweep, from its `sweep.json`, its trials' histories and its pictures.

    Args:
        folder: The sweep's.
        output: The file; by default `report.html` in it.

    Raises:
        ConfigError: `sweep.json` is missing or damaged.
        MachineError: The file could not be written.
    """
    told = read_json(folder / "sweep.json")
    trials, groups = told.get("trials"), told.get("groups")
    if not isinstance(trials, list) or not isinstance(groups, list):
        raise ConfigError(f"{folder}/sweep.json must hold a sweep's trials and groups: it is missing or damaged.")
    counts = ", ".join(f"{count} {status}" for status, count in told["counts"].items())
    metric = told["objective"]["metric"]
    keys = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    page = document(
        folder.absolute().name,
        "Report of a sweep",
        (counts, "good" if set(told["counts"]) <= {"completed", "pruned"} else "bad"),
        section("Best", _best(told, metric)),
        section("The best again", code(told["winner"]) if told.get("winner") else None),
        section("Over seeds", _groups(groups, metric) if any(group["n"] > 1 for group in groups) else None),
        section("Trials", _trials(trials, keys, metric)),
        section("Curves", _trial_curves(folder, trials, metric)),
        section("Pictures", _pictures(folder)),
        section("What ran", code(told["command"])),
    )
    path = output or folder / "report.html"
    write_text(path, page)
    return Report(path, None)


def command(record: Record) -> str:
    """Return the command that makes a run again, in a folder of its own."""
    lines = [line for line in record.overrides if not line.lstrip("+~").startswith(("hydra.run.dir", "hydra.sweep"))]
    return f"{program()} {typed(lines)}".rstrip()


def _evaluated(record: Record, data: str | Path | None, trusted: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Return the sections that need the network and its images; or why there are none."""
    if not record.best.is_file() and not record.last.is_file():
        return {}, None
    parts: dict[str, Any] = {}
    try:
        state = build.restored(str(record.folder), trusted)
        filters = section("Learned filters", _filters(*anatomy.filters(state.network)))
        parts["sections"] = [filters]
        found = evaluation.evaluate(str(record.folder), data=data, figures=False, trusted=trusted)
        images = build.data_of(state, data)
    except UnsafeError:
        raise
    except CnnlabError as error:
        return parts, str(error)
    content = found.content
    sections = [
        section("Confusion matrix", *_matrix(np.array(content["confusion"]), images.classes)),
        section("Classes", _classes(content["per_class"])),
        section("Calibration", *_calibration(content)),
        section("Predictions", _predictions(found, images)),
        section("Mistakes", *_mistakes(content["mistakes"], images)),
        filters,
    ]
    return {"content": content, "sections": sections}, None


def _numbers(record: Record, content: Mapping[str, Any] | None) -> Html:
    """Return the result at a glance."""
    metrics, tiles = record.metrics, []
    if content:
        low, high = content["accuracy_interval"]
        tested = content["metrics"]
        tiles.append((f"{tested['accuracy']:.2%}", "test accuracy"))
        tiles.append((f"{100 * low:.1f}–{high:.1%}", f"its 95 % interval, {content['count']:,} images"))
        tiles += [(f"{tested[name]:.4f}", f"test {_said(name)}") for name in tested if name != "accuracy"]
    else:
        tested = {name: value for name, value in metrics.items() if name.startswith("test/") and _finite(value)}
        tiles += [(f"{value:.4f}", _said(name)) for name, value in tested.items()]
    for name in ("val/accuracy", "val/loss"):
        if _finite(metrics.get(name)):
            shown = f"{metrics[name]:.2%}" if name.endswith("accuracy") else f"{metrics[name]:.4f}"
            tiles.append((shown, f"validation {_said(name.partition('/')[2])}, best state"))
    run = record.run
    if _finite(run.get("seconds")):
        tiles.append((_duration(run["seconds"]), f"whole run, {_counted(len(record.history))}"))
    if _finite(run.get("num_parameters")):
        tiles.append((f"{run['num_parameters']:,}", "parameters"))
    return tag("div", *(tag("div", tag("strong", value), tag("span", name)) for value, name in tiles), class_="numbers")


def _why(record: Record, missing: str | None) -> Html | None:
    if missing:
        return tag("p", "Not evaluated: ", missing, class_="bad")
    if record.status == "failed" and record.run.get("error"):
        return tag("p", "Failed: ", record.run["error"], class_="bad")
    if not record.best.is_file() and not record.last.is_file():
        return tag("p", "There is no checkpoint, and so nothing to evaluate.", class_="soft")
    return None


def _what(record: Record) -> Html:
    config = record.config

    def part(name: str, *keys: str) -> str | None:
        node = config.get(name)
        if not isinstance(node, Mapping):
            return None
        settings = ", ".join(f"{key} {node[key]}" for key in keys if node.get(key) is not None)
        return f"{str(node.get('_target_', '')).rpartition('.')[2]}{', ' * bool(settings)}{settings}"

    augment = config.get("augment")
    run = record.run
    names = [name for name, node in augment.items() if node is not None] if isinstance(augment, Mapping) else []
    return facts(
        [
            ("Data", _get(config, "data", "path")),
            ("Network", part("model", "channels", "blocks", "kernel_size", "hidden", "dropout")),
            ("Optimizer", part("optimizer", "lr", "momentum", "weight_decay")),
            ("Schedule", part("schedule", "warmup", "every", "milestones", "gamma", "end_factor")),
            ("Augmentation", ", ".join(map(str, names)) or "none"),
            ("Batch size", _get(config, "data", "batch_size")),
            ("Epochs", _get(config, "trainer", "max_epochs")),
            ("Held out", _held_out(config)),
            ("Seed", config.get("seed")),
            (
                "Best by",
                _get(config, "objective", "metric"),
            ),
            ("Started", run.get("started")),
            ("Command", tag("code", run["command"]) if run.get("command") else None),
        ]
    )


def _held_out(config: Mapping[str, Any]) -> str | None:
    size = _get(config, "data", "val_size")
    return None if size is None else f"{size:,} training images for validation" if _finite(size) else str(size)


def _curves(record: Record) -> Html:
    rows = record.history
    epochs = _epochs(record)

    def column(name: str) -> list[float]:
        return [_number(row.get(name)) for row in rows]

    charts = [
        lines(
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
        steps, extremes, places, means = _condensed(losses)
        curves = [Line("each step", steps, extremes, "pale"), Line("mean", places, means)]
        charts.append(lines("Training loss of every step", curves, "step"))
    charts.append(lines("Learning rate, at each epoch's end", [Line("lr", epochs, column("lr"))], "epoch"))
    return side_by_side(*charts)


def _losses(record: Record) -> np.ndarray:
    """Return the loss of every training step, from the last checkpoint."""
    try:
        losses = read_checkpoint(record.last)["callbacks"]["History"]["losses"]
        return np.asarray(losses, dtype=float).reshape(-1)
    except (CnnlabError, KeyError, TypeError, ValueError):
        return np.empty(0)


def _condensed(values: np.ndarray) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return a long curve's smallest and largest values, part by part, and each part's mean."""
    parts = np.array_split(values, min(len(values), POINTS // 2))
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])]).astype(float)
    extremes = [value for part in parts for value in (float(part.min()), float(part.max()))]
    # Fewer means than parts: the curve is there to be smooth.
    pieces = np.array_split(values, min(len(values), 60))
    ends = np.cumsum([len(piece) for piece in pieces])
    middles = [float(end - len(piece) / 2) for end, piece in zip(ends, pieces, strict=True)]
    return np.repeat(starts, 2).tolist(), extremes, middles, [float(piece.mean()) for piece in pieces]


def _matrix(matrix: np.ndarray, classes: Sequence[str]) -> Iterator[Html]:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    yield tag("p", "A row for each true class: how many of its images were taken for what.", class_="soft")
    if len(classes) <= MATRIX:
        head = tag("tr", tag("td"), *(tag("th", tag("span", name), scope="col") for name in classes))
        body = [
            tag(
                "tr",
                tag("th", name, scope="row"),
                *(_cell(count, share) for count, share in zip(counts.tolist(), row.tolist(), strict=True)),
            )
            for name, counts, row in zip(classes, matrix, shares, strict=True)
        ]
        inner = tag("table", tag("thead", head), tag("tbody", *body), class_="matrix")
        yield tag("div", inner, class_="wide", tabindex="0")
        return
    # Blue that lets the page's ground through: light in the light, dark in the dark.
    image = np.zeros((*matrix.shape, 4), np.uint8)
    image[:, :, :3] = (40, 140, 205)
    image[:, :, 3] = np.rint(255 * np.sqrt(shares))
    yield tag("div", picture(image, "Confusion matrix, rows are true classes"), style="max-width: 34rem")
    wrong = matrix * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    common = [divmod(int(place), len(classes)) for place in order if wrong.flat[place]]
    rows = [(classes[true], classes[guess], f"{wrong[true, guess]:,}") for true, guess in common]
    yield table(("true class", "taken for", "images"), rows, words=2, caption="The commonest confusions")


def _cell(count: int, share: float) -> Html:
    if not count:
        return tag("td", 0, class_="none")
    # The root of the share, as a good network's mistakes are a few per cent.
    return tag("td", count, style=f"--share: {math.sqrt(share):.2f}")


def _classes(found: Sequence[Mapping[str, Any]]) -> Html:
    def share(value: float | None) -> object:
        if value is None:
            return "–"
        return joined([tag("span", tag("i", style=f"width: {value:.1%}"), class_="bar"), text(f"{value:.1%}")])

    rows = [
        (entry["class"], f"{entry['count']:,}", *(share(entry[name]) for name in ("precision", "recall", "f1")))
        for entry in found
    ]
    return table(("class", "images", "precision", "recall", "F1"), rows)


def _calibration(content: Mapping[str, Any]) -> Iterator[Html]:
    parts = [part for part in content["calibration"] if part["count"]]
    said = [part["confidence"] for part in parts]
    yield tag(
        "p",
        "How often the network is right where it is so sure. On the dashed line it knows itself; below it, it is too "
        f"sure. The mean distance, the calibration error, is {content['metrics']['calibration_error']:.3f}.",
        class_="soft",
    )
    right = lines(
        "Accuracy by confidence",
        [Line("ideal", [0, 1], [0, 1], "b", dots=False), Line("network", said, [part["accuracy"] for part in parts])],
        "probability of the predicted class",
        percent=True,
        y_range=(0, 1),
    )
    edges = [edge for part in content["calibration"] for edge in (part["low"], part["high"])]
    counts = [part["count"] for part in content["calibration"] for _ in range(2)]
    yield side_by_side(
        right,
        lines(
            "Images by confidence", [Line("images", edges, counts, dots=False)], "probability of the predicted class"
        ),
    )


def _predictions(found: evaluation.Evaluation, images: ImageData) -> Html:
    items = []
    for index in range(min(IMAGES, len(found.targets))):
        guess, target = images.classes[found.predicted[index]], images.classes[found.targets[index]]
        items.append((_test_image(images, index), _verdict(guess, target)))
    return gallery(items)


def _mistakes(found: Sequence[Mapping[str, Any]], images: ImageData) -> Iterator[Html]:
    if not found:
        yield tag("p", "None.")
        return
    yield tag("p", "Where the network was wrong and surest of itself.", class_="soft")
    items = []
    for entry in found[:MISTAKES]:
        guess, target = images.classes[entry["predicted"]], images.classes[entry["target"]]
        verdict = joined([_verdict(guess, target), tag("br"), text(f"{entry['confidence']:.1%} sure")])
        items.append((_test_image(images, entry["index"]), verdict))
    yield gallery(items)


def _verdict(guess: str, target: str) -> Html:
    if guess == target:
        return joined([tag("span", "✓ ", class_="good"), text(guess)])
    return joined([tag("span", "✗ ", class_="bad"), text(guess), tag("br"), text(f"is {target}")])


def _test_image(images: ImageData, index: int) -> Html:
    return picture(images.test_images[index].numpy(), f"test image {index}")


def _filters(layer: str, weights: np.ndarray) -> Html:
    """Return a gallery of a convolution's filters, each scaled by itself; in colour where they read colours."""
    shown = weights[:64]
    scaled = np.rint(255 * (0.5 + shown / np.maximum(np.abs(shown).max((1, 2, 3), keepdims=True), 1e-12) / 2))
    planes = scaled if weights.shape[1] in (1, 3) else scaled[:, :1]
    note = "" if weights.shape[1] in (1, 3) else ", of which the first channel is shown"
    size = " × ".join(map(str, weights.shape[2:]))
    title = f"{layer}: {len(weights)} filters of {size} over {weights.shape[1]} channels{note}; grey is zero."
    items = [
        (picture(plane.transpose(1, 2, 0).astype(np.uint8), f"filter {number}"), number)
        for number, plane in enumerate(planes)
    ]
    return joined([tag("p", title, class_="soft"), gallery(items, small=True)])


def _throughput(record: Record, content: Mapping[str, Any] | None) -> Html:
    speeds = [_number(row.get("images_per_second")) for row in record.history]
    seconds = [_number(row.get("train_seconds")) for row in record.history]
    known = [speed for speed in speeds if math.isfinite(speed)]
    rows = []
    if known:
        rows.append(("Training", f"{statistics.median(known):,.0f} images/s, median of {_counted(len(known))}"))
        rows.append(("In all", f"{_duration(sum(filter(math.isfinite, seconds)))} of training"))
    if content:
        rows.append(("Evaluation", f"{content['images_per_second']:,.0f} images/s on {content['device']}"))
    chart = lines("Training images per second", [Line("images/s", _epochs(record), speeds)], "epoch")
    return joined([facts(rows), side_by_side(chart)])


def _environment(record: Record) -> Html:
    run = record.run
    versions = run.get("versions")
    git = run.get("git")
    commit = f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}" if isinstance(git, Mapping) else None
    rows = [("Device", run.get("device")), ("Precision", run.get("precision")), ("Commit", commit)]
    return facts([*rows, *(versions.items() if isinstance(versions, Mapping) else ())])


def _config(record: Record) -> Html:
    content = (record.folder / ".hydra" / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return tag("details", tag("summary", "All settings"), code(content))


def _best(told: Mapping[str, Any], metric: str) -> Html:
    groups = told["groups"]
    if not groups:
        return tag("p", "No trial was completed.", class_="soft")
    best = groups[0]
    spread = f" ± {best['sd']:.4f}" if best.get("sd") is not None else ""
    tiles = [(f"{best['mean']:.4f}{spread}", f"{metric}, n = {best['n']}")]
    if best.get("test/accuracy") is not None:
        tiles.append((f"{best['test/accuracy']:.2%}", "test accuracy"))
    tiles += [(value, key) for key, value in best["settings"].items()]
    return tag("div", *(tag("div", tag("strong", value), tag("span", name)) for value, name in tiles), class_="numbers")


def _groups(groups: Sequence[Mapping[str, Any]], metric: str) -> Html:
    keys = list(dict.fromkeys(key for group in groups for key in group["settings"]))
    rows = [
        (
            *(group["settings"].get(key, "") for key in keys), group["n"], _shown(group["mean"]), _shown(group["sd"]),
            " to ".join(map(_shown, group["interval_95"])) if group["interval_95"] else "",
            _shown(group["test/accuracy"]),
        )
        for group in groups
    ]  # fmt: skip
    return table((*keys, "n", f"{metric}, mean", "sd", "95 % interval", "test/accuracy"), rows, words=len(keys))


def _trials(trials: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> Html:
    rows = [
        (
            trial["name"],
            *(trial["settings"].get(key, "") for key in keys),
            f"{trial['status']}: {trial['error']}" if trial.get("error") else trial["status"],
            _shown(trial["objective"]),
            _shown(trial["metrics"].get("test/accuracy")),
            trial["epochs"],
            f"{trial['seconds']:.0f}",
        )
        for trial in trials
    ]
    header = ("trial", *keys, "status", metric, "test/accuracy", "epochs", "seconds")
    return table(header, rows, words=len(keys) + 2)


def _trial_curves(folder: Path, trials: Sequence[Mapping[str, Any]], metric: str) -> Html:
    """Return the objective of each trial by epoch, the best one in front."""
    curves: list[Line] = []
    for trial in trials[:50]:
        record = Record(folder / str(trial["name"]).rpartition("/")[2])
        x, y = _epochs(record), [_number(row.get(metric)) for row in record.history]
        best = not curves
        curves.append(Line(f"best, {trial['name']}" if best else "the others", x, y, "a" if best else "pale"))
    curves.reverse()
    return side_by_side(lines(metric, curves, "epoch", percent=metric.endswith("accuracy")))


def _pictures(folder: Path) -> Html:
    """Return the sweep's own pictures, on the white paper that they were drawn for; the curves stand above."""
    found = sorted(path for path in (folder / "figures").glob("*.png") if path.stem != "learning_curves")
    shown = [(png(path.read_bytes(), path.stem, class_="paper"), path.stem.replace("_", " ")) for path in found]
    figures = (tag("figure", image, tag("figcaption", name)) for image, name in shown)
    return tag("div", *figures, class_="charts") if shown else Html()


def _get(config: Mapping[str, Any], section: str, key: str) -> Any:
    node = config.get(section)
    return node.get(key) if isinstance(node, Mapping) else None


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _epochs(record: Record) -> list[float]:
    """Return the epochs of a run's history as people count them, from 1; the file counts from 0."""
    return [_number(row.get("epoch")) + 1 for row in record.history]


def _counted(epochs: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _said(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
