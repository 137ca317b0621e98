"""Many runs as a table: what each was, what it reached, filtered and sorted."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cnnlab.errors import ConfigError, DamagedError, MachineError
from cnnlab.files import flatten, read_yaml
from cnnlab.record import Record, runs

FACTS = ("status", "started", "seconds", "device", "precision", "num_parameters", "seed", "command", "error")
CONDITION = re.compile(r"(?P<key>[^=<>!]+)(?P<sign>!=|<=|>=|=|<|>)(?P<value>.*)", re.DOTALL)


class Row(Mapping[str, Any]):
    """A run by key: `run` (its folder), facts of `run.json`, options (`model`), metrics (`val/accuracy`), config keys.

    A key that the run does not have is absent. The config is read when a key is nowhere else: it is YAML, and reading
    that of a thousand runs takes seconds.

    Args:
        record: The run.
        below: The folder that `run` is relative to.
    """

    def __init__(self, record: Record, below: Path) -> None:
        self.record = record
        self._known: dict[str, Any] = {"run": _relative(record.folder, below)}
        self._config: dict[str, Any] | None = None
        try:
            self._known |= {name: record.run[name] for name in FACTS if record.run.get(name) is not None}
            self._known |= _choices(record)
            self._known |= {name: value for name, value in record.metrics.items() if isinstance(value, int | float)}
            self._known["changes"] = _changes(record)
        except (DamagedError, MachineError):
            self._known["status"] = "damaged"

    def __getitem__(self, key: str) -> Any:
        if key in self._known:
            return self._known[key]
        if self._config is None:
            try:
                self._config = dict(flatten(self.record.config))
            except (DamagedError, MachineError):
                self._config = {}
        return self._config[key]

    def __iter__(self) -> Any:
        """Iterate over the keys at hand, without those of a config that was not read."""
        return iter(self._known)

    def __len__(self) -> int:
        """Count the keys at hand."""
        return len(self._known)


def rows(folder: Path, where: Sequence[str] = (), sort: str = "started", ascending: bool = False) -> list[Row]:
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
    found = [Row(record, folder) for record in runs(folder)]
    for key in dict.fromkeys([*(key for key, _, _ in conditions), sort]):
        if found and key != "started" and not any(key in row for row in found):
            near = get_close_matches(key, {name for row in found for name in row}, n=1)
            raise ConfigError(f"no run below {folder} has {key}{f'; did you mean {near[0]}?' if near else '.'}")
    kept = [row for row in found if all(_holds(row.get(key), sign, value) for key, sign, value in conditions)]
    having = [row for row in kept if row.get(sort) is not None]
    numbers = all(isinstance(row[sort], int | float) for row in having)
    having.sort(key=lambda row: row[sort] if numbers else str(row[sort]), reverse=not ascending)
    return having + [row for row in kept if row.get(sort) is None]


def _relative(folder: Path, below: Path) -> str:
    return str(folder.relative_to(below)) if folder != below else str(folder)


def _choices(record: Record) -> dict[str, Any]:
    told = record.run.get("choices")
    if told is None:  # by an earlier version, or by a run that failed before it knew
        runtime = read_yaml(record.folder / ".hydra" / "hydra.yaml")
        told = runtime["hydra"]["runtime"]["choices"] if _has(runtime, "hydra", "runtime", "choices") else {}
    if not isinstance(told, dict):
        return {}
    return {
        str(name): ",".join(map(str, option)) or "none" if isinstance(option, list) else option
        for name, option in told.items() if option is not None and "/" not in str(name)
    }  # fmt: skip


def _changes(record: Record) -> str:
    told = record.run.get("overrides")
    lines = record.overrides if told is None else told
    return " ".join(map(str, lines)) if isinstance(lines, list) else ""


def _has(content: Any, *keys: str) -> bool:
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = content[key]
    return True


def _condition(text: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--where must be KEY=VALUE (or !=, <, <=, >, >=), got {text!r}.")
    return match["key"].strip(), match["sign"], match["value"].strip()


def _holds(found: Any, sign: str, value: str) -> bool:
    if found is None:
        return sign == "!=" or (sign == "=" and value in ("null", "None", ""))
    if isinstance(found, bool):
        found = str(found).lower()
    numbers = _number(found), _number(value)
    if None in numbers:
        if sign in ("=", "!="):
            # Of several options, one is enough.
            return (value == str(found) or value in str(found).split(",")) == (sign == "=")
        return False
    left, right = numbers
    assert left is not None
    assert right is not None
    return {
        "=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right,
        ">=": left >= right,
    }[sign]  # fmt: skip


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
