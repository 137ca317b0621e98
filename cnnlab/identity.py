"""What a run's result depends on, as one digest: its meaningful settings, its data, and the code.

Two runs of one identity give the same result on the same device, so that the second need not be run.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cnnlab.errors import DamagedError, MachineError
from cnnlab.files import flatten
from cnnlab.record import Record, runs

log = logging.getLogger(__name__)

IRRELEVANT = (
    "resume", "reuse", "debug", "trusted", "tags", "note", "objective.over",
    "data.path", "data.resident",
    "logger", "logger.*", "search", "search.*",
    "callbacks.progress", "callbacks.progress.*", "callbacks.figures", "callbacks.figures.*",
    "callbacks.dashboard", "callbacks.dashboard.*", "callbacks.history", "callbacks.history.*",
    "callbacks.checkpoint.every_n_*",
    "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.log_every_n_steps", "trainer.profiler", "trainer.detect_anomaly",
    "trainer.enable_autolog_hparams", "trainer.model_registry",
)  # fmt: skip
"""Settings that cannot change a result: what is shown, where it is written, how it is named."""


def identify(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return the digest of a run's meaningful settings, its data and the code.

    Args:
        config: The composed config as plain containers, references resolved.
        versions: Of the packages that compute.
    """
    settings = {key: value for key, value in flatten(config) if not any(fnmatchcase(key, kind) for kind in IRRELEVANT)}
    path = (config.get("data") or {}).get("path")
    targets = {str(value) for key, value in settings.items() if key.rpartition(".")[2] == "_target_"}
    files = {key: digest_data(file) for key, value in settings.items() if (file := _file_of(value))}
    content = [settings, digest_data(path), files, digest_code(targets), dict(versions)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _file_of(value: Any) -> Path | None:
    """Return the file that a setting names, such as a table of images to leave out; of a run, its best state."""
    if isinstance(value, str):
        with contextlib.suppress(OSError, ValueError):  # too long, or with characters that no path has
            for place in (Path(value), Path(value) / "checkpoints" / "best.ckpt"):
                if place.is_file():
                    return place
    return None


def digest_data(path: Any) -> str | None:
    """Return a digest of a data file, or of all files in a folder; None where there is nothing.

    Of a zip file, as npz files are, the checksums in its directory stand for its content; of other files the content,
    and of a folder the names, sizes and times of what is in it.
    """
    place = Path(str(path)).expanduser() if path else None
    if place is None or not place.exists():
        return None
    if place.is_dir():
        facts = (f"{file.relative_to(place)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in _files(place))
        return _digest(facts)
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            return _digest(f"{member.filename} {member.file_size} {member.CRC}" for member in archive.infolist())
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_code(targets: Iterable[str]) -> str:
    """Return a digest of cnnlab's source, and of the files that hold a user's own classes."""
    package = Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), *sorted(set(_own_files(targets)))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find_twin(identity: str, folder: Path, *, other_than: Path) -> Record | None:
    """Return a completed run of the same identity in a folder or below it, or None."""
    for record in runs(folder):
        try:
            matches = record.run.get("identity") == identity and record.status == "completed"
        except (DamagedError, MachineError):
            continue
        if matches and record.folder.resolve() != other_than.resolve() and record.best.is_file():
            return record
    return None


def _own_files(targets: Iterable[str]) -> Iterator[Path]:
    for target in targets:
        module = target.rpartition(".")[0]
        if module.partition(".")[0] in ("cnnlab", "torch", "torchmetrics", "pytorch_lightning", ""):
            continue
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            yield Path(spec.origin)


def _files(folder: Path) -> Iterator[Path]:
    for parent, names, files in os.walk(folder):
        names.sort()
        yield from (Path(parent) / name for name in sorted(files))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
