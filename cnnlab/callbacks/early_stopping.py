"""Early stopping that a resumed run agrees with."""

import logging
from typing import Any, Literal

import torch
from pytorch_lightning import Trainer
from pytorch_lightning import callbacks as lightning_callbacks
from typing_extensions import override

from cnnlab.bounds import NonNegativeFloat, NonNegativeInt, within_bounds

log = logging.getLogger(__name__)


@within_bounds("callbacks.early_stopping")
class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Stop when the metric no longer improves, and say in the log when and why.

    Lightning's own looks at an epoch's end at what an earlier epoch's validation measured, takes the patience of the
    checkpoint for the one that was asked for, and says nothing.

    Args:
        monitor: The metric. Those of `train/` are looked at when an epoch ends, all others after each validation.
        mode: Whether more (`max`) or less (`min`) is better.
        patience: Validations without improvement, or epochs, after which the training stops.
        min_delta: What an improvement must exceed.
        check_finite: Whether a metric that is not finite stops the training.
        options: Further ones of Lightning's.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        patience: NonNegativeInt = 3,
        min_delta: NonNegativeFloat = 0.0,
        check_finite: bool = True,
        **options: Any,
    ) -> None:
        options.setdefault("check_on_train_epoch_end", monitor.startswith("train/"))
        super().__init__(
            monitor, mode=mode, patience=patience, min_delta=min_delta, check_finite=check_finite, **options
        )
        self._is_logged = False

    @override
    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        super()._run_early_stopping_check(trainer)
        if trainer.should_stop and self.stopping_reason_message and not self._is_logged:
            self._is_logged = True
            reason = self.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            log.info(f"early stopping after epoch {self.stopped_epoch + 1}: {reason}")

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_score = torch.as_tensor(self.best_score)
