"""Many runs as a table: what each was, what it reached, filtered and sorted."""

import operator
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cnnlab.errors import ConfigError, DamagedError, MachineError
from cnnlab.files import flatten
from cnnlab.record import Record, find_run, is_run, runs

FACTS = ("status", "started", "seconds", "device", "precision", "num_parameters", "seed", "command", "error", "note")
CONDITION = re.compile(r"(?P<key>[^=<>!]+)(?P<sign>!=|<=|>=|=|<|>)(?P<value>.*)", re.DOTALL)

_COMPARISONS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Row(Mapping[str, Any]):
    """A run by key: `run` (its folder), facts of `run.json`, options (`model`), metrics (`val/accuracy`), config keys.

    A key that the run does not have is absent. The config is read when a key is nowhere else: it is YAML, and reading
    that of a thousand runs takes seconds.

    Args:
        record: The run.
        parent: The folder that `run` is relative to.
    """

    def __init__(self, record: Record, parent: Path) -> None:
        self.record = record
        self._values: dict[str, Any] = {"run": _relative(record.folder, parent)}
        self._config: dict[str, Any] | None = None
        try:
            self._values |= {name: record.run[name] for name in FACTS if record.run.get(name) is not None}
            self._values |= _choices(record)
            self._values |= {name: value for name, value in record.metrics.items() if isinstance(value, int | float)}
            self._values["changes"] = _changes(record)
            if tags := record.run.get("tags"):
                self._values["tags"] = ",".join(tags)
        except (DamagedError, MachineError):
            self._values["status"] = "damaged"

    def __getitem__(self, key: str) -> Any:
        if key in self._values:
            return self._values[key]
        if self._config is None:
            try:
                self._config = dict(flatten(self.record.config))
            except (DamagedError, MachineError):
                self._config = {}
        return self._config[key]

    def __iter__(self) -> Any:
        """Iterate over the keys at hand, without those of a config that was not read."""
        return iter(self._values)

    def __len__(self) -> int:
        """Count the keys at hand."""
        return len(self._values)


def list_runs(folder: Path, where: Sequence[str] = (), sort: str = "started", ascending: bool = False) -> list[Row]:
    """Return the runs in a folder and below it.

    Args:
        folder: Where to look.
        where: Conditions that all hold: KEY=VALUE, or with !=, <, <=, >, >= between them.
        sort: The key to sort by; runs without it come last.
        ascending: Whether the smallest comes first.

    Raises:
        ConfigError: There is no such folder, a condition cannot be read, or no run has a key.
    """
    if not folder.is_dir():
        raise ConfigError(f"FOLDER must be a folder with runs in or below it, there is no {folder}.")
    conditions = [_condition(text) for text in where]
    rows = [Row(record, folder) for record in runs(folder)]
    for key in dict.fromkeys([*(key for key, _, _ in conditions), sort]):
        if rows and key != "started" and not any(key in row for row in rows):
            near = get_close_matches(key, {name for row in rows for name in row}, n=1)
            raise ConfigError(f"no run below {folder} has {key}{f'; did you mean {near[0]}?' if near else '.'}")
    matching = [row for row in rows if all(_holds(row.get(key), sign, value) for key, sign, value in conditions)]
    sortable = [row for row in matching if row.get(sort) is not None]
    numbers = all(isinstance(row[sort], int | float) for row in sortable)
    sortable.sort(key=lambda row: row[sort] if numbers else str(row[sort]), reverse=not ascending)
    return sortable + [row for row in matching if row.get(sort) is None]


def same_as(rows: Sequence[Row], name: str) -> list[Row]:
    """Return the runs that have the identity of a run, itself among them, see `identity`.

    Raises:
        ConfigError: The run does not exist, or has no identity.
    """
    folder = Path(name)
    record = Record(folder) if is_run(folder) else find_run(name).record
    identity = record and record.run.get("identity")
    if identity is None:
        raise ConfigError(f"--same-as {name}: its run.json has no identity; it was made by an earlier version.")
    return [row for row in rows if row.get("status") != "damaged" and row.record.run.get("identity") == identity]


def _relative(folder: Path, parent: Path) -> str:
    return str(folder.relative_to(parent)) if folder != parent else str(folder)


def _choices(record: Record) -> dict[str, Any]:
    return {
        str(name): ",".join(map(str, option)) or "none" if isinstance(option, list) else option
        for name, option in record.choices.items() if option is not None and "/" not in str(name)
    }  # fmt: skip


def _changes(record: Record) -> str:
    overrides = record.run.get("overrides")
    return " ".join(record.overrides if overrides is None else overrides)


def _condition(text: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--where must be KEY=VALUE (or !=, <, <=, >, >=), got {text!r}.")
    return match["key"].strip(), match["sign"], match["value"].strip()


def _holds(actual: Any, sign: str, value: str) -> bool:
    if actual is None:
        return sign == "!=" or (sign == "=" and value in ("null", "None", ""))
    if isinstance(actual, bool):
        actual = str(actual).lower()
    left, right = _number(actual), _number(value)
    if left is None or right is None:
        if sign in ("=", "!="):
            # Of several options, one is enough.
            return (value == str(actual) or value in str(actual).split(",")) == (sign == "=")
        return False
    return bool(_COMPARISONS[sign](left, right))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
