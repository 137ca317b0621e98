"""A sweep's folder: what the sweep was begun with, who works on it, and what a resume may not change."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from cnnlab.config import resume
from cnnlab.errors import ConfigError, DamagedError
from cnnlab.files import read_json, write_text
from cnnlab.record import SWEEP_RECORD
from cnnlab.sweep.trial import TrialFolder, split_override

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120  # that the trials of a process that was killed may take to save


class Objective(TypedDict):
    """What a sweep's results are compared by."""

    metric: str
    mode: Literal["max", "min"]
    over: NotRequired[list[str]]


class PlannedTrial(TypedDict):
    """A trial of a grid, which may not have begun."""

    name: str
    number: int
    settings: dict[str, str]


class SearchOptions(TypedDict):
    """What a sweep's record needs to say of a search."""

    sampler: str
    space: dict[str, Any]


class SweepRecord(TypedDict):
    """What `.sweep/record.json` holds."""

    command: str
    program: str
    base: list[str]
    keys: list[str]
    config: dict[str, Any]
    objective: Objective
    planned: int
    trials: list[PlannedTrial]
    search: SearchOptions | None
    each: int


def read_record(folder: Path) -> dict[str, Any]:
    """Return a sweep's record; an empty one if there is none.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return read_json(folder / SWEEP_RECORD, SweepRecord)
    except DamagedError as error:
        raise ConfigError(
            f"{error} Put a copy of it back, or begin a new sweep in another folder; `cnnlab runs {folder}` shows the "
            "trials as they are."
        ) from error


class SweepFolder:
    """The folder of a sweep, held by this process and the trials that it starts.

    Args:
        path: The folder; made when the first file is written.

    Attributes:
        handle: The open file whose lock says that this folder is held; None where it is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = read_record(path)
        self._state = (path / SWEEP_RECORD).parent
        self.handle: int | None = None

    @property
    def is_new(self) -> bool:
        """Whether no sweep has begun here."""
        return not self.record

    def trial(self, name: str) -> TrialFolder:
        """Return a trial's folder."""
        return TrialFolder(self.path / name)

    def check(self, config: Mapping[str, Any], base: Sequence[str], keys: Sequence[str], search: Any) -> None:
        """Check that a resumed sweep has the base that it began with.

        Args:
            config: The first trial's config, as plain containers.
            base: The overrides that all trials have.
            keys: The keys that vary, whose values do not belong to the base.
            search: What is searched and how, if anything.

        Raises:
            ConfigError: Something that a result depends on has changed.
        """
        if self.is_new:
            return
        varied = {*keys, *self.record["keys"]}
        changed = []
        if "experiment" not in varied:  # which may change anything
            changed += [
                line for line in resume.changes(self.record["config"], config)
                if not any(line.startswith((f"{key}:", f"{key}.")) for key in varied)
            ]  # fmt: skip
        # The configs differ wherever a varied group reaches: there, the overrides beside it have to be the same.
        reached = tuple(f"{key}." for key in varied)
        before, after = (
            {
                key: value
                for key, value in map(split_override, overrides)
                if key not in varied and ("experiment" in varied or key.startswith(reached))
            }
            for overrides in (self.record["base"], base)
        )
        changed += resume.changes(before, after)
        if bool(search) != bool(self.record["search"]):
            changed.append("search: a grid stays a grid, and a search a search")
        elif search and search["space"] != self.record["search"]["space"]:
            changed.append("search.space: its trials would not be comparable")
        if changed:
            raise ConfigError(
                "\n".join(
                    [
                        f"resume={self.path}: a sweep is resumed with the config that it began with",
                        *changed,
                        f"its command was: {self.record['command']}",
                    ]
                )
            )

    def write(self, **facts: Any) -> None:
        """Add to the sweep's record."""
        self.record |= facts
        write_text(self.path / SWEEP_RECORD, json.dumps(self.record, indent=1) + "\n")

    def hold(self, *, shared: bool) -> str:
        """Say that this process works here; trials that it forks hold the folder as long as they live.

        Args:
            shared: Whether other processes may work here too, as in a search.

        Returns:
            The name of this process's hold.

        Raises:
            ConfigError: Another process runs this sweep.
        """
        self._state.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        path = self._state / f"{name}.hold"
        while True:  # until no other process took the file for one that a dead process had left
            self.handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(self.handle).st_ino:
                break
            os.close(self.handle)
        if not shared:
            until = time.monotonic() + PATIENCE_SECONDS
            logged = False
            for other in self._state.glob("*.hold"):
                while other.stem != name and self.is_held(other.stem):
                    if _is_alive(other.stem) or time.monotonic() > until:
                        raise ConfigError(f"{self.path}: process {other.stem} is running this sweep.")
                    if not logged:
                        log.info("waiting for the trials of a sweep that was killed: they are saving")
                        logged = True
                    time.sleep(0.2)
        return name

    def release(self) -> None:
        """Say that this process has ended its work here; trials that still live go on holding the folder."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
            for path in self._state.glob("*.hold"):
                self.is_held(path.stem)  # removes what nobody holds

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes that work here waiting."""
        with (self._state / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_held(self, name: str) -> bool:
        """Whether a process, or a trial that it started, still works here."""
        path = self._state / f"{name}.hold"
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(handle)


def _is_alive(hold: str) -> bool:
    """Whether the process that took a hold is alive, as far as this machine can tell."""
    host, pid, _ = hold.rsplit("-", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")  # on Linux, it also says of a process that it is a zombie
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
