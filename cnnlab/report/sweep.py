"""The page about a sweep, from its `sweep.json`, its trials' histories and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnlab.errors import ConfigError
from cnnlab.files import read_json, write_text
from cnnlab.record import Record
from cnnlab.report.chart import Chart, Line, draw
from cnnlab.report.page import Page, embed_png, render
from cnnlab.report.run import epochs_of
from cnnlab.wording import count, format_end, format_metric, format_setting, is_share

CURVES = 50
_PICTURES = ("learning_curves", "importance")  # stand on the page as charts


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
    counts = summary["counts"]
    has_means = any(group["n"] > 1 for group in groups)
    page = render(
        "sweep.html",
        kind="Report of a sweep",
        title=_title(trials, groups, metric),
        subtitle=folder.absolute().name,
        badge={
            "word": ", ".join(f"{number} {status}" for status, number in counts.items()),
            "style": "good" if set(counts) <= {"completed", "pruned"} else "bad",
        },
        sections={
            "Result": {"answer": _answer(groups, summary, metric), "tiles": _tiles(groups, metric)},
            "The best again": summary.get("winner"),
            "What mattered": sorted((summary.get("importance") or {}).items(), key=lambda item: -item[1]),
            "Settings": _groups(groups, metric) if has_means else None,
            "Trials": _trials(trials, groups, metric),
            "Curves": _curves(folder, trials, groups, metric),
            "Pictures": _pictures(folder),
            "What ran": summary["command"],
        },
    )
    path = output or folder / "report.html"
    write_text(path, page)
    return Page(path, None)


def _title(trials: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return what varied, and the best that came of it."""
    settings = _keys(groups) or _keys(trials)
    what = ", ".join(settings) if len(settings) < 4 else count(len(settings), "setting")
    result = ""
    if groups:
        of_what = f"mean {metric}" if groups[0]["n"] > 1 else metric
        result = f": best {of_what} {format_metric(metric, groups[0]['mean'])}"
    return f"{count(len(trials), 'trial')} of {what or 'one setting'}{result}"


def _best(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the best settings: several, where they are equally good."""
    return [group for group in groups if group["mean"] == groups[0]["mean"]]


def _answer(groups: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], metric: str) -> list[str]:
    """Say which settings are the best, whether their lead is more than chance, and which setting mattered."""
    if not groups:
        return ["No trial was completed."]
    best = groups[0]
    spread = ""
    if best["interval_95"]:
        low, high = (format_end(metric, end) for end in best["interval_95"])
        spread = f" on average over {best['n']} runs (95% interval {low} to {high})"
    sentences = [f"Best: {_in_words(best)}. {metric} is {format_metric(metric, best['mean'])}{spread}."]
    if (ties := len(_best(groups))) > 1:
        sentences.append(f"{ties} settings are equally good; these were tried first.")
    elif lead := summary.get("lead"):
        sentences.append(f"Is its lead more than chance? {lead[0].upper()}{lead[1:]}.")
    if summary.get("importance"):
        key, share = max(summary["importance"].items(), key=lambda item: item[1])
        sentences.append(f"{key} mattered most, with {share:.0%} of what made a trial one of the best quarter.")
    return sentences


def _in_words(group: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {format_setting(value)}" for key, value in group["settings"].items()) or "the only setting"


def _tiles(groups: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[str, Any]]:
    if not groups:
        return []
    best = groups[0]
    tiles = [(f"{metric}, mean of {best['n']}" if best["n"] > 1 else metric, format_metric(metric, best["mean"]))]
    if best.get("sd") is not None:
        tiles.append(("standard deviation", format_metric(metric, best["sd"])))
    if best.get("test/accuracy") is not None:
        tiles.append(("test/accuracy", format_metric("accuracy", best["test/accuracy"])))
    return [*tiles, *((key, format_setting(value)) for key, value in best["settings"].items())]


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that differ between groups or trials."""
    keys = dict.fromkeys(key for row in rows for key in row["settings"])
    return [key for key in keys if len({row["settings"].get(key) for row in rows}) > 1]


def _groups(groups: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    keys = _keys(groups)
    rows = [
        (
            *(format_setting(group["settings"].get(key, "")) for key in keys),
            _format(metric, group["mean"]),
            " to ".join(format_end(metric, end) for end in group["interval_95"] or ()),
            _format(metric, group["sd"]),
            group["n"],
            _format("accuracy", group["test/accuracy"]),
        )
        for group in groups
    ]
    header = (*keys, f"{metric}, mean", "95% interval", "sd", "runs", "test/accuracy")
    return {"header": header, "rows": rows, "words": len(keys), "best": range(len(_best(groups)))}


def _trials(trials: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    keys = _keys(trials)
    best = [name for group in _best(groups) for name in group["trials"]]
    rows = [
        (
            *(format_setting(trial["settings"].get(key, "")) for key in keys),
            _format(metric, trial["objective"]),
            _format("accuracy", trial["metrics"].get("test/accuracy")),
            trial["epochs"],
            f"{trial['seconds']:,.0f}",
            f"{trial['status']}: {trial['error']}" if trial.get("error") else trial["status"],
            trial["name"],
        )
        for trial in trials
    ]
    header = (*keys, metric, "test/accuracy", "epochs", "seconds", "status", "folder")
    numbers = [row for row, trial in enumerate(trials) if trial["name"] in best]
    return {"header": header, "rows": rows, "words": len(keys), "best": numbers, "last_words": 2}


def _curves(
    folder: Path, trials: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], metric: str
) -> list[Chart]:
    """Return the objective of each trial by epoch, those of the best settings in front."""
    best = [name for group in _best(groups) for name in group["trials"]]
    front: list[Line] = []
    back: list[Line] = []
    for trial in trials[:CURVES]:
        record = Record(folder / str(trial["name"]).rpartition("/")[2])
        x, y = epochs_of(record), record.column(metric)
        if trial["name"] in best:
            front.append(Line("best settings", x, y))
        else:
            back.append(Line("others", x, y, "pale"))
    chart = draw(metric, [*back, *front], "epoch", percent=is_share(metric))
    return [chart] if chart else []


def _pictures(folder: Path) -> list[dict[str, str]]:
    """Return the sweep's own pictures but those that stand on the page as charts."""
    paths = sorted(path for path in (folder / "figures").glob("*.png") if path.stem not in _PICTURES)
    return [{"source": embed_png(path.read_bytes()), "alternative": path.stem.replace("_", " ")} for path in paths]


def _format(metric: str, value: object) -> str:
    return format_metric(metric, value) if isinstance(value, int | float) else ""
