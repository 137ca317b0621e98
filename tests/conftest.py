"""Data and runs that many tests start from."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Before torch is imported, here and in every process that a test starts: threads of several processes on few cores
# wait for each other longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite that was started in the background, or under nohup, inherits ignored signals, and so would its processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent

Train = Callable[..., Path]


def drawn(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return easy images: noise, with a bright square whose place is the class."""
    random = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(count) % classes
    images = random.integers(0, 80, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, label % 3] += 150
    return images, labels.astype(np.uint8).reshape(-1, 1)


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file in the layout of the article's: 400 training and 100 test images in ten classes."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    train, test = drawn(400, 10, seed=0), drawn(100, 10, seed=1)
    np.savez(path, X_train=train[0], y_train=train[1], X_test=test[0], y_test=test[1])
    return path


@pytest.fixture(scope="session")
def drawn_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn data set."""
    from cnnlab.data import shapes

    return shapes.generate(tmp_path_factory.mktemp("data") / "shapes.npz")


@pytest.fixture
def small(npz: Path) -> list[str]:
    """Overrides for a run of seconds."""
    return [
        "data=npz",
        f"data.path='{npz}'",
        "data.val_size=80",
        "data.batch_size=32",
        "trainer.max_epochs=2",
    ]


@pytest.fixture(autouse=True)
def log_of_one_test() -> Iterator[None]:
    """Take away what a run in this process leaves in the log, which ends with its process elsewhere."""
    yield
    from cnnlab.console import ConsoleHandler, LogFile

    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogFile | ConsoleHandler)]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def train(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """Run train.py's main in this process; return the run's folder. Raises SystemExit where train.py would."""

    def run(*overrides: str, folder: Path | None = None, figures: bool = False) -> Path:
        import train as script
        from cnnlab.config import preflight

        folder = folder or tmp_path / "run"
        given = {line.partition("=")[0] for line in overrides}
        base = []
        if "resume" not in given:  # a resumed run brings its own
            base = [line for line in small if line.partition("=")[0] not in given]
            base.append(f"hydra.run.dir='{folder}'")
            if not figures and "callbacks=none" not in overrides:
                base.append("~callbacks.figures")  # drawing takes longer than all the rest
        arguments = preflight([*base, *overrides])
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        script.main()
        return folder

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, npz: Path) -> Path:
    """A run of one epoch; tests read it, and write only what they would write again."""
    import train as script
    from cnnlab.config import preflight

    folder = tmp_path_factory.mktemp("runs") / "run"
    given = [
        "data=npz", f"data.path='{npz}'", "data.val_size=80", "data.batch_size=32", "data.eval_batch_size=33",
        "trainer.max_epochs=1", "~callbacks.figures", f"hydra.run.dir='{folder}'",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *preflight(given)])
        script.main()
    return folder


def run_process(
    *arguments: str, cwd: Path = ROOT, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess:
    """Run train.py in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="session")
def folds(tmp_path_factory: pytest.TempPathFactory, npz: Path) -> Path:
    """A sweep over three folds of the small file, with a share of the labels changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "folds"
    words = [
        "-m", "data=npz", f"data.path='{npz}'", "data.batch_size=32", "trainer.max_epochs=3", "optimizer.lr=0.05",
        "data.folds=3", "data.fold=range(3)", "data.label_noise=0.05", "callbacks.figures=null",
        "callbacks.dashboard=null", "logger=none", f"hydra.sweep.dir='{folder}'",
    ]  # fmt: skip
    done = run_process(*words)
    assert done.returncode == 0, done.stderr
    return folder


def read(path: Path) -> dict:
    """Return a JSON file's content."""
    return json.loads(path.read_text())


@pytest.fixture
def sweep(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch):
    """Run a sweep in this process; return its folder."""

    def run(*overrides: str, folder: str = "sweep") -> Path:
        import train as script
        from cnnlab.config import preflight

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as train.py has it
        place = [] if any(line.startswith("resume=") for line in overrides) else [f"hydra.sweep.dir={folder}"]
        base = ["trainer.max_epochs=1" if line.startswith("trainer.max") else line for line in small]
        quick = ["callbacks.figures=null", "callbacks.dashboard=null", "logger=none"]
        given = {line.partition("=")[0] for line in overrides}
        base = [line for line in [*base, *quick] if line.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight(["-m", *base, *overrides, *place])])
        script.main()
        return tmp_path / folder

    return run
