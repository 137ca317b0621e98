"""A real TensorBoard server on a finished run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard import assets
from torch import Tensor, nn
from typing_extensions import override

from cnnlab import plots
from cnnlab.callbacks import History
from cnnlab.commands.dashboard import OPENING, rearranged, serve
from cnnlab.config import preflight
from cnnlab.errors import ConfigError
from tests.conftest import ROOT, Train, read, run_process


class Frozen(nn.Sequential):
    """A user's network with a layer that is frozen for good."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
        self[0].eval()


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")
def test_a_layer_that_its_network_froze_stays_so(train: Train, monkeypatch: pytest.MonkeyPatch):
    seen: set[bool] = set()

    def note(self: Callback, trainer: Trainer, pl_module: LightningModule) -> None:
        seen.update(module.training for module in pl_module.modules() if isinstance(module, nn.BatchNorm2d))

    monkeypatch.setattr(History, "on_train_epoch_start", note)
    train("model=custom", "model._target_=tests.test_dashboard.Frozen", "trainer.max_epochs=1")
    assert seen == {False}


class Untraceable(nn.Linear):
    """A user's network that does something which tracing can't follow."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise TypeError("only on\nthe first of May")
        return super().forward(images.mean((2, 3)))


def test_a_network_that_cannot_be_traced_is_trained_without_a_graph(train: Train):
    folder = train("model=custom", "model._target_=tests.test_dashboard.Untraceable", "trainer.max_epochs=1")
    assert read(folder / "run.json")["status"] == "completed"
    assert "no graph, the network can't be traced: only on the first of May" in (folder / "train.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Board:
    """What the server on a folder answers."""

    def __init__(self, folder: Path, run: str, *flags: str) -> None:
        self.run = quote(run, safe="")
        self.address = f"http://127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", port]
        self.server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path: str, body: dict | None = None) -> object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"} if data else {}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def wait(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if self.get("/data/plugin/scalars/tags"):
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.5)
        raise TimeoutError("TensorBoard did not load the run")

    def scalars(self, tag: str) -> list[list[float]]:
        answer = self.get(f"/data/plugin/scalars/scalars?tag={quote(tag, safe='')}&run={self.run}")
        assert isinstance(answer, list)
        return answer

    def images(self) -> dict[str, int]:
        """Return how many pictures there are by name, and load each."""
        answer = self.get("/data/plugin/images/tags")
        assert isinstance(answer, dict)
        (shown,) = answer.values()
        for tag in shown:
            listed = self.get(f"/data/plugin/images/images?tag={quote(tag, safe='')}&run={self.run}&sample=0")
            assert isinstance(listed, list)
            address = f"{self.address}/data/plugin/images/individualImage?{listed[-1]['query']}"
            with urllib.request.urlopen(address, timeout=20) as picture:
                assert picture.read(8) == b"\x89PNG\r\n\x1a\n", tag
        return {tag: entry["samples"] for tag, entry in shown.items()}

    def session_groups(self) -> list[dict]:
        """Return what the HParams tab has of each run."""
        statuses = ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_FAILURE"]
        request = {
            "experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 10,
        }  # fmt: skip
        answer = self.get("/data/plugin/hparams/session_groups", request)
        assert isinstance(answer, dict)
        return answer["sessionGroups"]

    def session(self) -> tuple[dict, dict, str]:
        """Return the settings, the metrics and the status that the HParams tab has of the only run."""
        (group,) = self.session_groups()
        (session,) = group["sessions"]
        metrics = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        return group["hparams"], metrics, session["status"]


def test_the_dashboard_command_refuses_what_it_cannot_serve(tmp_path: Path):
    with pytest.raises(ConfigError, match="FOLDER must be a folder of runs"):
        serve(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--port must be between 0 and 65535"):
        serve(tmp_path, 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = "import sys; from cnnlab.cli import app; sys.argv[0] = 'cnnlab'; app()"
        command = [sys.executable, "-c", code, "dashboard", str(tmp_path), "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 5
    (line,) = ended.stderr.splitlines()
    assert re.match(r"cnnlab: error: --port \d+: .*already in use.* 0 takes a free one\.", line)


def test_the_page_opens_on_curves_as_they_are():
    """TensorBoard's script still has the places that are changed."""
    with assets.get_default_assets_zip_provider()() as file, zipfile.ZipFile(file) as page:
        script = page.read("index.js").decode()
    for pattern, _ in OPENING:
        assert 1 <= len(re.findall(pattern, script)) <= 4, pattern
    with zipfile.ZipFile(rearranged(assets.get_default_assets_zip_provider())()) as page:
        changed = page.read("index.js").decode()
    assert '"_smoothingWeight",{defaultValue:0}' in changed
    assert not any(re.search(pattern, changed) for pattern, _ in OPENING)


class KillAt(Callback):
    """Kill this process in the middle of the run's n-th step, unless the run goes on from a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step and not trainer.ckpt_path:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def serving(folder: Path, run: str, *flags: str) -> Iterator[Board]:
    """Start a server on a folder, wait until it has loaded the run, and stop it behind the block."""
    board = Board(folder, run, *flags)
    try:
        board.wait()
        yield board
    finally:
        board.server.terminate()
        board.server.wait(20)


def test_the_server_shows_curves_pictures_layout_and_results(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outputs = tmp_path / "outputs"
    learning_curves, marks = plots.learning_curves, []

    def watch(*arguments: Any) -> plots.Figure:
        marks.append(arguments[2])
        return learning_curves(*arguments)

    monkeypatch.setattr(plots, "learning_curves", watch)
    train(
        "augment=flip_crop", "optimizer.lr=0.02", "objective.metric=val/loss", "schedule=step", "schedule.every=0.5",
        "schedule.gamma=30",  # the second epoch undoes the first
        folder=outputs / "run", figures=True,
    )  # fmt: skip
    with serving(outputs, "run/tensorboard") as board:
        assert board.get("/data/runs") == ["run/tensorboard"], "no stray sub-runs"
        assert [point[1] for point in board.scalars("train/loss")] == list(range(20))
        for tag in ("train/loss_epoch", "train/accuracy", "val/loss", "val/accuracy", "images_per_second"):
            assert [point[1] for point in board.scalars(tag)] == [0, 1], tag
        images = board.images()
        layout = board.get("/data/plugin/custom_scalars/layout")
        graph = board.get("/data/plugin/graphs/info")
        curves = board.get("/data/plugin/pr_curves/tags")
        text = board.get(f"/data/plugin/text/text?run={board.run}&tag=summary%2Ftext_summary")
        experiment = board.get("/data/plugin/hparams/experiment", {"experimentName": ""})
        settings, metrics, status = board.session()

    assert marks == [{"epoch": read(outputs / "run" / "run.json")["best"]["epoch"]}]
    assert images == dict.fromkeys(
        [
            "figures/first_training_images", "figures/augmented_batch", "figures/loss", "figures/learning_rate",
            "figures/learning_curves",
            "figures/first_test_images", "figures/confusion_matrix", "figures/worst_mistakes",
        ], 1,
    )  # fmt: skip
    assert isinstance(curves, dict)
    (drawn,) = curves.values()
    assert set(drawn) == {f"precision_recall/{name}" for name in ("all classes", *map(str, range(10)))}
    assert "test/accuracy" in str(text)
    assert "optimizer.lr" in str(text)
    assert isinstance(layout, dict)
    charts = {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}
    assert charts["loss by epoch, from 0"] == ["train/loss_epoch", "val/loss"]
    assert charts["accuracy by epoch, from 0"] == ["train/accuracy", "val/accuracy"]
    assert isinstance(graph, dict)
    assert graph["run/tensorboard"]["run_graph"]

    assert status == "STATUS_SUCCESS"
    assert settings["optimizer.lr"] == 0.02
    assert settings["optimizer"] == "SGD"
    assert settings["augment"] == "flip_crop"
    assert {name.partition(".")[0] for name in settings} <= {
        "seed", "data", "augment", "model", "optimizer", "schedule", "loss", "trainer",
    }  # fmt: skip
    assert isinstance(experiment, dict)
    assert {info["name"] for info in experiment["hparamInfos"]} == set(settings)
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == set(metrics)
    assert "hp_metric" not in metrics
    # The first epoch's state is the best of this run: its metrics, not those of the end.
    result = read(outputs / "run" / "metrics.json")
    measured = {name: value for name, value in result.items() if name != "objective"}
    shown = {f"best/{name}" if name.startswith("val/") else name: value for name, value in measured.items()}
    assert {name: metrics[name] for name in shown} == pytest.approx(shown)
    assert metrics["best/val/loss"] != metrics["val/loss"]


@pytest.mark.slow
def test_a_run_that_was_killed_and_went_on_shows_each_step_once(train: Train, small: list[str], tmp_path: Path):
    outputs = tmp_path / "outputs"
    folder = outputs / "run"
    killed = run_process(
        *small, f"hydra.run.dir='{folder}'", "callbacks.checkpoint.every_n_steps=4", "+callbacks.history.flush_every=1",
        "+callbacks.kill={_target_: tests.test_dashboard.KillAt, step: 17}", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    train(f"resume='{folder}'", "trusted=[tests]", folder=folder)
    train(f"resume='{folder}'", "trainer.max_epochs=3", "trusted=[tests]", folder=folder)

    # The loader of machines without the fast one, which drops by itself what comes again.
    with serving(outputs, "run/tensorboard", "--load_fast", "false") as board:
        assert [point[1] for point in board.scalars("train/loss")] == list(range(30))
        for tag in ("train/loss_epoch", "val/loss"):
            assert [point[1] for point in board.scalars(tag)] == [0, 1, 2], tag
        assert set(board.images().values()) == {1}
        settings, metrics, _ = board.session()
        assert len(board.scalars("test/accuracy")) == 1
    assert settings["trainer.max_epochs"] == 3, "not those of the first end"
    assert metrics["test/accuracy"] == pytest.approx(read(folder / "metrics.json")["test/accuracy"])


def test_the_server_shows_a_sweeps_trials_under_their_names_and_what_varied(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import train as script

    folder = tmp_path / "sweep"
    words = ["-m", *small, "callbacks.figures=null", "optimizer.lr=0.1,0.01", f"hydra.sweep.dir='{folder}'"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight(words)])
    script.main()
    with serving(folder, "lr-0.1/tensorboard") as board:
        deadline = time.monotonic() + 60
        while len(board.get("/data/plugin/scalars/tags")) < 2 and time.monotonic() < deadline:  # type: ignore[arg-type]
            time.sleep(0.5)
        runs = board.get("/data/runs")
        experiment = board.get("/data/plugin/hparams/experiment", {"experimentName": ""})
        groups = board.session_groups()
    assert isinstance(runs, list)
    assert sorted(runs) == ["lr-0.01/tensorboard", "lr-0.1/tensorboard"]
    assert isinstance(experiment, dict)
    varying = [info["name"] for info in experiment["hparamInfos"] if info.get("differs")]
    assert varying == ["optimizer.lr"]
    assert [group["name"] for group in groups] == [f"lr-{lr} (sweep)" for lr in (0.01, 0.1)]
    shown = {}
    for group in groups:
        metrics = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        shown[group["hparams"]["optimizer.lr"]] = metrics["test/accuracy"]
    results = {lr: read(folder / f"lr-{lr}" / "metrics.json")["test/accuracy"] for lr in (0.1, 0.01)}
    assert shown == pytest.approx(results)
