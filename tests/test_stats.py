"""Intervals hold what they say they hold, and tests are wrong as rarely as they claim."""

import math

import numpy as np
import pytest

from cnnlab.stats import holm, mcnemar, mean_interval, t_quantile, t_tails, welch, wilson


def simulated(random: np.random.Generator, both: float, first: float, second: float, count: int = 1000):
    """Return who is right on each image: both, only the first, only the second, or none, with these probabilities."""
    kind = random.choice(4, count, p=[both, first, second, 1 - both - first - second])
    return (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)


def test_equal_classifiers_are_called_different_as_rarely_as_is_claimed():
    random = np.random.default_rng(0)
    verdicts = [mcnemar(*simulated(random, 0.7, 0.1, 0.1)) for _ in range(1000)]
    # An exact test errs on the safe side; binomial noise of a thousand simulations is 0.007.
    assert 0.02 < np.mean([verdict.p < 0.05 for verdict in verdicts]) < 0.065
    assert 0.93 < np.mean([verdict.low <= 0 <= verdict.high for verdict in verdicts]) < 0.97


def test_a_known_difference_is_found_and_lies_in_its_interval():
    random = np.random.default_rng(1)
    verdicts = [mcnemar(*simulated(random, 0.7, 0.08, 0.14)) for _ in range(1000)]
    assert np.mean([verdict.p < 0.05 for verdict in verdicts]) > 0.95
    assert 0.93 < np.mean([verdict.low <= 0.06 <= verdict.high for verdict in verdicts]) < 0.97
    assert np.mean([verdict.difference for verdict in verdicts]) == pytest.approx(0.06, abs=0.002)


def test_equal_recipes_are_called_different_as_rarely_as_is_claimed():
    random = np.random.default_rng(2)
    verdicts = [welch(random.normal(0.9, 0.01, 4).tolist(), random.normal(0.9, 0.02, 3).tolist()) for _ in range(1000)]
    assert 0.025 < np.mean([verdict.p < 0.05 for verdict in verdicts]) < 0.075
    assert 0.925 < np.mean([verdict.low <= 0 <= verdict.high for verdict in verdicts]) < 0.975
    for verdict in verdicts:
        assert (verdict.p < 0.05) == (not verdict.low <= 0 <= verdict.high)


def test_the_exact_test_counts_throws():
    first = np.array([True] * 8 + [False] * 2 + [True] * 90)
    second = np.array([False] * 8 + [True] * 2 + [True] * 90)
    expected = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    assert mcnemar(first, second).p == pytest.approx(expected)
    assert mcnemar(first, second).difference == pytest.approx(-0.06)
    same = mcnemar(first, first)
    assert (same.p, same.difference, same.low, same.high) == (1, 0, 0, 0)
    many = np.arange(100_000) % 2 == 0
    assert mcnemar(many, ~many).p == pytest.approx(1)
    assert mcnemar(many, np.ones(100_000, bool)).p < 1e-300


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.228, 10, 0.05), (3.169, 10, 0.01), (1.98, 120, 0.05), (0, 5, 1)],
)
def test_students_t_is_the_tables(t: float, freedom: float, p: float):
    assert t_tails(t, freedom) == pytest.approx(p, rel=2e-3)


def test_several_p_values_are_corrected():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_groups_without_spread_or_without_members_are_answered():
    assert welch([0.5, 0.5], [0.5, 0.5]).p == 1
    assert welch([0.5, 0.5], [0.6, 0.6]).p == 0
    assert welch([0.1] * 3, [0.1] * 7).p == 1, "0.1 seven times has another mean than three times, in floats"
    with pytest.raises(AssertionError):
        welch([0.5], [0.6, 0.7])


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(successes, count, low, high):
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.05, 0.01, 1e-4])
def test_students_t_is_its_closed_form(p: float):
    # One and two degrees of freedom have one; so do infinitely many, which is the normal distribution.
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi / 2 * (1 - p)), rel=1e-9)
    assert t_quantile(p, 2) == pytest.approx((1 - p) * math.sqrt(2 / (p * (2 - p))), rel=1e-9)
    t = t_quantile(p, 1e7)
    assert math.erfc(t / math.sqrt(2)) == pytest.approx(p, rel=1e-5)
    for freedom in (1.3, 3, 47.5, 1000):
        assert t_tails(t_quantile(p, freedom), freedom) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (11, 2.228), (31, 2.042), (41, 2.0211), (121, 1.9799)])
def test_interval_of_a_mean_is_students(n: int, quantile: float):
    values = [float(index % 2) for index in range(n)]
    _, sd, half = mean_interval(values)
    assert sd is not None
    assert half is not None
    assert half * math.sqrt(n) / sd == pytest.approx(quantile, rel=1e-3)
    assert mean_interval([0.5]) == (0.5, None, None)
