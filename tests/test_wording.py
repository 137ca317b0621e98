"""How numbers and names are written where people read them."""

import pytest

from cnnlab import wording


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("test/accuracy", 0.9672, "96.72%"),
        ("val/top5_accuracy", 1.0, "100.00%"),
        ("macro_f1", 0.5, "50.00%"),
        ("val/loss", 0.123456, "0.1235"),
        ("calibration_error", 0.0123, "1.23%"),
        ("val/loss", 3e-5, "3e-05"),
        ("test/loss", None, "–"),
    ],
)
def test_shares_are_in_per_cent_and_other_numbers_have_four_digits(metric: str, value: float, text: str):
    assert wording.format_metric(metric, value) == text


def test_settings_stay_as_typed_but_for_long_numbers():
    texts = ["0.1", "1e-3", "0.00123456789", "cosine", "a long word", "nan"]
    assert list(map(wording.format_setting, texts)) == ["0.1", "1e-3", "0.001235", "cosine", "a long word", "nan"]


def test_times_and_counts_are_said_in_words():
    assert list(map(wording.format_duration, (0.4, 59.6, 3725))) == ["0 s", "1 min 0 s", "1 h 2 min"]
    assert (wording.count(1, "epoch"), wording.count(1200, "image")) == ("1 epoch", "1,200 images")


def test_differences_of_shares_are_in_points():
    assert wording.format_difference("val/accuracy", 0.0123, "+") == "+1.23 points"
    assert wording.format_difference("val/loss", 0.0123456) == "0.01235"
