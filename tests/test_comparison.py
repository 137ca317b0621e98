"""Differences are found where they are, and called real as often as is claimed."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cnnlab.cli import app
from cnnlab.comparison import compare_configs, compare_groups, compare_with_first, find_runs
from cnnlab.errors import DataError
from cnnlab.evaluation import evaluate
from cnnlab.run import uncommitted_code
from tests.conftest import drawn, read


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
    (figure,) = (pair[0] / "figures").glob("comparison-*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert f"curves: {figure}" in out
    assert not list(tmp_path.iterdir()), "nothing of an earlier comparison is overwritten"
    code, out, _ = call(*pair, "--json", "--figure", "curves.png")
    told = json.loads(out)
    assert told["config"] == {"seed": [0, 7]}
    assert told["runs"] == ["/".join(path.parts[-2:]) for path in pair]
    assert told["verdicts"][0]["p"] == 1
    assert told["figure"] == "curves.png"


def test_answers_of_an_earlier_evaluation_are_used_while_they_are_newer_than_the_checkpoint(pair):
    for run in pair:
        evaluate(str(run), figures=False)
    first, second = find_runs([str(run) for run in pair])
    assert compare_configs([first, second])["seed"] == [0, 7]
    with np.load(pair[1] / "evaluation.npz") as saved:
        arrays = dict(saved)
    arrays["predicted"] = (arrays["targets"] + 1) % 10  # all wrong
    np.savez(pair[1] / "evaluation.npz", **arrays)
    (verdict,) = compare_with_first([first, second])
    assert verdict.difference == -read(pair[0] / "evaluation.json")["metrics"]["accuracy"]
    assert verdict.p < 0.05
    assert "has the lower accuracy" in verdict.words("a", "b")
    (pair[1] / "evaluation.npz").write_bytes(b"damaged")
    (verdict,) = compare_with_first([first, second])
    assert verdict.difference == 0, "evaluated again"
    arrays["predicted"] = (arrays["targets"] + 1) % 10
    np.savez(pair[1] / "evaluation.npz", **arrays)
    (pair[1] / "checkpoints" / "best.ckpt").touch()
    (verdict,) = compare_with_first([first, second])
    assert verdict.difference == 0, "trained on since"
    for name, value in {"precision": "bf16-mixed", "tta": "mirror", "split": "val"}.items():
        np.savez(pair[1] / "evaluation.npz", **arrays)
        saved = pair[1] / "evaluation.json"
        saved.write_text(json.dumps(read(saved) | {name: value}))
        (verdict,) = compare_with_first([first, second])
        assert verdict.difference == 0, f"made by another {name}"


def test_other_images_are_not_compared(pair, tmp_path: Path, call):
    train_set, test_set = drawn(40, 10, seed=2), drawn(30, 10, seed=3)
    np.savez(tmp_path / "other.npz", X_train=train_set[0], y_train=train_set[1], X_test=test_set[0], y_test=test_set[1])
    evaluation = pair[1] / "evaluation.json"
    evaluate(str(pair[1]), figures=False)
    before = evaluation.read_text()
    evaluation.write_text(before.replace(read(evaluation)["data_digest"], "0" * 32))
    with pytest.raises(DataError, match="tested on other images"):
        compare_with_first(find_runs([str(run) for run in pair]))
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
    verdict = compare_groups(find_runs(first), find_runs(second))
    assert verdict.difference == pytest.approx(0.05)
    assert verdict.p < 0.001
    code, out, _ = call(*first, "--against", *second)
    assert code == 0
    assert "the other 3 has the higher test/accuracy than the first 3 (Welch's t-test over 3 and 3 runs" in out
    code, out, _ = call(*first, "--against", *[result(tmp_path / "c" / str(n), 0.8 + n / 10, n) for n in range(3)])
    assert "no evidence of a difference in test/accuracy" in out
    assert call(*first, "--against", *second, "--metric", "val/loss")[0] == 2


def test_a_run_of_another_length_is_no_part_of_a_group_unless_asked(tmp_path: Path, call):
    groups = [[result(tmp_path / name / str(seed), 0.9 + seed / 100, seed) for seed in range(3)] for name in "ab"]
    for path in [*groups[0], *groups[1]]:
        limits = {"max_epochs": 9 if path == groups[0][1] else 3}
        (Path(path) / "run.json").write_text(json.dumps({"status": "completed", "limits": limits}))
    code, _, err = call(*groups[0], "--against", *groups[1])
    assert code == 2
    assert "a/1 was trained to other limits than the rest of its group (max_epochs=9): leave it out" in err
    assert call(*groups[0], "--against", *groups[1], "--any-length")[0] == 0


def test_changed_code_is_kept_and_compared(tmp_path: Path, call):
    checkout = tmp_path / "checkout"
    checkout.mkdir()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=checkout, check=True, capture_output=True)

    git("init")
    (checkout / "net.py").write_text("width = 16\n")
    git("add", ".")
    git("commit", "-m", "first")
    assert uncommitted_code(checkout) == ""
    (checkout / "net.py").write_text("width = 32\n")
    (checkout / "new.py").write_text("")
    diff = uncommitted_code(checkout)
    assert "-width = 16\n+width = 32" in diff
    assert "new file, not kept: new.py" in diff
    (checkout / "net.py").write_text("x" * 2_000_000)
    assert len(uncommitted_code(checkout)) < 1_001_000, "bounded"
    assert uncommitted_code(tmp_path) == "", "outside a checkout"
    first = [result(tmp_path / "a" / str(number), 0.9, number) for number in range(2)]
    second = [result(tmp_path / "b" / str(number), 0.9, number) for number in range(2)]
    (tmp_path / "b" / "0" / "code.diff").write_text(diff)
    code, out, _ = call(*first, "--against", *second)
    assert code == 0
    assert "Code of b/0, unlike that of a/0:" in out
    assert "++width = 32" in out
    assert "Code of b/1" not in out


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
    assert "did not measure test/accuracy" in call(last, first[1], "--against", *other)[2], (
        "metrics.json is of the best"
    )
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
    assert not list(tmp_path.rglob("*.png"))
