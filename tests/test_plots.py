"""The figures: what they show, how large they are, and that odd input draws without a warning."""

import io
import itertools
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from anyascii import anyascii
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from cnnlab import plots
from cnnlab.plots import network, style
from cnnlab.plots.names import shorten_label, shorten_labels, spell, text_width

CLASSES = ("cat", "dog", "owl")
ODD_NAMES = ("猫", "$x^2$ {\\bad", "a name that is far too long for a picture")


def pictures(num: int, channels: int = 3, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, height, width, channels), np.uint8)


def pixels_of(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(plots.to_png(figure))) as image:
        return np.asarray(image.convert("RGB"))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def captions(figure: Figure) -> list[str]:
    """Return the text over each image of a grid, which stands above the image's middle."""
    (axes,) = figure.axes
    for text, image in zip(axes.texts, axes.images, strict=True):
        left, right, _, top = image.get_extent()
        assert text.get_position() == pytest.approx(((left + right) / 2, top + 4 / 72))
    return [text.get_text() for text in axes.texts]


def points(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def test_image_row_shows_each_image_under_its_title():
    images = pictures(10)
    figure = plots.image_row(images, [str(number) for number in range(10)])
    assert captions(figure) == [str(number) for number in range(10)]
    for shown, image in zip(figure.axes[0].images, images, strict=True):
        np.testing.assert_array_equal(shown.get_array(), image)
    assert figure.get_size_inches()[0] == pytest.approx(8)


def test_grey_images_keep_their_brightness():
    images = np.full((1, 4, 6, 1), 128, np.uint8)
    pixels = pixels_of(plots.image_row(images, [""]))
    height, width, _ = pixels.shape
    np.testing.assert_array_equal(pixels[height // 2, width // 2], [128, 128, 128])


@pytest.mark.parametrize("num", [1, 3, 13])
def test_images_of_a_grid_stand_in_rows_apart_from_each_other(num):
    figure = plots.image_grid(pictures(num), columns=5)
    (axes,) = figure.axes
    places = [image.get_extent() for image in axes.images]
    assert len(places) == num
    assert len({left for left, *_ in places}) == min(num, 5)
    assert len({bottom for _, _, bottom, _ in places}) == -(-num // 5)
    width, height = figure.get_size_inches()
    for left, right, bottom, top in places:
        assert 0 < left < right < width
        assert 0 < bottom < top < height
        assert right - left == pytest.approx(top - bottom)
    for one, other in itertools.combinations(places, 2):
        assert one[1] < other[0] or other[1] < one[0] or one[3] < other[2] or other[3] < one[2]


def test_as_many_titles_as_images_are_asked_for():
    with pytest.raises(ValueError, match="shorter"):
        plots.image_row(pictures(3), ["one", "two"])


def test_wrong_predictions_are_told_without_colour():
    figure = plots.predictions_row(pictures(3), np.array([0, 1, 2]), np.array([0, 2, 2]), CLASSES)
    assert captions(figure) == ["cat", "✗ dog\nis owl", "owl"]
    (frame,) = figure.axes[0].patches
    assert isinstance(frame, Rectangle)
    left, right, bottom, top = figure.axes[0].images[1].get_extent()
    assert frame.get_bbox().bounds == pytest.approx((left, bottom, right - left, top - bottom))


def test_worst_mistakes_are_the_surest_first_and_no_right_ones():
    predicted, targets = np.array([0, 1, 2, 0]), np.array([0, 2, 1, 1])
    confidence = np.array([0.99, 0.6, 0.9, 0.7])
    figure = plots.worst_mistakes(pictures(4), predicted, targets, confidence, CLASSES, count=2)
    assert captions(figure) == ["✗ owl\nis dog\n90.0% sure", "✗ cat\nis dog\n70.0% sure"]


def test_worst_mistakes_says_when_there_are_none():
    targets = np.array([0, 1])
    figure = plots.worst_mistakes(pictures(2), targets, targets, np.ones(2), CLASSES)
    assert words(figure) == "No mistakes in 2 images."


def test_loss_curve_draws_every_iteration_in_six_by_four_inches():
    losses = np.random.default_rng(0).random(400)
    figure = plots.loss_curve(losses)
    each, mean = map(points, figure.axes[0].lines)
    np.testing.assert_array_equal(each, [np.arange(1, 401), losses])
    assert mean[1][200] == pytest.approx(losses[195:205].mean())
    assert tuple(figure.get_size_inches()) == (6, 4)
    assert plots.loss_curve(losses, "ResNet").get_suptitle() == "Training loss, ResNet"


def test_long_loss_curve_keeps_its_extremes_in_few_points():
    losses = np.random.default_rng(0).random(70_001)
    losses[12_345], losses[70_000] = 5, -1
    (iterations, each), (_, mean) = map(points, plots.loss_curve(losses).axes[0].lines)
    assert len(each) <= 2000
    assert len(mean) <= 2000
    assert (each.max(), each.min()) == (5, -1)
    assert abs(iterations[each.argmax()] - 12_345) <= 71
    assert mean[1000] == pytest.approx(0.5, abs=0.02)


def test_loss_that_is_not_finite_is_left_out_and_counted():
    losses = np.linspace(2, 1, 400)
    losses[10:14] = [np.nan, np.inf, -np.inf, np.nan]
    figure = plots.loss_curve(losses)
    each, mean = figure.axes[0].lines
    assert np.isnan(points(each)[1]).sum() == 4
    assert np.isfinite(points(mean)[1]).all()
    assert each.get_label() == "each iteration (4 without a finite loss)"


def test_learning_curves_show_what_was_recorded():
    nan = float("nan")
    history: dict[str, list[float]] = {
        "epoch": [0, 1, 2],
        "train/loss": [2.0, 1.0, 0.5],
        "val/loss": [nan, 1.5, 1.25],
        "train/accuracy": [0.3, 0.6, 0.8],
    }
    loss, accuracy = plots.learning_curves(history).axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    marked = plots.learning_curves(history, "ResNet", {"epoch": 1}).axes[0].lines[-1]
    assert (marked.get_label(), marked.get_xdata()) == ("best: epoch 2", [2, 2])
    np.testing.assert_array_equal(loss.lines[1].get_xydata(), [[2, 1.5], [3, 1.25]])
    assert [line.get_label() for line in accuracy.lines] == ["training"]
    assert (loss.get_ylabel(), accuracy.get_ylabel(), loss.get_xlabel()) == ("Loss", "Accuracy", "Epoch")


def test_confusion_matrix_shades_shares_and_writes_counts():
    figure = plots.confusion_matrix(np.array([[30, 10, 0], [0, 5, 0], [0, 0, 0]]), CLASSES)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert [text.get_text() for text in axes.texts] == ["30", "10", "0", "0", "5", "0", "0", "0", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert words(figure) == "Predicted class True class"


def test_confusion_matrix_of_a_hundred_classes_names_them_all_and_writes_no_counts():
    figure = plots.confusion_matrix(np.eye(100, dtype=int), [f"class {number}" for number in range(100)])
    axes = figure.axes[0]
    assert len(axes.get_xticklabels()) == 100
    assert not axes.texts
    row_height = axes.get_position().height * figure.get_size_inches()[1] / 100
    assert row_height * 72 > axes.get_yticklabels()[0].get_fontsize()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.image_row(pictures(3), ODD_NAMES),
        lambda: plots.image_row(pictures(1, height=5, width=40), ["wide"]),
        lambda: plots.image_row(pictures(0), []),
        lambda: plots.predictions_row(pictures(3, channels=1), np.arange(3), np.array([1, 2, 0]), ODD_NAMES),
        lambda: plots.loss_curve([]),
        lambda: plots.loss_curve([float("nan")]),
        lambda: plots.loss_curve([2.3]),
        lambda: plots.loss_curve(np.zeros(100)),
        lambda: plots.learning_curves({"epoch": [0], "train/loss": [2.0], "train/accuracy": [0.1]}),
        lambda: plots.learning_curves({"epoch": []}),
        lambda: plots.confusion_matrix(np.eye(3, dtype=int), ODD_NAMES),
        lambda: plots.confusion_matrix(np.array([[7]]), ["only"]),
    ],
)
def test_odd_input_draws_without_a_warning(draw: Callable[[], Figure]):
    assert pixels_of(draw()).std() > 0


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    plots.to_png(plots.loss_curve([2.0, 1.0]))
    assert dict(matplotlib.rcParams) == before


def test_plots_need_neither_pyplot_nor_torch():
    code = "import sys, cnnlab.plots; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_reliability_draws_each_filled_part_and_its_distance_from_the_diagonal():
    bins: list[dict] = [
        {"low": part / 4, "high": (part + 1) / 4, "count": count, "confidence": place, "accuracy": found}
        for part, (count, place, found) in enumerate([(0, None, None), (3, 0.4, 0.5), (9, 0.6, 0.6), (1, 0.9, 0.0)])
    ]
    upper, lower = plots.reliability(bins, 0.123).axes
    assert "12.30%" in plots.reliability(bins, 0.123).get_suptitle()
    places, found = points(upper.lines[-1])
    np.testing.assert_allclose([places, found], [[0.4, 0.6, 0.9], [0.5, 0.6, 0.0]])
    assert [bar.get_bbox().height for bar in lower.patches if isinstance(bar, Rectangle)] == [0, 3, 9, 1]
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("Probability of the predicted class", "Images")


@pytest.mark.parametrize("split", ["val", "train"])
def test_compared_curves_tell_runs_apart_and_groups_alike(split):
    history: dict[str, list[float]] = {
        "epoch": [0, 1],
        f"{split}/loss": [2.0, 1.0],
        f"{split}/accuracy": [0.5, float("nan")],
    }
    figure = plots.compared_curves({"a": history, "b": history, ODD_NAMES[1]: history}, [0, 1, 1])
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == f"{'Validation' if split == 'val' else 'Training'} loss"
    first, second, third = loss.lines
    assert (first.get_color(), first.get_linestyle()) != (second.get_color(), second.get_linestyle())
    assert (third.get_color(), third.get_linestyle()) == (second.get_color(), second.get_linestyle())
    assert len(points(accuracy.lines[0])[0]) == 1
    plots.to_png(figure)
    plots.to_png(plots.compared_curves({"a": {"epoch": []}}, [0]))


def test_maps_that_are_left_out_and_epochs_are_told_as_people_count():
    maps = [("few", np.zeros((3, 4, 4))), ("many", np.zeros((16, 4, 4)))]
    figure = network.activations(pictures(1)[0], maps, np.zeros((32, 32)), "cat", "many")
    said = [axes.get_ylabel() for axes in figure.subfigs[1].axes if axes.get_ylabel()]
    assert said == ["few\n3 × 4 × 4", "many\n16 × 4 × 4\n8 of 16 maps"]
    figure = network.activations(pictures(1)[0], maps, np.zeros((32, 32)), "cat", "many", "2 of 9 layers")
    assert figure.get_supxlabel() == "2 of 9 layers"
    drawn = network.augmented(pictures(2), [pictures(2)] * 2, ["a", "b"], "none")
    assert [title for title in titles(drawn) if title] == ["original", "epoch 1", "epoch 2"]


DATA = np.random.default_rng(0)
HISTORY: dict[str, list[float]] = {
    "epoch": list(range(12)),
    "train/loss": [2.3, *np.linspace(1.5, 0.01, 11)],
    "val/loss": [2.3, *np.linspace(1.6, 0.4, 11)],
    "train/accuracy": list(np.linspace(0.1, 0.999, 12)),
    "val/accuracy": list(np.linspace(0.1, 0.83, 12)),
}
BINS = [
    {"low": part / 9, "high": (part + 1) / 9, "count": part, "confidence": (part + 0.5) / 9, "accuracy": 1.0}
    for part in range(9)
]
SEARCH = {
    "optimizer.lr": [repr(float(lr)) for lr in 10 ** DATA.uniform(-4, 0, 6)],
    "optimizer.weight_decay": [repr(float(decay)) for decay in DATA.uniform(0, 1e-3, 6)],
    "model": ["lenet", "resnet18", "lenet", "lenet", "resnet18", "lenet"],
    "schedule": ["cosine"] * 3 + ["a schedule of one's own with a long name"] * 3,
}
CURVES = {f"trial_{number}": (range(1, number + 2), DATA.random(number + 1).tolist()) for number in range(6)}
CHARTS: dict[str, Callable[[], Figure]] = {
    "loss": lambda: plots.loss_curve(DATA.random(500), "ResNet"),
    "loss of few steps": lambda: plots.loss_curve([2.3, 2.30000001]),
    "tiny rates": lambda: plots.learning_rate_curve(np.linspace(0, 3e-6, 40), "ResNet"),
    "learning curves": lambda: plots.learning_curves(HISTORY, "ResNet", {"epoch": 3}),
    "compared": lambda: plots.compared_curves({f"runs/{n}/seed-{n}": HISTORY for n in range(7)}, list(range(7))),
    "reliability": lambda: plots.reliability(BINS, 0.1),
    "by value": lambda: plots.objective_by_value(SEARCH, DATA.random(6).tolist(), "val/accuracy"),
    "trials": lambda: plots.trial_curves(CURVES, "val/accuracy", ["trial_3", "trial_0"]),
    "by time": lambda: plots.objective_by_time(range(6), DATA.random(6).tolist(), "val/loss", False),
}


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_axes_cover_the_data_and_nothing_crosses_a_legend(draw: Callable[[], Figure]):
    figure = draw()
    plots.to_png(figure)  # lays it out
    legends = [axes.get_legend() for axes in figure.axes] + list(figure.legends)
    boxes = [words.get_window_extent() for words in (*legends, figure._suptitle) if words]  # type: ignore[attr-defined]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)
    for axes in figure.axes:
        inside = axes.get_window_extent().padded(0.5)
        assert not any(box.overlaps(inside) for box in boxes)
        marks = [line.get_transform().transform(np.column_stack(points(line))) for line in axes.lines]
        marks += [dots.get_offset_transform().transform(np.asarray(dots.get_offsets())) for dots in axes.collections]
        for x, y in (mark for group in marks for mark in np.asarray(group) if np.isfinite(mark).all()):
            assert inside.contains(x, y)
        assert not axes.xaxis.get_offset_text().get_text()
        assert not axes.yaxis.get_offset_text().get_text()
        upright = [label for label in axes.get_xticklabels() if label.get_text() and not label.get_rotation()]
        for first, second in itertools.pairwise(upright):
            assert not first.get_window_extent().overlaps(second.get_window_extent())
        labels = [label.get_text() for label in axes.get_yticklabels() if label.get_visible()]
        assert len(set(labels)) == len(labels), "marks are told apart"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([2.30711, 2.30712], ["2.30711", "2.30712"]),
        ([0.0, 1e-6, 2e-6], ["0e0", "1e-6", "2e-6"]),
        ([-1e-19, 50_000], ["0", "50,000"]),
        ([7.0], ["7"]),
        ([], []),
    ],
)
def test_marks_show_their_whole_value(values: list[float], labels: list[str]):
    assert style.Numbers().format_ticks(values) == labels


def test_long_names_stay_apart_and_other_scripts_can_be_read():
    dogs = [f"Golden_Retriever_number_{number}" for number in range(20)]
    groups = [f"{number} Golden Retrievers at the lake" for number in range(20)]
    for names in (dogs, groups, ["猫" * 9 + "一", "猫" * 9 + "二"]):
        short = shorten_labels(names, 14)
        assert len(set(short)) == len(names)
        assert all(text_width(name) <= 14 for name in short)
    assert shorten_label("Golden_Retriever_number_7", 14) == "Golden…umber_7"
    for name in ("猫", "собака", "قطة", "हिन्दी", "\ue000", "𓀀"):
        assert "\\" not in spell(name)
        assert spell(name)
    assert spell("קפה") == anyascii("קפה"), "matplotlib would set it from the wrong end"


def test_a_grid_says_what_of_the_images_is_shown():
    note, labels = "the first 3 of 13 channels", np.zeros(2, int)
    row = plots.image_row(pictures(3), CLASSES, note)
    worst = plots.worst_mistakes(pictures(2), labels + 1, labels, np.ones(2), CLASSES, note=note)
    for axes in (*row.axes, *worst.axes):
        assert axes.texts[-1].get_text() == note
        assert axes.texts[-1].get_position()[1] < min(image.get_extent()[2] for image in axes.images)


def test_numbers_that_a_search_proposed_stand_on_a_line_and_the_first_trial_is_the_best():
    rates, objective = [0.1234567891, 0.01234567891, 0.001234567891], [0.7, 0.7, 0.5]
    proposed = list(map(repr, rates))
    (axes,) = plots.objective_by_value({"lr": proposed}, objective, "val/accuracy").axes
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), np.column_stack([rates, objective]))
    assert axes.get_xscale() == "log"
    (axes,) = plots.objective_by_value({"lr": ["0.1", "0.01"]}, [0.5, 0.7], "val/loss").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]
    figure = plots.parallel_coordinates({"lr": proposed, "n": ["2", "3", "1"]}, objective, "val/accuracy")
    (best,) = (line for line in figure.axes[0].lines if line.get_color() == style.VERMILION)
    assert points(best)[1][1] == pytest.approx(0.5), "n is 2"
    assert {"50.00%", "70.00%"} <= {text.get_text() for text in figure.axes[0].texts}, "as everywhere"


@pytest.mark.parametrize(("metric", "mark"), [("val/macro_f1", "50%"), ("val/loss", "0.50")])
def test_a_sweeps_pictures_write_a_metric_as_its_report_does(metric: str, mark: str):
    values = [0.25, 0.5, 0.75]
    for figure in (
        plots.objective_by_value({"optimizer.lr": ["0.1", "0.2", "0.3"]}, values, metric),
        plots.objective_by_time([1.0, 2.0, 3.0], values, metric),
    ):
        assert figure.axes[0].yaxis.get_major_formatter().format_ticks([0.25, 0.5])[-1] == mark


@pytest.mark.parametrize("sign", [1, -1])
def test_a_huge_effect_leaves_room_for_the_others(sign: int):
    effects = {"optimizer": 0.4, **{f"setting {number}": 0.002 * number for number in range(1, 8)}}
    rows = [
        {"setting": name, "answer": "no evidence", "difference": sign * value} | dict(
            zip(("low", "high"), sorted((sign * (value - 0.005), sign * (value + 0.005))), strict=True)
        )
        for name, value in effects.items()
    ]  # fmt: skip
    (axes,) = plots.forest(rows, "test/accuracy").axes
    assert max(axes.get_xlim()) < 3, "points"
    low, high = sorted((39.5 * sign, 40.5 * sign))
    assert [text.get_text() for text in axes.texts] == [f"{40 * sign:+d} ({low:+} to {high:+})"]
    (axes,) = plots.forest(rows[1:], "test/accuracy").axes
    assert not axes.texts
