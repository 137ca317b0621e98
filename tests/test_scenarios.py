"""What a user does over an afternoon, in the order of doing it."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import read

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
