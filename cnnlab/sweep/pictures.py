"""The pictures of a sweep, from its rows."""

import math

from cnnlab import plots
from cnnlab.files import read_json
from cnnlab.sweep.summary import Row, Sweep

CURVES = 60  # more of them hide each other


def draw(sweep: Sweep) -> None:
    """Write the pictures into the sweep's `figures/`."""
    folder = sweep.folder / "figures"
    folder.mkdir(exist_ok=True)
    ranked = [row for row in sweep.rows if row.objective is not None]
    values = [row.objective for row in ranked if row.objective is not None]
    settings = {key: [row.settings.get(key, "") for row in ranked] for key in sweep.keys}
    figures = {}
    shown = {key: column for key, column in settings.items() if len(set(column)) > 1}
    if shown:
        figures["objective_by_value"] = plots.objective_by_value(shown, values, sweep.metric)
    if len(shown) > 1 and len(ranked) > 2:
        figures["parallel_coordinates"] = plots.parallel_coordinates(shown, values, sweep.metric, sweep.sign > 0)
    curves = {row.name: _curve(row, sweep.metric) for row in ranked[:CURVES]}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if curves:
        figures["learning_curves"] = plots.trial_curves(curves, _column(sweep.metric), [row.name for row in ranked[:4]])
    timed = [row for row in ranked if row.started is not None]
    if len(timed) > 1:
        ends = [(row.started or 0) + row.seconds for row in timed]
        begin = min(row.started or 0 for row in timed)
        figures["objective_by_time"] = plots.objective_by_time(
            [(end - begin) / 60 for end in ends], [row.objective or 0 for row in timed], sweep.metric, sweep.sign > 0
        )
    importance = read_json(sweep.folder / ".sweep" / "importance.json")
    if importance:
        figures["importance"] = plots.importance(importance)
    for name, figure in figures.items():
        (folder / f"{name}.png").write_bytes(plots.to_png(figure))


def _column(metric: str) -> str:
    """Return the column of `history.csv` that shows how an objective came about."""
    return metric if metric in ("val/accuracy", "val/loss", "train/loss", "train/accuracy") else "val/accuracy"


def _curve(row: Row, metric: str) -> tuple[list[float], list[float]]:
    points = [(int(line["epoch"]) + 1, line.get(_column(metric)) or "nan") for line in row.history]
    numbers = [(float(epoch), float(value)) for epoch, value in points if math.isfinite(float(value))]
    return [epoch for epoch, _ in numbers], [value for _, value in numbers]
