"""Stop a search's trial that is worse than the others."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from cnnlab.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Prune(Callback):
    """Report an Optuna trial's metric every epoch, and end its training when the study has given it up.

    The run ends as any other: its best state is tested, its results are written.

    Args:
        journal: The study's journal file.
        study: Its name.
        number: The trial's number in it.
        monitor: The metric.
        pruner: `asha` (asynchronous successive halving; Li et al. 2018, arXiv:1810.05934) or `median`.
        startup: Trials that `median` waits for.
        min_epochs: Epochs that every trial gets.
        reduction: Of so many trials, `asha` keeps one at each rung.
    """

    journal: str
    study: str
    number: int
    monitor: str
    pruner: Literal["asha", "median"] = "asha"
    startup: int = 8
    min_epochs: int = 1
    reduction: int = 3
    _trial: Any = field(default=None, init=False)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._trial = self._open()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # It may have been killed between the decision to give it up and its end.
        given_up = self._given_up() if trainer.is_global_zero else 0
        self._stop(trainer, 0 < given_up <= trainer.current_epoch, trainer.current_epoch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            measured = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"search.pruner needs {self.monitor} every epoch; measured: {measured}")
        pruned = False
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero:
            pruned = self._is_worse(
                epoch, float(trainer.callback_metrics[self.monitor]), is_last=epoch == trainer.max_epochs
            )
        self._stop(trainer, pruned, epoch)

    def _stop(self, trainer: Trainer, pruned: bool, epochs: int) -> None:
        """End the training after so many epochs, on all ranks, if the first rank says so."""
        if trainer.world_size > 1:
            pruned = trainer.strategy.broadcast(pruned)
        if pruned:
            log.info(f"pruned after epoch {epochs}: other trials were better by then")
            trainer.should_stop = True

    def _given_up(self) -> int:
        """Return after how many epochs the study gave the trial up; 0 if it did not."""
        return int(self._trial.study._storage.get_trial(self._trial._trial_id).user_attrs.get("pruned", 0))

    def _is_worse(self, epoch: int, value: float, *, is_last: bool) -> bool:
        if self._given_up():
            return True
        trial = self._trial
        if epoch not in trial.study._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epoch)  # an epoch that was repeated after an interruption was reported already
        # Asked after the last epoch too: that tells the study how far this trial came. There is nothing left to stop.
        if not trial.should_prune() or is_last:
            return False
        trial.set_user_attr("pruned", epoch)
        return True

    def _open(self) -> Any:
        import optuna  # the sweep that gave the trial has it

        from cnnlab.study import open_study

        pruner = (
            optuna.pruners.SuccessiveHalvingPruner(min_resource=self.min_epochs, reduction_factor=self.reduction)
            if self.pruner == "asha"
            else optuna.pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.min_epochs - 1)
        )
        study = open_study(Path(self.journal), self.study, pruner=pruner)
        frozen = study.get_trials(deepcopy=False)[self.number]
        return optuna.trial.Trial(study, frozen._trial_id)
