"""A real TensorBoard server on a finished run."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import Train, read


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Board:
    """What the server on a folder answers."""

    def __init__(self, folder: Path, run: str) -> None:
        self.run = quote(run, safe="")
        self.address = f"http://127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", port]
        self.server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--load_fast", "false"],
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def board(train: Train, folder: Path) -> Iterator[Board]:
    train("augment=flip_crop", "optimizer.lr=0.02", folder=folder / "run", figures=True)
    server = Board(folder, "run/tensorboard")
    try:
        server.wait()
        yield server
    finally:
        server.server.terminate()
        server.server.wait(20)


def test_the_server_shows_curves_pictures_layout_and_results(board: Board, folder: Path):
    losses = board.scalars("train/loss")
    assert [point[1] for point in losses] == list(range(20))
    for tag in ("train/loss_epoch", "train/accuracy", "val/loss", "val/accuracy", "images_per_second"):
        assert [point[1] for point in board.scalars(tag)] == [0, 1], tag

    images = board.get("/data/plugin/images/tags")
    assert isinstance(images, dict)
    (shown,) = images.values()
    names = {name.partition("/")[2] for name in shown}
    assert {"first_training_images", "augmented_batch", "loss", "confusion_matrix", "worst_mistakes"} <= names

    layout = board.get("/data/plugin/custom_scalars/layout")
    assert isinstance(layout, dict)
    charts = {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}
    assert charts["loss"] == ["train/loss_epoch", "val/loss"]
    assert charts["accuracy"] == ["train/accuracy", "val/accuracy"]
    assert board.get("/data/plugin/graphs/info")

    runs = board.get("/data/runs")
    assert runs == ["run/tensorboard"], "no stray sub-runs"
    experiment = board.get("/data/plugin/hparams/experiment", {"experimentName": ""})
    assert isinstance(experiment, dict)
    settings = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer.lr", "data.batch_size", "model.channels"} & settings
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"test/accuracy", "test/loss"} <= metrics
    assert "hp_metric" not in metrics

    groups = board.get(
        "/data/plugin/hparams/session_groups",
        {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_FAILURE"],
            "colParams": [{"metric": {"group": "", "tag": "test/accuracy"}}],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )
    assert isinstance(groups, dict)
    (group,) = groups["sessionGroups"]
    assert group["hparams"]["optimizer.lr"] == 0.02
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values["test/accuracy"] == pytest.approx(read(folder / "run" / "metrics.json")["test/accuracy"])
