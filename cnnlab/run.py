"""A run's folder: what is written into it, and how it ends."""

import gc
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cnnlab import lock, signals
from cnnlab.console import Waiting, exit_on_error, print_error, say, wait_for
from cnnlab.errors import CnnlabError, ConfigError, PartialError, Stopped, translate
from cnnlab.files import read_csv, read_json, write_json, write_text
from cnnlab.identity import find_twin, identify
from cnnlab.record import CODE_DIFF, RUNS, Record, program, typed
from cnnlab.wording import format_duration, format_metric

log = logging.getLogger(__name__)

MOST_DIFF = 1_000_000  # characters of code that differs from the commit

failed: list[Path] = []
"""The runs that failed in this process, where a sweep continues after one."""

_command_began: float | None = None
"""When the command line under way began, by the monotonic clock."""

KEPT = ("run.json", "train.log", "trial.json")
"""Files that a run which takes over another's result has of its own."""

PACKAGES = {
    "torch": "torch", "pytorch_lightning": "pytorch-lightning", "hydra": "hydra-core", "cnnlab": "cnnlab",
}  # fmt: skip


@dataclass
class Run:
    """Keep a run's record, and turn whatever ends it into a status, one line and an exit code.

    Used as a context manager around the work. `run.json` says `running` once `start` is called; an error or a
    signal inside the block ends as `failed` or `interrupted`, and leaves as `SystemExit` with the exit code.

    Attributes:
        began: When the command began, by the monotonic clock; the run itself where there are several.

    Args:
        folder: The run's folder; it exists.
        seed: Kept in the record.
        debug: Show the traceback of an error on the terminal too; `train.log` has it in any case.
        exit_on_error: Whether an error leaves as `SystemExit`; otherwise it is only reported and noted in `failed`,
            for a caller with more runs to do.
        fresh: Whether the folder must not hold a run yet.
        resume_with: What a person types to resume the run; None where there is nothing to resume.
    """

    folder: Path
    _: KW_ONLY
    seed: int | None = None
    debug: bool = False
    exit_on_error: bool = True
    fresh: bool = False
    resume_with: str | None = None

    def __post_init__(self) -> None:
        self.primary = lock.is_primary()
        self._lock: int | None = None
        self._before: dict[str, Any] = {}
        self._seconds_before = 0.0
        self.record: dict[str, Any] = {
            "status": "running",
            "command": f"{program()} {typed(sys.argv[1:])}",
            "started": now(),
            "seconds": 0.0,
            "device": None,
            "precision": None,
            "num_parameters": None,
            "versions": versions(),
            "git": git_state(Path(__file__).parent),
            "seed": self.seed,
        }

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds a run already, as a trial's does when its sweep is resumed."""
        return bool(self._before)

    @property
    def was_completed(self) -> bool:
        """Whether the run was completed before this process took it up."""
        return self._before.get("status") == "completed"

    def is_done(self, limits: Mapping[str, Any]) -> bool:
        """Whether the run was completed under the same limits (epochs, steps, time) before."""
        return self.was_completed and self._before.get("limits") == dict(limits)

    def __enter__(self) -> Self:
        """Take the folder, and start the clock.

        Raises:
            SystemExit: Another process is writing into the folder, or it holds a run already and must not.
        """
        self._clock = time.monotonic()
        # A run in a process with others begins by itself.
        self.began = _command_began if _command_began is not None and self.exit_on_error else self._clock
        try:
            self._take_folder()
        except (CnnlabError, OSError) as error:
            lock.leave(self._lock)
            if not self.exit_on_error:
                raise
            cause = translate(error)
            print_error(cause)
            sys.exit(cause.exit_code)
        self._signals = signals.handled()
        self._signals.__enter__()
        logging.captureWarnings(True)
        # As torch itself does at the end of its import; a signal may come before, and torch says something at exit.
        logging.getLogger("torch").setLevel(logging.WARNING)
        return self

    def _take_folder(self) -> None:
        """Take the folder, before anything is written in it, and read what an earlier run left there."""
        if not self.primary:
            signals.end_with_parent()
        else:
            self._lock = lock.take(self.folder)
            if self.fresh and Record(self.folder).has_state:
                raise ConfigError(
                    f"hydra.run.dir={self.folder} holds a run already: resume it by resume={self.folder}, or choose "
                    "another folder"
                )
        self._before = dict(Record(self.folder).run)
        self._seconds_before = self._before.get("seconds") or 0.0
        self.record |= {"started": self._before.get("started") or now(), "seconds": self._seconds_before}

    def start(self, limits: Mapping[str, Any], *, afresh: bool = False) -> None:
        """Mark the run as running, towards these limits (epochs, steps, time); `afresh`: whatever stood here before."""
        if afresh:
            self._before, self._seconds_before = {}, 0.0
            self.record["started"] = now()
        if self.primary and (self.record["git"] or {}).get("dirty"):
            write_text(self.folder / CODE_DIFF, uncommitted_code(Path(__file__).parent) + "\n")
        self.describe(limits=dict(limits))

    def reuse(self, config: Any) -> bool:
        """Take over what a completed run of the same identity left below `outputs`; return whether there is one.

        Args:
            config: The composed config, as plain containers.
        """
        twin = find_twin(identify(config, self.record["versions"]), RUNS, other_than=self.folder)
        if twin is None:
            return False
        log.info(f"reuse: {twin.folder} has the same settings, data and code: its result is taken over")
        if self.primary:
            shutil.copytree(
                twin.folder, self.folder, dirs_exist_ok=True,
                ignore=lambda _, names: [name for name in names if name.startswith(".") or name in KEPT],
            )  # fmt: skip
        facts = {name: value for name, value in twin.run.items() if name not in ("command", "started")}
        self.describe(**facts | {"reused": str(twin.folder.absolute())})
        return True

    def describe(self, **facts: Any) -> None:
        """Add facts to the record."""
        self.record |= facts
        self._save()

    def finish(
        self,
        metrics: Mapping[str, float],
        objective: str,
        *,
        best: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
    ) -> float | None:
        """Write metrics.json and mark the run as completed; return the objective, None if it was not measured."""
        signals.raise_if_received()  # one that Python dropped
        value = metrics.get(objective)
        if value is None:
            log.warning(f"objective: {objective} was not measured; measured: {', '.join(sorted(metrics))}")
        if self.primary:
            write_json(self.folder / "metrics.json", {**metrics, "objective": value})
        self.record |= {"status": "completed", "best": dict(best) if best else None}
        self.record |= {"budget": dict(budget)} if budget else {}
        self._save()
        if self.primary:
            log.info(self._summary(metrics))
        return value

    def _summary(self, metrics: Mapping[str, float]) -> str:
        """Return the result, where everything is, and what could come next."""
        rows: list[tuple[str, str]] = []
        for split in ("test", "val"):
            values = {name.removeprefix(f"{split}/"): v for name, v in metrics.items() if name.startswith(f"{split}/")}
            if values:
                text = ", ".join(f"{name} {format_metric(name, value)}" for name, value in sorted(values.items()))
                rows.append((split, text))
        if best := self.record["best"]:
            metric, value = best["metric"], best["value"]
            measured = "" if value is None else f", {metric} {format_metric(metric, value)}"
            rows.append(("best", f"epoch {best['epoch'] + 1}, step {best['step']}{measured}"))
        speed = [float(row["images_per_second"]) for row in read_csv(self.folder / "history.csv")]
        trained = f", training at {statistics.median(speed):,.0f} images/s" if speed else ""
        rows += [
            ("time", f"{format_duration(self.record['seconds'])}{trained}"),
            ("folder", str(self.folder)),
            ("next", f"cnnlab dashboard {shlex.quote(str(self.folder))}"),
        ]
        if self.resume_with and not self.record.get("budget"):
            rows.append(("", f"{self.resume_with} trainer.max_epochs=..."))
        return "\n".join(f"{name:<8}{text}" for name, text in rows)

    def previous_objective(self) -> float | None:
        """Return the objective that an earlier, completed run measured."""
        more = "" if self._before.get("budget") else "; more epochs: trainer.max_epochs=..."
        log.info(f"the run in {self.folder} is done already{more}")
        return read_json(self.folder / "metrics.json").get("objective")

    @signals.uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Record how the run ended."""
        signals.defer(False)  # our handlers, not Lightning's
        try:
            return self._record_end(error, traceback)
        finally:
            self._signals.__exit__(None, None, None)
            lock.leave(self._lock)

    def _record_end(self, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if error is None:
            return False
        if signals.received() and not isinstance(error, (Stopped, CnnlabError, OSError, MemoryError)):
            # Whatever was cut off in the middle: a second signal comes while the first one's exception is handled.
            log.error("this followed the signal", exc_info=error)
            error = Stopped(signals.received())
        # What was completed, and is not being continued yet, stays true.
        untouched = self.was_completed and self.record["device"] is None
        if untouched:
            self.record = self._before
            if self.primary:
                write_json(self.folder / "run.json", self._before)
        if isinstance(error, Stopped):
            if self.record["status"] != "completed":
                self.record["status"] = "interrupted"
                self._save()
                log.warning(
                    f"stopped by {error}" + (f"; resume it with: {self.resume_with}" if self.resume_with else "")
                )
            sys.exit(error.exit_code)
        cause = translate(error)
        if not untouched:
            self.record |= {"status": "failed", "error": str(cause)}
            self._save()
        # The file gets the traceback; the console handler leaves records with one to us.
        log.error(str(cause), exc_info=error)
        if self.debug:
            sys.excepthook(type(error), error, traceback)
        print_error(cause)
        if type(cause) is CnnlabError:
            say(f"cnnlab: the traceback is in {self.folder / 'train.log'}", file=sys.stderr)
        if self.exit_on_error:
            sys.exit(cause.exit_code)
        failed.append(self.folder)
        return True

    def _save(self) -> None:
        if self.primary:
            self.record["seconds"] = round(self._seconds_before + time.monotonic() - self._clock, 3)
            write_json(self.folder / "run.json", self.record)


@contextmanager
def command_line() -> Iterator[None]:
    """Around a training's command line: report an error that came before any run, or runs that failed."""
    global _command_began
    _command_began = time.monotonic() - process_seconds()
    lock.forget_stale_ranks()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print a traceback of its own, and exit with 1
    try:
        with exit_on_error(last=True, waiting="train.py: starting"):
            yield
            if failed:
                raise PartialError(f"{len(failed)} of the sweep's runs failed: {', '.join(map(str, failed))}")
    finally:
        _command_began = None


@contextmanager
def importing() -> Iterator[None]:
    """Import what is large: the garbage collector finds nothing in new modules, and need never look at these again.

    Of the processor time that importing torch and Lightning takes, this saves a tenth (median of seven pairs of runs).
    """
    gc.disable()
    wait_for("importing PyTorch and Lightning")
    try:
        with Waiting.start("importing PyTorch and Lightning"):
            yield
        gc.freeze()
    finally:
        wait_for("reading the data and building the network")
        gc.enable()


def process_seconds() -> float:
    """Return how long ago this process began, where Linux says so; elsewhere nothing, half a second too little."""
    try:
        # man 5 proc: field 22 of all, of which the second is a name in brackets
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def now() -> str:
    """Return the time, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions that decide what a run does, without importing the packages."""
    packages = {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    return {"python": platform.python_version(), **packages}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that `folder` stands in and whether files differ from it; None outside one."""
    try:
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def uncommitted_code(folder: Path) -> str:
    """Return how the files of the checkout that `folder` stands in differ from its commit, new ones named.

    No more than `MOST_DIFF` characters; nothing outside a checkout.
    """
    try:
        new = _git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", ":/").splitlines()
        diff = "".join(f"new file, not kept: {name}\n" for name in new)
        diff += _git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return ""
    return diff if len(diff) <= MOST_DIFF else f"{diff[:MOST_DIFF]}\n... and {len(diff) - MOST_DIFF} characters more\n"


def _git(folder: Path, *arguments: str) -> str:
    output = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=10).stdout
    return output.decode(errors="replace").strip()
