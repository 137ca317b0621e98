"""Write a trained network as a file that others can run, with normalisation, class names and probabilities inside."""

import copy
import importlib
import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cnnlab.data.pictures import as_floats
from cnnlab.errors import CnnlabError, ConfigError, MachineError, first_line
from cnnlab.files import replacing
from cnnlab.prediction import CLASSES, INPUT, SHAPE, load_onnx
from cnnlab.restore import Restored, restore, restore_data

Format = Literal["onnx", "torch_export", "safetensors"]
Input = Literal["uint8", "float"]
Predict = Callable[[np.ndarray], np.ndarray]
"""Turns images into probabilities."""

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
COMPARED_IMAGES = 256
RACE_SECONDS = 4


class Exported(NamedTuple):
    """An exported file, and how it compares with the network it was made from.

    Attributes:
        path: The file.
        difference: The largest difference between its probabilities and the network's.
        images: Number of real images compared.
        milliseconds: Of an ONNX file, by batch size: medians of (PyTorch, onnxruntime), same machine, same threads.
    """

    path: Path
    difference: float
    images: int
    milliseconds: dict[int, tuple[float, float]]


class WithProbabilities(nn.Module):
    """A network that returns probabilities too.

    Args:
        network: Takes images, returns logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities of a batch of images."""
        logits = self.network(images).float()
        return logits, logits.softmax(1)


def export(
    run: str,
    *,
    format: Format = "onnx",
    output: str | Path | None = None,
    input: Input | None = None,
    data: str | Path | None = None,
    tolerance: float = 1e-5,
    overwrite: bool = False,
    trusted: Sequence[str] = (),
) -> Exported:
    """Write a run's network to a file, load it again, and compare the two on real images.

    ONNX and torch.export files take `images` in the order (batch, channel, height, width), any number of them, and
    return `logits` and `probabilities`. A safetensors file holds the weights; what builds the network for them stands
    in its metadata.

    Args:
        run: What `record.find_run` takes.
        format: `onnx`, `torch_export` or `safetensors`.
        output: The file; by default `model` with the format's ending, in the run's folder.
        input: What the file takes: `uint8` from 0 to 255, or `float` from 0 to 1; by default the former, unless the
            network was trained on images of 16 bits, which are floats to it, or on floats, which it takes as they are.
        data: Where the real images come from, if not from the run's own data.
        tolerance: The largest difference of a probability that is accepted.
        overwrite: Whether to replace `output`; the run's earlier export, where there is no `output`, always is.
        trusted: Packages that may be imported although the run's folder names them.

    Raises:
        ConfigError: The file exists; or the exporter cannot follow the network.
        DataError: There are no images to compare on.
        MachineError: A package of the extra `export` is missing.
        CnnlabError: The file's probabilities differ from the network's; it was not kept.
    """
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}.get(format, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MachineError(f"--format {format} needs {package}: pip install 'cnnlab[export]'.") from error
    state = restore(run, trusted)
    if state.members and format == "safetensors":
        raise ConfigError("--format safetensors holds the weights of one network, not an ensemble's: choose onnx.")
    path = Path(output) if output else _default_path(state, format)
    if output and path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Choose another name, or pass --overwrite to replace it.")
    images = restore_data(state, data, trusted=trusted).images("test", slice(COMPARED_IMAGES)).numpy()
    if input == "uint8" and images.dtype != np.uint8:
        raise ConfigError("--input uint8: this run's images are no bytes: leave it out, or give --input float.")
    input = input or ("uint8" if images.dtype == np.uint8 else "float")
    with replacing(path) as file:
        temporary = Path(file.name)
        predict = WRITERS[format](WithProbabilities(state.network).eval(), temporary, input, _metadata(state, input))
        # Two batch sizes, so that a file that takes only one is noticed.
        batches = [images[:1], images[1:]] if len(images) > 1 else [images]
        probabilities = np.concatenate([predict(batch) for batch in batches])
        difference = float(np.abs(probabilities - _predict(state.network, images)).max())
        if not difference <= tolerance:
            raise CnnlabError(
                f"the exported network's probabilities differ from the network's by up to {difference:.2g} over "
                f"{len(images)} images, more than {tolerance:.2g}: nothing was written. Try another --format."
            )
        milliseconds = _race(state.network, temporary, images) if format == "onnx" else {}
    return Exported(path, difference, len(images), milliseconds)


def _default_path(state: Restored, format: Format) -> Path:
    if state.record is None:
        return state.checkpoint.with_suffix(ENDINGS[format])
    suffix = "" if state.checkpoint.stem == "best" else f"-{state.checkpoint.stem}"
    suffix += f"-ensemble{len(state.members)}" if state.members else ""
    return state.record.folder / f"model{suffix}{ENDINGS[format]}"


def _metadata(state: Restored, input: Input) -> dict[str, str]:
    """Return what every exported file says of itself; the formats want texts as values."""
    # The run's are those of its best state, in a test that may have averaged views of each image.
    tta = (state.config.get("eval") or {}).get("tta", "none")
    is_tested = (state.checkpoint.stem, state.members, tta) == ("best", (), "none")
    metrics = state.record.metrics if state.record and is_tested else {}
    return {
        CLASSES: json.dumps(list(state.classes)),
        SHAPE: json.dumps(list(state.image_shape)),
        INPUT: input,
        "cnnlab.layout": "images: batch, channel, height, width",
        "cnnlab.model": json.dumps(state.config["model"]),
        "cnnlab.metrics": json.dumps(metrics),
    }


def _example(input: Input, metadata: Mapping[str, str]) -> Tensor:
    height, width, channels = json.loads(metadata[SHAPE])
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    return images if input == "uint8" else images / 255


def _write_onnx(network: WithProbabilities, path: Path, input: Input, metadata: Mapping[str, str]) -> Predict:
    import onnx

    # It would warn that torchvision is missing, which is not needed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # the exporter warns of its own code
        program = _trace(
            lambda: torch.onnx.export(
                network, (_example(input, metadata),), dynamo=True, verbose=False,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                input_names=["images"], output_names=["logits", "probabilities"],
            )
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return load_onnx(path).predict


def _write_torch_export(network: WithProbabilities, path: Path, input: Input, metadata: Mapping[str, str]) -> Predict:
    example = _example(input, metadata)
    with warnings.catch_warnings(action="ignore"):
        program = _trace(
            lambda: torch.export.export(network, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
        )
        # Into memory first: on a full disk torch's own writer aborts the process.
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(dict(metadata))})
        path.write_bytes(buffer.getvalue())
        loaded = torch.export.load(path).module()

    def predict(images: np.ndarray) -> np.ndarray:
        images = images if input == "uint8" else as_floats(images)
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            return loaded(batch)[1].numpy()

    return predict


def _write_safetensors(network: WithProbabilities, path: Path, input: Input, metadata: Mapping[str, str]) -> Predict:
    from safetensors.torch import load_file, save

    # Shared weights are stored once for each name; filters in channels-last memory, as others expect them.
    weights = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in network.network.state_dict().items()
    }
    path.write_bytes(save(weights, dict(metadata)))
    loaded = copy.deepcopy(network.network)
    for value in loaded.state_dict().values():
        value.zero_()
    loaded.load_state_dict(load_file(path))
    return lambda images: _predict(loaded, images)


WRITERS: dict[str, Callable[[WithProbabilities, Path, Input, Mapping[str, str]], Predict]] = {
    "onnx": _write_onnx,
    "torch_export": _write_torch_export,
    "safetensors": _write_safetensors,
}


def _trace(exporting: Callable[[], Any]) -> Any:
    try:
        return exporting()
    except Exception as error:  # the exporters raise whatever they come across
        raise ConfigError(
            f"the exporter cannot follow this network: {type(error).__name__}: {first_line(error)}"
        ) from error


def _predict(network: nn.Module, images: UInt8[np.ndarray, "n height width channel"]) -> Float[np.ndarray, "n classes"]:
    with torch.inference_mode():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2)).float().softmax(1).numpy()


def _race(network: nn.Module, path: Path, images: np.ndarray) -> dict[int, tuple[float, float]]:
    """Return the medians in ms of both by batch size, measured in turn, with PyTorch's number of threads."""
    predict_exported = load_onnx(path, threads=torch.get_num_threads()).predict
    medians = {}
    for size in (1, COMPARED_IMAGES):
        batch = np.resize(images, (size, *images.shape[1:]))
        times: tuple[list[float], list[float]] = ([], [])
        predictors: tuple[Predict, Predict] = (partial(_predict, network), predict_exported)
        race_start = time.perf_counter()
        for number in range(23):
            if number > 3 and time.perf_counter() - race_start > RACE_SECONDS:
                break
            for predict, milliseconds in zip(predictors, times, strict=True):
                start = time.perf_counter()
                predict(batch)
                if number >= 3:  # both have warmed up
                    milliseconds.append(1000 * (time.perf_counter() - start))
        medians[size] = (statistics.median(times[0]), statistics.median(times[1]))
    return medians
