"""A run's folder read back, as data: whoever made it, nothing in it is executed."""

import logging
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from cnnlab.console import say
from cnnlab.errors import CheckpointError, ConfigError, DamagedError, MachineError, UnsafeError
from cnnlab.files import look_up, read_csv, read_json, read_yaml
from cnnlab.objective import objective_of

log = logging.getLogger(__name__)

RUNS = Path("outputs")
"""Where runs stand, unless `hydra.run.dir` says otherwise."""

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The checkpoint to resume from, and the one that it took the place of."""

SWEEP = Path(".sweep")
SWEEP_RECORD = SWEEP / "record.json"
SWEEP_JOBS = SWEEP / "jobs"
TRIAL = "trial.json"
"""Files of a sweep: what it was begun with (the mark of its folder), a cluster's jobs, and, in each trial's folder,
what the sweep notes of it."""


LIMITS = ("max_epochs", "max_steps", "max_time")
"""The trainer's settings that say how far a run is trained."""


def limits_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says how far a run of a config is trained: its budget, or else the trainer's limits."""
    if config.get("budget") is not None:
        return {"budget": config["budget"]}
    return {name: config["trainer"].get(name) for name in LIMITS}


OF_TRAINING = (
    "batch_size", "eval_batch_size", "resident", "sampler", "drop_last", "train_size", "label_noise", "exclude",
)  # fmt: skip
"""Keys of `data` that say how a run trains, not what it is measured on."""

CODE_DIFF = "code.diff"
"""How the code of a run differed from its commit, where it did."""


def program() -> str:
    """Return what starts a training here: the script in a checkout's folder, the command anywhere else."""
    return "python train.py" if Path("train.py").is_file() else "cnnlab train"


def typed(words: Sequence[str]) -> str:
    """Return words as a person types them into a shell: in double quotes if they hold single ones."""
    return " ".join(
        f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word) for word in words
    )


def without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return overrides but for those of some keys and of what stands below them."""
    below = tuple(f"{key}." for key in keys)
    return [line for line in overrides if not f"{line.partition('=')[0].lstrip('+~')}.".startswith(below)]


class GitState(TypedDict):
    """The commit that a run was started from, and whether files differed from it."""

    commit: str
    dirty: bool


class Facts(TypedDict, total=False):
    """What `run.json` holds; a run of an earlier version, or one that failed early, lacks some of it."""

    status: Literal["running", "completed", "failed", "interrupted"]
    command: str
    started: str
    seconds: float
    device: str | None
    precision: str | None
    matmul_precision: str
    num_parameters: int | None
    images: dict[str, int]
    versions: dict[str, str]
    git: GitState | None
    seed: int | None
    error: str
    limits: dict[str, Any]
    budget: dict[str, Any]
    rollbacks: int
    choices: dict[str, Any]
    overrides: list[str]
    cwd: str
    best: dict[str, Any] | None
    identity: str | None
    reused: str
    tags: list[str]
    note: str | None


class Record:
    """What a run's folder says of the run; each file is read when it is asked for, once.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def run(self) -> dict[str, Any]:
        """`run.json`; empty where there is none.

        Raises:
            DamagedError: It is damaged; so for the other files.
        """
        return read_json(self.folder / "run.json", Facts)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`; empty where there is none."""
        return read_json(self.folder / "metrics.json", dict[str, float | None])

    @cached_property
    def history(self) -> list[dict[str, str]]:
        """The rows of `history.csv`, every cell a number or empty; none where there is no such file."""
        path = self.folder / "history.csv"
        rows = read_csv(path)
        for line, row in enumerate(rows, 2):
            for column, cell in row.items():
                if not _is_number(cell):
                    raise DamagedError(f"{path}: {column} must be a number, got {cell[:60]!r} in line {line}.")
        return rows

    def column(self, name: str) -> list[float]:
        """Return a column of `history.csv`, NaN where it holds nothing."""
        return [float(row.get(name) or "nan") for row in self.history]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config, references as they stand.

        Raises:
            DamagedError: It is missing or damaged.
        """
        path = self.folder / ".hydra" / "config.yaml"
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise DamagedError(f"{path} must be a run's config: it is damaged.")
        return content

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides that it was composed with.

        Raises:
            DamagedError: They are missing or damaged.
        """
        path = self.folder / ".hydra" / "overrides.yaml"
        content = read_yaml(path)
        if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
            raise DamagedError(f"{path} must be a list of overrides: it is damaged.")
        return content

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The options that it was composed of, by group; empty where the folder does not say."""
        choices, path = self.run.get("choices"), self.folder / ".hydra" / "hydra.yaml"
        if choices is None and path.is_file():  # it failed before it knew
            choices = look_up(read_yaml(path), "hydra", "runtime", "choices")
        return choices if isinstance(choices, dict) else {}

    @property
    def status(self) -> str | None:
        """How the run ended, or `running`; None where it never started."""
        return self.run.get("status")

    @property
    def objective(self) -> float | None:
        """The value of the metric that says how good the run is; None where it was not measured."""
        return self.metrics.get("objective")

    @property
    def best(self) -> Path:
        """The checkpoint with the best state."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / LAST

    @property
    def previous(self) -> Path:
        """The checkpoint to resume from when the last one is damaged."""
        return self.folder / "checkpoints" / PREVIOUS

    @property
    def has_state(self) -> bool:
        """Whether there is something that a new run in this folder would overwrite."""
        return self.last.is_file() or self.previous.is_file() or self.status == "completed"

    @property
    def touched(self) -> int:
        """When the run's record changed last, in ns since the epoch."""
        record = self.folder / "run.json"
        return (record if record.exists() else self.folder / ".hydra" / "config.yaml").stat().st_mtime_ns


class RunState(NamedTuple):
    """The checkpoint that a command works on, and its run's record, unless the file stands alone."""

    checkpoint: Path
    record: Record | None


PRECISIONS = (
    "64-true", "32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed", "transformer-engine",
    "transformer-engine-float16",
)  # fmt: skip
SHORT_PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def precision_of(config: Mapping[str, Any]) -> str:
    """Return the precision that a run's config asks for, short spellings and the default written out."""
    precision = str(look_up(config, "trainer", "precision") or "32-true")
    return SHORT_PRECISIONS.get(precision, precision)


def find_run(name: str) -> RunState:
    """Return the checkpoint that a command's RUN names.

    Args:
        name: A run's folder; a checkpoint file; `last`, the newest run below `outputs` that has a checkpoint; or
            `best`, the completed one with the best objective among those with the objective and the data of the newest.

    Raises:
        ConfigError: There is no such run.
        CheckpointError: The run has no checkpoint.
        UnsafeError: A link leads out of its folder.
    """
    if name in ("last", "best"):
        record = _newest() if name == "last" else _best()
        _say_once(f"{name} is {record.folder}")
        return _state_of(record)
    path = Path(name).expanduser()
    if path.is_file():
        folder = path.absolute().parent.parent
        if not is_run(folder) or path.absolute().parent.name != "checkpoints":
            return RunState(path, None)
        check_links(folder)
        return RunState(path, Record(folder))
    if not is_run(path):
        raise ConfigError(f"RUN must be a run's folder, a checkpoint file, `last` or `best`, got {name}.")
    return _state_of(Record(path))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / ".hydra" / "config.yaml").is_file()


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP_RECORD).is_file()


def runs(folder: Path) -> Iterator[Record]:
    """Yield the runs in a folder and below it; a folder that may not be read is left out, with a warning."""
    try:
        if is_run(folder):
            yield Record(folder)
            return
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning(f"{folder} is left out, it can't be read: {error.strerror}")
        return
    for child in children:
        yield from runs(child)


def check_links(folder: Path) -> None:
    """Check that nothing in a run's folder, which may be a stranger's, makes us write elsewhere, or wait for ever.

    Raises:
        UnsafeError: A link leads out of it, a log is another file too, or there is a pipe, a socket or a device.
    """
    inside = os.path.realpath(folder)
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # of a run that is under way
            continue
        if stat.S_ISLNK(facts.st_mode):
            # W&B has links to its logs in the user's cache; it replaces them, and writes nothing through them.
            of_wandb = len(parts := path.relative_to(folder).parts) > 1 and parts[0] == "wandb" and not path.is_dir()
            if not of_wandb and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise UnsafeError(f"{path} is a link that leads out of the run's folder: put what it leads to there.")
        elif stat.S_ISREG(facts.st_mode):
            # Everything else is replaced and never written into.
            if facts.st_nlink > 1 and (path.suffix == ".log" or path.name == ".lock"):
                raise UnsafeError(f"{path} is a hard link, and the run would write into the file: put a copy there.")
        elif not stat.S_ISDIR(facts.st_mode):
            raise UnsafeError(f"{path} is a pipe, a socket or a device, which no run makes: remove it.")


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def _state_of(record: Record) -> RunState:
    check_links(record.folder)
    for checkpoint in (record.best, record.last):
        if checkpoint.is_file():
            return RunState(checkpoint, record)
    raise CheckpointError(f"{record.folder} has no checkpoint yet; its status is {record.status or 'unknown'}.")


def _newest() -> Record:
    records = [record for record in runs(RUNS) if record.best.is_file() or record.last.is_file()]
    if not records:
        raise ConfigError(f"there is no run with a checkpoint below {RUNS}; give the run's folder.")
    return max(records, key=lambda record: record.touched)


def _best() -> Record:
    records = [record for record in runs(RUNS) if record.best.is_file() and _has_objective(record)]
    if not records:
        raise ConfigError(f"there is no completed run with an objective below {RUNS}; give the run's folder.")
    goal = _goal(max(records, key=lambda record: record.touched))
    like = [record for record in records if _goal(record) == goal]
    best = max if objective_of(records[0].config)["mode"] == "max" else min
    return best(like, key=lambda record: record.objective or 0.0)


def _goal(record: Record) -> tuple[Any, dict[str, Any]]:
    """Return what must be equal in two runs for their objectives to be comparable: what is measured, and on what."""
    data = record.config.get("data")
    settings = dict(data) if isinstance(data, Mapping) else {}
    return record.config["objective"], {key: value for key, value in settings.items() if key not in OF_TRAINING}


@cache
def _say_once(text: str) -> None:
    """Print a text on standard error, the first time that it is to be said."""
    say(text, file=sys.stderr)


def _has_objective(record: Record) -> bool:
    try:
        measured = record.status == "completed" and record.objective is not None
        return measured and isinstance(record.config.get("objective"), dict)
    except (DamagedError, MachineError) as error:
        log.warning(f"left out: {error}")
        return False
