"""Settings that are right by themselves and exclude each other."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cnnlab.config.references import get
from cnnlab.config.tree import Key, main_file
from cnnlab.config.words import as_typed, nearest
from cnnlab.objective import direction, measured, own_direction


def conflicts(config: Mapping[str, Any]) -> Iterator[str]:
    """List what excludes each other in a config of plain containers, a line each."""
    yield from _metrics(config)
    if get(config, "optimizer", "nesterov") is True and get(config, "optimizer", "momentum") == 0:
        yield "optimizer.momentum=0 leaves nothing for optimizer.nesterov=true: give optimizer.nesterov=false"
    optimizer = get(config, "optimizer", "_target_")
    if optimizer == "torch.optim.SparseAdam":
        yield "optimizer: torch.optim.SparseAdam takes sparse gradients only, a network of images has none: use Adam"
    if optimizer == "torch.optim.LBFGS" and get(config, "model", "channels_last") is True:
        yield "optimizer: torch.optim.LBFGS can't read filters stored channels last: give model.channels_last=false"
    trainer = get(config, "trainer")
    if not isinstance(trainer, Mapping):
        return
    flags = {name: get(config, "trainer", name) for name in trainer}
    strategy = flags.get("strategy")
    if re.search("spawn|fork|notebook", str(strategy)):
        # Their processes' results stay in them: best state, metrics and curves would be lost.
        yield f"trainer.strategy={as_typed(strategy)}: use ddp, which starts train.py once a device"
    if (budget := config.get("budget")) is not None:
        for name, neutral in (("max_time", (None,)), ("min_epochs", (None, 0)), ("min_steps", (None, 0))):
            if flags.get(name) not in neutral:
                yield f"budget={as_typed(budget)} alone says when a run ends: leave trainer.{name} out"
        return
    ends = flags.get("max_epochs") != -1 or flags.get("max_steps") != -1 or flags.get("max_time")
    if not (ends or flags.get("fast_dev_run") or any(place.key[0] == "callbacks" for place in _watchers(config))):
        yield "trainer.max_epochs=-1 never ends: give trainer.max_steps or max_time, or stop early"
    for unit in ("epochs", "steps"):
        low, high = flags.get(f"min_{unit}"), flags.get(f"max_{unit}")
        if isinstance(low, int) and isinstance(high, int) and -1 < high < low:
            yield f"trainer.min_{unit}={low} is more than trainer.max_{unit}={high}"


class _Watcher(NamedTuple):
    """A part of the config that looks at a metric while training.

    Attributes:
        key: Of its section.
        metric: The metric's name.
        mode: `max`, `min`, `auto`, or whatever stands there.
        follows: Whether it takes the name from the objective.
    """

    key: Key
    metric: str
    mode: Any
    follows: bool


def _metrics(config: Mapping[str, Any]) -> Iterator[str]:
    """List what is wrong with the objective and with whatever else looks at a metric, a line each."""
    metric, mode = get(config, "objective", "metric"), get(config, "objective", "mode")
    if not isinstance(metric, str):
        return
    without_validation = _without_validation(config)
    yield from _unmeasured("objective.metric", metric, config)
    # Nobody chose the default, and the last state is as good as any where nothing looks at it while training.
    unasked = metric == main_file()["objective"]["metric"] and not config.get("search") and not any(_watchers(config))
    if metric.startswith("val/") and without_validation and not unasked:
        yield (
            f"objective.metric={metric}, but {without_validation} leaves no validation: hold images out, or give "
            "objective.metric=test/accuracy, with which the last state is the best"
        )
    elif mode == "auto" and direction(metric, config) is None:
        yield f"objective.mode must be max or min: nothing says whether more or less of {as_typed(metric)} is better"
    yield from _contradiction("objective.mode", metric, mode, config)
    for watcher in _watchers(config):
        place = ".".join(watcher.key)
        if watcher.metric.startswith("test/"):
            yield (
                f"{place} watches {watcher.metric}, which is measured once, after training: give "
                f"{place}.monitor=val/loss or train/loss, or leave {watcher.key[-1]} out"
            )
        if watcher.mode == "auto" and direction(watcher.metric, config) is None and not watcher.follows:
            name = as_typed(watcher.metric)
            yield f"{place}.mode must be max or min: nothing says whether more or less of {name} is better"
        yield from _contradiction(f"{place}.mode", watcher.metric, watcher.mode, config)
        if watcher.follows:  # and the objective is answered for
            continue
        yield from _unmeasured(f"{place}.monitor", watcher.metric, config)
        if watcher.metric.startswith("val/") and without_validation:
            yield (
                f"{place} watches {watcher.metric}, but {without_validation} leaves no validation: hold images out, or "
                f"leave {watcher.key[-1]} out"
            )


def _watchers(config: Mapping[str, Any]) -> Iterator[_Watcher]:
    callbacks = get(config, "callbacks")
    names = [name for name in callbacks if name != "checkpoint"] if isinstance(callbacks, Mapping) else []
    for key in [*(("callbacks", str(name)) for name in names), ("schedule",)]:
        section = get(config, *key)
        metric = get(config, *key, "monitor")
        if isinstance(section, Mapping) and isinstance(metric, str):
            yield _Watcher(key, metric, get(config, *key, "mode"), section.get("monitor") == "${objective.metric}")


def _unmeasured(key: str, metric: str, config: Mapping[str, Any]) -> Iterator[str]:
    names = measured(config)
    if names is None or metric in names:
        return
    near = nearest(metric.replace("_", "/", 1) if "/" not in metric else metric, names)
    yield (
        f"{key}={as_typed(metric)} is none of the metrics that this run measures; "
        + (f"did you mean {near}? " if near else "")
        + f"({', '.join(names)}; others: metrics=[default,...])"
    )


def _contradiction(key: str, metric: str, mode: Any, config: Mapping[str, Any]) -> Iterator[str]:
    natural = own_direction(metric, config) if mode in ("max", "min") else None
    if natural is not None and natural != mode:
        amount = "more" if natural == "max" else "less"
        yield f"{key}={mode} contradicts {metric}, of which {amount} is better: give {key}=auto"


def _without_validation(config: Mapping[str, Any]) -> str | None:
    """Return the setting that leaves no validation, if one does."""
    if get(config, "trainer", "limit_val_batches") == 0:
        return "trainer.limit_val_batches=0"
    path, name = get(config, "data", "path"), get(config, "data", "keys", "val_images")
    if get(config, "data", "val_size") != 0 or get(config, "data", "folds") is not None:
        return None
    if isinstance(path, str) and isinstance(name, str):
        try:
            with zipfile.ZipFile(Path(path).expanduser()) as file:
                if f"{name}.npy" in file.namelist():
                    return None
        except (OSError, ValueError, zipfile.BadZipFile):
            pass  # whoever reads it will say what is wrong with it
    return "data.val_size=0"
