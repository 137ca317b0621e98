"""The pictures of a run, as PNG files and on TensorBoard."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from typing_extensions import override

from cnnlab import plots
from cnnlab.batch import PADDING, Batch
from cnnlab.bounds import NonNegativeInt, within_bounds
from cnnlab.callbacks.checkpoint import find_checkpoint
from cnnlab.callbacks.history import History, writers
from cnnlab.classifier import Classifier, callbacks_of
from cnnlab.data import DataModule, Gallery
from cnnlab.wording import channels_note


@within_bounds("callbacks.figures")
class Figures(Callback):
    """Draw the article's pictures, and those of daily work, into `figures/`.

    Before training: `first_training_images.png`, and `augmented_batch.png` if there is augmentation. After it:
    `loss.png` and `learning_rate.png` (every iteration), `learning_curves.png` (every epoch). After the test:
    `first_test_images.png` with the predicted classes, `confusion_matrix.png`, `worst_mistakes.png`.

    Args:
        count: Images in a row.
        batch_count: Images of the augmented batch.
    """

    def __init__(self, count: NonNegativeInt = 10, batch_count: NonNegativeInt = 32) -> None:
        self.count = count
        self.batch_count = batch_count

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        if data is None or not trainer.is_global_zero or trainer.ckpt_path:  # a resumed run has them already
            return
        first = slice(self.count)
        images = data.pictures("train", first)
        names = [data.classes[target] for target in data.labels("train")[first].tolist()]
        self._save(trainer, "first_training_images", plots.image_row(images, names, channels_note(data.image_shape[2])))
        if data.augment is not None:
            batch = data.augmented(first_batch(data), epoch=0, step=0)
            pixels = data.displayable(batch.images[: self.batch_count].permute(0, 2, 3, 1))
            self._save(trainer, "augmented_batch", plots.image_grid(pixels, note=channels_note(data.image_shape[2])))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        history, network = next(callbacks_of(trainer, History), None), network_name(pl_module)
        if history is None or not trainer.is_global_zero:
            return
        if history.losses:
            self._save(trainer, "loss", plots.loss_curve(history.losses, network))
            self._save(trainer, "learning_rate", plots.learning_rate_curve(history.lrs, network))
        if history.rows:
            columns = {name: [row.get(name, math.nan) for row in history.rows] for name in history.rows[0]}
            checkpoint = find_checkpoint(trainer)
            best = {"epoch": checkpoint.best_epoch} if checkpoint and checkpoint.best_score is not None else None
            self._save(trainer, "learning_curves", plots.learning_curves(columns, network, best))

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        if data is None or not isinstance(pl_module, Classifier):
            return
        logits, targets, _ = gathered(pl_module)
        if not trainer.is_global_zero or not len(targets):
            return
        predicted = logits.argmax(1)
        matrix = multiclass_confusion_matrix(predicted, targets, data.num_classes)
        images: Any = Gallery(data, "test")
        right, guess = targets.numpy(), predicted.numpy()
        first, note = slice(self.count), channels_note(data.image_shape[2])
        self._save(
            trainer,
            "first_test_images",
            plots.predictions_row(images[first], guess[first], right[first], data.classes, note),
        )
        self._save(trainer, "confusion_matrix", plots.confusion_matrix(matrix.numpy(), data.classes))
        confidence = logits.softmax(1).amax(1).numpy()
        self._save(
            trainer, "worst_mistakes", plots.worst_mistakes(images, guess, right, confidence, data.classes, note=note)
        )

    def _save(self, trainer: Trainer, name: str, figure: plots.Figure) -> None:
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        png = plots.to_png(figure)
        (folder / f"{name}.png").write_bytes(png)
        for writer in writers(trainer):
            picture = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
            writer.add_image(f"figures/{name}", picture, trainer.global_step, dataformats="HWC")


def network_name(classifier: LightningModule) -> str:
    """Return the class of the network that is trained, whatever it is wrapped in to normalise its images."""
    network = getattr(classifier, "network", classifier)
    return type(getattr(network, "body", network)).__name__


def data_of(trainer: Trainer) -> DataModule | None:
    """Return the trainer's data module if it is one of ours."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, DataModule) else None


def first_batch(data: DataModule) -> Batch:
    """Return the first training batch of the first epoch, before augmentation."""
    return next(iter(data.batches("train", shuffle=True, seed=data.seed, batch_size=data.batch_size)))


def gathered(classifier: Classifier) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last test's logits, targets and indices over all processes, in the order of the split."""
    parts = [torch.cat(part) for part in zip(*classifier.test_outputs, strict=True)]
    if classifier.trainer.world_size > 1:
        parts = [torch.cat(list(classifier.all_gather(part))) for part in parts]
    logits, targets, indices = (part.cpu() for part in parts)
    real = targets != PADDING
    order = indices[real].argsort()
    return logits[real][order], targets[real][order], indices[real][order]
