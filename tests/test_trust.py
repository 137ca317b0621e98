"""A config from a run's folder builds known classes only."""

import pytest

from cnnlab import trust
from cnnlab.errors import UnsafeError


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.load", "torch.hub.load", "numpy.load", "subprocess.Popen",
        "hydra.utils.call", "cnnlab.run.os.system", "cnnlab.run.subprocess.Popen", "cnnlab.commands.data.fetch",
        "cnnlab.cli.runpy.run_path", "torch.nn.modules.module.functools.partial", "torch.nn.functional.torch.load",
        "cnnlabx.y", "cnnlab", "", 5, None, ["cnnlab.model.ConvNet"], "cnnlab.record.write_text", "cnnlab.lock.take",
        "cnnlab.model.NoSuch", "cnnlab.callbacks.Checkpoint", "cnnlab.data.ImageData", "cnnlab.callbacks.Prune",
        "torch.nn.functional.relu", "torch.nn.init.zeros_", "torch.nn.utils.clip_grad_norm_", "torch.nn.Parameter",
        "torch.optim.swa_utils.get_ema_avg_fn", "torch.optim.SGD", "torch.optim.lr_scheduler.LambdaLR",
        "torchmetrics.image.FrechetInceptionDistance", "pytorch_lightning.Trainer",
    ],
)  # fmt: skip
def test_what_could_run_code_is_refused(target):
    for config in ({"_target_": target}, {"deep": [{"er": {"_target_": target}}]}):
        with pytest.raises(UnsafeError, match="none of the classes"):
            trust.check(config, "model")


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("callbacks", "pytorch_lightning.callbacks.ModelCheckpoint"),  # removes the files that a checkpoint names
        ("callbacks", "pytorch_lightning.callbacks.OnExceptionCheckpoint"),
        ("callbacks", "cnnlab.callbacks.Prune"), ("callbacks", "cnnlab.callbacks.AtomicCheckpointIO"),
        ("callbacks", "torch.nn.Linear"), ("optimizer", "torch.nn.Linear"), ("augment", "cnnlab.augment.Path"),
        ("logger", "pytorch_lightning.loggers.WandbLogger"), ("logger", "pytorch_lightning.loggers.MLFlowLogger"),
        ("trainer", "cnnlab.model.ConvNet"), ("hydra", "torch.nn.Linear"), ("loss", "torch.nn.Linear"),
    ],
)  # fmt: skip
def test_a_class_of_another_kind_and_one_that_writes_elsewhere_are_refused(group, target):
    with pytest.raises(UnsafeError, match="none of the classes"):
        trust.check({"x": {"_target_": target}}, group)


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "cnnlab.model.ConvNet"), ("model", "torch.nn.Linear"), ("optimizer", "torch.optim.SGD"),
        ("model", "torchmetrics.classification.MulticlassAccuracy"), ("data", "cnnlab.data.ImageData"),
        ("callbacks.x", "pytorch_lightning.callbacks.EarlyStopping"), ("callbacks", "cnnlab.callbacks.Checkpoint"),
        ("logger.csv", "pytorch_lightning.loggers.CSVLogger"), ("trainer", "pytorch_lightning.Trainer"),
        ("augment.x", "cnnlab.augment.Kornia"), ("init", "cnnlab.init.Dirac"), ("schedule", "cnnlab.schedule.Cosine"),
    ],
)  # fmt: skip
def test_known_classes_pass(group, target):
    trust.check({"_target_": target, "channels": [1, 2]}, group)


def test_the_person_at_the_keyboard_may_trust_a_package():
    trust.check({"_target_": "mynet.MyNet"}, "model", ["mynet"])
    with pytest.raises(UnsafeError, match=r"trusted=\[mynetwork\]"):
        trust.check({"_target_": "mynetwork.MyNet"}, "model", ["mynet"])


def test_a_reference_is_refused():
    with pytest.raises(UnsafeError, match="computed"):
        trust.check({"width": "${oc.env:HOME}"}, "model")
