"""A run's record of its config, as Hydra writes it, but not before the run has taken its folder."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnnlab.files import write_text


def write_record(cfg: DictConfig, folder: Path) -> None:
    """Write `.hydra` in a run's folder: the config, Hydra's part of it, and the overrides.

    Args:
        cfg: The run's config, references as they stand.
        folder: The run's.
    """
    content = {
        "overrides": HydraConfig.get().overrides.task,
        "hydra": HydraConfig.instance().cfg,
        "config": cfg,  # last: it is what a run's folder is known by
    }
    for name, part in content.items():
        write_text(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part))
