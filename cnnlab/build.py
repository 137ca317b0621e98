"""Config to objects: the only place that instantiates."""

import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Checkpoint as LightningCheckpoint
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from cnnlab import trust
from cnnlab.augment import Compose
from cnnlab.callbacks import (
    AtomicCheckpointIO,
    Checkpoint,
    Dashboard,
    Divergence,
    Figures,
    History,
    Progress,
    StopOnSignal,
)
from cnnlab.callbacks.checkpoint import first_line, plain, read_checkpoint
from cnnlab.classifier import Classifier
from cnnlab.data import ImageData, archive, npz
from cnnlab.errors import CheckpointError, CnnlabError, ConfigError, DataError, DivergedError, MachineError
from cnnlab.machine import check_accelerator, check_precision, describe_device, keep_freed_memory
from cnnlab.model import normalised
from cnnlab.optimizer import parameter_groups
from cnnlab.record import Record, find
from cnnlab.run import Run, is_out_of_memory

log = logging.getLogger(__name__)

SAMPLE = 5000  # training images that an initialisation may look at


MOST_ROLLBACKS = 8
"""Of one run: 1/256 of the learning rate that was asked for has another cause."""


class Lab(NamedTuple):
    """Everything a run needs."""

    data: ImageData
    classifier: Classifier
    trainer: Trainer

    @property
    def rollbacks(self) -> int:
        """How often the run went back to an earlier state since its loss was not finite."""
        return max(each.rollbacks for each in self.trainer.callbacks if isinstance(each, Divergence))  # type: ignore[attr-defined]

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train, from the beginning or from a checkpoint."""
        self.trainer.fit(self.classifier, self.data, ckpt_path=checkpoint)

    def test(self) -> dict[str, float]:
        """Test the best state of the fitted classifier; return its validation and test metrics."""
        metrics = plain(self.trainer.callback_metrics)
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, Checkpoint) and checkpoint.best.exists():
            self.trainer.test(self.classifier, self.data, ckpt_path=checkpoint.best, verbose=False)
            # As best.ckpt itself has them, which has just been loaded: a rollback leaves the best state where it is
            # and goes back to metrics from before it.
            metrics = checkpoint.best_metrics
        else:
            log.info("no checkpoint was kept: the last state is tested")
            self.trainer.test(self.classifier, self.data, verbose=False)
        return plain(self.trainer.callback_metrics) | metrics

    def facts(self) -> dict[str, Any]:
        """Return what a run's record says of these objects."""
        return {
            "device": describe_device(self.trainer.strategy.root_device),
            "precision": self.trainer.precision,
            "num_parameters": sum(parameter.numel() for parameter in self.classifier.parameters()),
            **composition(self.classifier.hparams["config"]),
        }


def lab(cfg: DictConfig, images: ImageData | None = None, *, rollbacks: int = 0, begun: bool = False) -> Lab:
    """Build a run from its config.

    Args:
        cfg: The run's config.
        images: Its data, if they were read before.
        rollbacks: How often the learning rate is halved.
        begun: Whether a checkpoint will bring the weights.

    Raises:
        ConfigError: A class does not take the arguments it is given.
        DataError: The data cannot be used.
        MachineError: The device that was asked for is not there.
    """
    quieten_lightning()
    keep_freed_memory()
    check_accelerator(cfg.trainer.accelerator)
    seed_everything(cfg.seed, workers=True, verbose=False)
    images = images or data(cfg)
    network = build_network(
        cfg, classes=images.classes, image_shape=images.image_shape, mean=images.mean, std=images.std
    )
    if not begun:
        initialise(network, cfg, images)
    trainer = build_trainer(cfg, validate=len(images.val_indices) > 0, rollbacks=rollbacks)
    classifier = Classifier(
        network,
        images.num_classes,
        optimizer=optimizer_builder(cfg),
        schedule=make(cfg, "schedule"),
        label_smoothing=cfg.loss.label_smoothing,
        seed=cfg.seed,
        tta=cfg.eval.tta,
    )
    # Plain containers, so that a checkpoint holds no code and can be used without its run's folder.
    classifier.save_hyperparameters(
        {
            "config": OmegaConf.to_container(cfg, resolve=True),
            "classes": list(images.classes),
            "image_shape": list(images.image_shape),
        },
        logger=False,
    )
    return Lab(images, classifier, trainer)


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


class Unprofiled(Profiler):
    """Measure nothing, at the least cost: Lightning asks its profiler some forty times a step."""

    _nothing = nullcontext()

    @override
    def profile(self, action_name: str) -> Any:
        return self._nothing

    @override
    def start(self, action_name: str) -> None: ...

    @override
    def stop(self, action_name: str) -> None: ...


def data(cfg: DictConfig) -> ImageData:
    """Build the data module, with its augmentation."""
    images = make(cfg, "data")
    steps = [
        make(cfg, f"augment.{name}", num_classes=images.num_classes)
        for name, node in (cfg.augment or {}).items()
        if node is not None
    ]
    images.augment = Compose(steps) if steps else None
    return images


def build_network(
    cfg: DictConfig,
    *,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Sequential:
    """Build the network for images of (height, width, channels), their normalisation in front."""
    height, width, channels = image_shape
    body = make(
        cfg, "model", without=("channels_last", "compile"),
        in_channels=channels, image_size=(height, width), num_classes=len(classes),
    )  # fmt: skip
    network = normalised(body, mean, std, channels_last=cfg.model.channels_last)
    if cfg.model.compile:
        # In place, so that the checkpoint's names stay what they are.
        network.compile()
    return network


def initialise(network: nn.Sequential, cfg: DictConfig, images: ImageData) -> None:
    """Set the weights that the network begins with: those of `init`, then those of the run that `init_from` names.

    Raises:
        ConfigError: An initialisation does not suit the network, or there is no such run.
        CheckpointError: None of the run's weights has a name and shape of the network's.
    """
    steps = [make(cfg, f"init.{name}") for name, node in (cfg.init or {}).items() if node is not None]
    if steps:
        sample = images.train_images[images.train_indices[:SAMPLE]].permute(0, 3, 1, 2)
        normalize, body = network[0], network[1]
        for step in steps:
            step(body, normalize(sample))
    if cfg.init_from is not None:
        checkpoint = find(cfg.init_from).checkpoint
        content = read_checkpoint(checkpoint)
        own = network.state_dict()
        # The statistics of the images are this run's own: they are not weights. A head is for its classes, even where
        # there are as many of them here.
        apart = ["normalize."]
        told = content.get("hyper_parameters")
        if not isinstance(told, dict) or told.get("classes") != list(images.classes):
            apart.append(f"{[*dict(network.named_parameters())][-1].rpartition('.')[0]}.")
        fitting = {
            name: value
            for name, value in network_weights(content).items()
            if name in own and value.shape == own[name].shape and not name.startswith(tuple(apart))
        }
        if not fitting:
            raise CheckpointError(f"init_from={cfg.init_from}: {checkpoint} is another network's: no weight fits.")
        network.load_state_dict(fitting, strict=False)
        left = [name for name in own if name not in fitting and not name.startswith("normalize.")]
        log.info(f"init_from: {len(fitting)} tensors from {checkpoint}" + (f"; new: {', '.join(left)}" if left else ""))


class Restored(NamedTuple):
    """A trained network, and what its checkpoint says of it.

    Attributes:
        network: In evaluation mode, on the CPU; takes images (uint8, or float from 0 to 1), returns logits.
        config: The run's config, resolved.
        classes: The classes' names in label order.
        image_shape: (height, width, channels) of the images that it was trained on.
        checkpoint: The file.
        record: The run's folder, unless the file stands alone.
    """

    network: nn.Module
    config: DictConfig
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    checkpoint: Path
    record: Record | None

    @property
    def model(self) -> dict[str, Any]:
        """The network's part of the config, as plain containers."""
        return cast(dict[str, Any], OmegaConf.to_container(self.config.model))


def restored(named: str, trusted: Sequence[str] = ()) -> Restored:
    """Build the network that a run trained, with its weights; what the run's folder says is taken for data only.

    Args:
        named: The run: what `record.find` takes.
        trusted: Packages that the person at the keyboard vouches for, for networks that are none of cnnlab's.

    Raises:
        ConfigError: There is no such run.
        CheckpointError: Its checkpoint is missing, damaged, or another network's.
        UnsafeError: It asks for code to be run.
    """
    checkpoint, record = find(named)
    content = read_checkpoint(checkpoint)
    told: Any = content.get("hyper_parameters")
    try:
        config, classes, (height, width, channels) = told["config"], told["classes"], told["image_shape"]
        model = config["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} does not say which network it holds: train.py did not write it."
        ) from error
    trust.check(model, "model", trusted)
    cfg = OmegaConf.create({"model": {**model, "compile": False}})
    unknown = [0.5] * channels  # the checkpoint brings mean and standard deviation
    network = build_network(cfg, classes=classes, image_shape=(height, width, channels), mean=unknown, std=unknown)
    try:
        network.load_state_dict(network_weights(content))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} is another network's: {' '.join(str(error).split())[:300]}") from error
    network.eval()
    return Restored(network, OmegaConf.create(config), tuple(classes), (height, width, channels), checkpoint, record)


def data_of(run: Restored, path: str | Path | None = None, *, eval_batch_size: int | None = None) -> ImageData:
    """Read the images that a run worked on, or another file of the same classes; nothing is fetched or made.

    The run's folder only says which file and how it is split: no class that it names is built.

    Args:
        run: The run.
        path: The other file.
        eval_batch_size: Instead of the run's.

    Raises:
        DataError: There is no such file, or its classes or its images' size are not those of the network.
        CheckpointError: The run does not say how its data is read.
    """
    told: Any = cast(dict[str, Any], OmegaConf.to_container(run.config)).get("data")
    try:
        keys = {str(role): str(name) for role, name in told["keys"].items()}
        classes = told["classes"] and [str(name) for name in told["classes"]]
        val_size, split_seed = int(told["val_size"]), int(told["split_seed"])
        eval_batch_size = eval_batch_size or max(1, int(told["eval_batch_size"]))
        own = Path(told["path"]).expanduser()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{run.checkpoint} does not say how its data is read: {first_line(error)}") from error
    if path is None:
        path = _found(own, run)
    else:
        layouts = npz.layouts(path)
        # Without names of its own, a file's labels are taken for the network's, as far as there are any.
        classes = None if archive.CLASSES in layouts else list(run.classes)
        training = layouts.get(keys["train_images"])
        val_size = val_size if training and training.shape and training.shape[0] > val_size else 0
    unknown = [0.5] * run.image_shape[2]  # the network brings mean and standard deviation
    images = ImageData(
        path, keys=keys, classes=classes, batch_size=1, val_size=val_size, split_seed=split_seed,
        eval_batch_size=eval_batch_size, mean=unknown, std=unknown,
    )  # fmt: skip
    if images.classes != run.classes:
        known, given = (f"{len(names)} ({', '.join(names[:5])}...)" for names in (run.classes, images.classes))
        raise DataError(f"{path}: its classes must be those of the network, {known}; it has {given}.")
    if images.image_shape != run.image_shape:
        expected, came = (" × ".join(map(str, shape)) for shape in (run.image_shape, images.image_shape))
        raise DataError(f"{path}: its images must be {expected} as the network's, they are {came}.")
    return images


def _found(path: Path, run: Restored) -> Path:
    """Return the run's data file; its path may have started in the folder that the run was started in."""
    cwd = run.record.run.get("cwd") if run.record else None
    places = [path, *([Path(cwd) / path] if isinstance(cwd, str) else [])]
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise DataError(f"the run's data.path={path}: there is no {looked}. Give the file with --data FILE.")


def network_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint under their names in the network."""
    prefix = "network."
    weights = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def optimizer_builder(cfg: DictConfig) -> Callable[[nn.Module], Optimizer]:
    """Return what builds the optimizer once the network is on its device."""
    options = cast(dict[str, Any], OmegaConf.to_container(cfg.optimizer, resolve=True))
    optimizer = located("optimizer", options.pop("_target_"))
    grouping = {name: options.pop(name) for name in ("decay_bias_and_norm", "norm_bias_factor") if name in options}
    if options.get("fused", False) is None:
        # A fused optimizer unscales float16 gradients itself, after Lightning would have clipped them.
        options["fused"] = not (cfg.trainer.precision == "16-mixed" and cfg.trainer.gradient_clip_val)

    def build(network: nn.Module) -> Optimizer:
        groups = parameter_groups(network, options["weight_decay"], lr=options["lr"], **grouping)
        try:
            return optimizer(groups, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error

    return build


def build_trainer(cfg: DictConfig, *, validate: bool = True, rollbacks: int = 0) -> Trainer:
    """Build the Trainer with its callbacks and loggers.

    Raises:
        ConfigError: The flags do not go together.
        MachineError: Lightning does not find the devices that they name.
    """
    if any(kind in str(cfg.trainer.strategy) for kind in ("spawn", "fork", "notebook")):
        # Their processes' results stay in them: best state, metrics and curves would be lost.
        raise ConfigError(f"trainer.strategy={cfg.trainer.strategy}: use ddp, which starts train.py once a device.")
    callbacks = [make(cfg, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node is not None]
    loggers = [make(cfg, f"logger.{name}") for name, node in (cfg.logger or {}).items() if node is not None]
    if cfg.trainer.fast_dev_run:
        recording = (LightningCheckpoint, History, Figures, Dashboard)
        callbacks = [callback for callback in callbacks if not isinstance(callback, recording)]
    # The two flags say whether ours are wanted; Lightning's own would come on top of them.
    if not cfg.trainer.enable_checkpointing:
        callbacks = [callback for callback in callbacks if not isinstance(callback, LightningCheckpoint)]
    if not cfg.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, (Progress, ProgressBar))]
    plugins = [AtomicCheckpointIO(), *([cfg.trainer.plugins] if cfg.trainer.plugins else [])]
    try:
        trainer = instantiate(
            cfg.trainer,
            # StopOnSignal comes last: the others have recorded the batch by then.
            callbacks=[Divergence(rollbacks=rollbacks), *callbacks, StopOnSignal()],
            logger=loggers or False,
            plugins=plugins,
            profiler=cfg.trainer.profiler or Unprofiled(),
            limit_val_batches=cfg.trainer.limit_val_batches if validate else 0,
            enable_checkpointing=any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )
    except (InstantiationException, MisconfigurationException) as error:
        cause = error.__cause__ or error
        text = f"trainer: {' '.join(str(cause).split())}"
        raise (MachineError if "machine only has" in text else ConfigError)(text) from error
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        # The other processes would be started with the sweep's command line, not with this run's.
        raise ConfigError("-m runs on one device at a time so far: give trainer.devices=1, or one run without -m.")
    check_precision(cfg.trainer.precision, trainer.strategy.root_device)
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise MachineError(f"trainer.devices={trainer.num_devices} is more than this machine has: {cores} CPU cores.")
    if trainer.world_size > 1 and cfg.on_divergence == "rollback":
        raise ConfigError("on_divergence=rollback works on one device: give trainer.devices=1, or on_divergence=stop.")
    log.info(f"device: {describe_device(trainer.strategy.root_device)}")
    return trainer


def fitted(cfg: DictConfig, run: Run, *, resume: bool = False) -> Lab:
    """Build a run and train it, with `resume` from its last checkpoint.

    With `on_divergence=rollback`, a loss or a gradient that is not finite sends it back to the last checkpoint, which
    never holds such a state, or to its beginning, with half the learning rate.

    Raises:
        ConfigError: It would go on with other batches.
        DivergedError: It diverged, and `MOST_ROLLBACKS` had been made where any are allowed, or no checkpoint is kept.
        MachineError: A batch does not fit into memory.
    """
    checkpoint = run.checkpoint_to_resume() if resume else None
    rollbacks = 0
    while True:
        built = lab(cfg, rollbacks=rollbacks, begun=checkpoint is not None)
        if checkpoint is not None:
            check_batches(built, checkpoint)
        run.describe(**built.facts())
        try:
            built.fit(checkpoint)
        except DivergedError as error:
            if cfg.on_divergence != "rollback" or built.rollbacks == MOST_ROLLBACKS:
                raise
            if not isinstance(built.trainer.checkpoint_callback, Checkpoint):
                raise DivergedError(
                    f"{error}\non_divergence=rollback found no checkpoint to go back to: give "
                    "trainer.enable_checkpointing=true and callbacks=[default], or on_divergence=stop."
                ) from error
            rollbacks = built.rollbacks + 1
            log.warning(f"{error}")
            log.warning(f"rollback {rollbacks} of {MOST_ROLLBACKS}: optimizer.lr times {0.5**rollbacks:g}")
            run.describe(rollbacks=rollbacks)
            checkpoint = run.checkpoint_to_resume()
        except (MemoryError, RuntimeError) as error:
            size = cfg.data.batch_size
            if size == 1 or not is_out_of_memory(error):
                raise
            raise MachineError(
                f"out of memory with data.batch_size={size}: try data.batch_size={size // 2}."
            ) from error
        else:
            return built


def check_batches(lab: Lab, checkpoint: Path) -> None:
    """Check that a step sees as many images, over all devices, as before: others would be skipped or seen twice.

    Raises:
        ConfigError: It does not.
    """
    saved: Any = read_checkpoint(checkpoint)
    now = lab.data.batch_size * lab.trainer.world_size
    try:
        before = int(saved[type(lab.data).__qualname__]["train"]["images"])
    except (KeyError, TypeError, ValueError):
        return  # saved behind no training batch; what is no checkpoint of this data, loading it says
    if before != now:
        devices = before / lab.data.batch_size
        raise ConfigError(
            f"resume: a step of this run sees {before} images, data.batch_size={lab.data.batch_size} on {devices:g} "
            f"device{'s' if devices > 1 else ''}; here it would see {now}, on {lab.trainer.world_size}. Give "
            f"trainer.devices={devices:g}, or begin a run of its own with init_from={checkpoint}."
        )


class Plan(NamedTuple):
    """The learning rate over a run.

    Attributes:
        epochs: Places, in epochs from the beginning; the last one is the run's end.
        lrs: The learning rate of the step that begins there.
        steps: Optimizer steps of the whole run.
    """

    epochs: np.ndarray
    lrs: np.ndarray
    steps: int


def planned(cfg: DictConfig, num_images: int, most: int = 2000) -> Plan:
    """Compute the learning rate over a run on one device, without the run.

    Args:
        cfg: The run's config.
        num_images: Training images, those held out for validation not counted.
        most: Places at which it is computed.

    Raises:
        ConfigError: The run's length is not known beforehand.
    """
    flags = cfg.trainer
    batches = math.ceil(num_images / cfg.data.batch_size)
    limit = flags.limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
    per_epoch = math.ceil(batches / flags.accumulate_grad_batches)
    bounds = [flags.max_steps] if flags.max_steps not in (None, -1) else []
    bounds += [flags.max_epochs * per_epoch] if flags.max_epochs not in (None, -1) else []
    if not bounds or min(bounds) < 1:
        raise ConfigError(
            "a schedule has a shape only where the run has a length: give trainer.max_epochs or max_steps."
        )
    steps = min(bounds)
    factor = make(cfg, "schedule")
    places = np.unique(np.linspace(0, steps, most).astype(int))
    # No step begins at the run's end; what the last one had is drawn to there.
    lrs = [cfg.optimizer.lr * factor(min(int(place), steps - 1), steps) for place in places]
    return Plan(places / per_epoch, np.array(lrs), steps)


def quieten_lightning() -> None:
    """Keep Lightning's advertisements and advice to DataLoader users out of the log."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Lightning 2.6's copy of a function of torch's, since torch 2.12; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # torchmetrics has the processes' values together before they are logged.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
    # Every step's loss is recorded, however few there are.
    warnings.filterwarnings("ignore", message=r"The number of training batches \(\d+\) is smaller than the logging")


def make(cfg: DictConfig, key: str, without: tuple[str, ...] = (), **offered: Any) -> Any:
    """Instantiate the node at `key`, with those of the offered arguments that its constructor names."""
    node = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True))
    node = {name: value for name, value in node.items() if name not in without}
    target = located(key, node["_target_"])
    named = inspect.signature(target).parameters
    try:
        return instantiate(node, **{name: value for name, value in offered.items() if name in named}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, CnnlabError):
            raise error.__cause__ from error
        raise ConfigError(f"{key}: {first_line(error.__cause__ or error)}") from error


def located(key: str, target: str) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
        ConfigError: There is no such thing.
    """
    if not target.startswith(trust.KNOWN):
        log.info(f"{key} is {target}, which is none of cnnlab's, torch's or Lightning's classes")
    try:
        return get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target} cannot be imported: {first_line(error)}") from error
