"""Splits: their sizes, their proportions, their independence of the seed of training."""

from pathlib import Path

import numpy as np
import pytest

from cnnlab.data import splits
from cnnlab.errors import ConfigError, DataError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 20]))


def test_held_out_samples_are_stratified_and_depend_on_the_seed_alone():
    chosen = splits.held_out(LABELS, 10, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == [5, 3, 2]
    np.testing.assert_array_equal(chosen, splits.held_out(LABELS, 10, seed=0))
    assert not np.array_equal(chosen, splits.held_out(LABELS, 10, seed=1))


@pytest.mark.parametrize("size", [0, 1, 7, 33, 99])
def test_a_number_is_met_exactly_and_every_class_has_its_share(size: int):
    labels = np.arange(100) % 7
    chosen = splits.held_out(labels, size, seed=0)
    assert chosen.sum() == size
    assert np.abs(np.bincount(labels[chosen], minlength=7) - size * np.bincount(labels) / 100).max() <= 1


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 0, 0, 0]), (0.1, [10, 1, 1, 0]), (0.99, [99, 9, 1, 0])])
def test_a_share_takes_at_least_one_of_two_and_never_all(share: float, expected: list[int]):
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    assert np.bincount(labels[splits.held_out(labels, share, seed=0)], minlength=4).tolist() == expected


@pytest.mark.parametrize("folds", [2, 3, 5, 20])
def test_each_sample_is_validated_by_one_fold_and_folds_are_alike(folds: int):
    fold_of = splits.fold_of_each(LABELS, folds, seed=0)
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        counts = np.bincount(fold_of[label == LABELS], minlength=folds)
        assert counts.max() - counts.min() <= 1
    divisions = [splits.divide(LABELS, seed=0, val_size=0, folds=folds, fold=fold) for fold in range(folds)]
    assert sorted(np.concatenate([division.val for division in divisions]).tolist()) == list(range(100))
    for division in divisions:
        assert sorted([*division.train, *division.val]) == list(range(100))


@pytest.mark.parametrize("size", [10, 0.1, 0.3])
def test_groups_stay_on_one_side_and_classes_keep_about_their_share(size: float):
    groups = np.random.default_rng(1).integers(0, 40, 1000)
    labels = np.random.default_rng(2).integers(0, 3, 1000)
    for division in (
        splits.divide(labels, seed=0, val_size=size, test_size=0.2, groups=groups),
        splits.divide(labels, seed=0, val_size=0, test_size=0.2, folds=4, fold=1, groups=groups),
    ):
        parts = [set(groups[rows]) for rows in division]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert 0.15 < len(division.test) / 1000 < 0.25
    fold_of = splits.fold_of_each(labels, 4, 0, groups)
    counts = np.array([np.bincount(labels[fold_of == fold], minlength=3) for fold in range(4)])
    assert counts.min() > 60 < 110 > counts.max() - 30


def test_divisions_leave_out_hold_out_and_take_a_part_of_the_rest():
    without = np.arange(100) < 20
    division = splits.divide(LABELS, seed=0, val_size=10, test_size=0.25, train_size=0.5, without=without)
    assert len(division.val) == 10
    assert abs(len(division.test) - 20) <= 2
    assert abs(len(division.train) - 25) <= 1
    rows = np.concatenate(division)
    assert len(set(rows)) == len(rows)
    assert rows.min() >= 20
    shares = np.bincount(LABELS[division.train]) / len(division.train)
    np.testing.assert_allclose(shares, np.bincount(LABELS[20:]) / 80, atol=0.06)
    small = splits.divide(LABELS, seed=0, val_size=10, test_size=0.25, train_size=10, without=without)
    assert set(small.train) < set(division.train)  # a part of a part: what more images bring is measured so


def test_relabelling_changes_that_share_to_other_classes():
    noisy, changed = splits.relabelled(LABELS, 0.2, 3, seed=0)
    assert len(changed) == 20
    np.testing.assert_array_equal(np.flatnonzero(noisy != LABELS), changed)
    assert set(noisy) == {0, 1, 2}
    np.testing.assert_array_equal(noisy, splits.relabelled(LABELS, 0.2, 3, seed=0)[0])


def test_excluded_rows_are_read_from_a_table(tmp_path: Path):
    path = tmp_path / "suspects.csv"
    path.write_text("score,index,split\n0.9,3,train\n0.8,5,test\n0.7,0,train\n")
    assert np.flatnonzero(splits.excluded(path, 6)).tolist() == [0, 3]
    for text, error, message in (
        ("row\n1\n", DataError, "must have a column `index`.*; it has row"),
        ("index\n6\n", DataError, "line 2: index must be a row from 0 to 5, got '6'"),
        ("index\nx\n", DataError, "got 'x'"),
        ("index\n0\n1\n2\n3\n4\n5\n", ConfigError, "leaves out all 6"),
    ):
        path.write_text(text)
        with pytest.raises(error, match=message):
            splits.excluded(path, 6)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match=r"data.fold must be between 0 and 4.*got 5"):
        splits.divide(LABELS, seed=0, val_size=0, folds=5, fold=5)
    with pytest.raises(DataError, match="no class has two images"):
        splits.divide(np.arange(5), seed=0, val_size=0, test_size=0.2)
