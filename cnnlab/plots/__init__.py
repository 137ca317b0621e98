"""Arrays to matplotlib figures, all in one style: no files, no torch, no pyplot, no state kept.

Figures are 8 inches (960 pixels) wide or less where their content allows, so that text stays readable when a
README shows them at 800. Colours are Okabe and Ito's, which colour-blind readers tell apart; what a colour
says, a mark, a line style or a word says too.
"""

from matplotlib.figure import Figure

from cnnlab.plots.answers import confusion_matrix, reliability
from cnnlab.plots.curves import compared_curves, learning_curves, learning_rate_curve, loss_curve
from cnnlab.plots.grid import image_grid, image_row, predictions_row, worst_mistakes
from cnnlab.plots.speed import step_parts
from cnnlab.plots.style import to_png
from cnnlab.plots.trials import (
    forest,
    importance_bars,
    objective_by_time,
    objective_by_value,
    parallel_coordinates,
    trial_curves,
)

__all__ = [
    "Figure",
    "compared_curves",
    "confusion_matrix",
    "forest",
    "image_grid",
    "image_row",
    "importance_bars",
    "learning_curves",
    "learning_rate_curve",
    "loss_curve",
    "objective_by_time",
    "objective_by_value",
    "parallel_coordinates",
    "predictions_row",
    "reliability",
    "step_parts",
    "to_png",
    "trial_curves",
    "worst_mistakes",
]
