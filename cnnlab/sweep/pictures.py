"""The pictures of a sweep, from its table."""

import math
from collections.abc import Mapping

from cnnlab import plots
from cnnlab.sweep.table import Row, Table

MAX_CURVES = 60  # more of them hide each other


def draw(table: Table, importance: Mapping[str, float]) -> None:
    """Write the pictures into the sweep's `figures/`.

    Args:
        table: The sweep's table.
        importance: Each setting's share in what made a trial one of the best quarter.
    """
    folder = table.folder / "figures"
    folder.mkdir(exist_ok=True)
    ranked = [row for row in table.rows if row.objective is not None and row.is_comparable]
    ranked.sort(key=lambda row: row.status == "pruned")  # which wins nothing, whatever it had reached by then
    values = [row.objective for row in ranked if row.objective is not None]
    settings = {key: [row.settings.get(key, "") for row in ranked] for key in table.keys if key not in table.over}
    varied = {key: column for key, column in settings.items() if len(set(column)) > 1}
    is_larger_better = table.sign > 0
    figures = {}
    if varied:
        figures["objective_by_value"] = plots.objective_by_value(varied, values, table.metric)
    # Where means decide, they are the lines, and the trials of the best mean the curves in front.
    groups = table.groups if table.has_means else []
    lines = {key: [group.settings.get(key, "") for group in groups] for key in varied} if groups else varied
    ends = [group.mean for group in groups] or values
    if len(varied) > 1 and len(ends) > 2:
        figures["parallel_coordinates"] = plots.parallel_coordinates(lines, ends, table.metric)
    best = groups[0].rows if groups else ranked
    column = table.metric.replace("test/", "val/")  # the test comes once, after the last epoch
    curves = {row.name: _curve(row, column) for row in ranked[:MAX_CURVES]}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if curves:
        figures["learning_curves"] = plots.trial_curves(curves, column, [row.name for row in best[:4]])
    timed = [row for row in ranked if row.started is not None]
    if len(timed) > 1:
        begin = min(row.started or 0 for row in timed)
        minutes = [((row.started or 0) + row.seconds - begin) / 60 for row in timed]
        objectives = [row.objective or 0 for row in timed]
        figures["objective_by_time"] = plots.objective_by_time(minutes, objectives, table.metric, is_larger_better)
    if importance:
        figures["importance"] = plots.importance_bars(importance)
    for name, figure in figures.items():
        (folder / f"{name}.png").write_bytes(plots.to_png(figure))


def _curve(row: Row, column: str) -> tuple[list[float], list[float]]:
    points = [(line.get("epoch", math.nan) + 1, line.get(column, math.nan)) for line in row.history]
    numbers = [point for point in points if all(map(math.isfinite, point))]
    return [epoch for epoch, _ in numbers], [value for _, value in numbers]
