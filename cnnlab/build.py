"""Config to objects: the only place that instantiates."""

import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning import callbacks as lightning_callbacks
from pytorch_lightning.callbacks import Checkpoint as LightningCheckpoint
from pytorch_lightning.callbacks import ModelSummary, ProgressBar
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cnnlab import patches, trust
from cnnlab.augment import Compose
from cnnlab.callbacks import (
    AtomicCheckpointIO,
    Budget,
    Dashboard,
    Divergence,
    Figures,
    History,
    LastStep,
    Progress,
    Reseed,
    StopOnSignal,
    Timer,
)
from cnnlab.checkpoint import read_checkpoint
from cnnlab.classifier import Classifier
from cnnlab.config.checks import ASKING_NOTHING, TAKEN_BY_BUILD
from cnnlab.data import DataModule
from cnnlab.data.datasets import adopt
from cnnlab.errors import CnnlabError, ConfigError, MachineError, first_line
from cnnlab.machine import (
    check_accelerator,
    check_precision,
    describe_device,
    describe_other_gpus,
    device_for,
    fast_precision,
    keep_freed_memory,
    nvidia_driver,
    tune_cuda,
    why_no_cuda,
)
from cnnlab.metrics import MetricBuilder
from cnnlab.model import normalised
from cnnlab.objective import direction
from cnnlab.optimizer import FusedSGD, may_fuse, parameter_groups
from cnnlab.probe import probe
from cnnlab.record import Record, precision_of
from cnnlab.schedule import Scheduler
from cnnlab.weights import begin_with
from cnnlab.wording import parse_duration

log = logging.getLogger(__name__)

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
REFUSED: dict[type[Callback], str] = {
    lightning_callbacks.BatchSizeFinder: "trains with another data.batch_size than the record says: "
    "`cnnlab benchmark --sweep` measures what suits the machine.",
    lightning_callbacks.LearningRateFinder: "trains with another optimizer.lr than the record says: search=lr_range "
    "tries rates, each in a run of its own.",
    lightning_callbacks.StochasticWeightAveraging: "puts its average into the network after the last checkpoint is "
    "written, so that it is neither validated nor kept: callbacks=[default,ema], or "
    "pytorch_lightning.callbacks.WeightAveraging, averages as well.",
    lightning_callbacks.BaseFinetuning: "adds groups to the optimizer during training, which a resumed run lacks: "
    "callbacks=[default,freeze] with callbacks.freeze.until_epoch trains a part later.",
    lightning_callbacks.ModelPruning: "renames the weights, so that no command can read the checkpoint.",
    lightning_callbacks.GradientAccumulationScheduler: "is not told inside which epoch a run is resumed: "
    "trainer.accumulate_grad_batches is kept.",
}
"""Callbacks of Lightning's whose result would not be what the run's record says, and why."""
SAMPLE = 5000  # training images that an initialisation may look at


class Lab(NamedTuple):
    """Everything a run needs."""

    data: DataModule
    classifier: LightningModule
    trainer: Trainer


@dataclass
class Session:
    """A training that Python code asked for: objects in place of what the config would build, and what was built."""

    objects: Mapping[str, Any]
    folder: Path = Path()
    lab: Lab | None = None


_session: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def using(objects: Mapping[str, Any]) -> Iterator[Session]:
    """Build labs in the block with these objects: `data`, `network` (without its normalisation) or `loss`."""
    token = _session.set(session := Session(objects))
    try:
        yield session
    finally:
        _session.reset(token)


def build_lab(
    cfg: DictConfig,
    images: DataModule | None = None,
    *,
    rollbacks: int = 0,
    resumed: bool = False,
    began: float | None = None,
) -> Lab:
    """Build a run from its config.

    Args:
        cfg: The run's config.
        images: Its data, if they were read before.
        rollbacks: How often the learning rate is halved.
        resumed: Whether a checkpoint will bring the weights.
        began: When its command began, by the monotonic clock; now by default.

    Raises:
        ConfigError: A class does not take the arguments in the config.
        DataError: The data cannot be used.
        MachineError: The device that was asked for does not exist.
    """
    patches.install()
    keep_freed_memory()
    check_accelerator(cfg.trainer.accelerator)
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = fast_precision(device_for(cfg.trainer.accelerator))
        log.info(f"trainer.precision=auto is {cfg.trainer.precision} on this machine")
    targets = trust.targets(OmegaConf.to_container(cfg, resolve=True))
    foreign = {place: target for place, target in targets if not str(target).startswith(trust.KNOWN)}
    for place, target in foreign.items():
        part = place.removesuffix("._target_")
        log.info(f"{part} is {target}, which is none of cnnlab's, torch's or Lightning's classes")
    seed_everything(cfg.seed, workers=True, verbose=False)
    session = _session.get() or Session({})
    images = images or build_data(cfg, session.objects.get("data"))
    network = build_network(
        cfg.model, classes=images.classes, image_shape=images.image_shape, mean=images.mean, std=images.std,
        body=session.objects.get("network"), resize=cfg.eval.resize,
    )  # fmt: skip
    if images.count("val") == 0 and str(cfg.objective.metric).startswith("val/"):
        log.info("no validation: the last state is the best; objective.metric=test/accuracy would say how good it is")
    if not resumed:
        initialise(network, cfg, images)
    trainer = build_trainer(cfg, validate=images.count("val") > 0, rollbacks=rollbacks, began=began)
    if foreign or session.objects:
        trainer.callbacks.insert(0, Reseed(cfg.seed))  # type: ignore[attr-defined]
    classifier = build_classifier(cfg, network, images, session.objects)
    batches, last_batch = count_batches(images, trainer.world_size, cfg.trainer.limit_train_batches)
    check_rhythm(cfg, batches, validated=images.count("val") > 0)
    if not resumed and isinstance(classifier, Classifier):
        sample = images.images("train", slice(2)).permute(0, 3, 1, 2)
        sample = sample.repeat(2, 1, 1, 1)[:2].cpu()  # a fit before may have left the images on its device
        probe(network, sample, images.num_classes, last_batch=last_batch)
    if isinstance(trainer.precision_plugin, (DoublePrecision, HalfPrecision)):
        # Before a checkpoint is read, whose float64 weights would pass through float32.
        trainer.precision_plugin.convert_module(classifier)
    session.folder, session.lab = Path(trainer.default_root_dir), Lab(images, classifier, trainer)
    return session.lab


def count_batches(images: DataModule, world_size: int, limit: float | int | None) -> tuple[int, int]:
    """Return the batches of a training epoch on each device, and the images of the last one.

    Args:
        images: The data.
        world_size: Number of devices.
        limit: `trainer.limit_train_batches`, a number of batches or a share of them.
    """
    share = math.ceil(images.count("train") / world_size)
    batches = share // images.batch_size if images.drop_last else math.ceil(share / images.batch_size)
    last = images.batch_size if images.drop_last or share % images.batch_size == 0 else share % images.batch_size
    limited = batches if limit is None else min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return limited, last if limited == batches else images.batch_size


def check_rhythm(cfg: DictConfig, batches: int, *, validated: bool) -> None:
    """Check what is counted in batches against those of an epoch.

    Raises:
        ConfigError: A validation would never come.
    """
    accumulated, interval = cfg.trainer.accumulate_grad_batches, cfg.trainer.val_check_interval
    if accumulated > batches > 0:
        log.warning(
            f"trainer.accumulate_grad_batches={accumulated} is more than the {batches} batches of an epoch: each epoch "
            f"is one step, over {batches} batches."
        )
    every = cfg.trainer.check_val_every_n_epoch
    if validated and isinstance(interval, int) and every is not None and interval > batches > 0:
        raise ConfigError(
            f"trainer.val_check_interval={interval} must be at most {batches}, the batches of an epoch; to count "
            "batches across epochs, give trainer.check_val_every_n_epoch=null."
        )


def build_classifier(
    cfg: DictConfig, network: nn.Module, images: DataModule, objects: Mapping[str, Any]
) -> LightningModule:
    """Build the LightningModule around a network.

    Args:
        cfg: The run's config.
        network: With its normalisation.
        images: What it is trained on.
        objects: From Python, in place of what the config would build.

    Raises:
        ConfigError: What `classifier._target_` names is none.
    """
    classifier = instantiate_part(
        cfg.classifier, "classifier",
        network=network,
        num_classes=images.num_classes,
        loss=objects.get("loss") or build_loss(cfg, images),
        metrics=build_metrics(cfg.metrics),
        optimizer=partial(build_optimizer, cfg),
        schedule=build_schedule(cfg),
        seed=cfg.seed,
        tta=cfg.eval.tta,
        trusted=tuple(cfg.trusted),
    )  # fmt: skip
    if not isinstance(classifier, LightningModule):
        raise ConfigError(f"classifier._target_={cfg.classifier._target_} must be a LightningModule.")
    # Plain containers, so that a checkpoint holds no code and can be used without its run's folder.
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if isinstance(path := config["data"].get("path"), str):
        config["data"]["path"] = str(Path(path).expanduser())  # who reads the checkpoint expands nothing
    classifier.save_hyperparameters(
        {
            "config": config,
            "classes": list(images.classes),
            "image_shape": list(images.image_shape),
            "objects": sorted(objects),
        },
        logger=False,
    )
    return classifier


def build_data(cfg: DictConfig, images: DataModule | None = None) -> DataModule:
    """Build the data module, unless there is one already, with its augmentation."""
    images = images or adopt(instantiate_part(cfg.data, "data"), cfg.seed)
    steps = build_list(cfg, "augment", num_classes=images.num_classes, num_images=images.count("train"))
    images.augment = Compose(steps) if steps else None
    return images


def build_network(
    model: DictConfig | Mapping[str, Any],
    *,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    body: nn.Module | None = None,
    resize: int | None = None,
) -> nn.Sequential:
    """Build the network for images of (height, width, channels), their normalisation in front.

    Args:
        model: The config's section.
        classes: The classes' names in label order.
        image_shape: Of the images, (height, width, channels).
        mean: Of each channel of the training images scaled to 0-1.
        std: Likewise.
        body: The network, if there is one already.
        resize: Side that images are brought to before they enter it.
    """
    height, width, channels = (resize, resize, image_shape[2]) if resize else image_shape
    body = body or instantiate_part(
        model, "model", without=TAKEN_BY_BUILD["model"],
        in_channels=channels, image_size=(height, width), num_classes=len(classes),
    )  # fmt: skip
    if any(map(is_lazy, (*body.parameters(), *body.buffers()))):
        probe(body, torch.zeros(2, channels, height, width), len(classes), last_batch=2)  # gives them their shapes
    network = normalised(body, mean, std, channels_last=model["channels_last"], size=resize)
    if model["compile"]:
        # In place, so that the checkpoint's names stay what they are.
        network.compile(mode=None if model["compile"] is True else model["compile"])
    return network


def initialise(network: nn.Sequential, cfg: DictConfig, images: DataModule) -> None:
    """Set the weights that the network begins with: those of `init`, then those of the run that `init_from` names.

    Raises:
        ConfigError: An initialisation does not suit the network, or there is no such run.
        CheckpointError: None of the run's weights has a name and shape of the network's.
    """
    steps = build_list(cfg, "init")
    if steps:
        sample = images.images("train", slice(SAMPLE)).permute(0, 3, 1, 2)
        normalize, body = network[0], network[1]
        # Some of torch.nn.init's functions take no other memory.
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for step in steps:
            step(body, normalize(sample))
        if cfg.model.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.init_from is not None:
        begin_with(network, cfg.init_from, list(images.classes))


def build_loss(cfg: DictConfig, images: DataModule) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the loss, and warn where it lets large classes drown small ones."""
    counts = images.class_counts
    least, most = min(counts), max(counts)
    if most > 10 * least and not cfg.loss.get("class_weights") and cfg.data.get("sampler") != "balanced":
        log.warning(
            f"the largest class has {most:,} training images, the smallest {least:,}: accuracy will hide the small "
            "ones. loss.class_weights=balanced weighs them, metrics=[default,balanced_accuracy] shows them."
        )
    return instantiate_part(cfg.loss, "loss", num_classes=images.num_classes, class_counts=counts)


def build_metrics(section: DictConfig | Mapping[str, Any] | None) -> dict[str, MetricBuilder]:
    """Return what builds each metric of the section, by name; those set to null are left out."""
    return {
        f"{name!s}": partial(instantiate_part, node, f"metrics.{name!s}")
        for name, node in (section or {}).items()
        if node is not None
    }


def build_schedule(cfg: DictConfig) -> Callable[[int, int], float] | Scheduler:
    """Build the learning rate's factor at (step, total_steps), or a scheduler of torch's kind.

    A scheduler's `interval` (epoch or step) and `monitor` are Lightning's; `mode` is the monitored metric's.
    """
    target = locate("schedule", cfg.schedule._target_)
    if not (isinstance(target, type) and issubclass(target, LRScheduler)):
        return instantiate_part(cfg.schedule, "schedule")
    options = with_direction(cfg, cfg.schedule)
    interval, monitor = options.pop("interval", "epoch"), options.pop("monitor", None)
    return Scheduler(lambda optimizer: instantiate_part(options, "schedule", optimizer=optimizer), interval, monitor)


def build_optimizer(cfg: DictConfig, network: nn.Module, *, quick: bool = True) -> Optimizer:
    """Build the optimizer of a network that is on its device.

    Args:
        cfg: The run's config.
        network: What it trains.
        quick: Whether fused SGD is ours, whose steps take the host less time to the same bits, in place of torch's.

    Raises:
        ConfigError: The class does not take the arguments, or they do not suit the network.
    """
    options = cast(dict[str, Any], OmegaConf.to_container(cfg.optimizer, resolve=True))
    optimizer = locate("optimizer", options.pop("_target_"))
    grouping: dict[str, Any] = {name: options.pop(name) for name in TAKEN_BY_BUILD["optimizer"] if name in options}
    accepted = inspect.signature(optimizer).parameters
    for name in ("lr", "weight_decay"):
        default = accepted[name].default if name in accepted else None
        grouping[name] = options.get(name, None if default is inspect.Parameter.empty else default)
    if options.get("fused", False) is None:
        del options["fused"]
        if "fused" in accepted:
            # Lightning refuses to clip in mixed precision where the optimizer unscales the gradients itself.
            clipped = precision_of(cfg).endswith("-mixed") and cfg.trainer.gradient_clip_val
            options["fused"] = may_fuse(network) and not clipped
    if optimizer is SGD and options.get("fused") and quick:
        optimizer = FusedSGD
    groups = parameter_groups(network, **grouping)
    try:
        return optimizer(groups, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {first_line(error)}") from error


def build_profiler(cfg: DictConfig) -> Any:
    """Build the profiler that `trainer.profiler` names; its table is kept in the run's folder."""
    name = cfg.trainer.profiler
    if not isinstance(name, str):
        return name or patches.NoProfiler()
    return PROFILERS[name](dirpath=cfg.trainer.default_root_dir, filename="profile")


def build_budget(cfg: DictConfig, began: float | None) -> list[Callback]:
    """Build what ends a run in time, or as the run ended that `budget` names; nothing without a budget.

    Raises:
        ConfigError: That run had none, or has not ended.
    """
    if cfg.budget is None or cfg.trainer.fast_dev_run:
        return []
    seconds = parse_duration(cfg.budget)
    if seconds is not None:
        return [Budget(cfg.budget, seconds, began=began)]
    state = read_checkpoint(Record(Path(cfg.budget).expanduser()).last)["callbacks"].get(Budget.__qualname__)
    if state is None or state["shares"][-1] < 1:
        raise ConfigError(f"budget={cfg.budget}: that run {'had no budget' if state is None else 'has not ended yet'}.")
    return [Budget(cfg.budget, math.inf, began=began, shares=state["shares"].tolist())]


def build_trainer(cfg: DictConfig, *, validate: bool = True, rollbacks: int = 0, began: float | None = None) -> Trainer:
    """Build the Trainer with its callbacks and loggers.

    Raises:
        ConfigError: The flags do not go together.
        MachineError: Lightning does not find the devices that they name.
    """
    callbacks, loggers = build_callbacks(cfg), build_list(cfg, "logger")
    # StopOnSignal comes last: the others have recorded the batch by then.
    watchers = [Divergence(rollbacks=rollbacks), *callbacks, *build_limits(cfg, began), StopOnSignal()]
    profiler = build_profiler(cfg)
    try:
        # Hydra builds what stands in the config; what is offered are objects, which it would copy.
        construct = instantiate(cfg.trainer, _partial_=True)
        plugins = construct.keywords.get("plugins")
        plugins = plugins if isinstance(plugins, ListConfig) else [plugins] if plugins else []
        trainer = construct(
            callbacks=watchers,
            max_time=None,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO(), *plugins],
            precision=cfg.trainer.precision and precision_of(cfg),  # Lightning warns of the short spellings
            profiler=profiler,
            limit_val_batches=cfg.trainer.limit_val_batches if validate else 0,
            enable_checkpointing=any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=cfg.trainer.enable_model_summary
            or any(isinstance(callback, ModelSummary) for callback in callbacks),
        )
    except Exception as error:  # of Lightning's, or of a plugin's author
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        text = f"trainer: {' '.join(str(cause).split())}"
        raise (MachineError if "machine only has" in text else ConfigError)(text) from error
    patches.count_epochs(trainer)
    patches.leave_signals_to_us(trainer)
    patches.keep_whole_loss(trainer)
    check_devices(cfg, trainer)
    device = trainer.strategy.root_device
    if device.type == "cuda":
        tune_cuda(cfg.matmul_precision, benchmark=cfg.trainer.benchmark, deterministic=bool(cfg.trainer.deterministic))
    log.info(f"device: {describe_device(device)}{describe_other_gpus(device, trainer.num_devices)}")
    if device.type == "cpu" and cfg.trainer.accelerator != "cpu" and nvidia_driver():
        log.warning(f"training on the CPU{why_no_cuda()}. trainer.accelerator=cpu asks for it without this warning.")
    return trainer


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the config, without those that the trainer's flags switch off.

    Raises:
        ConfigError: One of them is refused.
    """
    callbacks = build_list(cfg, "callbacks")
    for callback in callbacks:
        for refused, reason in REFUSED.items():
            if isinstance(callback, refused):
                raise ConfigError(f"callbacks: {type(callback).__name__} {reason}")
    unwanted: list[type] = [LightningCheckpoint, History, Figures, Dashboard] if cfg.trainer.fast_dev_run else []
    # The two flags say whether ours are wanted; Lightning's own would come on top of them.
    unwanted += [] if cfg.trainer.enable_checkpointing else [LightningCheckpoint]
    unwanted += [] if cfg.trainer.enable_progress_bar else [Progress, ProgressBar]
    return [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]


def build_limits(cfg: DictConfig, began: float | None) -> list[Callback]:
    """Build what ends a run before its last epoch."""
    max_time = cfg.trainer.max_time
    limits: list[Callback] = [LastStep()] if cfg.trainer.max_steps != -1 else []
    limits += [Timer(dict(max_time) if isinstance(max_time, DictConfig) else max_time)] if max_time else []
    return limits + build_budget(cfg, began)


def check_devices(cfg: DictConfig, trainer: Trainer) -> None:
    """Check that the devices which Lightning found can do what is asked of them.

    Raises:
        ConfigError: It does not work on several devices.
        MachineError: The machine lacks them, or their precision.
    """
    device, several = trainer.strategy.root_device, trainer.world_size > 1
    if several and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        # The other processes would be started with the sweep's command line, not with this run's.
        raise ConfigError("-m runs on one device at a time so far: give trainer.devices=1, or one run without -m.")
    check_precision(cfg.trainer.precision, device)
    cores = os.cpu_count() or 1
    if device.type == "cpu" and trainer.num_devices > cores:
        raise MachineError(f"trainer.devices={trainer.num_devices} is more than this machine has: {cores} CPU cores.")
    if several and cfg.on_divergence == "rollback":
        raise ConfigError("on_divergence=rollback works on one device: give trainer.devices=1, or on_divergence=stop.")
    by_nccl = several and device.type == "cuda" and isinstance(cfg.trainer.strategy, str)
    if by_nccl and not torch.distributed.is_nccl_available():
        raise MachineError(
            f"trainer.devices={cfg.trainer.devices}: this PyTorch {torch.__version__} has no NCCL, which joins several "
            "GPUs to one run. Give trainer.devices=1, or hydra/launcher=local to train on each."
        )


def composition(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config was composed of: the options chosen, the overrides, the folder that paths start from.

    Empty outside of train.py. `.hydra` has it too, in YAML, which takes too long to read for a table of many runs.
    """
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    choices = {name: option for name, option in hydra.runtime.choices.items() if not name.startswith("hydra/")}
    # Hydra keeps no record of the groups that take several options: their keys are the options' names.
    for group in ("augment", "init"):
        choices[group] = [name for name, node in (config[group] or {}).items() if node is not None]
    return {"choices": choices, "overrides": list(hydra.overrides.task), "cwd": hydra.runtime.cwd}


def build_list(cfg: DictConfig, group: str, **offered: Any) -> list[Any]:
    """Build the members of a group that takes several options; those set to null are left out."""
    return [
        instantiate_part(with_direction(cfg, node), f"{group}.{name}", **offered)
        for name, node in (cfg[group] or {}).items()
        if node is not None
    ]


def with_direction(cfg: DictConfig, section: DictConfig) -> dict[str, Any]:
    """Return a section as plain containers; a `mode` of auto beside a `monitor` becomes the metric's direction."""
    options: Any = OmegaConf.to_container(section, resolve=True)
    if options.get("mode") == "auto" and "monitor" in options:
        options["mode"] = direction(options["monitor"], cast(Mapping[str, Any], OmegaConf.to_container(cfg))) or "max"
    return options


def instantiate_part(
    section: DictConfig | Mapping[str, Any], key: str, without: tuple[str, ...] = (), **offered: Any
) -> Any:
    """Instantiate a section of the config, with those of the offered arguments that its constructor names.

    Args:
        section: What the config holds at `key`.
        key: Where it stands, for messages.
        without: Keys of the section that are not for the constructor.
        offered: Arguments that the config does not hold.

    Raises:
        ConfigError: The class cannot be imported, or does not take the arguments.
    """
    node: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
    accepted = trust.accepted_arguments(locate(key, node["_target_"]))
    # What an option asks nothing with is not for a class of the user's own, which stands in its place.
    neutral = {name for name, value in ASKING_NOTHING.get(key, {}).items() if node.get(name, ...) == value}
    node = {name: value for name, value in node.items() if name not in {*without, *(neutral - accepted)}}
    try:
        # Hydra builds what stands in the config; what is offered are objects, which it would copy.
        construct = instantiate(node, _partial_=True, _convert_="all")
        return construct(**{name: value for name, value in offered.items() if name in accepted})
    except CnnlabError:
        raise
    except Exception as error:  # a constructor raises whatever its author wrote
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, CnnlabError):
            raise cause from error
        text = first_line(cause or error)
        if not isinstance(cause, TypeError | ValueError):  # whose texts say more than a name
            text = f"{node['_target_']} raised {type(cause or error).__name__}: {text}"
        raise ConfigError(f"{key}: {text}") from error


def locate(key: str, target: str) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
        ConfigError: There is no such thing.
    """
    try:
        return get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target} cannot be imported: {first_line(error)}") from error
