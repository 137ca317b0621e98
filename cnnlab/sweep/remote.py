"""The launchers `slurm` and `ray`: each trial a command on some machine of a cluster that shares a file system."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from cnnlab.errors import ConfigError
from cnnlab.files import read_json
from cnnlab.record import is_run
from cnnlab.sweep.local import OUTPUT, cause_of, search_path

GRACE_SECONDS = 60  # for a trial to save


class Task:
    """A trial as a cluster runs it: a command line, on any machine that sees the folders.

    Args:
        program: train.py.
        argv: Its command line.
        folder: The trial's.
        here: The folder that the sweep was started in.
    """

    def __init__(self, program: str, argv: list[str], folder: Path, here: Path) -> None:
        self.program = program
        self.argv = argv
        self.folder = folder
        self.here = here
        self.environment = search_path()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it, or go on with it; return its exit code."""
        with (self.folder / ".hold").open("a") as hold, (self.folder / OUTPUT).open("ab") as output:
            # A job of a sweep whose own process was killed may still be at it: what is left is done behind it.
            fcntl.flock(hold, fcntl.LOCK_EX)
            argv = self.argv
            if is_run(self.folder) and read_json(self.folder / "run.json") and "hydra.output_subdir=null" not in argv:
                argv = [*argv, f"resume='{self.folder}'", "hydra.output_subdir=null"]
            self._process = subprocess.Popen(
                [sys.executable, self.program, *argv], cwd=self.here, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=_ignore_warning, env=os.environ | self.environment,
            )  # fmt: skip
            try:
                return self._process.wait()
            except BaseException:
                self._save()
                raise

    def checkpoint(self) -> Any:
        """Return what submitit shall queue again when the job's time is up: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        self._save()
        return DelayedSubmission(Task(self.program, self.argv, self.folder, self.here))

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


class _Cluster(Launcher):
    """What the launchers share: they start trials for `hydra/sweeper=cnnlab`."""

    config: DictConfig
    extra: str
    package: str

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(f"hydra/launcher={self.extra} needs {self.package}: pip install 'cnnlab[{self.extra}]'")
        self.config = config

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ConfigError("this launcher goes with hydra/sweeper=cnnlab only")


class Slurm(_Cluster):
    """Submit each trial as a job, by submitit.

    Args:
        n_jobs: Jobs in the queue at a time.
        cluster: `slurm`, or `local` to try it out without one.
        max_num_timeout: How often a job whose time is up is queued again; it goes on from its last checkpoint.
        parameters: Those of submitit's executor, as `timeout_min` and `slurm_partition`.
    """

    extra, package = "slurm", "submitit"

    def __init__(
        self,
        n_jobs: int = 32,
        cluster: Literal["slurm", "local"] = "slurm",
        max_num_timeout: int = 10,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.n_jobs = n_jobs
        self.cluster = cluster
        self.max_num_timeout = max_num_timeout
        self.parameters = OmegaConf.to_container(OmegaConf.create(dict(parameters or {})), resolve=True)

    def pool(self, trials: int) -> "Jobs":
        """Return where trials run."""
        import submitit

        assert isinstance(self.parameters, dict)
        given = {str(name): value for name, value in self.parameters.items() if value is not None}
        if self.cluster == "local":
            given = {name: value for name, value in given.items() if not name.startswith("slurm_")}
        folder = Path(self.config.hydra.sweep.dir) / ".sweep" / "jobs"
        try:
            executor = submitit.AutoExecutor(folder, self.cluster, slurm_max_num_timeout=self.max_num_timeout)
            executor.update_parameters(**given)
        except RuntimeError as error:
            raise ConfigError(f"hydra/launcher=slurm: {error}; start the sweep where sbatch is") from error
        return Jobs(executor, min(self.n_jobs, trials))


class Jobs:
    """Trials as submitit's jobs.

    Args:
        executor: Submits them.
        size: How many at a time.
    """

    def __init__(self, executor: Any, size: int) -> None:
        self.size = size
        self._executor = executor
        self._jobs: dict[str, Any] = {}

    def start(self, name: str, argv: list[str], folder: Path, held: int | None) -> None:
        """Submit a trial."""
        self._jobs[name] = self._executor.submit(Task(str(Path(sys.argv[0]).absolute()), argv, folder, Path.cwd()))

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""
        until = time.monotonic() + timeout
        while not (done := [name for name, job in self._jobs.items() if job.done()]):
            if time.monotonic() > until:
                return []
            time.sleep(0.2)
        ended = []
        for name in done:
            job = self._jobs.pop(name)
            try:
                ended.append((name, cause_of(job.result())))
            except Exception as error:  # whatever the cluster did to it
                ended.append((name, f"job {job.job_id}: {' '.join(str(error).split())[:200]}"))
        return ended

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Cancel all jobs: Slurm has them save and end."""
        for job in self._jobs.values():
            job.cancel(check=False)
        ended = []
        until = time.monotonic() + GRACE_SECONDS
        while self._jobs and time.monotonic() < until:
            ended += self.wait(1.0)
        return [*ended, *((name, "it did not end after it was cancelled") for name in self._jobs)]


class Ray(_Cluster):
    """Run each trial as a task of a Ray cluster.

    Args:
        address: The cluster's, `auto` for the one that this machine belongs to; null starts one here.
        n_jobs: Trials at a time; by default as many as the cluster has room for when the sweep starts.
        num_cpus: Of each trial.
        num_gpus: Likewise.
    """

    extra, package = "ray", "ray"

    def __init__(
        self, address: str | None = "auto", n_jobs: int | None = None, num_cpus: float = 1, num_gpus: float = 0
    ) -> None:
        self.address = address
        self.n_jobs = n_jobs
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def pool(self, trials: int) -> "Tasks":
        """Return where trials run."""
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False, ignore_reinit_error=True)
        except ConnectionError as error:
            raise ConfigError(
                f"hydra/launcher=ray: there is no cluster at hydra.launcher.address={self.address}: ray start --head"
            ) from error
        there = ray.cluster_resources()
        room = [there.get("CPU", 0) / self.num_cpus] if self.num_cpus else []
        room += [there.get("GPU", 0) / self.num_gpus] if self.num_gpus else []
        size = self.n_jobs or max(1, int(min(room, default=1)))
        return Tasks(ray, {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}, min(size, trials))


class Tasks:
    """Trials as Ray's tasks.

    Args:
        ray: The module, connected.
        needs: What each takes of the cluster.
        size: How many at a time.
    """

    def __init__(self, ray: Any, needs: Mapping[str, float], size: int) -> None:
        self.size = size
        self._ray = ray
        # A trial that took its machine down goes on when the sweep is resumed, not at once.
        self._run = ray.remote(max_retries=0, **needs)(_called)
        self._refs: dict[Any, str] = {}

    def start(self, name: str, argv: list[str], folder: Path, held: int | None) -> None:
        """Hand a trial to the cluster."""
        task = Task(str(Path(sys.argv[0]).absolute()), argv, folder, Path.cwd())
        self._refs[self._run.remote(task)] = name

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""
        if not self._refs:
            return []
        ended = []
        for ref in self._ray.wait(list(self._refs), num_returns=1, timeout=timeout)[0]:
            name = self._refs.pop(ref)
            try:
                ended.append((name, cause_of(self._ray.get(ref))))
            except Exception as error:  # whatever the cluster did to it
                ended.append((name, f"Ray: {' '.join(str(error).split())[:200]}"))
        return ended

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end."""
        for ref in self._refs:
            self._ray.cancel(ref)
        ended = []
        until = time.monotonic() + GRACE_SECONDS
        while self._refs and time.monotonic() < until:
            ended += self.wait(1.0)
        return [*ended, *((name, "it did not end after it was cancelled") for name in self._refs.values())]


def _called(task: Task) -> int:
    return task()
