"""A run's record of its config, as Hydra writes it, but not before the run has taken its folder."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnnlab.files import write_text


def follow_budget(cfg: DictConfig) -> str:
    """Have a run with a budget end by that alone; return what the log is to say of it, nothing without a budget.

    Args:
        cfg: The run's config; its limits in epochs and steps are set to none.
    """
    limits = ("max_epochs", "max_steps")
    if cfg.budget is None:
        return ""
    before = [f"trainer.{name}={cfg.trainer[name]}" for name in limits if cfg.trainer[name] not in (-1, None)]
    cfg.trainer.update(dict.fromkeys(limits, -1))
    return f"budget={cfg.budget} says when the run ends, in place of {' and '.join(before)}" if before else ""


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
