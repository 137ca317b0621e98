"""Rehearse a run: a few steps of everything, and what the run will take of time, memory and disk."""

import copy
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor, nn

from cnnlab.batch import Batch
from cnnlab.build import Lab, build_lab, count_batches
from cnnlab.callbacks.budget import LEAST_ENDING_SECONDS, SAVING_SECONDS, VIEWS, Budget, Cycle, find_budget
from cnnlab.classifier import require_parts
from cnnlab.console import Waiting, say
from cnnlab.data.protocol import Split
from cnnlab.errors import CnnlabError, ConfigError, DivergedError, MachineError
from cnnlab.machine import peak_memory

MEMORISED_IMAGES = 32
MEMORISING_STEPS = 200
MOST_SECONDS = 30.0
TIMED_STEPS = 20
LOG_BYTES = 30 * 2**20  # TensorBoard, figures and the log of a usual run


class Finding(NamedTuple):
    """The outcome of one check.

    Attributes:
        subject: What was checked.
        outcome: The outcome in words.
        error: Why the run must not start; None if it can.
        note: A reason to look twice.
    """

    subject: str
    outcome: str
    error: CnnlabError | None = None
    note: str = ""

    @property
    def state(self) -> str:
        """`ok`, `look` or `no`."""
        return "no" if self.error else "look" if self.note else "ok"


def rehearse(cfg: Any, folder: Path, began: float | None = None, as_json: bool = False) -> None:
    """Check a run's data, network, gradients, time, memory and disk, print each finding, and end in go or no go.

    Nothing is written, except for the data file where it is still to be fetched or drawn.

    Args:
        cfg: The composed config.
        folder: The folder that the run would have.
        began: When the command began, by the monotonic clock; now by default.
        as_json: Whether to print one JSON object, at the end, in the place of lines.

    Raises:
        CnnlabError: What stands in the way of the run, with its own exit code.
    """
    findings = []
    examination = examine(build_lab(cfg, began=began), folder, cfg.trainer.max_time)
    for finding in iter(partial(_examine_next, examination), None):
        findings.append(finding)
        if not as_json:
            note = f" ({finding.note})" if finding.note else ""
            say(f"{finding.subject:<14} {finding.state:<5} {finding.outcome}{note}", flush=True)
    errors = [finding.error for finding in findings if finding.error]
    if as_json:
        facts = [finding._asdict() | {"state": finding.state, "error": finding.error and str(finding.error)}
                 for finding in findings]  # fmt: skip
        say(json.dumps({"go": not errors, "findings": facts}, indent=1))
    elif errors:
        say("no go")
    else:
        say("go" + (", with an eye on what says look" if any(finding.note for finding in findings) else ""))
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))


def _examine_next(examination: Iterator[Finding]) -> Finding | None:
    with Waiting.start("trying a few steps"):
        return next(examination, None)


def examine(lab: Lab, folder: Path, max_time: str | None = None) -> Iterator[Finding]:
    """Yield the findings, the cheap ones first.

    Args:
        lab: What the run is made of; it is left as it is.
        folder: The folder that the run would have.
        max_time: A limit that may end the run before its last epoch.
    """
    budget = find_budget(lab.trainer)
    time_left = budget.seconds - budget.used if budget else math.inf
    yield from _data(lab)
    precision, device = lab.trainer.precision_plugin, lab.trainer.strategy.root_device
    classifier = require_parts(lab.classifier, "check").to(device)
    network = precision.convert_module(classifier.network)
    batch = next(_batches(lab, device))

    def loss_of(net: nn.Module, batch: Batch) -> Tensor:
        with precision.forward_context():
            logits = net(batch.images)
        return classifier.loss(logits.float(), batch.targets)

    yield from _first_step(copy.deepcopy(network), batch, lab.data.num_classes, loss_of)
    yield _by_heart(copy.deepcopy(network), lab, device)
    cost = _measure(copy.deepcopy(network), lab, device, loss_of)
    if budget is None:
        yield _time(lab, cost, max_time)
    else:
        yield _time_in_budget(lab, cost, budget, time_left)
    yield _memory(device)
    # best, last, and the checkpoint that is being written.
    yield _disk(folder, 3 * cost.checkpoint_bytes + LOG_BYTES)


def _data(lab: Lab) -> Iterator[Finding]:
    data = lab.data
    height, width, channels = data.image_shape
    counts = {split: data.count(split) for split in get_args(Split)}
    splits = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    yield Finding(
        "data", f"{splits} images of {height} × {width} × {channels}, {data.num_classes} classes; {data.path}"
    )
    sizes = data.class_counts
    least, most = min(sizes), max(sizes)
    note = ""
    if least == 0:
        note = f"{data.classes[sizes.index(0)]} has no training image"
    elif most > 10 * least:
        note = "the largest class is more than ten times the smallest: accuracy will hide the small ones"
    yield Finding("classes", f"{least:,} to {most:,} training images each", note=note)


def _first_step(
    network: nn.Module, batch: Batch, num_classes: int, loss_of: Callable[[nn.Module, Batch], Tensor]
) -> Iterator[Finding]:
    network.train()
    loss = loss_of(network, batch)
    value, expected = float(loss.detach()), math.log(num_classes)
    error, note = None, ""
    if not math.isfinite(value):
        error = DivergedError(f"the first loss is {value}: look at the network's layers, or at trainer.precision.")
    elif not 0.5 * expected <= value <= 2 * expected:
        note = "a network that knows nothing has about that: look at its last layer and its initialisation"
    yield Finding("first loss", f"{value:.3f}; ln({num_classes}) is {expected:.3f}", error, note)
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    unused = sum(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    norm = math.sqrt(sum(float(gradient.float().square().sum()) for gradient in gradients))
    if not all(gradient.isfinite().all() for gradient in gradients):
        error = DivergedError("the first gradients are not finite: look at trainer.precision and the network's layers.")
        yield Finding("gradients", "not finite", error)
    elif not gradients or norm == 0:
        yield Finding("gradients", "none", ConfigError("model: no gradient reaches its parameters, it cannot learn."))
    else:
        note = f"{unused} parameters get none" if unused else ""
        yield Finding("gradients", f"finite, norm {norm:.3g}", note=note)


def _by_heart(network: nn.Module, lab: Lab, device: torch.device) -> Finding:
    """Learn a few images by heart: a network that cannot has a mistake in it, whatever the learning rate."""
    data = lab.data
    # One pass in the split's order might show a single class.
    chosen = next(iter(data.batches("train", shuffle=True, batch_size=min(MEMORISED_IMAGES, data.count("train")))))
    batch = Batch(*(tensor.to(device) for tensor in chosen))
    goal = 0.1 * math.log(data.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    start, value, step = time.monotonic(), math.inf, 0
    while step < MEMORISING_STEPS:
        step += 1
        optimizer.zero_grad()
        with lab.trainer.precision_plugin.forward_context():
            logits = network(batch.images)
        loss = F.cross_entropy(logits.float(), batch.targets)
        value = float(loss.detach())
        if value < goal or not math.isfinite(value) or time.monotonic() - start > MOST_SECONDS:
            break
        loss.backward()
        optimizer.step()
    outcome = f"{len(batch.targets)} images: loss {value:.3f} after {step} steps of Adam"
    if value < goal:
        return Finding("by heart", outcome)
    if time.monotonic() - start > MOST_SECONDS and math.isfinite(value):
        return Finding("by heart", outcome, note=f"not below {goal:.2f} yet after {MOST_SECONDS:.0f} s: a slow network")
    return Finding(
        "by heart", outcome,
        ConfigError(
            f"model: {len(batch.targets)} images could not be learnt by heart, the loss is still {value:.3f} after "
            f"{step} steps. Look for a wrong last layer, a missing gradient, or labels of other images."
        ),
    )  # fmt: skip


class Cost(NamedTuple):
    """What the parts of a run take.

    Attributes:
        step_seconds: A training batch.
        image_seconds: The evaluation of an image.
        checkpoint_bytes: Weights, and what the optimizer keeps of them.
    """

    step_seconds: float
    image_seconds: float
    checkpoint_bytes: int


def _measure(network: nn.Module, lab: Lab, device: torch.device, loss_of: Callable[[nn.Module, Batch], Tensor]) -> Cost:
    """Time some of the run's own steps and the evaluation of a batch."""
    network.train()
    optimizer = require_parts(lab.classifier, "check").optimizer(network)
    times: list[float] = []
    start = time.monotonic()
    for number, batch in enumerate(_batches(lab, device)):
        if number == TIMED_STEPS or time.monotonic() - start > MOST_SECONDS:
            break
        step_start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(network, batch)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the device
        times.append(time.perf_counter() - step_start)
    step = statistics.median(times[min(3, len(times) - 1) :])
    network.eval()
    images = next(iter(lab.data.batches("test" if lab.data.count("test") else "train"))).images.to(device)
    with torch.inference_mode(), lab.trainer.precision_plugin.forward_context():
        for _ in range(2):  # the first pass warms up
            evaluation_start = time.perf_counter()
            float(network(images).sum())
            evaluation = (time.perf_counter() - evaluation_start) / len(images)
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Cost(step, evaluation, sum(value.nbytes for value in (*network.state_dict().values(), *moments)))


def _time(lab: Lab, cost: Cost, max_time: str | None) -> Finding:
    trainer, data, step = lab.trainer, lab.data, cost.step_seconds
    batches, _ = count_batches(data, trainer.world_size, trainer.limit_train_batches)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    share = _steps_a_batch(trainer, batches)
    total = batches * epochs
    if trainer.max_steps >= 0:
        total = min(total, trainer.max_steps / share)
    if math.isinf(total):
        return Finding(
            "time", f"{1000 * step / share:.1f} ms a step; the run has no end", note="give trainer.max_epochs"
        )
    passes = total / max(batches, 1) / (trainer.check_val_every_n_epoch or 1)
    images = data.count("val") * passes + data.count("test")
    seconds = total * step + images * cost.image_seconds
    note = f"trainer.max_time={max_time} may end it before" if max_time else ""
    return Finding(
        "time", f"about {timedelta(seconds=round(seconds))} for {total * share:,.0f} steps of "
        f"{1000 * step / share:.1f} ms ({1 / step * data.batch_size:,.0f} images/s) and the evaluations, without "
        "starting up", note=note,
    )  # fmt: skip


def _time_in_budget(lab: Lab, cost: Cost, budget: Budget, time_left: float) -> Finding:
    """Forecast what a run makes of the time that is left once it has started up."""
    if math.isinf(budget.seconds):
        return Finding("time", f"that of {budget.name}, if this machine is as fast")
    trainer, data, (step, evaluation, _) = lab.trainer, lab.data, cost
    batches, _ = count_batches(data, trainer.world_size, trainer.limit_train_batches)
    pause = (data.count("val") * evaluation + SAVING_SECONDS) / step
    views = VIEWS.get(getattr(lab.classifier, "tta", "none"), 1)
    ending = pause + (data.count("test") * views * evaluation + LEAST_ENDING_SECONDS) / step
    between = batches * (trainer.check_val_every_n_epoch or 1)
    total = Cycle(between, between, pause).steps_in(time_left / step - ending)
    starting = budget.seconds - time_left
    if total < 1:
        reason = f"starting up takes {starting:.1f} s, validation, test and pictures {ending * step:.1f} s"
        return Finding("time", f"too short: {reason}", ConfigError(f"budget={budget.name} is too short: {reason}."))
    share = _steps_a_batch(trainer, batches)
    return Finding(
        "time", f"about {total * share:,.0f} steps of {1000 * step / share:.1f} ms, "
        f"{total / batches:.1f} epochs in {budget.name}; {starting / budget.seconds:.0%} of it go into starting up, "
        f"{max(0.0, time_left - total * step) / budget.seconds:.0%} into validation, test and recording",
    )  # fmt: skip


def _steps_a_batch(trainer: Trainer, batches: int) -> float:
    """Return how many steps of the optimizer a batch makes, over an epoch of so many."""
    return math.ceil(batches / trainer.accumulate_grad_batches) / batches if batches else 1.0


def _memory(device: torch.device) -> Finding:
    outcome = f"{peak_memory() / 2**20:,.0f} MiB so far, the data and a few steps of everything"
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        used = torch.cuda.max_memory_allocated(device)
        outcome += f"; on the device {used / 2**20:,.0f} MiB of {whole / 2**20:,.0f}, {free / 2**20:,.0f} free"
    return Finding("memory", outcome)


def _disk(folder: Path, needed: int) -> Finding:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    outcome = f"{free / 2**30:,.1f} GiB free in {place}, a run takes about {needed / 2**20:,.0f} MiB"
    if free < needed:
        error = MachineError(f"the disk is too full: {outcome}. Free space, or choose another hydra.run.dir.")
        return Finding("disk", outcome, error)
    return Finding("disk", outcome)


def _batches(lab: Lab, device: torch.device) -> Iterator[Batch]:
    """Yield the first epoch's batches as training will use them."""
    data = lab.data
    for step, batch in enumerate(data.batches("train", shuffle=True, seed=data.seed, batch_size=data.batch_size)):
        yield data.augmented(Batch(*(tensor.to(device) for tensor in batch)), epoch=0, step=step)
