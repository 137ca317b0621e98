"""`cnnlab show`: the tutorial's pictures, and those of daily work; each a PNG file."""

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from jaxtyping import UInt8
from PIL import Image

from cnnlab import tutorial
from cnnlab.commands import AsJson, RunName, Trust, check_screen, open_file
from cnnlab.console import say
from cnnlab.data import archive, pictures, shapes, splits
from cnnlab.errors import ConfigError, DataError, MachineError
from cnnlab.run import importing
from cnnlab.tables import Column, print_table
from cnnlab.wording import channels_note

if TYPE_CHECKING:
    from torch import nn

    from cnnlab import anatomy, plots
    from cnnlab.data import DataModule
    from cnnlab.restore import Restored

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Draw data, convolution, pooling, augmentation, schedules, and the inside of a network; each as a PNG file.",
)

_PHOTOGRAPH = 640  # pixels of the longer side that are worth drawing
# Training images and classes of data sets whose file may still be to be fetched or drawn.
_KNOWN = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "shapes": (20_000, 10)}


_Output = Annotated[Path | None, typer.Option("--output", "-o", help="The PNG file to write.")]
_Open = Annotated[bool, typer.Option("--open", help="Open the picture, where there is a screen.")]
_Picture = Annotated[
    Path | None, typer.Argument(metavar="IMAGE", help="A picture of any size. [default: a photograph]")
]
_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="OVERRIDES", help="Settings as for train.py: GROUP=OPTION, KEY=VALUE.")
]


@app.command()
def data(overrides: _Overrides = None, output: _Output = None, open: _Open = False) -> Path:
    """Show a data set: its first ten images with their names, and ten of each class.

    OVERRIDES name it as for train.py (data=shapes); an npz file's path will do.
    """
    from cnnlab.plots.tutorial import data_overview

    words = overrides or []
    if len(words) == 1 and words[0].endswith(".npz") and "=" not in words[0]:
        arrays = archive.read(words[0])
        channels = arrays.images["train"].shape[-1]
        images: Any = pictures.displayable(arrays.images["train"])
        targets, classes = arrays.targets["train"], arrays.classes
    else:
        module = _build_data(_compose(words))
        from cnnlab.data import Gallery

        images, targets, classes = Gallery(module, "train"), module.labels("train").numpy(), module.classes
        channels = module.image_shape[2]
    if len(classes) > 200:
        raise ConfigError(f"show data draws up to 200 classes, got {len(classes)}.")
    of_class = [images[np.flatnonzero(targets == label)[:10]] for label in range(len(classes))]
    first = images[:10]
    names = [classes[target] for target in targets[:10]]
    figure = data_overview(first, names, of_class, classes, channels_note(channels))
    return _write(figure, output or Path("show_data.png"), open)


@app.command()
def convolution(
    image: _Picture = None,
    kernel: Annotated[
        str, typer.Option(help=f"{', '.join(tutorial.KERNELS)}, or a square matrix in JSON: [[0,1,0],[1,-4,1],[0,1,0]]")
    ] = "edges",
    padding: Annotated[int | None, typer.Option(help="Rows of zeros around. [default: what keeps the size]")] = None,
    stride: Annotated[int, typer.Option(help="Pixels from one place of the kernel to the next.")] = 1,
    output: _Output = None,
    open: _Open = False,
) -> Path:
    """Show what a kernel makes of a picture, and how the result's size comes about."""
    from cnnlab.plots.tutorial import convolution as draw

    weights = tutorial.parse_kernel(kernel)
    side = len(weights)
    padding = (side - 1) // 2 if padding is None else padding
    pixels = _read_photograph(image).astype(float)
    for length in pixels.shape[:2]:
        tutorial.compute_output_size(length, side, padding, stride)  # a mistake is reported before anything is computed
    # A kernel that sums to zero shows differences of brightness; colours would only confuse.
    differences = abs(weights.sum()) < 1e-9
    result = tutorial.convolve(tutorial.to_grey(pixels) if differences else pixels, weights, padding, stride)
    if differences:
        # The frame of zeros around the picture makes edges of its own, stronger than a soft photograph's.
        edge = -(-padding // stride)
        inner = np.abs(result)[edge : len(result) - edge or None, edge : result.shape[1] - edge or None]
        white = max(float(np.quantile(inner if inner.size else np.abs(result), 0.995)), 1e-9)
        note = f"in shades of grey: black is 0, no difference; white is {white:.3g} or more, in either direction"
        result = np.abs(result) * 255 / white
    else:
        note = "of each colour channel; what lies outside 0 to 255 is cut off"
    sizes = "; ".join(
        f"{name}: ({length} − {side} + 2·{padding}) / {stride} + 1 = {got}"
        for name, length, got in zip(("height", "width"), pixels.shape, result.shape, strict=False)
    )
    figure = draw(pixels, weights, result, f"(W − K + 2P) / S + 1, rounded down;  {sizes}", f"Result {note}")
    return _write(figure, output or Path("show_convolution.png"), open)


@app.command()
def pooling(
    image: _Picture = None,
    size: Annotated[int, typer.Option(help="Side of the picture's patches, in pixels.")] = 8,
    output: _Output = None,
    open: _Open = False,
) -> Path:
    """Show max and average pooling: a 4 × 4 map becomes 2 × 2, and a picture becomes small."""
    from cnnlab.plots.tutorial import pooling as draw

    numbers = tutorial.make_example()
    pixels = _read_photograph(image).astype(float)
    small = [tutorial.pool(numbers[:, :, None], 2, kind)[:, :, 0] for kind in ("max", "avg")]
    pooled = [tutorial.pool(pixels, size, kind) for kind in ("max", "avg")]
    figure = draw(numbers, (small[0], small[1]), pixels, (pooled[0], pooled[1]), size)
    return _write(figure, output or Path("show_pooling.png"), open)


@app.command()
def filters(
    run: RunName,
    layer: Annotated[str | None, typer.Option(help="A convolution's name. [default: the first one]")] = None,
    trust: Trust = None,
    output: _Output = None,
    open: _Open = False,
) -> Path:
    """Show the filters that a run's network learned."""
    with importing():
        from cnnlab import anatomy
        from cnnlab.plots import network
        from cnnlab.restore import restore

    state = restore(run, trust or ())
    name, weights = anatomy.read_filters(state.network, layer)
    return _write(network.filters(weights, name), output or _figure_path(state, "filters"), open)


@app.command()
def activations(
    run: RunName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any size.")],
    label: Annotated[str | None, typer.Option(help="The class to explain. [default: the predicted one]")] = None,
    trust: Trust = None,
    output: _Output = None,
    open: _Open = False,
) -> Path:
    """Show what each layer of a run's network makes of a picture, and where the network looked.

    The picture is cropped to a square and scaled to the size that the network was trained on.
    """
    with importing():
        from cnnlab import anatomy
        from cnnlab.plots import network
        from cnnlab.restore import restore

    state = restore(run, trust or ())
    if label is not None and label not in state.classes:
        raise ConfigError(f"--label must be one of {', '.join(state.classes)}, got {label}.")
    height, width, channels = state.image_shape
    pixels = _decode(image, (height, width))
    if channels == 1:
        pixels = np.rint(tutorial.to_grey(pixels.astype(float))).astype(np.uint8)
    focus = anatomy.locate_focus(state.network, pixels, None if label is None else state.classes.index(label))
    verdict = f"{state.classes[focus.label]}, {focus.probability:.1%} sure"
    maps, left_out = anatomy.compute_activations(state.network, pixels)
    figure = network.activations(pixels, maps, focus.heat, verdict, focus.layer, left_out)
    return _write(figure, output or _figure_path(state, "activations"), open)


@app.command()
def augment(
    overrides: _Overrides = None,
    count: Annotated[int, typer.Option(help="How many images.")] = 6,
    epochs: Annotated[int, typer.Option(help="How many epochs.")] = 8,
    output: _Output = None,
    open: _Open = False,
) -> Path:
    """Show what the network sees: the same images over the epochs, as train.py with these OVERRIDES would on the CPU.

    On a GPU the random numbers are others.
    """
    from cnnlab.plots import network

    if not 1 <= count <= 20:
        raise ConfigError(f"--count must be between 1 and 20, got {count}.")
    if not 1 <= epochs <= 12:
        raise ConfigError(f"--epochs must be between 1 and 12, got {epochs}.")
    cfg = _compose(overrides or [])
    module = _build_data(cfg)
    first = slice(min(count, module.count("train")))
    seen = [module.displayable(module.seen(range(first.stop), epoch).permute(0, 2, 3, 1)) for epoch in range(epochs)]
    names = [module.classes[target] for target in module.labels("train")[first].tolist()]
    steps = ", ".join(str(name) for name, node in (cfg.augment or {}).items() if node is not None)
    note = channels_note(module.image_shape[2])
    figure = network.augmented(module.pictures("train", first), seen, names, steps or "no augmentation", note)
    return _write(figure, output or Path("show_augment.png"), open)


@app.command()
def schedule(overrides: _Overrides = None, output: _Output = None, open: _Open = False) -> Path:
    """Show the learning rate over the run that train.py would make of these OVERRIDES."""
    with importing():
        from cnnlab.build import build_schedule
        from cnnlab.plots import network
        from cnnlab.schedule import Scheduler, plan_learning_rate

    cfg = _compose(overrides or [])
    factor = build_schedule(cfg)
    if isinstance(factor, Scheduler):
        raise ConfigError(
            "schedule: a scheduler of torch's kind depends on the run; its rates are in history.csv after it."
        )
    if cfg.budget is not None:
        raise ConfigError(
            f"budget={cfg.budget}: the clock says how many steps a run has; give budget=null and trainer.max_epochs to "
            "see the shape, and look at a run's figures/learning_rate.png for its own."
        )
    names = ("max_epochs", "max_steps", "accumulate_grad_batches")
    limit = cfg.trainer.get("overfit_batches") or cfg.trainer.limit_train_batches
    batches = _count_training_images(cfg) / cfg.data.batch_size
    batches = math.floor(batches) if cfg.data.get("drop_last") and batches >= 1 else math.ceil(batches)
    limits = {name: cfg.trainer[name] for name in names}
    plan = plan_learning_rate(factor, cfg.optimizer.lr, batches, limit_train_batches=limit, **limits)
    title = f"{factor!r}, optimizer.lr={cfg.optimizer.lr:g}"
    figure = network.schedule(np.array(plan.epochs), np.array(plan.lrs), plan.steps, title)
    return _write(figure, output or Path("show_schedule.png"), open)


@app.command()
def model(
    run_or_overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|OVERRIDES", help="A run, or settings as for train.py. [default: those of train.py]"
        ),
    ] = None,
    trust: Trust = None,
    output: _Output = None,
    open: _Open = False,
    as_json: AsJson = False,
) -> Path:
    """Show a network's layers with their outputs' shapes, parameters and floating-point operations for an image."""
    with importing():
        from cnnlab import anatomy
        from cnnlab.plots import network
        from cnnlab.restore import restore

    words = run_or_overrides or []
    if len(words) == 1 and "=" not in words[0]:
        state = restore(words[0], trust or ())
        net, image_shape, place = state.network, state.image_shape, _figure_path(state, "model")
    else:
        net, image_shape = _build_untrained(_compose(words))
        place = Path("show_model.png")
    layers = anatomy.list_layers(net, image_shape)
    if not as_json:
        _print_layers(layers)
    # Layers that only reshape or cut off have no row of their own in the picture of a deep network.
    drawn = layers if len(layers) <= 30 else [layer for layer in layers if layer.flops]
    figure = network.layers(
        [layer.name for layer in drawn],
        [_size(layer.shape) for layer in drawn],
        [layer.parameters for layer in drawn],
        [layer.flops for layer in drawn],
        _totals(layers),
    )
    path = _write(figure, output or place, open, silent=as_json)
    if as_json:
        say(json.dumps({"path": str(path), "layers": [layer._asdict() for layer in layers]}, indent=1))
    return path


def _print_layers(layers: "list[anatomy.Layer]") -> None:
    rows = [(layer.name, _size(layer.shape), layer.parameters, layer.flops, layer.kind) for layer in layers]
    names, sizes, parameters, flops, kinds = zip(*rows, ("all", "", *_totals(layers), ""), strict=True)
    print_table(
        [
            Column("layer", names),
            Column("output", sizes),
            Column("parameters", [f"{number:,}" if number else "" for number in parameters], number=True),
            Column("FLOPs", [f"{number:,}" if number else "" for number in flops], number=True),
            Column("kind", kinds),
        ],
        elsewhere="a wider terminal",
    )


def _totals(layers: "list[anatomy.Layer]") -> tuple[int, int]:
    return sum(layer.parameters for layer in layers), sum(layer.flops for layer in layers)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _compose(overrides: list[str]) -> Any:
    from cnnlab import config

    return config.composed(overrides)


def _build_data(cfg: Any) -> "DataModule":
    with importing():
        from cnnlab.build import build_data

    return build_data(cfg)


def _count_training_images(cfg: Any) -> int:
    """Count a run's training images, from the file's labels alone."""
    path, data = Path(cfg.data.path).expanduser(), cfg.data
    if path.is_file():
        targets, groups = archive.read_labels(path, data.get("keys") or {}, data.get("classes"))
    elif data.source in _KNOWN:
        count, num_classes = _KNOWN[data.source]
        targets, groups = {"train": np.arange(count) % num_classes, "test": np.arange(num_classes)}, None
    else:
        raise DataError(f"data.path={path}: there is no such file.")
    division = splits.divide(
        targets["train"],
        seed=data.split_seed,
        val_size=0 if "val" in targets else data.val_size,
        test_size=0 if "test" in targets else data.test_size,
        train_size=data.train_size,
        folds=data.folds,
        fold=data.fold,
        without=None if data.exclude is None else splits.excluded(data.exclude, len(targets["train"])),
        groups=groups,
    )
    return len(division.train)


def _build_untrained(cfg: Any) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Build the network of a config; data that would be fetched first is not."""
    from cnnlab.build import build_network

    if Path(cfg.data.path).exists() or cfg.data.source not in _KNOWN:
        module = _build_data(cfg)
        classes, image_shape = module.classes, module.image_shape
    else:
        classes, image_shape = tuple(map(str, range(_KNOWN[cfg.data.source][1]))), (32, 32, 3)
    neutral = [0.5] * image_shape[2]
    network = build_network(
        cfg.model, classes=classes, image_shape=image_shape, mean=neutral, std=neutral, resize=cfg.eval.resize
    )
    return network.eval(), image_shape


def _read_photograph(path: Path | None) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture in its own proportions, scaled down where it is larger than one can see."""
    if path is None:
        path = _matplotlib_photograph()
        if path is None:
            scene = Image.fromarray(shapes.draw("test", 10, 0)[0][7])
            return np.asarray(scene.resize((320, 320), Image.Resampling.BICUBIC))
    try:
        with Image.open(path, formats=pictures.formats()) as picture:
            width, height = picture.size
            if picture.getexif().get(0x0112, 1) >= 5:  # EXIF's orientation: it lies on its side
                width, height = height, width
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    scale = min(1.0, _PHOTOGRAPH / max(width, height))
    return _decode(path, (max(1, round(height * scale)), max(1, round(width * scale))))


def _decode(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    try:
        return pictures.decode(path, size).image
    except Exception as error:  # decoders of broken files raise whatever they come across
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} can't be read as a picture: {' '.join(str(error).split())[:200]}")


def _matplotlib_photograph() -> Path | None:
    """Return the photograph that matplotlib brings along: a portrait of Grace Hopper, by the US Navy."""
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin or "").parent / "mpl-data" / "sample_data" / "grace_hopper.jpg" if spec else None
    return path if path is not None and path.is_file() else None


def _figure_path(state: "Restored", name: str) -> Path:
    """Return where the picture of a run goes: to its others, or here if its checkpoint stands alone."""
    return state.record.folder / "figures" / f"{name}.png" if state.record else Path(f"show_{name}.png")


def _write(figure: "plots.Figure", path: Path, open: bool, silent: bool = False) -> Path:
    """Write the picture, and print its path unless it is to be `silent`."""
    from cnnlab import plots

    if open:
        check_screen()
    content = plots.to_png(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}. Choose another --output.") from error
    if not silent:
        say(path)
    if open:
        open_file(path)
    return path
