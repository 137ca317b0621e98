"""The config that a command line of train.py makes, for commands that run in another place."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from cnnlab.config.overrides import preflight
from cnnlab.config.tree import CONF
from cnnlab.config.words import refusal


def composed(overrides: Sequence[str], folder: Path) -> DictConfig:
    """Check overrides as train.py does, and return its config, with `folder` in the place of the run's.

    Raises:
        ConfigError: Something is wrong; the message has one line for each mistake.
    """
    lines = preflight(overrides)
    if flags := [line for line in lines if line.startswith("-")]:
        raise refusal(f"{' '.join(flags)}: only settings, KEY=VALUE, can be given here")
    if any(line.startswith("resume=") for line in lines):
        raise refusal("resume is for train.py")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*lines, "hydra.mode=RUN"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(folder)
        # What `${hydra:...}` in the config refers to.
        HydraConfig.instance().set_config(config)
        del config["hydra"]
    return config
