"""What a user does over an afternoon, in the order of doing it."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnlab.config import preflight
from tests.conftest import ROOT, Train, read, run_process

NETWORK = """
from torch import nn


class Plain(nn.Sequential):
    def __init__(self, in_channels, num_classes, image_size, width=4):
        height, length = image_size
        super().__init__(
            nn.Conv2d(in_channels, width, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(width * height * length // 4, num_classes),
        )
"""


@pytest.mark.slow
def test_own_network_trains_in_the_callers_folder_and_goes_on(npz: Path, tmp_path: Path):
    shutil.copy(npz, tmp_path / "mine.npz")
    (tmp_path / "mynet.py").write_text(NETWORK)

    def cnnlab(*arguments: str, code: int = 0) -> str:
        command = Path(sys.executable).with_name("cnnlab")  # as the README's install puts it there
        ended = subprocess.run([command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert ended.returncode == code, ended.stderr
        return ended.stdout + ended.stderr

    cnnlab(
        "train", "data=npz", "data.path=mine.npz", "data.val_size=80", "model=custom", "model._target_=mynet.Plain",
        "+model.width=6", "logger=[tensorboard,csv]", "trainer.max_epochs=1",
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"mine.npz", "mynet.py", "outputs"}
    (folder,) = tmp_path.glob("outputs/*/*")
    assert read(folder / "run.json")["num_parameters"] == 6 * (3 * 25 + 1) + 10 * (6 * 16 * 16 + 1)

    # The folder names it, and a folder may be a stranger's: whose network it is, the one at the keyboard says.
    refused = cnnlab("train", "resume=last", "trainer.max_epochs=3", code=8)
    assert "model._target_=mynet.Plain" in refused
    assert "trusted=[mynet]" in refused
    printed = cnnlab("train", "resume=last", "trusted=[mynet]", "trainer.max_epochs=3")
    assert "model is mynet.Plain, which is none of cnnlab's" in printed
    assert list(tmp_path.glob("outputs/*/*")) == [folder], "in place"
    assert "epoch 1/3" not in printed
    assert "epoch 3/3" in printed
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    logged = [path.read_text().splitlines()[1:] for path in sorted(folder.glob("csv/*/metrics.csv"))]
    epochs = [float(line.partition(",")[0]) for part in logged for line in part if not line.startswith(",")]
    assert epochs == [0, 1, 2], "the CSV logger keeps what it had"
    assert read(folder / "run.json")["status"] == "completed"


# The sweep and training scenarios that the test-suite of a well-known template has, by our commands. Its first, every
# recipe for a batch, is tests/test_options.py's.


@pytest.fixture
def sweep(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run train.py's main in this process, as a sweep; return the sweep's folder."""

    def run(*overrides: str) -> Path:
        import train as script

        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        quick = ["callbacks.figures=null", "callbacks.dashboard=null", f"hydra.sweep.dir='{tmp_path / 'sweep'}'"]
        given = {line.partition("=")[0] for line in overrides}
        base = [line for line in [*small, *quick] if line.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight(["-m", *base, *overrides])])
        script.main()
        return tmp_path / "sweep"

    return run


def test_grid_over_learning_rates_for_a_step(sweep):
    folder = sweep("optimizer.lr=0.005,0.01,0.02", "trainer.fast_dev_run=true")
    assert read(folder / "sweep.json")["counts"] == {"completed": 3}


@pytest.mark.slow
def test_ten_trials_of_a_search_with_five_random_ones(sweep):
    folder = sweep(
        "search=tpe", "search.n_trials=10", "search.startup=5", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "logger=none",
        "data.batch_size=16,32", "optimizer.lr=interval(0.001,0.1)",
    )  # fmt: skip
    trials = read(folder / "sweep.json")["trials"]
    assert len(trials) == 10
    assert all(0.001 <= float(trial["settings"]["optimizer.lr"]) <= 0.1 for trial in trials)
    assert {trial["settings"]["data.batch_size"] for trial in trials} <= {"16", "32"}


def test_training_goes_on_for_another_epoch(train: Train):
    folder = train("trainer.max_epochs=1")
    train(f"resume={folder}", "trainer.max_epochs=2")
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


def test_validation_twice_an_epoch_of_a_part_of_the_images(train: Train):
    folder = train(
        "trainer.max_epochs=1", "trainer.val_check_interval=0.5", "data.eval_batch_size=30",
        "trainer.limit_val_batches=1", "trainer.limit_test_batches=0.5",
    )  # fmt: skip
    run, metrics = read(folder / "run.json"), read(folder / "metrics.json")
    assert run["status"] == "completed"
    assert run["images"] == {"train": 320, "val": 30, "test": 60}, "intervals are over those that were measured"
    for split in ("val", "test"):
        right = metrics[f"{split}/accuracy"] * run["images"][split]
        assert right == pytest.approx(round(right), abs=1e-4)


@pytest.mark.long
def test_grid_of_trials_that_are_two_processes_each(npz: Path, tmp_path: Path):
    ended = run_process(
        "-m", "data=npz", f"data.path='{npz}'", "data.val_size=80", "data.batch_size=16", "trainer.max_epochs=1",
        "callbacks.figures=null", "optimizer.lr=0.05,0.001", "trainer.accelerator=cpu", "trainer.devices=2",
        "trainer.strategy=ddp", "hydra/launcher=local", "hydra.launcher.n_jobs=1",
        f"hydra.sweep.dir='{tmp_path / 'sweep'}'",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    alone = run_process(
        "data=npz", f"data.path='{npz}'", "data.val_size=80", "data.batch_size=16", "trainer.max_epochs=1",
        "callbacks.figures=null", "optimizer.lr=0.001", "trainer.accelerator=cpu", "trainer.devices=2",
        "trainer.strategy=ddp", f"hydra.run.dir='{tmp_path / 'alone'}'",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    rates = {name: read(tmp_path / "sweep" / name / "metrics.json") for name in ("lr-0.05", "lr-0.001")}
    assert rates["lr-0.001"] == read(tmp_path / "alone" / "metrics.json"), "each rank had its own trial's values"
    assert rates["lr-0.05"] != rates["lr-0.001"]
