"""Resume a run: its own command line again, in its own folder, as long as its config is the same."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from cnnlab import trust
from cnnlab.config import project
from cnnlab.config.lines import parse, quote
from cnnlab.config.references import BY_BUDGET, Unresolved, get, resolved
from cnnlab.config.words import as_typed, refusal
from cnnlab.errors import DataError, UnsafeError
from cnnlab.files import flatten, write_text
from cnnlab.identity import IRRELEVANT
from cnnlab.record import LIMITS, RUNS, SWEEP_RECORD, Record, is_run, is_sweep, program, runs, typed

STATES = ("init_from", "classifier.teacher")
"""Settings that name the state of another run."""

MAY_CHANGE = (
    *(key for key in IRRELEVANT if not key.startswith("callbacks.history")),
    "on_divergence", "callbacks.early_stopping.patience",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time",
)  # fmt: skip
"""How far a run goes, where it runs, what it shows: nothing that a step's result depends on."""

WRITERS = ("logger.", "trainer.", "callbacks.")
"""Sections whose objects write files."""

MOST_SIGNS = 10_000
"""Of a run's overrides, besides letters and digits: Hydra's parser takes a second or two for so many."""


def find(name: str, *, sweep: bool = False) -> Path:
    """Return the absolute path of what `resume=` names: a run's folder or a sweep's, or `last` for the newest one.

    Raises:
        ConfigError: There is no such folder.
    """
    thing, mark, holds = ("sweep", SWEEP_RECORD, is_sweep) if sweep else ("run", ".hydra/config.yaml", is_run)
    if name == "last":
        if sweep:
            touched = {path.parent.parent: path.stat().st_mtime_ns for path in RUNS.glob(f"**/{SWEEP_RECORD}")}
        else:
            touched = {record.folder: record.touched for record in runs(RUNS)}
        if not touched:
            raise refusal(f"resume=last found no {thing} below outputs; give the {thing}'s folder")
        return max(touched, key=touched.__getitem__).absolute()
    folder = Path(name).expanduser().absolute()
    if not holds(folder):
        kind = f"a {thing}'s folder{' (with -m)' if sweep else ''}"
        raise refusal(f"resume={name} must be {kind}, but there is no {mark} in it")
    if "${" in str(folder):
        raise refusal(f"resume={name} must not hold ${{, which Hydra would replace: rename the folder")
    return folder


def resume_command(folder: Path) -> str:
    """Return what resumes a run, as a person types it into a shell in this folder."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder))
    search_path = os.environ.get("PYTHONPATH")
    prefix = f"PYTHONPATH={shlex.quote(search_path)} " if search_path else ""
    return f"{prefix}{program()} {typed([*project.words(), f'resume={folder if plain else quote(folder)}'])}"


def expand(folder: Path, changes: list[str]) -> list[str]:
    """Return the overrides that resume a run: its own, then those given now, then its folder.

    What its own say of Hydra is left out: loggers, launchers and plugins are code, and a folder may be a
    stranger's; so is whom it calls trusted.

    Args:
        folder: The run's folder.
        changes: The overrides given now, without `resume`.

    Raises:
        ConfigError: The run's record of its overrides can't be read.
    """
    recorded = Record(folder).overrides
    if len(re.findall(r"\W", "".join(recorded))) > MOST_SIGNS:
        raise UnsafeError(f"{folder}/.hydra/overrides.yaml would take minutes to read: more than {MOST_SIGNS} signs.")
    path = quote(folder)
    place = [f"resume={path}", f"hydra.run.dir={path}", "hydra.output_subdir=null"]
    return [
        *(line for line in recorded if line not in changes and _is_own(line, folder)),
        *(line for line in changes if line not in place),
        *place,
    ]


def record_limits(folder: Path, limits: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Have the record in `.hydra` of a resumed run say how far it is trained now: Hydra writes it once only.

    Args:
        folder: The run's folder.
        limits: Its limits (epochs, steps, time).
        overrides: Those that it was resumed with; those about limits become its own.
    """
    record = Record(folder)
    trainer = record.config.get("trainer")
    limiting = list({line.partition("=")[0].lstrip("+"): line for line in overrides if _sets_limit(line)}.values())
    if not isinstance(trainer, dict) or limiting == [line for line in record.overrides if _sets_limit(line)]:
        return
    content = record.config | {"trainer": trainer | {name: limits[name] for name in LIMITS if name in limits}}
    lines = [*(line for line in record.overrides if not _sets_limit(line)), *limiting]
    write_text(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(lines))
    write_text(folder / ".hydra" / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _sets_limit(line: str) -> bool:
    key = line.partition("=")[0].lstrip("+~")
    return key in [f"trainer.{name}" for name in LIMITS]


def _is_own(line: str, folder: Path) -> bool:
    try:
        override = parse(line)
    except Exception as error:
        raise refusal(f"{folder}/.hydra/overrides.yaml: {as_typed(line)} can't be read: it is damaged") from error
    places = (override.key_or_group, override.package or "")
    return not any(re.match(r"hydra\b|(resume|trusted)$", place) for place in places)


def check_origin(config: Mapping[str, Any], vouched: Mapping[str, Any]) -> None:
    """Check what a run's folder, which may be a stranger's, adds to the config of the resumed run.

    Args:
        config: The whole config, as plain containers.
        vouched: The same without the values that the folder gives: the user's own conf, and what is given now.

    Raises:
        UnsafeError: The folder names a class that is not known to be harmless, a place to write to, or a value that
            is computed when it is read.
        DataError: There is no data where the folder says.
    """
    trusted = vouched.get("trusted") or []
    source = get(config, "data", "source")
    values_vouched = dict(flatten(vouched, lists=True))
    for key, value in flatten(config, lists=True):
        if key != "resume" and value != values_vouched.get(key):
            _check_value(value, key, trusted, source)


def _check_value(value: Any, key: str, trusted: list[str], source: Any) -> None:
    name = key.rpartition(".")[2]
    writes_files = key.startswith(WRITERS) and name not in ("monitor", "metric")
    if name == "_target_":
        trust.check({"_target_": value}, key.removesuffix("._target_"), trusted)
    elif key in STATES:  # of which only tensors are read
        return
    elif key == "data.path":
        _check_data_path(Path(str(value)), source)
    elif isinstance(value, str) and BY_BUDGET.fullmatch(value):  # which depends on nothing but the budget
        return
    elif isinstance(value, str) and "${" in value and not re.fullmatch(r"\$\{\.*(?!hydra\b)\w+(\.\w+)*\}", value):
        raise UnsafeError(f"{key}={as_typed(value)} would be computed when it is read: if it is meant, give it again.")
    elif re.search(r"(dir|path|file|filename|root|journal)$", key) or (
        # What Lightning and its loggers are told may become a part of a path, variables replaced.
        writes_files and isinstance(value, str) and re.search(r"[/\\]|^~|^\.\.|\$(?!\{)", value)
    ):
        raise UnsafeError(
            f"{key}={as_typed(value)}, as the run's folder has it, is a place: if it is meant, give it again."
        )


def _check_data_path(path: Path, source: Any) -> None:
    """Check that nothing is written where a run's folder has its data."""
    text = as_typed(str(path))
    if path.is_dir():
        # What was packed before has its file beside it: see data.folder.cache_of.
        if not any(path.parent.glob(f"{escape(path.name)}-{'[0-9a-f]' * 12}.npz")):
            raise UnsafeError(
                f"data.path={text}, as the run's folder has it, would be packed into a file beside it: if it is meant, "
                "give it again."
            )
    elif source != "npz" and re.search(r"^[/\\~]|\.\.", str(path)) and not path.is_file():
        raise DataError(f"data.path={text}, as the run's folder has it, does not exist: give data.path=FILE.")


def changes(before: Mapping[str, Any], after: Mapping[str, Any], kinds: Sequence[str] = MAY_CHANGE) -> list[str]:
    """List the keys in which two configs differ, with both values.

    Args:
        before: The one, as plain containers.
        after: The other.
        kinds: Keys that may differ, with wildcards; by default those that may change when a run is resumed.
    """
    was, now = _leaves(before), _leaves(after)
    return [
        f"{key}: was {_described(was, key)}, now {_described(now, key)}"
        for key in {**was, **now}
        if not _same(was.get(key), now.get(key)) and not any(fnmatchcase(key, kind) for kind in kinds)
    ]


def _same(before: Any, after: Any) -> bool:
    return bool(before == after) or (before != before and after != after)  # NaN is what it was


def _described(leaves: Mapping[str, Any], key: str) -> str:
    return as_typed(leaves[key]) if key in leaves else "absent"


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    leaves = dict(flatten(config))
    for key, value in leaves.items():
        with suppress(KeyError, Unresolved):
            leaves[key] = resolved(value, tuple(key.split(".")), config)
    return leaves
