"""The launchers `slurm` and `ray`: each trial a command on some machine of a cluster that shares a file system."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from cnnlab.errors import ConfigError
from cnnlab.files import read_json
from cnnlab.record import SWEEP_JOBS, is_run
from cnnlab.sweep.local import OUTPUT, search_path
from cnnlab.sweep.pool import PoolLauncher, cause_of_death, devices_per_trial

GRACE_SECONDS = 60  # for a trial to save


@dataclass
class Task:
    """A trial as a cluster runs it: a command line, on any machine that sees the folders.

    Args:
        program: train.py.
        argv: Its command line.
        folder: The trial's folder.
        working_folder: The one that the sweep was started in.
    """

    program: str
    argv: list[str]
    folder: Path
    working_folder: Path
    environment: dict[str, str] = field(default_factory=search_path, init=False)
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def __call__(self) -> int:
        """Run the trial, or resume it; return its exit code."""
        with (self.folder / ".hold").open("a") as hold, (self.folder / OUTPUT).open("ab") as output:
            # A job of a sweep whose own process was killed may still run the trial: what is left is done after it.
            fcntl.flock(hold, fcntl.LOCK_EX)
            argv = self.argv
            if is_run(self.folder) and read_json(self.folder / "run.json") and "hydra.output_subdir=null" not in argv:
                argv = [*argv, f"resume='{self.folder}'", "hydra.output_subdir=null"]
            self._process = subprocess.Popen(
                [sys.executable, self.program, *argv], cwd=self.working_folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=_ignore_warning, env=os.environ | self.environment,
            )  # fmt: skip
            try:
                return self._process.wait()
            except BaseException:
                self._save()
                raise

    def checkpoint(self) -> Any:
        """Return what submitit queues again when the job's time is up: the same task, which resumes the trial."""
        from submitit.helpers import DelayedSubmission

        self._save()
        return DelayedSubmission(replace(self))

    def _save(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _ignore_warning() -> None:
    """Leave Slurm's warning that time is running out to submitit, which gets it as well."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class _Cluster(PoolLauncher):
    """A launcher that needs a package of its own."""

    extra: str
    package: str

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(f"hydra/launcher={self.extra} needs {self.package}: pip install 'cnnlab[{self.extra}]'")


@dataclass(eq=False)
class Slurm(_Cluster):
    """Submit each trial as a job, by submitit.

    Args:
        n_jobs: Jobs in the queue at a time; None: all.
        cluster: `slurm`, or `local` to try it out without one.
        max_num_timeout: How often a job whose time is up is queued again; it resumes from its last checkpoint.
        parameters: Parameters of submitit's executor, as `timeout_min` and `slurm_partition`.
    """

    extra, package = "slurm", "submitit"

    n_jobs: int | None = 32
    cluster: Literal["slurm", "local"] = "slurm"
    max_num_timeout: int = 10
    parameters: Mapping[str, Any] | None = None

    def pool(self, trials: int) -> "JobPool":
        """Return where trials run."""
        import submitit

        content: Any = OmegaConf.to_container(OmegaConf.create(dict(self.parameters or {})), resolve=True)
        parameters = {str(name): value for name, value in content.items() if value is not None}
        if self.config.trainer.accelerator in ("gpu", "cuda"):
            parameters.setdefault("gpus_per_node", devices_per_trial(self.config.trainer) or 1)
        if self.cluster == "local":
            parameters = {name: value for name, value in parameters.items() if not name.startswith("slurm_")}
        folder = Path(self.config.hydra.sweep.dir) / SWEEP_JOBS
        try:
            executor = submitit.AutoExecutor(folder, self.cluster, slurm_max_num_timeout=self.max_num_timeout)
            executor.update_parameters(**parameters)
        except RuntimeError as error:
            raise ConfigError(f"hydra/launcher=slurm: {error}; start the sweep where sbatch is") from error
        return JobPool(
            min(self.n_jobs or trials, trials),
            executor.submit,
            _poll,
            lambda job: job.result(),
            lambda job: job.cancel(check=False),
        )


@dataclass(eq=False)
class Ray(_Cluster):
    """Run each trial as a task of a Ray cluster.

    Args:
        address: The cluster's address, `auto` for the one that this machine belongs to; null starts one here.
        n_jobs: Trials at a time; by default as many as the cluster has room for when the sweep starts.
        num_cpus: CPUs of each trial; shares as 0.5 are possible.
        num_gpus: GPUs of each trial, likewise; by default as many as `trainer.devices` where `trainer.accelerator` asks
            for one, or the cluster has some.
    """

    extra, package = "ray", "ray"

    address: str | None = "auto"
    n_jobs: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None

    def pool(self, trials: int) -> "JobPool":
        """Return where trials run."""
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False, ignore_reinit_error=True)
        except ConnectionError as error:
            raise ConfigError(
                f"hydra/launcher=ray: there is no cluster at hydra.launcher.address={self.address}: ray start --head"
            ) from error
        resources = ray.cluster_resources()
        accelerator, num_gpus = self.config.trainer.accelerator, self.num_gpus
        if num_gpus is None:
            wants = accelerator in ("gpu", "cuda") or (accelerator == "auto" and resources.get("GPU", 0) > 0)
            num_gpus = devices_per_trial(self.config.trainer) or 1 if wants else 0
        room = [resources.get("CPU", 0) / self.num_cpus] if self.num_cpus else []
        room += [resources.get("GPU", 0) / num_gpus] if num_gpus else []
        size = self.n_jobs or max(1, int(min(room, default=1)))
        # Without retries: a trial that took its machine down is resumed with the sweep, not at once.
        run = ray.remote(max_retries=0, num_cpus=self.num_cpus, num_gpus=num_gpus)(_call)
        return JobPool(
            min(size, trials), run.remote, lambda jobs, seconds: ray.wait(jobs, timeout=seconds)[0], ray.get, ray.cancel
        )


@dataclass
class JobPool:
    """Trials as jobs of a cluster.

    Args:
        size: How many at a time.
        submit: Gives a trial to the cluster; returns its job.
        ended: Returns those of some jobs that end within so many seconds.
        result: Returns the exit code of a job that has ended.
        cancel: Has a job save and end.
    """

    size: int
    submit: Callable[[Task], Any]
    ended: Callable[[list[Any], float], list[Any]]
    result: Callable[[Any], int]
    cancel: Callable[[Any], object]
    _names: dict[Any, str] = field(default_factory=dict, init=False)  # by job

    def start(self, name: str, argv: list[str], folder: Path, handle: int | None) -> None:
        """Give a trial to the cluster."""
        self._names[self.submit(Task(str(Path(sys.argv[0]).absolute()), argv, folder, Path.cwd()))] = name

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""
        ended = []
        for job in self.ended(list(self._names), timeout) if self._names else []:
            try:
                cause = cause_of_death(self.result(job))
            except Exception as error:  # whatever the cluster did to it
                cause = f"{job}: {' '.join(str(error).split())[:200]}"
            ended.append((self._names.pop(job), cause))
        return ended

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end."""
        for job in self._names:
            self.cancel(job)
        ended = []
        until = time.monotonic() + GRACE_SECONDS
        while self._names and time.monotonic() < until:
            ended += self.wait(1.0)
        return [*ended, *((name, "it did not end after it was cancelled") for name in self._names.values())]


def _poll(jobs: list[Any], timeout: float) -> list[Any]:
    """Return the jobs of submitit's that have ended."""
    until = time.monotonic() + timeout
    while not (ended := [job for job in jobs if job.done()]) and time.monotonic() < until:
        time.sleep(0.2)
    return ended


def _call(task: Task) -> int:
    return task()
