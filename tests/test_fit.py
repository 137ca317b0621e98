"""From the entry point to the loss there is nothing of ours but what computes."""

import traceback
from pathlib import Path

import pytest
from pytorch_lightning.plugins import TorchSyncBatchNorm
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor, nn
from typing_extensions import override

from cnnlab.build import build_trainer
from cnnlab.callbacks import AtomicCheckpointIO
from cnnlab.config import composed
from cnnlab.evaluation import evaluate
from tests.conftest import ROOT, Train, read


class Fail(nn.Module):
    """A network that says which functions called it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        own = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT / "cnnlab")]
        script = [frame for frame in traceback.extract_stack() if Path(frame.filename) == ROOT / "train.py"]
        if any(frame.name == "training_step" for frame in own):
            raise RuntimeError(" ".join(frame.name for frame in (*script, *own)))
        return self.weight(images.mean((1, 2, 3))[:, None]).expand(-1, 10)


def test_three_frames_lie_between_the_command_and_the_network(train: Train, tmp_path: Path):
    with pytest.raises(SystemExit):
        train("model=custom", "model._target_=tests.test_fit.Fail", "trainer.max_epochs=1")
    assert "unexpected RuntimeError: main training_step" in (tmp_path / "run" / "train.log").read_text()


class Lazy(nn.Sequential):
    """Layers whose shapes come with the first images."""

    def __init__(self) -> None:
        super().__init__(nn.LazyConv2d(4, 3, stride=4), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))


def test_layers_that_get_their_shapes_from_the_images_are_trained_resumed_and_restored(train: Train, tmp_path: Path):
    options = ["model=custom", "model._target_=tests.test_fit.Lazy"]
    folder = train(*options, "trainer.max_epochs=1", folder=tmp_path / "run")
    train(f"resume='{folder}'", "trainer.max_epochs=2", "trusted=[tests]")
    content = evaluate(str(folder), figures=False, trusted=["tests"]).content
    assert content["metrics"]["accuracy"] == read(folder / "metrics.json")["test/accuracy"]


@pytest.mark.parametrize(
    "plugins",
    [
        "{_target_: pytorch_lightning.plugins.environments.SLURMEnvironment}",
        "[{_target_: pytorch_lightning.plugins.environments.SLURMEnvironment},"
        "{_target_: pytorch_lightning.plugins.TorchSyncBatchNorm}]",
    ],
)
def test_lightning_gets_plugins_one_or_several(plugins: str, tmp_path: Path):
    words = [f"trainer.plugins={plugins}", "trainer.accelerator=cpu", "logger=none"]
    trainer = build_trainer(composed(words, tmp_path))
    connector = trainer._accelerator_connector
    assert isinstance(connector.strategy.checkpoint_io, AtomicCheckpointIO)
    assert isinstance(connector.cluster_environment, SLURMEnvironment)
    assert isinstance(connector._layer_sync, TorchSyncBatchNorm) == plugins.startswith("[")
