"""Decisions between recipes: error rates over whole campaigns, seeds saved, and real runs that are resumed."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cnnlab
from cnnlab.decision import (
    Decision,
    Pair,
    decide,
    differences_by_image,
    note_in_ledger,
    recipe,
    share_alpha,
    train_seed,
    widen,
)
from cnnlab.errors import ConfigError
from cnnlab.stats import confidence_sequence, t_quantile
from tests.conftest import ROOT, read


def pairs(difference: float, chance: random.Random) -> Iterator[Pair]:
    """Yield pairs whose differences vary with a standard deviation of 1 around `difference`."""
    seed = 0
    while True:
        shared = chance.gauss(0, 3)  # what the seed does to both
        yield Pair(seed, shared, shared + difference + chance.gauss(0, 1))
        seed += 1


def test_without_a_difference_few_campaigns_answer_that_there_is_one():
    chance = random.Random(0)
    answers = [decide(pairs(0.0, chance), margin=0.0, max_seeds=40).answer for _ in range(400)]
    assert sum(answer in ("better", "worse") for answer in answers) <= 0.05 * len(answers)


def test_a_ledger_keeps_the_error_rate_over_a_whole_campaign(tmp_path: Path):
    chance = random.Random(1)
    wrong = 0
    for campaign in range(100):
        ledger = tmp_path / f"{campaign}.jsonl"
        answers = []
        for _ in range(20):
            alpha = share_alpha(ledger, 0.05)
            answers.append(decide(pairs(0.0, chance), margin=0.0, alpha=alpha, max_seeds=15).answer)
            note_in_ledger(ledger, {"answer": answers[-1]})
        wrong += any(answer in ("better", "worse") for answer in answers)
    assert wrong <= 5
    shares = [0.05 * 6 / (math.pi * k) ** 2 for k in range(1, 10_000)]
    assert sum(shares) <= 0.05


@pytest.mark.slow
def test_a_difference_of_one_sd_takes_at_most_60_percent_of_the_seeds_of_a_fixed_test_of_equal_power():
    chance = random.Random(2)
    decisions = [decide(pairs(1.0, chance), margin=0.0, max_seeds=40) for _ in range(400)]
    power = sum(decision.answer == "better" for decision in decisions) / len(decisions)
    seeds = sum(len(decision.pairs) for decision in decisions) / len(decisions)

    def fixed_power(count: int) -> float:
        hits = 0
        for _ in range(400):
            values = [1.0 + chance.gauss(0, 1) for _ in range(count)]
            mean = sum(values) / count
            sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
            hits += mean / sd * math.sqrt(count) > t_quantile(0.05, count - 1)
        return hits / 400

    fixed = next(count for count in range(3, 60) if fixed_power(count) >= power)
    assert seeds <= 0.6 * fixed, (seeds, fixed, power)


def test_the_interval_holds_the_mean_at_every_look():
    chance = random.Random(3)
    missed = 0
    for _ in range(400):
        values = [5 + chance.gauss(0, 2) for _ in range(30)]
        intervals = [confidence_sequence(values[:count]) for count in range(2, 31)]
        missed += any(not low <= 5 <= high for low, high in intervals)
    assert missed <= 0.05 * 400


def test_equal_recipes_are_found_equal_within_the_margin():
    chance = random.Random(4)
    decision = decide(pairs(0.0, chance), margin=2.0, max_seeds=40)
    assert decision.answer == "no difference"
    assert -2 <= decision.low <= decision.high <= 2


def test_less_is_better_for_a_loss():
    chance = random.Random(5)
    assert decide(pairs(-3.0, chance), larger_is_better=False).answer == "better"


def test_equal_differences_of_few_images_are_no_certainty():
    steps = iter([Pair(seed, 0.5, 0.51, step=0.01) for seed in range(3)])
    assert decide(steps, margin=0.0, max_seeds=3).answer == "undecided"


@pytest.mark.parametrize("option", [{"alpha": 0.0}, {"alpha": 1.0}, {"margin": -1.0}, {"max_seeds": 2}])
def test_numbers_out_of_range_are_refused(option: dict):
    with pytest.raises(ConfigError, match="must be"):
        decide(iter([]), **option)


def test_on_other_images_the_interval_holds_the_difference_that_all_images_have():
    random = np.random.default_rng(6)
    missed = narrow = 0
    for _ in range(200):
        # Of 500 images, some are easier for one recipe than for the other, whatever the seed.
        easier = random.choice([-0.3, 0.0, 0.4], size=500, p=[0.1, 0.8, 0.1])
        first, second = ((random.random((6, 500)) < 0.5 + shift).astype(float) for shift in (0, easier))
        rates = zip(first.mean(1).tolist(), second.mean(1).tolist(), strict=True)
        steps = iter([Pair(seed, a, b, step=1 / 500) for seed, (a, b) in enumerate(rates)])
        decision = decide(steps, margin=0.0, max_seeds=6)
        count = len(decision.pairs)
        wide = widen(decision, (second - first)[:count].mean(0), margin=0.0, alpha=0.05)
        missed += not wide["low"] <= 0.01 <= wide["high"]
        narrow += wide["high"] - wide["low"] < decision.high - decision.low
    assert missed <= 0.05 * 200
    assert narrow == 0


def test_where_no_image_differs_others_may():
    decision = Decision("no difference", 0.0, 0.0, 0.0, tuple(Pair(seed, 0.5, 0.5) for seed in range(10)))
    wide = widen(decision, np.zeros(100), margin=0.01, alpha=0.05)
    assert wide["answer"] == "undecided"
    assert wide["high"] == -wide["low"] == pytest.approx(1 - 0.00625 ** (1 / 100))


def test_a_folder_that_holds_runs_of_another_recipe_is_refused(small: list[str], tmp_path: Path):
    words = [*small[:-1], "trainer.max_epochs=1", "optimizer.lr=0.1"]
    place = f"hydra.run.dir='{tmp_path / 'first-seed=0'}'"
    cnnlab.train([*words, "seed=0", "tags=[mine]", "callbacks.figures=null", place])
    accuracy = read(tmp_path / "first-seed=0" / "metrics.json")["val/accuracy"]
    assert train_seed(words, 0, "val/accuracy", tmp_path, "first") == (accuracy, 1 / 80)
    for other in ("optimizer.lr=0.2", "trainer.max_epochs=2"):
        with pytest.raises(
            ConfigError, match=rf"first-seed=0 holds a run of another recipe \({other.partition('=')[0]}"
        ):
            train_seed([*words, other], 0, "val/accuracy", tmp_path, "first")


def test_a_run_gives_its_recipe_whatever_its_folder_is_called(tmp_path: Path):
    """A search's trial brings what it was pruned by, which belongs to that search."""
    hydra = tmp_path / "lr=0.1-seed=3" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text("seed: 3\n")
    lines = [
        "optimizer.lr=0.1",
        "seed=3",
        "++callbacks.prune._target_=cnnlab.callbacks.Prune",
        "+callbacks.prune.number=2",
    ]
    (hydra / "overrides.yaml").write_text(json.dumps(lines))
    assert recipe([str(hydra.parent)]) == ["optimizer.lr=0.1"]
    assert recipe(["optimizer.lr=0.2"]) == ["optimizer.lr=0.2"]
    with pytest.raises(ConfigError, match="must be a run's folder"):
        recipe(["optimizer"])


def test_damaged_answers_are_made_again(trained: Path, tmp_path: Path):
    for name in ("first", "second"):
        shutil.copytree(trained, tmp_path / f"{name}-seed=0")
    (tmp_path / "first-seed=0" / "evaluation-val.npz").write_bytes(b"PK damaged")
    accuracy = read(trained / "metrics.json")["val/accuracy"]
    by_image = differences_by_image(tmp_path, [Pair(0, accuracy, accuracy)], "val/accuracy")
    assert by_image is not None
    assert by_image.tolist() == [0.0] * 80


@pytest.mark.slow
def test_real_runs_are_decided_resumed_and_not_run_twice(small: list[str], tmp_path: Path):
    common = [*small, "~callbacks.figures", "~callbacks.dashboard", "logger=none", "trainer.max_epochs=1"]
    common.append(f"--config-dir={tmp_path}/own")
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\noptimizer:\n  lr: 0.1\n  nesterov: true\n"
    )
    # Two seeds are there already, trained in this process.
    for seed in (0, 1):
        for name, words in (
            ("first", ["optimizer.lr=1e-6"]),
            ("second", ["experiment=mine"]),
        ):
            place = tmp_path / "decision" / f"{name}-seed={seed}"
            cnnlab.train([*common, *words, f"seed={seed}", f"hydra.run.dir='{place}'"])
    before = [read(path)["started"] for path in sorted((tmp_path / "decision").glob("*/run.json"))]
    assert len(before) == 4
    command = [
        sys.executable, "-c", "from cnnlab.cli import app; app()", "decide", *common, "--a", "optimizer.lr=1e-6",
        "--b", "experiment=mine", "--max-seeds", "3", "--folder", "decision",
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=280)
    assert first.returncode == 0, first.stderr
    content = read(tmp_path / "decision" / "decision.json")
    assert [pair["seed"] for pair in content["pairs"]] == [0, 1, 2]
    assert content["difference"] == pytest.approx(sum(pair["second"] - pair["first"] for pair in content["pairs"]) / 3)
    other = content["new_images"]
    assert other["images"] == 80
    assert (other["low"] is None) == (content["low"] is None)  # three pairs that are far apart say nothing yet
    assert "others of their kind" in content["sentence"]
    started = [read(path)["started"] for path in sorted((tmp_path / "decision").glob("*/run.json"))]
    again = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60
    )
    assert json.loads(again.stdout) == content
    assert {*before} < {*started}
    assert started == [read(path)["started"] for path in sorted((tmp_path / "decision").glob("*/run.json"))]
