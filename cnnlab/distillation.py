"""A network that learns from another one's answers beside the labels."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from cnnlab.batch import Batch
from cnnlab.bounds import PositiveFloat, Share, within_bounds
from cnnlab.classifier import Classifier
from cnnlab.errors import ConfigError
from cnnlab.restore import restore


@within_bounds("classifier")
class Distillation(Classifier):
    """Train a network on the labels and on the softened answers of a trained one.

    Args:
        teacher: The trained network's run: its folder, a checkpoint, `last` or `best`; or the network itself.
        temperature: What both networks' logits are divided by before they are compared.
        share: Of the teacher's part in the loss, 0 to 1; the labels' loss has the rest.
        trusted: Packages that may be imported although the teacher's folder names them.
        **options: As for `Classifier`.

    Raises:
        ConfigError: There is no such run, it tells other classes apart, or a number is out of its range.
        CheckpointError, UnsafeError: As `restore` does.

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2; the teacher's part is multiplied by the
    temperature squared, so that its gradients keep their size.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        teacher: str | Path | nn.Module,
        temperature: PositiveFloat = 4.0,
        share: Share = 0.9,
        trusted: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes, **options)
        if not isinstance(teacher, nn.Module):
            trained = restore(str(teacher), trusted)
            if len(trained.classes) != num_classes:
                raise ConfigError(
                    f"classifier.teacher={teacher} tells {len(trained.classes)} classes apart, the data has "
                    f"{num_classes}: give a teacher of the same classes."
                )
            teacher = trained.network
        # In a list, so that the teacher is no part of the checkpoint.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.temperature = temperature
        self.share = share

    @override
    def on_fit_start(self) -> None:
        self._teacher[0].to(self.device)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        self.reseed()
        logits = self.network(batch.images)
        with torch.no_grad():
            softened = F.log_softmax(self._teacher[0](batch.images) / self.temperature, dim=1)
        answers = F.log_softmax(logits / self.temperature, dim=1)
        distance = F.kl_div(answers, softened, reduction="batchmean", log_target=True) * self.temperature**2
        loss = self.share * distance + (1 - self.share) * self.loss(logits, batch.targets)
        return {"loss": loss, "logits": logits.detach()}
