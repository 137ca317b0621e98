"""The wheel: what it carries, and that it trains from another folder."""

import csv
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import read
from tests.installed import build_wheel, install


def pictures(folder: Path) -> None:
    """Write JPEG and PNG pictures of several sizes, and a file that is none."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate([(32, 32), (100, 60), (31, 200), (640, 480)]):
        pixels = random.integers(0, 256, (*size[::-1], 3), np.uint8)
        for ending in ("jpg", "png"):
            Image.fromarray(pixels).save(folder / f"{number}.{ending}")
    (folder / "bad.png").write_text("no picture")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_trains_from_another_folder(tmp_path: Path):
    wheel = build_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cnnlab"}
    assert {"cnnlab/train.py", "cnnlab/conf/train.yaml", "cnnlab/conf/experiment/quickstart.yaml"} <= set(names)
    assert {"cnnlab/report/templates/page.html", "cnnlab/report/templates/style.css"} <= set(names)
    installed = install(wheel, tmp_path / "environment")

    def cnnlab(*words: str) -> subprocess.CompletedProcess:
        return installed.cnnlab(*words, cwd=elsewhere)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trained = cnnlab("train", "experiment=quickstart", "trainer.max_epochs=1")
    assert trained.returncode == 0, trained.stderr
    (record,) = elsewhere.glob("outputs/*/*/run.json")
    assert read(record)["status"] == "completed"
    assert read(record)["git"] is None

    run = str(record.parent)
    measured = read(record.parent / "metrics.json")
    checked = cnnlab("check", "experiment=quickstart", "trainer.max_epochs=1")
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "go"), checked.stderr
    assert cnnlab("evaluate", run).returncode == 0
    assert cnnlab("evaluate", "last", "--split", "val", "--tta", "mirror_translate").returncode == 0
    metrics = read(record.parent / "evaluation.json")["metrics"]
    assert metrics["accuracy"] == measured["test/accuracy"]
    assert metrics["loss"] == measured["test/loss"]
    exported = cnnlab("export", "best", "--output", "net.onnx")
    assert exported.returncode == 0, exported.stderr
    pictures(elsewhere / "photos")
    for network in (run, "net.onnx"):
        said = cnnlab("predict", network, "photos", "data/shapes.npz", "--output", f"{Path(network).name}.csv")
        assert said.returncode == 7, said.stderr
        assert "left out photos/bad.png" in said.stderr
    by_run, by_file = (
        (elsewhere / f"{name}.csv").read_text().splitlines() for name in (record.parent.name, "net.onnx")
    )
    assert len(by_run) > 1000
    for ours, theirs in zip(csv.DictReader(by_run), csv.DictReader(by_file), strict=True):
        assert ours["image"] == theirs["image"]
        assert float(ours["probability"]) == pytest.approx(float(theirs["probability"]), abs=2e-5)
    assert cnnlab("train", "experiment=quickstart", "trainer.max_epochs=1", "seed=1").returncode == 0
    first, second = sorted(str(path.parent) for path in elsewhere.glob("outputs/*/*/run.json"))
    compared = cnnlab("compare", first, second)
    assert compared.returncode == 0, compared.stderr
    assert "McNemar's exact test" in compared.stdout
    listed = cnnlab("runs", "--where", "model=lenet", "--sort", "val/accuracy", "--json")
    assert len(json.loads(listed.stdout)) == 2
    reported = cnnlab("report", run, "--output", "report.html")
    assert reported.returncode == 0, reported.stderr
    assert "Confusion matrix" in (elsewhere / "report.html").read_text(encoding="utf-8")
    for words in (
        ["data", "data/shapes.npz"], ["convolution"], ["pooling"], ["filters", run],
        ["activations", run, "photos/3.jpg"], ["augment", "data=shapes", "augment=flip_crop"], ["schedule"],
        ["model", run],
    ):  # fmt: skip
        drawn = cnnlab("show", *words, "--output", "drawn.png")
        assert drawn.returncode == 0, drawn.stderr
        with Image.open(elsewhere / "drawn.png") as picture:
            assert picture.width > 300, words
        (elsewhere / "drawn.png").unlink()
    wrong = cnnlab("train", "model=resnet81")
    assert wrong.returncode == 2
    assert "resnet18" in wrong.stderr
