"""A trained network, and the images it was trained on, from a run's folder."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from cnnlab import trust
from cnnlab.build import build_network
from cnnlab.checkpoint import network_weights, read_checkpoint
from cnnlab.config.checks import TAKEN_BY_BUILD
from cnnlab.data import DataModule, ImageData, archive, folder, npz
from cnnlab.data.datasets import adopt
from cnnlab.errors import CheckpointError, ConfigError, DamagedError, DataError, first_line, is_out_of_memory
from cnnlab.files import check_type, plain
from cnnlab.metrics import MetricBuilder
from cnnlab.record import PRECISIONS, Record, find_run, precision_of
from cnnlab.tta import TTA

OF_FILES = ("cnnlab.data.ImageData", "cnnlab.data.module.ImageData")
SIZES = ("test_size", "train_size", "folds", "fold", "label_noise")
"""Settings that decide, with `val_size` and `split_seed`, which images a split has."""
MOST_PIXELS = 2**14
"""Along a side of an image that a checkpoint may ask for, and of its channels."""


class ModelSettings(TypedDict):
    """Which network; the class's own arguments are among the keys."""

    _target_: str
    channels_last: bool


class EvalSettings(TypedDict, total=False):
    """How the run was tested."""

    tta: TTA


class TrainerSettings(TypedDict, total=False):
    """What is used of the trainer's settings."""

    precision: Any


class Config(TypedDict):
    """What is used of a run's config."""

    model: ModelSettings
    eval: NotRequired[EvalSettings]
    trainer: NotRequired[TrainerSettings]
    metrics: NotRequired[dict[str, dict[str, Any] | None] | None]


class Settings(TypedDict):
    """What a checkpoint says of its run, under `hyper_parameters`."""

    config: Config
    classes: list[str]
    image_shape: list[int]
    objects: NotRequired[list[str]]


class Restored(NamedTuple):
    """A trained network, and what its checkpoint says of it.

    Attributes:
        network: In evaluation mode, on the CPU; takes images (uint8, or float from 0 to 1), returns logits.
        config: The run's config, resolved.
        classes: The classes' names in label order.
        image_shape: (height, width, channels) of the images that it was trained on.
        checkpoint: The file.
        record: The run's folder, unless the file stands alone.
        members: The files of an ensemble, of which the first is described here; empty for a single network.
    """

    network: nn.Module
    config: dict[str, Any]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    checkpoint: Path
    record: Record | None
    members: tuple[Path, ...] = ()


class Ensemble(nn.Module):
    """The logarithm of the mean of several networks' probabilities, which serves as logits."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return mean_of_probabilities([network(images).float() for network in self.networks])


def mean_of_probabilities(logits: Sequence[Float[Tensor, "n classes"]]) -> Float[Tensor, "n classes"]:
    """Return the logarithm of the mean of the probabilities that several networks give."""
    logs = torch.stack([each.log_softmax(1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logits))


def restore(name: str, trusted: Sequence[str] = (), *, exact: bool = False) -> Restored:
    """Build the network that a run trained, with its weights; what the run's folder says is taken for data only.

    Args:
        name: The run: what `record.find_run` takes. Several, with commas between them, are an ensemble.
        trusted: Packages that the person at the keyboard vouches for, for networks that are none of cnnlab's.
        exact: Whether weights that were trained in float64 stay so; otherwise they are float32, as exports need them.

    Raises:
        ConfigError: There is no such run.
        CheckpointError: Its checkpoint is missing, damaged, or another network's.
        UnsafeError: It asks for code to be run.
    """
    names = [name] if Path(name).exists() else name.split(",")
    if len(names) > 1:
        return _join([restore(part, trusted, exact=exact) for part in names])
    checkpoint, record = find_run(name)
    content = read_checkpoint(checkpoint)
    settings = _settings(content, checkpoint, trusted)
    config, classes = settings["config"], tuple(settings["classes"])
    weights = network_weights(content)
    if not weights and content["state_dict"]:
        raise ConfigError(
            f"{checkpoint}: its LightningModule holds no self.network, which every command after training needs; it "
            f"holds {', '.join(sorted({str(name).partition('.')[0] for name in content['state_dict']})[:5])}."
        )
    try:
        if not (trusted or trust.vouches()):  # no memory is taken for a network that the weights do not fill
            with torch.device("meta"):
                _check_fit(_build(settings, trusted).state_dict(), weights)
        network = _build(settings, trusted)
        if exact and precision_of(config) == "64-true":
            network.double()
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{checkpoint} is another network's: {' '.join(str(error).split())[:300]}") from error
    network.eval()
    return Restored(network, cast(dict[str, Any], config), classes, _image_shape(settings), checkpoint, record)


def _settings(content: Mapping[str, Any], checkpoint: Path, trusted: Sequence[str]) -> Settings:
    """Return what a checkpoint says of its run, checked."""
    place = f"{checkpoint}: hyper_parameters"
    settings = cast(Settings, plain(content.get("hyper_parameters"), place))
    check_type(settings, Settings, place)
    config, shape = settings["config"], settings["image_shape"]
    if len(shape) != 3 or not all(0 < size <= MOST_PIXELS for size in shape) or not settings["classes"]:
        raise DamagedError(f"{place}: classes and image_shape must be those of images, got {shape}: it is damaged.")
    if "network" in settings.get("objects", ()):
        raise ConfigError(
            f"{checkpoint} holds a network that was given to cnnlab.train from Python, which the config does not "
            "describe: use the classifier that cnnlab.train returned."
        )
    if precision_of(config) not in PRECISIONS:
        raise DamagedError(f"{place}: trainer.precision must be one of {', '.join(PRECISIONS)}: it is damaged.")
    resize = _resize(config)
    if resize is not None and not (type(resize) is int and 0 < resize <= MOST_PIXELS):
        raise DamagedError(f"{place}: eval.resize must be from 1 to {MOST_PIXELS}: it is damaged.")
    trust.check(config["model"], "model", trusted)
    return settings


def _build(settings: Settings, trusted: Sequence[str]) -> nn.Module:
    model: dict[str, Any] = dict(settings["config"]["model"])
    height, width, channels = _image_shape(settings)
    resize = _resize(settings["config"])
    body = trust.build(
        {name: value for name, value in model.items() if name not in TAKEN_BY_BUILD["model"]},
        "model", trusted, in_channels=channels, image_size=(resize, resize) if resize else (height, width),
        num_classes=len(settings["classes"]),
    )  # fmt: skip
    unknown = [0.5] * channels  # the checkpoint brings mean and standard deviation
    return build_network(
        {**model, "compile": False}, classes=settings["classes"], image_shape=(height, width, channels),
        mean=unknown, std=unknown, body=body, resize=resize,
    )  # fmt: skip


def _image_shape(settings: Settings) -> tuple[int, int, int]:
    height, width, channels = settings["image_shape"]
    return height, width, channels


def _resize(config: Config) -> int | None:
    return cast(int | None, (config.get("eval") or {}).get("resize"))


def _check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name in {**expected, **weights}:
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (expected, weights)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{name} must have the shape {shapes[0]}, the file has {shapes[1]}")


def _join(members: Sequence[Restored]) -> Restored:
    """Return several networks as one.

    Raises:
        ConfigError: They tell other classes apart, or take other images.
    """
    first = members[0]
    for other in members[1:]:
        if (other.classes, other.image_shape) != (first.classes, first.image_shape):
            raise ConfigError(
                f"{other.checkpoint} and {first.checkpoint} are no ensemble: their classes or images are not the same."
            )
    network = Ensemble([member.network for member in members]).eval()
    return first._replace(network=network, members=tuple(member.checkpoint for member in members))


def restore_metrics(run: Restored, trusted: Sequence[str] = ()) -> Mapping[str, MetricBuilder] | None:
    """Return what builds the metrics that a run's test measured; None for a run that had no choice of them.

    Raises:
        UnsafeError: The run asks for code to be run.
    """
    section = run.config.get("metrics")
    if section is None:
        return None
    trust.check(section, "metrics", trusted)
    return {
        name: partial(trust.build, node, f"metrics.{name}", trusted)
        for name, node in section.items()
        if node is not None
    }


def restore_data(
    run: Restored,
    path: str | Path | None = None,
    *,
    eval_batch_size: int | None = None,
    trusted: Sequence[str] = (),
) -> DataModule:
    """Read the images that a run worked on, or another file of the same classes; nothing is fetched or made.

    Of a file, the run's folder only says which and how it is split. Data of another class is built if it is
    trusted.

    Args:
        run: The run.
        path: The other file.
        eval_batch_size: Instead of the run's.
        trusted: Packages that the person at the keyboard vouches for, for data that is none of cnnlab's.

    Raises:
        DataError: There is no such file, or its classes or its images' size are not those of the network.
        CheckpointError: The run does not say how its data is read.
        UnsafeError: Its data is of a class that is not trusted.
    """
    section: Any = run.config.get("data")
    if path is None and isinstance(section, dict) and section.get("_target_", OF_FILES[0]) not in OF_FILES:
        trust.check(section, "data", trusted)
        images: DataModule = adopt(trust.build(section, "data", trusted))
        images.eval_batch_size = eval_batch_size or images.eval_batch_size
        _check_like(run, images, str(images.path))
        return images
    try:
        keys = {str(role): None if name is None else str(name) for role, name in section["keys"].items()}
        classes = section["classes"] and [str(name) for name in section["classes"]]
        sizes: dict[str, Any] = {"val_size": _number(section["val_size"]), "split_seed": int(section["split_seed"])}
        eval_batch_size = eval_batch_size or max(1, int(section["eval_batch_size"]))
        recorded = Path(section["path"])
        if path is None:
            sizes |= {name: _number(section[name]) for name in SIZES if section.get(name) is not None}
            if section.get("exclude") is not None:
                sizes["exclude"] = find_data_file(Path(section["exclude"]), run)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{run.checkpoint} does not say how its data is read: {first_line(error)}") from error
    resident: Literal["auto", "disk"] = "disk" if section.get("resident") == "disk" else "auto"
    if path is None:
        path = find_data_file(recorded, run)
        if path.is_dir() and not (path := folder.cache_of(path, section.get("size"), section.get("fit"))).exists():
            raise DataError(f"{recorded} was packed into {path}, which is no more. Give the images with --data FILE.")
    else:
        layouts = npz.layouts(path)
        # Without names of its own, a file's labels are taken for the network's, as far as there are any.
        classes = None if archive.CLASSES in layouts else list(run.classes)
        training = layouts.get(keys["train_images"] or "")
        if not training or not training.shape or training.shape[0] <= sizes["val_size"]:
            sizes["val_size"] = 0
    unknown = [0.5] * run.image_shape[2]  # the network brings mean and standard deviation
    images = ImageData(
        path, keys=keys, classes=classes, batch_size=1, eval_batch_size=eval_batch_size, mean=unknown, std=unknown,
        resident=resident, **sizes,
    )  # fmt: skip
    _check_like(run, images, path)
    return images


def _check_like(run: Restored, images: DataModule, path: Path | str) -> None:
    """Check that images are such as the network was trained on."""
    if images.classes != run.classes:
        expected, present = (f"{len(names)} ({', '.join(names[:5])}...)" for names in (run.classes, images.classes))
        raise DataError(f"{path}: its classes must be those of the network, {expected}; it has {present}.")
    if images.image_shape != run.image_shape:
        expected, shape = (" × ".join(map(str, shape)) for shape in (run.image_shape, images.image_shape))
        raise DataError(f"{path}: its images must be {expected} as the network's, they are {shape}.")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.50} is no number")
    return value


def find_data_file(path: Path, run: Restored) -> Path:
    """Return the run's data file; its path may have started in the folder that the run was started in."""
    cwd = run.record.run.get("cwd") if run.record else None
    places = [path, *([Path(cwd) / path] if isinstance(cwd, str) else [])]
    for place in places:
        if place.is_file() or place.is_dir():
            return place
    looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise DataError(f"the run's data.path={path}: there is no {looked}. Give the file with --data FILE.")
