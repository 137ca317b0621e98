"""Train a network: `python train.py --help` shows how."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab import config, data, sweep
from cnnlab.record import limits_of
from cnnlab.run import Run, command_line, importing

log = logging.getLogger(__name__)

sweep.register()


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Build what the config says, fit, test, and return the objective."""
    hydra_cfg = HydraConfig.get()
    sweeping = hydra_cfg.mode == RunMode.MULTIRUN
    folder = Path(hydra_cfg.runtime.output_dir)
    with Run(
        folder, seed=cfg.seed, debug=cfg.debug, exit_on_error=not sweeping, fresh=not (sweeping or cfg.resume),
        resume_with=None if cfg.trainer.fast_dev_run else config.resume_command(folder),
    ) as run:  # fmt: skip
        resume = bool(cfg.resume) or (sweeping and run.has_begun)
        if not begin(cfg, run, resume):
            return run.previous_objective()

        if not sweeping:
            data.read_ahead(cfg.data)
        with importing():
            from cnnlab import fit  # torch and Lightning, not before the config is known to be good

        # One attempt; with on_divergence=rollback, another for each time that the loss is not finite.
        for attempt in fit.attempts(cfg, run, resume=resume):
            lab = attempt.lab
            with attempt:
                lab.trainer.fit(lab.classifier, lab.data, ckpt_path=attempt.checkpoint)
        result = fit.test(lab)
        return run.finish(result.metrics, cfg.objective.metric, best=result.best, budget=result.budget)
    return None


def begin(cfg: DictConfig, run: Run, resume: bool) -> bool:
    """Record what a run is made of; return whether anything is left to train."""
    limits_note = config.follow_budget(cfg)
    limits = limits_of(cfg)
    if resume and run.is_done(limits):
        return False
    if run.primary and not resume:
        config.write_record(cfg, run.folder)
    for line in (*config.replaced(), *filter(None, [limits_note])):
        log.info(line)
    run.start(limits, afresh=not resume)
    run.describe(tags=[str(tag) for tag in cfg.tags], note=cfg.note)
    if cfg.resume and run.primary:
        config.record_limits(run.folder, limits, HydraConfig.get().overrides.task)
    return resume or not cfg.reuse or not run.reuse(OmegaConf.to_container(cfg, resolve=True))


def start(arguments: list[str]) -> None:
    """Check the command line and train; with `check=true` in it, try the run out instead."""
    if "check=true" in arguments:
        from cnnlab.commands.check import try_out

        try_out([argument for argument in arguments if argument != "check=true"])
    else:
        sys.argv[1:] = config.preflight(arguments, verify_presence=True)
        main()


if __name__ == "__main__":
    with command_line():
        start(sys.argv[1:])
