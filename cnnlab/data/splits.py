"""Which images train, which validate, which test: pure functions of the labels and a seed."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from cnnlab.errors import ConfigError, DataError

Rows = Int64[np.ndarray, "n"]


class Division(NamedTuple):
    """Rows of the training array that train, validate and test; those of a split with arrays of its own are empty."""

    train: Rows
    val: Rows
    test: Rows


def divide(
    labels: Int64[np.ndarray, "n"],
    *,
    seed: int,
    val_size: float,
    test_size: float = 0,
    train_size: float | None = None,
    folds: int | None = None,
    fold: int = 0,
    without: Bool[np.ndarray, "n"] | None = None,
    groups: Int64[np.ndarray, "n"] | None = None,
) -> Division:
    """Divide a training array: what is left out, the test set, the fold or the validation set, a part of the rest.

    Args:
        labels: The class of each image.
        seed: Decides every choice.
        val_size: Images to validate on, see `held_out`; unused with `folds`.
        test_size: Images to test on.
        train_size: Images to train on, of those that remain; None for all of them.
        folds: Number of folds; None for a single division.
        fold: The fold that validates.
        without: Images to leave out.
        groups: Images of one group stay on one side.

    Raises:
        DataError: A size cannot be met.
        ConfigError: There is no such fold.
    """
    rows = np.arange(len(labels)) if without is None else np.flatnonzero(~without)

    def of(part: Int64[np.ndarray, "n"] | None) -> Int64[np.ndarray, "n"] | None:
        return None if part is None else part[rows]

    tests = held_out(labels[rows], test_size, seed, "data.test_size", of(groups))
    if test_size and not tests.any():
        raise DataError("there is no test set, and none can be held out: no class has two images.")
    test, rows = rows[tests], rows[~tests]
    if folds is None:
        validates = held_out(labels[rows], val_size, seed, "data.val_size", of(groups))
    elif not 0 <= fold < folds:
        raise ConfigError(f"data.fold must be between 0 and {folds - 1}, one less than data.folds, got {fold}.")
    else:
        validates = fold_of_each(labels[rows], folds, seed, of(groups)) == fold
    val, rows = rows[validates], rows[~validates]
    if train_size is not None:
        rows = rows[subset(labels[rows], train_size, seed)]
    return Division(rows, val, test)


def held_out(
    labels: Int64[np.ndarray, "n"],
    size: float,
    seed: int,
    key: str = "data.val_size",
    groups: Int64[np.ndarray, "n"] | None = None,
) -> Bool[np.ndarray, "n"]:
    """Choose samples to hold out, of each class in proportion to its size.

    Args:
        labels: The class of each sample.
        size: How many: a whole number, which is met exactly, or a share below 1, of which each class that has two
            samples gives at least one.
        seed: Decides which.
        key: The setting that `size` comes from, for the error.
        groups: Samples of one group stay together; the size is then met as nearly as the groups allow.

    Raises:
        DataError: `size` leaves nothing to train on.
    """
    count = len(labels)
    if not 0 <= size < (count if isinstance(size, int) else 1):
        raise DataError(
            f"{key} must be between 0 and {count - 1}, one less than the images it is taken from, or a share below "
            f"1.0; got {size}."
        )
    if groups is not None and size:
        share = size / count if isinstance(size, int) else size
        return _dealt(labels, groups, [share, 1 - share], seed) == 0
    ranks = _shares(labels, seed)
    if isinstance(size, int):
        chosen = np.zeros(count, bool)
        chosen[np.argsort(ranks, kind="stable")[:size]] = True
        return chosen
    sizes = np.bincount(labels)
    # Of each class: rounded, at least one of two, and never the last one.
    quotas = np.minimum(np.maximum(np.rint(size * sizes), size > 0), np.maximum(sizes - 1, 0))
    return ranks * sizes[labels] < quotas[labels]


def fold_of_each(
    labels: Int64[np.ndarray, "n"], folds: int, seed: int, groups: Int64[np.ndarray, "n"] | None = None
) -> Int64[np.ndarray, "n"]:
    """Divide samples into folds, each class (and each group as a whole) as evenly as can be.

    A fold's validation images are those that have its number; over all folds each sample is validated once.

    Args:
        labels: The class of each sample.
        folds: How many.
        seed: Decides the division.
        groups: Samples with equal numbers share a fold.

    Raises:
        DataError: There are fewer samples, or groups, than folds.
    """
    units = len(labels) if groups is None else len(np.unique(groups))
    if not 2 <= folds <= units:
        raise DataError(f"data.folds must be between 2 and {units}, the number of images or groups, got {folds}.")
    if groups is None:
        # Dealt out like cards, class after class: neither classes nor folds differ by more than one.
        order = np.lexsort((_shares(labels, seed), labels))
        numbers = np.empty(len(labels), np.int64)
        numbers[order] = np.arange(len(labels)) % folds
        return numbers
    return _dealt(labels, groups, [1 / folds] * folds, seed)


def subset(labels: Int64[np.ndarray, "n"], size: float, seed: int) -> Bool[np.ndarray, "n"]:
    """Choose the training images that `data.train_size` keeps, of each class in proportion to its size.

    Raises:
        DataError: There are not as many.
    """
    count = len(labels)
    if not 0 < size <= (count if isinstance(size, int) else 1):
        raise DataError(f"data.train_size must be between 1 and {count}, or a share up to 1.0; got {size}.")
    number = size if isinstance(size, int) else max(1, round(size * count))
    chosen = np.zeros(count, bool)
    chosen[np.argsort(_shares(labels, seed), kind="stable")[:number]] = True
    return chosen


def relabelled(
    labels: Int64[np.ndarray, "n"], share: float, num_classes: int, seed: int
) -> tuple[Int64[np.ndarray, "n"], Rows]:
    """Give a share of the labels another class, each other class being equally likely.

    Returns:
        The labels, and which of them were changed.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    changed = np.sort(random.permutation(len(labels))[: round(share * len(labels))])
    noisy = labels.copy()
    noisy[changed] = (labels[changed] + random.integers(1, max(num_classes, 2), len(changed))) % num_classes
    return noisy, changed


def excluded(path: Path | str, count: int) -> Bool[np.ndarray, "n"]:
    """Read which training images a CSV file leaves out: its column `index` holds rows of the training array.

    Where there is a column `split`, only the lines that say `train` count.

    Raises:
        DataError: The file is missing, has no such column, or names a row that is not there.
        ConfigError: It leaves out everything.
    """
    chosen = np.zeros(count, bool)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if "index" not in (lines.fieldnames or ()):
                raise DataError(
                    f"data.exclude={path} must have a column `index`, the images' rows in the training array; "
                    f"it has {', '.join(lines.fieldnames or ()) or 'none'}."
                )
            for line in lines:
                if line.get("split", "train") != "train":
                    continue
                text = line["index"] or ""
                if not text.strip().isdecimal() or int(text) >= count:
                    raise DataError(
                        f"data.exclude={path}, line {lines.line_num}: index must be a row from 0 to {count - 1}, "
                        f"got {text[:50]!r}."
                    )
                chosen[int(text)] = True
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.exclude={path} could not be read: {error}.") from error
    if chosen.all():
        raise ConfigError(f"data.exclude={path} leaves out all {count} training images.")
    return chosen


def number_names(names: np.ndarray) -> Int64[np.ndarray, "n"]:
    """Number the distinct names of groups, texts or integers, in sorted order."""
    return np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _shares(labels: Int64[np.ndarray, "n"], seed: int) -> np.ndarray:
    """Return each sample's rank within its shuffled class, as a share of the class.

    The lowest shares over all classes together are a sample in which no class is off its proportion by more than one.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    shares = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shares[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return shares


def _dealt(
    labels: Int64[np.ndarray, "n"], groups: Int64[np.ndarray, "n"], shares: Sequence[float], seed: int
) -> Int64[np.ndarray, "n"]:
    """Deal whole groups out to parts of given shares; return each sample's part.

    The largest groups first, each to the part that it leaves nearest to its share of every class.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (group_of, labels), 1)
    goals = np.outer(shares, np.maximum(counts.sum(axis=0), 1))
    held, part_of_group = np.zeros_like(goals), np.empty(len(names), np.int64)
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    for group in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        excess = (((held + counts[group]) ** 2 - held**2) / goals).sum(axis=1)
        part_of_group[group] = part = int(np.argmin(excess))
        held[part] += counts[group]
    return part_of_group[group_of]
