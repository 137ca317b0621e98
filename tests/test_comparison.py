"""Differences are found where they are, and called real as often as is claimed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cnnlab.cli import app
from cnnlab.comparison import against_first, differences, holm, of_groups, paired, sides, t_tails, welch
from cnnlab.errors import ConfigError, DataError
from cnnlab.evaluation import evaluate
from tests.conftest import drawn, read


def simulated(random: np.random.Generator, both: float, first: float, second: float, count: int = 1000):
    """Return who is right on each image: both, only the first, only the second, or none, with these probabilities."""
    kind = random.choice(4, count, p=[both, first, second, 1 - both - first - second])
    return (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)


def test_equal_classifiers_are_called_different_as_rarely_as_is_claimed():
    random = np.random.default_rng(0)
    verdicts = [paired(*simulated(random, 0.7, 0.1, 0.1)) for _ in range(1000)]
    # An exact test errs on the safe side; binomial noise of a thousand simulations is 0.007.
    assert 0.02 < np.mean([verdict.p < 0.05 for verdict in verdicts]) < 0.065
    assert 0.93 < np.mean([verdict.low <= 0 <= verdict.high for verdict in verdicts]) < 0.97


def test_a_known_difference_is_found_and_lies_in_its_interval():
    random = np.random.default_rng(1)
    verdicts = [paired(*simulated(random, 0.7, 0.08, 0.14)) for _ in range(1000)]
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
    assert paired(first, second).p == pytest.approx(expected)
    assert paired(first, second).difference == pytest.approx(-0.06)
    same = paired(first, first)
    assert (same.p, same.difference, same.low, same.high) == (1, 0, 0, 0)
    many = np.arange(100_000) % 2 == 0
    assert paired(many, ~many).p == pytest.approx(1)
    assert paired(many, np.ones(100_000, bool)).p < 1e-300


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
    with pytest.raises(ConfigError, match="two runs on each side"):
        welch([0.5], [0.6, 0.7])


@pytest.fixture(scope="module")
def pair(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and another that ends like it in all but its seed and its last state."""
    import shutil

    other = tmp_path_factory.mktemp("pair") / "other"
    shutil.copytree(trained, other)
    config = other / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 7\n", 1))
    return trained, other


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*args: object):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(["compare", *map(str, args)], prog_name="cnnlab")
        return end.value.code or 0, *capsys.readouterr()

    return call


def test_two_equal_runs_are_no_evidence_of_a_difference(pair, call, tmp_path: Path):
    code, out, err = call(*pair)
    assert (code, err) == (0, "")
    assert "no evidence of a difference in accuracy between" in out
    assert "McNemar's exact test over 100 test images, p = 1;" in out
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(*pair, "--json", "--figure", "curves.png")
    told = json.loads(out)
    assert told["config"] == {"seed": [0, 7]}
    assert told["runs"] == ["/".join(path.parts[-2:]) for path in pair]
    assert told["verdicts"][0]["p"] == 1
    assert told["figure"] == "curves.png"


def test_answers_of_an_earlier_evaluation_are_used_while_they_are_newer_than_the_checkpoint(pair):
    for run in pair:
        evaluate(str(run), figures=False)
    first, second = sides([str(run) for run in pair])
    assert differences([first, second])["seed"] == [0, 7]
    with np.load(pair[1] / "evaluation.npz") as saved:
        arrays = dict(saved)
    arrays["predicted"] = (arrays["targets"] + 1) % 10  # all wrong
    np.savez(pair[1] / "evaluation.npz", **arrays)
    (verdict,) = against_first([first, second]).values()
    assert verdict.difference == -read(pair[0] / "evaluation.json")["metrics"]["accuracy"]
    assert verdict.p < 0.05
    assert "has the lower accuracy" in verdict.words("a", "b")
    (pair[1] / "evaluation.npz").write_bytes(b"damaged")
    (verdict,) = against_first([first, second]).values()
    assert verdict.difference == 0, "evaluated again"
    arrays["predicted"] = (arrays["targets"] + 1) % 10
    np.savez(pair[1] / "evaluation.npz", **arrays)
    (pair[1] / "checkpoints" / "best.ckpt").touch()
    (verdict,) = against_first([first, second]).values()
    assert verdict.difference == 0, "trained on since"
    for name, value in {"precision": "bf16-mixed", "tta": "mirror", "split": "val"}.items():
        np.savez(pair[1] / "evaluation.npz", **arrays)
        saved = pair[1] / "evaluation.json"
        saved.write_text(json.dumps(read(saved) | {name: value}))
        (verdict,) = against_first([first, second]).values()
        assert verdict.difference == 0, f"made by another {name}"


def test_other_images_are_not_compared(pair, tmp_path: Path, call):
    train_set, test_set = drawn(40, 10, seed=2), drawn(30, 10, seed=3)
    np.savez(tmp_path / "other.npz", X_train=train_set[0], y_train=train_set[1], X_test=test_set[0], y_test=test_set[1])
    evaluation = pair[1] / "evaluation.json"
    evaluate(str(pair[1]), figures=False)
    before = evaluation.read_text()
    evaluation.write_text(before.replace(read(evaluation)["data_digest"], "0" * 32))
    with pytest.raises(DataError, match="tested on other images"):
        against_first(sides([str(run) for run in pair]))
    code, out, err = call(*pair)
    assert code == 3
    assert "test/accuracy" in out, "what can be said is said"
    assert "--data" in err
    code, out, _ = call(*pair, "--data", tmp_path / "other.npz")
    assert code == 0
    assert "over 30 test images" in out
    evaluation.write_text(before)


def result(folder: Path, accuracy: float, seed: int = 0, more: str = "") -> str:
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\n{more}")
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    (folder / "metrics.json").write_text(json.dumps({"test/accuracy": accuracy}))
    return str(folder)


def test_groups_of_runs_are_compared_over_seeds(tmp_path: Path, call):
    first = [result(tmp_path / "a" / str(number), 0.90 + 0.001 * number, number) for number in range(3)]
    second = [result(tmp_path / "b" / str(number), 0.95 + 0.001 * number, number) for number in range(3)]
    verdict = of_groups(sides(first), sides(second))
    assert verdict.difference == pytest.approx(0.05)
    assert verdict.p < 0.001
    code, out, _ = call(*first, "--against", *second)
    assert code == 0
    assert "the other 3 has the higher test/accuracy than the first 3 (Welch's t-test over 3 and 3 runs" in out
    code, out, _ = call(*first, "--against", *[result(tmp_path / "c" / str(n), 0.8 + n / 10, n) for n in range(3)])
    assert "no evidence of a difference in test/accuracy" in out
    assert call(*first, "--against", *second, "--metric", "val/loss")[0] == 2


def test_a_seed_counts_once_in_a_group(tmp_path: Path, call):
    first = [result(tmp_path / "a" / str(number), 0.9 + number / 100, number) for number in range(2)]
    again = result(tmp_path / "a" / "copy", 0.91, seed=1)
    code, _, err = call(*first, "--against", *[result(tmp_path / "b" / str(n), 0.8, n) for n in range(2)], again)
    assert code == 2
    assert "b/1 and a/copy have the same seed, 1: in a group that is one measurement, not two" in err
    last = tmp_path / "a" / "0" / "checkpoints" / "last.ckpt"
    last.write_bytes(b"another state")
    other = [tmp_path / "b" / str(number) for number in range(2)]
    assert "the same seed, 0" in call(first[0], last, "--against", *other)[2]
    assert "in the first group too" in call(*first, "--against", last, other[1])[2]
    held_out = [result(tmp_path / "c" / str(n), 0.9, more=f"data: {{split_seed: {n}}}\n") for n in range(2)]
    assert call(*first, "--against", *held_out)[0] == 0, "other images are another measurement"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "two runs or more"), (["a", "a"], "named twice"), (["a", "nowhere"], "got nowhere"),
        (["a", "b", "--against", "c"], "at least two runs on each side"), (["a", "b", "--figre", "x"], "no option"),
        (["a", "--against", "b", "--against", "c"], "stands once"),
    ],
)  # fmt: skip
def test_mistakes_are_answered(tmp_path: Path, call, words: list[str], message: str):
    for name in "abc":
        result(tmp_path / name, 0.5)
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "comparison.png").exists()
