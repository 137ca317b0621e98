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
        "cnnlabx.y", "cnnlab", "", 5, None, ["cnnlab.model.ConvNet"],
    ],
)  # fmt: skip
def test_what_could_run_code_is_refused(target):
    for config in ({"_target_": target}, {"deep": [{"er": {"_target_": target}}]}):
        with pytest.raises(UnsafeError, match="none of the classes"):
            trust.check(config, "model")


@pytest.mark.parametrize(
    "target",
    ["cnnlab.model.ConvNet", "torch.nn.Linear", "torch.optim.SGD", "pytorch_lightning.callbacks.EarlyStopping"],
)
def test_known_classes_pass(target):
    trust.check({"_target_": target, "channels": [1, 2]}, "model")


def test_the_person_at_the_keyboard_may_trust_a_package():
    trust.check({"_target_": "mynet.MyNet"}, "model", ["mynet"])
    with pytest.raises(UnsafeError, match=r"trusted=\[mynetwork\]"):
        trust.check({"_target_": "mynetwork.MyNet"}, "model", ["mynet"])


def test_a_reference_is_refused():
    with pytest.raises(UnsafeError, match="computed"):
        trust.check({"width": "${oc.env:HOME}"}, "model")
