"""The sides of a benchmark: the Trainer as train.py runs it, and the loops that people write.

Each class is a side, in a separate process: it is built once, then trains blocks of steps and returns how long they
took.
"""

import copy
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from cnnlab import patches
from cnnlab.batch import Batch
from cnnlab.build import Lab, build_data, build_lab, build_network, build_optimizer, build_trainer, count_batches
from cnnlab.classifier import require_parts
from cnnlab.config import composed
from cnnlab.data import DataModule
from cnnlab.data.protocol import Split
from cnnlab.evaluation import answer, fabric_for
from cnnlab.machine import describe_device, peak_memory

WARM_UP = 3
"""Steps of a block before its clock starts."""
SOUND_STEPS = 20


class Clock(Callback):
    """Time the steps of a training between the warm-up and the end."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.start = self.end = math.nan
        self.loss: Tensor | None = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = outputs.get("loss")
        if trainer.global_step == WARM_UP:
            self.start = now(pl_module.device)
        elif trainer.global_step == WARM_UP + self.steps:
            self.end = now(pl_module.device)

    @property
    def step_seconds(self) -> float:
        """Seconds a step."""
        return (self.end - self.start) / self.steps


class LabSide:
    """The Trainer, with everything that train.py records.

    Args:
        overrides: Of train.py.
        folder: Where the runs may write.
        process_start: When the process started, on the clock of `time.perf_counter`.
    """

    def __init__(self, overrides: Sequence[str], folder: Path, process_start: float) -> None:
        started = time.perf_counter()
        self.folder = folder
        self.cfg = composed(overrides, folder)
        self.cfg.trainer.max_epochs, self.cfg.budget = -1, None
        self.cfg.trainer.limit_val_batches = 0
        self.cfg.trainer.accumulate_grad_batches = 1  # a step is a batch, as that of the other sides
        self.cfg.trainer.enable_progress_bar = False
        images = build_data(self.cfg)
        read = time.perf_counter()
        self.lab = self._lab(1, images)
        built = time.perf_counter()
        train(self.lab)
        self.start_up = {
            "imports": started - process_start, "data": read - started, "build": built - read,
            "first step": time.perf_counter() - built,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return what the measuring process needs to know."""
        data = self.lab.data
        batches, last = count_batches(data, 1, self.lab.trainer.limit_train_batches)
        return {
            "hardware": describe_hardware(self.device),
            "precision": str(self.lab.trainer.precision),
            "batch_size": data.batch_size,
            "images_per_step": data.batch_size - (data.batch_size - last) / batches,
            "flops_per_image": self._count_flops(),
            "start_up_seconds": self.start_up,
            "switches": [
                f"trainer.precision={self.cfg.trainer.precision or '32-true'}",
                f"model.channels_last={self.cfg.model.channels_last}".lower(),
                f"model.compile={self.cfg.model.compile}".lower(),
                f"data.batch_size={self.cfg.data.batch_size}",
            ],
        }

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.lab.trainer.strategy.root_device

    def train(self, steps: int) -> float:
        """Train a block of steps with a new Trainer and return the seconds a step."""
        clock = Clock(steps)
        train(self._lab(WARM_UP + steps, self.lab.data, clock))
        return clock.step_seconds

    def losses(self) -> tuple[float, float]:
        """Return the loss of the twentieth step, and that in float32 without compilation on the same batches."""
        plain = copy.deepcopy(self.cfg)
        plain.trainer.precision = "32-true"
        plain.model.compile = False
        losses = []
        for cfg in (self.cfg, plain):
            clock = Clock(0)
            train(self._lab(SOUND_STEPS, self.lab.data, clock, cfg=cfg))
            assert clock.loss is not None
            losses.append(float(clock.loss))
        return losses[0], losses[1]

    def parts(self, steps: int) -> dict[str, float]:
        """Return the ms that the parts of a step take, each the median over the steps of a separate loop."""
        lab, device = self.lab, self.device
        classifier, data = require_parts(lab.classifier, "benchmark").to(device), lab.data
        network = classifier.network.train()
        optimizer = classifier.optimizer(network)
        strategy = lab.trainer.strategy
        names = ("data", "augmentation", "forward", "backward", "optimizer")
        times: list[list[float]] = []
        batches = repeat_epochs(data)
        for step in range(WARM_UP + steps):
            marks = [now(device)]
            batch = data.transfer_batch_to_device(next(batches), device, 0)
            marks.append(now(device))
            batch = data.augmented(batch, 0, step)
            marks.append(now(device))
            with strategy.precision_plugin.train_step_context():
                loss = classifier.loss(network(batch.images), batch.targets)
            marks.append(now(device))
            loss.backward()
            marks.append(now(device))
            optimizer.step()
            optimizer.zero_grad()
            marks.append(now(device))
            if step >= WARM_UP:
                times.append([end - start for start, end in pairwise(marks)])
        parts = {
            name: 1000 * statistics.median(part) for name, part in zip(names, zip(*times, strict=True), strict=True)
        }
        parts["recording"] = 1000 * self._time_recording(steps)
        return parts

    def matmul_flops(self) -> float:
        """Return the floating-point operations a second of a large matrix product, the best of several."""
        size = 4096 if self.device.type == "cuda" else 1024
        precision = self.lab.trainer.precision
        kind = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        matrix = torch.randn(size, size, device=self.device, dtype=kind)
        seconds = []
        for _ in range(20):
            start = now(self.device)
            matrix @ matrix
            seconds.append(now(self.device) - start)
        return 2 * size**3 / min(seconds)

    def inference(self, seconds: float) -> dict[str, Any]:
        """Return the images a second of evaluation with its metrics, and the ms that predicting a batch takes.

        Args:
            seconds: About how long each is measured.
        """
        data, device = self.lab.data, self.device
        split: Split = "test" if data.count("test") else "train"
        classifier = require_parts(self.lab.classifier, "benchmark")
        network = classifier.network.to(device).eval()
        fabric = fabric_for(device.type, str(self.lab.trainer.precision))

        def evaluate(batches: int) -> tuple[int, float]:
            some = islice(data.batches(split), batches)
            answers = answer(copy.deepcopy(classifier.network), some, data.num_classes, fabric=fabric)
            return len(answers.targets), answers.seconds

        _, first = evaluate(1)
        batches = max(1, round(seconds / 2 / first))
        speed = max(images / spent for images, spent in (evaluate(batches) for _ in range(2)))
        prediction_ms = {}
        with torch.inference_mode():
            for size in (1, 256):
                images = data.images(split, slice(size)).permute(0, 3, 1, 2).to(device)
                times: list[float] = []
                while len(times) < 3 or (len(times) < 30 and sum(times) < seconds):
                    start = now(device)
                    network(images)
                    times.append(now(device) - start)
                prediction_ms[str(len(images))] = 1000 * statistics.median(times)
        return {"evaluation_images_per_second": speed, "prediction_ms": prediction_ms}

    def peak_mib(self) -> float:
        """Return the most memory that the device (a CPU: this process) has used."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return peak_memory() / 2**20

    def _lab(self, steps: int, images: DataModule, *callbacks: Callback, cfg: Any = None) -> Lab:
        cfg = copy.deepcopy(cfg or self.cfg)
        cfg.trainer.max_steps = steps
        lab = build_lab(cfg, images)
        lab.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        return lab

    def _count_flops(self) -> float:
        data = self.lab.data
        network = build_network(
            self.cfg.model, classes=data.classes, image_shape=data.image_shape, mean=data.mean, std=data.std,
            resize=self.cfg.eval.resize,
        ).train()  # fmt: skip
        batch = next(iter(data.batches("train", batch_size=8)))
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(network(batch.images.cpu()), batch.targets.cpu()).backward()
        return counter.get_total_flops() / len(batch.targets)

    def _time_recording(self, steps: int) -> float:
        """Return the seconds that the callbacks take in a step."""
        spent = [0.0]
        lab = self._lab(WARM_UP + steps, self.lab.data)
        for callback in lab.trainer.callbacks:  # type: ignore[attr-defined]
            for hook in ("on_train_batch_start", "on_train_batch_end"):
                setattr(callback, hook, time_hook(getattr(callback, hook), spent))
        train(lab)
        return spent[0] / (WARM_UP + steps)


def train(lab: Lab) -> None:
    """Train from the beginning."""
    lab.trainer.fit(lab.classifier, lab.data)


class PlainSide:
    """A loop in plain PyTorch: float images on the device, a random slice a step, the loss read back in each.

    The network is the same, as people write it: in channels-first memory, its input normalised beforehand, each
    ReLU in front of the max pooling.
    """

    def __init__(self, overrides: Sequence[str], folder: Path, process_start: float) -> None:
        cfg = composed(overrides, folder)
        self.folder = folder
        data = build_data(cfg)
        self.device = build_trainer(cfg).strategy.root_device
        cfg.model.channels_last = False
        torch.manual_seed(cfg.seed)
        network = build_network(
            cfg.model, classes=data.classes, image_shape=data.image_shape, mean=data.mean, std=data.std
        )
        mean, std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (data.mean, data.std))
        images = data.images("train", slice(None)).permute(0, 3, 1, 2)
        unit = 255 if images.dtype == torch.uint8 else 1
        self.images = ((images.float() / unit - mean) / std).contiguous().to(self.device)
        self.targets = data.labels("train").to(self.device)
        self.network = separate_relu(network[1]).to(self.device)
        cfg.optimizer.fused = None
        self.optimizer = build_optimizer(cfg, self.network, quick=False)
        self.batch_size = cfg.data.batch_size
        self.losses: list[float] = []

    def facts(self) -> dict[str, Any]:
        """Return what the measuring process needs to know."""
        return {"batch_size": self.batch_size}

    def train(self, steps: int) -> float:
        """Train a block of steps and return the seconds a step."""
        start = math.nan
        for step, chosen in enumerate(islice(self._slices(), WARM_UP + steps)):
            if step == WARM_UP:
                start = now(self.device)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.network(self.images[chosen]), self.targets[chosen])
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return (now(self.device) - start) / steps

    def _slices(self) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(self.images), device=self.device).split(self.batch_size)


class DataLoaderSide(PlainSide):
    """Lightning as templates use it: a DataLoader that collates sample by sample, the loss on the progress bar."""

    @override
    def train(self, steps: int) -> float:
        """Train a block of steps with a new Trainer and return the seconds a step."""
        patches.install()
        clock = Clock(steps)
        device = self.device
        self.network.to(device)  # Lightning takes it back to the CPU after each block
        trainer = Trainer(
            accelerator=device.type, devices=1 if device.index is None else [device.index],
            max_steps=WARM_UP + steps, max_epochs=-1, callbacks=[clock], enable_model_summary=False,
            logger=TensorBoardLogger(self.folder), default_root_dir=self.folder,
        )  # fmt: skip
        dataset = TensorDataset(self.images.cpu(), self.targets.cpu())
        trainer.fit(_Template(self), DataLoader(dataset, self.batch_size, shuffle=True))
        return clock.step_seconds


class _Template(LightningModule):
    def __init__(self, plain: PlainSide) -> None:
        super().__init__()
        self.network = plain.network
        self.built = plain.optimizer
        self.train_accuracy = MulticlassAccuracy(plain.network(plain.images[:2]).shape[1], average="micro")

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, targets)
        self.train_accuracy(logits, targets)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.built


KINDS: dict[str, type[Any]] = {"lab": LabSide, "plain": PlainSide, "dataloader": DataLoaderSide}


def now(device: torch.device) -> float:
    """Return the time in seconds, after waiting for the device to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def separate_relu(network: nn.Module) -> nn.Module:
    """Move each ReLU that follows a max pooling to before it, not in place: the same function, with more work."""
    for layers in network.modules():
        if isinstance(layers, nn.Sequential):
            for place, (first, second) in enumerate(pairwise(list(layers))):
                if isinstance(first, nn.MaxPool2d) and isinstance(second, nn.ReLU):
                    layers[place], layers[place + 1] = nn.ReLU(), first
    return network


def repeat_epochs(data: DataModule) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch."""
    batches = data.batches("train", batch_size=data.batch_size, shuffle=True)
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def time_hook(hook: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a hook that adds the seconds it takes to `spent`."""

    def measured(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return hook(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - start

    return measured


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Return the machine's device, processor and threads."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return {
        "device": describe_device(device),
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_features": torch.backends.cpu.get_cpu_capability(),
    }
