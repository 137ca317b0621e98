"""Intervals and tests; no torch, and numpy only where it is needed."""

import math
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cnnlab.wording import format_difference

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

LEVEL = 0.05
"""The share of false alarms that tests accept; intervals hold the rest."""
RESAMPLES = 10_000


class Verdict(NamedTuple):
    """Whether two things differ.

    Attributes:
        difference: Second minus first.
        low: Lower end of its 95% interval.
        high: Upper end.
        p: How often chance alone would make a difference at least as large.
        test: Name of the test, and how much it counted.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str

    def words(self, first: str, second: str, what: str = "accuracy") -> str:
        """Return the verdict as a sentence."""
        difference, low, high = (
            format_difference(what, value, "+") for value in (self.difference, self.low, self.high)
        )
        interval = f"{difference}, 95% interval {low.removesuffix(' points')} to {high}"
        how = f"{self.test}, p = {self.p:.2g}; difference {interval}"
        if self.p >= LEVEL:
            return f"no evidence of a difference in {what} between {first} and {second} ({how})"
        return f"{second} has the {'higher' if self.difference > 0 else 'lower'} {what} than {first} ({how})"


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    z = statistics.NormalDist().inv_cdf(1 - LEVEL / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean, the standard deviation and half the mean's 95% interval (Student's t).

    Of a single value there is only the mean; the others are None.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    sd = statistics.stdev(values)
    return mean, sd, t_quantile(LEVEL, len(values) - 1) * sd / math.sqrt(len(values))


def mcnemar(first: "Bool[np.ndarray, 'n']", second: "Bool[np.ndarray, 'n']") -> Verdict:
    """Test whether two classifiers are right equally often on the same images.

    The test is exact: of the images that only one of the two has right, either is as likely to be the one. The interval
    is the bootstrap's over the images, of which only three kinds count.

    Args:
        first: Whether the first classifier has each image right.
        second: Whether the second has, in the same order.

    Source: McNemar 1947, doi:10.1007/BF02295996; Efron & Tibshirani 1993, chapter 13 (percentile interval).
    """
    import numpy as np

    count = len(first)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    drawn = np.random.default_rng(0).multinomial(
        count, [lost / count, won / count, (count - lost - won) / count], RESAMPLES
    )
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / count, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    p = min(1.0, 2 * _coin_tail(min(lost, won), lost + won))
    return Verdict((won - lost) / count, float(low), float(high), p, f"McNemar's exact test over {count:,} test images")


def welch(first: Sequence[float], second: Sequence[float]) -> Verdict:
    """Test whether two groups of normally distributed measurements have the same mean.

    Args:
        first: At least two measurements.
        second: At least two measurements.

    Source: Welch 1947, doi:10.1093/biomet/34.1-2.28.
    """
    assert min(len(first), len(second)) >= 2
    # The slower functions of the module compute exactly: groups that repeat one value must differ by nothing.
    difference = statistics.mean(second) - statistics.mean(first)
    parts = [statistics.variance(group) / len(group) for group in (first, second)]
    error = math.sqrt(sum(parts))
    scatter = sum(part**2 / (len(group) - 1) for part, group in zip(parts, (first, second), strict=True))
    freedom = sum(parts) ** 2 / scatter if scatter else math.inf
    return _student(difference, error, freedom, f"Welch's t-test over {len(first)} and {len(second)} runs")


def paired(differences: Sequence[float], least_sd: float = 0.0) -> Verdict:
    """Test whether normally distributed differences of pairs have the mean zero, by Student's t.

    Args:
        differences: Two or more.
        least_sd: Of a difference, such as that of its rounding: few values that repeat one are no certainty.
    """
    difference = statistics.fmean(differences)
    error = max(statistics.stdev(differences), least_sd) / math.sqrt(len(differences))
    return _student(difference, error, len(differences) - 1, f"paired t-test over {len(differences)} seeds")


def _student(difference: float, error: float, freedom: float, test: str) -> Verdict:
    """Return Student's verdict on a difference, from its standard error and the degrees of freedom."""
    if error == 0:
        return Verdict(difference, difference, difference, 1.0 if difference == 0 else 0.0, test)
    half = error * t_quantile(LEVEL, freedom)
    return Verdict(difference, difference - half, difference + half, t_tails(difference / error, freedom), test)


def confidence_sequence(values: Sequence[float], level: float = LEVEL, least_sd: float = 0.0) -> tuple[float, float]:
    """Return an interval of the mean that may be looked at after every value.

    Of intervals made after the second, third, ... of a stream of normally distributed values, all hold the mean with
    probability 1 - `level`, however the moment to stop is chosen. Before the second value it is everything.
    The values are taken to have a standard deviation of at least `least_sd`, such as that of their rounding.

    Source: the t-test's mixture of Lai 1976, doi:10.1214/aos/1176343406, as a test martingale in Wang & Ramdas 2023,
    arXiv:2310.03722, theorem 4.9; the mixture's variance is that of the values (g = 1).
    """
    count = len(values)
    if count < 2:
        return -math.inf, math.inf
    mean, sd = statistics.fmean(values), max(statistics.stdev(values), least_sd)
    # The martingale reaches 1 / level where (1 + r) / (1 + r / (1 + count)) = bound, with r = t² / (count - 1).
    bound = math.exp(2 / count * (math.log(1 / level) + math.log1p(count) / 2))
    if bound >= 1 + count:
        return -math.inf, math.inf
    r = (bound - 1) / (1 - bound / (1 + count))
    half = math.sqrt(r * (count - 1)) * sd / math.sqrt(count)
    return mean - half, mean + half


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for there being several of them.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, values[index] * (len(values) - rank)))
        adjusted[index] = highest
    return adjusted


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return verdicts with their p values corrected for there being several, where there are."""
    if len(verdicts) < 2:
        return list(verdicts)
    adjusted = holm([verdict.p for verdict in verdicts])
    pairs = zip(verdicts, adjusted, strict=True)
    return [verdict._replace(p=p, test=f"{verdict.test}, Holm's correction") for verdict, p in pairs]


def t_tails(t: float, freedom: float) -> float:
    """Return the probability that Student's t is at least this far from zero, on either side.

    Source: Abramowitz & Stegun 1964, 26.7.1.
    """
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(tails: float, freedom: float) -> float:
    """Return the t beyond which, on both sides together, this probability lies."""
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction.

    Source: Abramowitz & Stegun 1964, 26.5.8, evaluated by Lentz's method (Press et al. 2007, section 6.4).
    """
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    upper, lower, fraction = 1.0, 0.0, 1.0
    for step in range(10_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        lower = 1 / ((1 + term * lower) or sys.float_info.min)
        upper = (1 + term / upper) or sys.float_info.min
        fraction *= upper * lower
        if abs(1 - upper * lower) < 1e-15:
            break
    return front * (fraction - 1)


def _coin_tail(most: int, count: int) -> float:
    """Return the probability of at most `most` heads in `count` throws of a fair coin."""
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(most + 1)]
    return float(sum(math.exp(value - count * math.log(2)) for value in logs))
