"""A sweep's folder: what its base is, who works on it, and what is refused on resuming it."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnlab.config import resume
from cnnlab.errors import ConfigError
from cnnlab.files import read_json, write_text
from cnnlab.sweep.trial import Folder, split

log = logging.getLogger(__name__)

PLACE = ".sweep"


class SweepFolder:
    """The folder of a sweep, held by this process and the trials that it starts.

    Args:
        path: The folder; made when the first thing is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inside = path / PLACE
        self.record: dict[str, Any] = read_json(self.inside / "record.json")
        self._held: int | None = None

    @property
    def handle(self) -> int | None:
        """The open file that says that this folder is held."""
        return self._held

    @property
    def is_new(self) -> bool:
        """Whether no sweep has begun here."""
        return not self.record

    def trial(self, name: str) -> Folder:
        """Return a trial's folder."""
        return Folder(self.path / name)

    def check(self, config: Mapping[str, Any], base: Sequence[str], keys: Sequence[str], search: Any) -> None:
        """Hold the base of a sweep that goes on against the one that it began with.

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
        given = [dict(map(split, lines)) for lines in (self.record["base"], base)]
        changed = []
        if "experiment" not in varied:  # which may change anything
            changed += [
                line for line in resume.changes(self.record["config"], config)
                if not any(line.startswith((f"{key}:", f"{key}.", "search")) for key in varied)
            ]  # fmt: skip
        # The configs differ wherever a varied group reaches: there, what was given beside it has to be the same.
        reached = tuple(f"{key}." for key in varied)
        was, now = (
            {
                key: value
                for key, value in lines.items()
                if key not in varied and ("experiment" in varied or key.startswith(reached))
            }
            for lines in given
        )
        changed += resume.changes(was, now)
        if bool(search) != bool(self.record["search"]):
            changed.append("search: a grid stays a grid, and a search a search")
        elif search and search["space"] != self.record["search"]["space"]:
            changed.append("search.space: its trials would not be comparable")
        if changed:
            raise ConfigError(
                "\n".join(
                    [
                        f"resume={self.path}: a sweep goes on with the config that it began with",
                        *changed,
                        f"its command was: {self.record['command']}",
                    ]
                )
            )

    def write(self, **facts: Any) -> None:
        """Add to the sweep's record."""
        self.record |= facts
        self.inside.mkdir(parents=True, exist_ok=True)
        write_text(self.inside / "record.json", json.dumps(self.record, indent=1) + "\n")

    def hold(self, *, shared: bool, patience_seconds: float = 120) -> str:
        """Say that this process works here; trials that it forks hold the folder as long as they live.

        Args:
            shared: Whether other processes may work here too, as in a search.
            patience_seconds: How long the trials of a process that was killed may take to save.

        Returns:
            The name of this process's hold.

        Raises:
            ConfigError: Another process is at it.
        """
        self.inside.mkdir(parents=True, exist_ok=True)
        own = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        path = self.inside / f"{own}.hold"
        while True:  # until nobody took it for one that a dead process had left
            self._held = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(self._held, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(self._held).st_ino:
                break
            os.close(self._held)
        if not shared:
            until = time.monotonic() + patience_seconds
            told = False
            for other in self.inside.glob("*.hold"):
                while other.stem != own and self.is_held(other.stem):
                    if _lives(other.stem) or time.monotonic() > until:
                        raise ConfigError(f"{self.path}: process {other.stem} is running this sweep.")
                    if not told:
                        log.info("waiting for the trials of a sweep that was killed: they are saving")
                        told = True
                    time.sleep(0.2)
        return own

    def release(self) -> None:
        """Say that this process has ended its work here; trials that still live hold the folder on."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
            for path in self.inside.glob("*.hold"):
                self.is_held(path.stem)  # removes what nobody holds

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes that work here waiting."""
        with (self.inside / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_held(self, name: str) -> bool:
        """Whether a process, or a trial that it started, still works here."""
        path = self.inside / f"{name}.hold"
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


def _lives(hold: str) -> bool:
    """Whether the process that took a hold is alive, as far as can be told from here."""
    host, pid, _ = hold.rsplit("-", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")  # where there is one, it tells of a process that only waits to be buried
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
