"""A search's study: a journal that several processes write to, and that outlives a write that was cut short."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend

from cnnlab.errors import ConfigError

NAME = "sweep"


class Journal(JournalFileBackend):
    """A file with a record in each line.

    A full disk or a power cut leaves half a line. Optuna reads past it, but would write the next record behind it, and
    never read the file again: here it is removed before the next record is written.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with Path(self._file_path).open("r+b") as file:
                if end := file.seek(0, os.SEEK_END):
                    file.seek(end - 1)
                    if file.read() != b"\n":
                        file.seek(0)
                        file.truncate(file.read().rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._lock.release()


def open_study(
    journal: Path, name: str = NAME, *, direction: Literal["maximize", "minimize"] | None = None, pruner: Any = None
) -> optuna.Study:
    """Open the study of a journal.

    Args:
        journal: The file.
        name: The study's name in it.
        direction: `maximize` or `minimize`, where the study may have to be begun.
        pruner: Decides which trials are stopped early.

    Raises:
        ConfigError: The journal is damaged.
    """
    try:
        storage = optuna.storages.JournalStorage(Journal(str(journal)))
        if direction is None:
            return optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"{journal} can't be read: it is damaged ({type(error).__name__}). Put a copy of it back, or begin a new "
            "search in another folder; `cnnlab report` still shows this one's trials."
        ) from error
