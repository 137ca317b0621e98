"""`cnnlab show`: each picture is written, says where, and shows what training does."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback
from typing_extensions import override

from cnnlab import build
from cnnlab.checkpoint import write_checkpoint
from cnnlab.commands import show
from cnnlab.config import composed
from cnnlab.errors import ConfigError, DataError, MachineError, UnsafeError
from cnnlab.schedule import plan_learning_rate
from tests.conftest import Train, drawn


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(path)
    return path


def is_readable(path: Path) -> bool:
    """Whether a picture has a README's width, and something in it."""
    with Image.open(path) as opened:
        return 480 <= opened.width <= 1000 and len(opened.convert("L").getcolors() or range(256)) > 10


def test_pictures_of_the_tutorial(here: Path, picture: Path, capsys: pytest.CaptureFixture):
    paths = [
        show.convolution(),
        show.convolution(picture, "[[0,1,0],[1,-4,1],[0,1,0]]", output=here / "own" / "kernel.png"),
        show.convolution(picture, "blur", padding=0, stride=2, output=here / "blur.png"),
        show.pooling(),
        show.pooling(picture, size=2, output=here / "small.png"),
    ]
    assert paths[0] == Path("show_convolution.png")
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    assert all(map(is_readable, paths))


def test_pictures_of_the_data(here: Path, npz: Path, small: list[str]):
    assert is_readable(show.data([str(npz)]))
    assert is_readable(show.data(small))
    assert is_readable(show.augment([*small, "augment=[flip_crop,mixup]"]))
    many = here / "many.npz"
    images, _ = drawn(600, 10, 0)
    labels = np.arange(600) % 120
    np.savez(many, X_train=images, y_train=labels, X_test=images[:120], y_test=labels[:120])
    assert is_readable(show.data([str(many)]))


def test_pictures_of_a_run(train: Train, here: Path, picture: Path, capsys: pytest.CaptureFixture):
    run = train("trainer.max_epochs=1", folder=here / "run")
    for path in (show.filters(str(run)), show.activations(str(run), picture), show.model([str(run)])):
        assert path.parent == run / "figures"
        assert is_readable(path)
    assert "62,038" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--label must be one of 0, 1"):
        show.activations(str(run), picture, label="cat")
    with pytest.raises(DataError, match="can't be read as a picture"):
        show.activations(str(run), run / "run.json")
    with pytest.raises(ConfigError, match="RUN must be a run's folder"):
        show.filters("nowhere")


def test_a_strangers_network_is_not_built(train: Train, here: Path):
    run = train("trainer.max_epochs=1", folder=here / "run")
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["config"]["model"]["_target_"] = "subprocess.check_output"
    write_checkpoint(content, path)
    for command in (show.filters, lambda named: show.model([named])):
        with pytest.raises(UnsafeError, match=r"subprocess\.check_output"):
            command(str(run))


class Watch(Callback):
    """Keep what the network is given for some images of the training split."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            self.seen[trainer.current_epoch, index] = image.clone()


def test_augment_shows_what_training_sees_to_the_bit(train: Train, small: list[str], monkeypatch: pytest.MonkeyPatch):
    watch = Watch()
    original = build.build_trainer

    def watched(cfg, **options):
        trainer = original(cfg, **options)
        trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(build, "build_trainer", watched)
    overrides = ["augment=[flip_crop,cutout]", "seed=3"]
    train(*overrides)
    data = build.build_data(composed([*small, *overrides]))
    for epoch in (0, 1):
        shown = data.seen([0, 7, 200], epoch)
        for image, index in zip(shown, (0, 7, 200), strict=True):
            torch.testing.assert_close(image, watch.seen[epoch, index], rtol=0, atol=0)


@pytest.mark.parametrize(
    "overrides",
    [["schedule=onecycle"], ["schedule=cosine", "trainer.max_steps=15"], ["schedule=step", "data.batch_size=48",
     "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=5"],
     ["schedule=onecycle", "data.batch_size=48", "data.drop_last=true"],
     ["schedule=linear", "trainer.overfit_batches=2"]],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_schedule_shows_the_rates_that_training_uses(
    train: Train, small: list[str], here: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    run = train(*overrides)
    lines = [line for line in small if line.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    planned = Mock(wraps=plan_learning_rate)
    monkeypatch.setattr("cnnlab.schedule.plan_learning_rate", planned)
    assert is_readable(show.schedule([*lines, *overrides]))
    plan = plan_learning_rate(*planned.call_args.args, **planned.call_args.kwargs)
    steps = np.array(plan.epochs) * plan.steps / plan.epochs[-1]
    history = (run / "history.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in history]
    assert plan.steps == int(rows[-1][1])
    for row in rows:
        # A row has the rate of the epoch's last step.
        place = int(np.argmin(np.abs(steps - (int(row[1]) - 1))))
        assert plan.lrs[place] == pytest.approx(float(row[2]))


def test_schedule_and_model_need_no_data(here: Path, capsys: pytest.CaptureFixture):
    assert is_readable(show.schedule(["schedule=cosine", "schedule.warmup=0.1"]))
    assert is_readable(show.model(["model=resnet20", "data=cifar100"]))
    assert "stages.2.2.conv2" in capsys.readouterr().out
    assert not (here / "data").exists(), "nothing was fetched"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet81"], "did you mean model=resnet18"),
        (["trainer.max_epochs=-1", "trainer.max_time='00:01:00:00'"], "give trainer.max_epochs or max_steps"),
        (["data=npz", "data.path=nowhere.npz"], "there is no such file"),
        (["resume=last"], "resume is for train.py"),
        (["optimizer.lr=1,2"], "several values need -m"),
    ],
)
def test_wrong_settings_are_refused_as_by_training(here: Path, overrides: list[str], message: str):
    with pytest.raises((ConfigError, DataError), match=message):
        show.schedule(overrides)
    assert not list(here.iterdir())


def test_no_screen_and_no_permission_are_told(here: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform == "linux":
        with pytest.raises(MachineError, match="no screen"):
            show.pooling(picture, size=2, open=True)
    with pytest.raises(MachineError, match="cannot write"):
        show.pooling(picture, size=2, output=picture / "below-a-file.png")


def test_a_wrong_kernel_ends_with_exit_code_2_and_one_line(here: Path):
    code = "import sys; from cnnlab.cli import app; sys.argv[0] = 'cnnlab'; app()"
    command = [sys.executable, "-c", code, "show", "convolution", "--kernel", "[[1,2],[3,4]]"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cnnlab: error: --kernel must be blur")
    assert not list(here.iterdir())
