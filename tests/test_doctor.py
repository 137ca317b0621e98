"""Planted label errors and copies are found, and what the doctor writes can be trained without."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnlab import ImageData
from cnnlab.commands.data import app
from cnnlab.data.splits import relabelled
from cnnlab.doctor import examine, find_confusions, find_duplicates, suspect, take
from cnnlab.errors import ConfigError
from tests.conftest import Train, drawn, read


def answers(count: int, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities of a network that is often right, labels of which a share is wrong, and which are."""
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), truth] += random.normal(5, 2, count)
    labels, changed = relabelled(truth, share, classes, seed)
    wrong = np.zeros(count, bool)
    wrong[changed] = True
    return torch.from_numpy(logits).softmax(1).numpy(), labels, wrong


def test_planted_errors_come_first():
    probabilities, labels, wrong = answers(20_000, 10, 0.03, seed=0)
    diagnosis = suspect(probabilities, labels)
    assert wrong[diagnosis.order[:600]].mean() >= 0.75
    assert wrong[diagnosis.order[:1200]].sum() >= 0.9 * wrong.sum()
    assert wrong[diagnosis.order[: diagnosis.num_suspects]].mean() > 0.5
    assert sorted(diagnosis.order) == list(range(20_000))


def test_thresholds_are_those_of_the_classes():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.65, 0.35, 0.0], [0.6, 0.4, 0.0], [0.8, 0.2, 0.0]])
    diagnosis = suspect(probabilities, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(diagnosis.thresholds, [0.775, 0.3, np.nan])
    # 0.65 and 0.6 do not reach the threshold of class 0, 0.35 and 0.4 do that of class 1; 0.8 is sure of class 0.
    assert list(diagnosis.order) == [3, 1, 2, 0]
    assert (diagnosis.num_suspects, diagnosis.answers[3], diagnosis.answers[1]) == (2, 0, 1)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_ranking_is_cleanlabs(classes: int):
    cleanlab_filter = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    probabilities, labels, _ = answers(5_000, classes, 0.05, seed=1)
    expected = cleanlab_filter.find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    diagnosis = suspect(probabilities, labels)
    assert list(diagnosis.order[: diagnosis.num_suspects]) == list(expected)


def test_classes_that_are_taken_for_each_other_are_named():
    labels, predicted = np.repeat([0, 1, 2], 10), np.repeat([0, 1, 2], 10)
    predicted[[0, 1, 10]] = [1, 1, 0]
    predicted[20] = 0  # one way only
    assert find_confusions(predicted, labels, 3) == [(0, 1, (0.2, 0.1), 3)]


def test_copies_across_training_and_test_are_found(tmp_path: Path):
    images, labels = drawn(60, 10, seed=0)
    tests, test_labels = drawn(20, 10, seed=1)
    brighter = np.clip(images[[5, 40]].astype(int) + 12, 0, 255).astype(np.uint8)
    tests[[3, 7]] = brighter
    np.savez(tmp_path / "a.npz", X_train=images, y_train=labels, X_test=tests, y_test=test_labels)
    data = ImageData(tmp_path / "a.npz", folds=3)
    assert {pair[:2] for pair in find_duplicates(data)} == {(3, 5), (7, 40)}
    np.testing.assert_array_equal(take(data, torch.tensor([41, 0, 7])), images[[41, 0, 7]])


def test_an_image_that_the_first_run_has_not_is_not_taken_for_another(tmp_path: Path):
    images, labels = drawn(60, 10, seed=0)
    np.savez(tmp_path / "a.npz", X_train=images, y_train=labels)
    data = ImageData(tmp_path / "a.npz")
    tested = data.rows("test")[:1]
    with pytest.raises(ConfigError, match=rf"row {int(tested)} of the training array neither trains nor validates"):
        take(data, torch.cat([data.rows("val"), tested]))


def test_a_sweep_is_examined_and_trained_without_the_suspects(
    folds: Path, npz: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
):
    app(["doctor", str(folds), "--json", "--output", str(tmp_path / "doctor")], standalone_mode=False)
    printed = capsys.readouterr().out
    content = json.loads(printed[printed.index("{") :])  # after the log of a run of this process
    assert content == read(tmp_path / "doctor" / "doctor.json")
    truth = np.load(npz)["y_train"].ravel()
    changed = set(relabelled(truth, 0.05, 10, seed=0)[1].tolist())
    suspects = [line["index"] for line in content["suspects"]]
    assert content["count"] == 400
    assert len(changed & set(suspects[:20])) >= 15  # of 20
    assert changed & set(content["hopeless"]) <= set(range(400))
    assert content["metrics_without_suspects"]["count"] == 400 - len(suspects)
    assert content["metrics_without_suspects"]["metrics"]["accuracy"] > content["metrics"]["metrics"]["accuracy"]
    table = tmp_path / "doctor" / "suspects.csv"
    with table.open(newline="") as file:
        assert [int(line["index"]) for line in csv.DictReader(file)] == suspects
    assert (tmp_path / "doctor" / "suspects.png").read_bytes().startswith(b"\x89PNG")
    assert f"data.exclude={table}" in content["command"]
    assert "data.fold" not in content["command"]
    run = train("trainer.max_epochs=1", f"data.exclude='{table}'", "data.val_size=0.2")
    assert sum(read(run / "run.json")["images"][split] for split in ("train", "val")) == 400 - len(suspects)
    app(["doctor", str(folds), "--output", str(tmp_path / "doctor")], standalone_mode=False)
    assert f"{len(suspects)} of 400 labels are suspect" in capsys.readouterr().out


def test_runs_with_a_validation_set_are_examined_too(trained: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    content = examine([str(trained), str(copy)], tmp_path / "doctor")
    assert content["count"] == 80
    assert content["hopeless"] == sorted(set(content["hopeless"]))
