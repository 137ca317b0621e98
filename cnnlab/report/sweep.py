"""The page about a sweep, from its `sweep.json`, its trials' histories and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnlab.errors import ConfigError
from cnnlab.files import read_json, write_text
from cnnlab.record import Record
from cnnlab.report.chart import Chart, Line, draw
from cnnlab.report.page import Page, embed_png, render
from cnnlab.report.run import as_number, epochs_of

CURVES = 50


def report_sweep(folder: Path, output: Path | None = None) -> Page:
    """Write a page about a sweep.

    Args:
        folder: The sweep's.
        output: The file; by default `report.html` in it.

    Raises:
        ConfigError: `sweep.json` is missing or damaged.
        MachineError: The file could not be written.
    """
    summary = read_json(folder / "sweep.json")
    trials, groups = summary.get("trials"), summary.get("groups")
    if not isinstance(trials, list) or not isinstance(groups, list):
        raise ConfigError(f"{folder}/sweep.json must hold a sweep's trials and groups: it is missing or damaged.")
    metric = summary["objective"]["metric"]
    keys = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    counts = summary["counts"]
    page = render(
        "sweep.html",
        kind="Report of a sweep",
        title=folder.absolute().name,
        badge={
            "word": ", ".join(f"{count} {status}" for status, count in counts.items()),
            "style": "good" if set(counts) <= {"completed", "pruned"} else "bad",
        },
        sections={
            "Best": {"tiles": _best(groups, metric)},
            "The best again": summary.get("winner"),
            "Over seeds": _groups(groups, metric) if any(group["n"] > 1 for group in groups) else None,
            "Trials": _trials(trials, keys, metric),
            "Curves": _curves(folder, trials, metric),
            "Pictures": _pictures(folder),
            "What ran": summary["command"],
        },
    )
    path = output or folder / "report.html"
    write_text(path, page)
    return Page(path, None)


def _best(groups: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[str, Any]]:
    if not groups:
        return []
    best = groups[0]
    spread = f" ± {best['sd']:.4f}" if best.get("sd") is not None else ""
    tiles = [(f"{metric}, n = {best['n']}", f"{best['mean']:.4f}{spread}")]
    if best.get("test/accuracy") is not None:
        tiles.append(("test accuracy", f"{best['test/accuracy']:.2%}"))
    return [*tiles, *best["settings"].items()]


def _groups(groups: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for group in groups for key in group["settings"]))
    rows = [
        (
            *(group["settings"].get(key, "") for key in keys), group["n"], _rounded(group["mean"]),
            _rounded(group["sd"]), " to ".join(map(_rounded, group["interval_95"] or ())),
            _rounded(group["test/accuracy"]),
        )
        for group in groups
    ]  # fmt: skip
    header = (*keys, "n", f"{metric}, mean", "sd", "95 % interval", "test/accuracy")
    return {"header": header, "rows": rows, "words": len(keys)}


def _trials(trials: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> dict[str, Any]:
    rows = [
        (
            trial["name"],
            *(trial["settings"].get(key, "") for key in keys),
            f"{trial['status']}: {trial['error']}" if trial.get("error") else trial["status"],
            _rounded(trial["objective"]),
            _rounded(trial["metrics"].get("test/accuracy")),
            trial["epochs"],
            f"{trial['seconds']:.0f}",
        )
        for trial in trials
    ]
    header = ("trial", *keys, "status", metric, "test/accuracy", "epochs", "seconds")
    return {"header": header, "rows": rows, "words": len(keys) + 2}


def _curves(folder: Path, trials: Sequence[Mapping[str, Any]], metric: str) -> list[Chart]:
    """Return the objective of each trial by epoch, the best one in front."""
    curves: list[Line] = []
    for trial in trials[:CURVES]:
        record = Record(folder / str(trial["name"]).rpartition("/")[2])
        x, y = epochs_of(record), [as_number(row.get(metric)) for row in record.history]
        best = not curves
        curves.append(Line(f"best, {trial['name']}" if best else "the others", x, y, "a" if best else "pale"))
    chart = draw(metric, curves[::-1], "epoch", percent=metric.endswith("accuracy"))
    return [chart] if chart else []


def _pictures(folder: Path) -> list[dict[str, str]]:
    """Return the sweep's own pictures but the curves, which stand above."""
    paths = sorted(path for path in (folder / "figures").glob("*.png") if path.stem != "learning_curves")
    return [{"source": embed_png(path.read_bytes()), "alternative": path.stem.replace("_", " ")} for path in paths]


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
