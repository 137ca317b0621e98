"""Schedules against their closed forms."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from cnnlab.errors import ConfigError
from cnnlab.schedule import Constant, Cosine, Linear, MultiStep, OneCycle, Step

ALL = [
    Constant(),
    Step(0.3),
    MultiStep([0.5, 0.75]),
    Linear(),
    Cosine(),
    Cosine(warmup=0.1, end_factor=0.05),
    OneCycle(),
    OneCycle(anneal="linear"),
]


def test_constant_keeps_the_rate():
    assert {Constant()(step, 10) for step in range(12)} == {1.0}


@pytest.mark.parametrize("total", [10, 30, 391, 7820])
def test_step_decays_at_each_boundary(total: int):
    schedule = Step(every=0.1, gamma=0.5)
    # In whole numbers: how many tenths of the run lie before the step.
    assert [schedule(step, total) for step in range(total)] == [0.5 ** (10 * step // total) for step in range(total)]


def test_multistep_is_the_papers_schedule():
    schedule = MultiStep([0.5, 0.75], gamma=0.1)
    changes = [step for step in range(1, 64_000) if schedule(step, 64_000) != schedule(step - 1, 64_000)]
    assert changes == [32_000, 48_000]
    assert schedule(0, 64_000) == 1
    assert schedule(63_999, 64_000) == pytest.approx(0.01)


def test_linear_goes_from_start_to_end():
    assert [Linear(1.0, 0.2)(step, 4) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_a_cosine():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(101)]
    assert [Cosine(end_factor=0.1)(step, 100) for step in range(101)] == pytest.approx(expected)


def test_cosine_warms_up_linearly():
    schedule = Cosine(warmup=0.2, start_factor=0.1)
    assert [schedule(step, 50) for step in range(11)] == pytest.approx([0.1 + 0.09 * step for step in range(11)])
    assert [schedule(10 + step, 50) for step in range(40)] == pytest.approx(
        [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    )


def test_linear_onecycle_is_airbenchs_triangle():
    schedule = OneCycle(warmup=0.23, start_factor=0.2, end_factor=0.07, anneal="linear")
    for step in range(485):
        share = step / 485
        rise, fall = 0.2 + 0.8 * share / 0.23, 1 - 0.93 * (share - 0.23) / 0.77
        assert schedule(step, 485) == pytest.approx(min(rise, fall))


def test_cosine_onecycle_rises_and_falls_by_cosines():
    schedule = OneCycle(warmup=0.25, start_factor=0.0, end_factor=0.0)
    points = {0: 0.0, 125: 0.5, 250: 1.0, 625: 0.5, 1000: 0.0}
    assert [schedule(step, 1000) for step in points] == pytest.approx(list(points.values()))


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_after_the_end_the_factor_stays(schedule: Callable[[int, int], float], total: int):
    assert all(0 <= schedule(step, total) <= 1 for step in range(total))
    assert len({schedule(step, total) for step in range(total, 2 * total + 2)}) == 1


def test_step_does_not_decay_for_the_end_itself():
    assert Step(every=0.25)(100, 100) == Step(every=0.25)(99, 100) == pytest.approx(0.001)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_longer_run_has_the_same_shape(schedule: Callable[[int, int], float]):
    short = [schedule(step, 40) for step in range(40)]
    long = [schedule(10 * step, 400) for step in range(40)]
    assert long == pytest.approx(short)


@pytest.mark.parametrize("schedule", [*ALL[3:]], ids=repr)
def test_smooth_schedules_do_not_jump(schedule: Callable[[int, int], float]):
    factors = [schedule(step, 10_000) for step in range(10_001)]
    assert max(abs(b - a) for a, b in pairwise(factors)) < 2e-3


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Step(0), r"schedule\.every must be above 0 and at most 1, got 0\."),
        (lambda: Step(30), r"schedule\.every"),
        (lambda: Step(0.5, gamma=-1), r"schedule\.gamma"),
        (lambda: MultiStep([0.75, 0.5]), r"schedule\.milestones must be rising"),
        (lambda: MultiStep([0.5, 1.0]), r"schedule\.milestones"),
        (lambda: MultiStep([30, 60]), r"schedule\.milestones"),
        (lambda: Linear(start_factor=-0.1), r"schedule\.start_factor"),
        (lambda: Cosine(warmup=1.0), r"schedule\.warmup"),
        (lambda: Cosine(end_factor=-1), r"schedule\.end_factor"),
        (lambda: OneCycle(warmup=-0.1), r"schedule\.warmup"),
        (lambda: OneCycle(anneal="cos"), r"schedule\.anneal must be linear or cosine"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused_at_construction(build: Callable[[], object], text: str):
    with pytest.raises(ConfigError, match=text):
        build()
