"""Predict the classes of pictures with a trained network; torch is imported only for a run's own network.

An exported ONNX file needs onnxruntime alone.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from glob import iglob
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cnnlab.data import archive, pictures
from cnnlab.errors import CheckpointError, CnnlabError, ConfigError, MachineError
from cnnlab.files import check_type
from cnnlab.run import importing

# Metadata of an exported file; `cnnlab.export` writes it.
CLASSES, SHAPE, INPUT = "cnnlab.classes", "cnnlab.image_shape", "cnnlab.input"
INPUTS = ("uint8", "float")


class Predictor(NamedTuple):
    """A network that predicts: a run's own, or an exported file.

    Attributes:
        classes: The classes' names in label order.
        image_shape: (height, width, channels) of the images that it takes.
        predict: Turns images into probabilities.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    predict: Callable[[UInt8[np.ndarray, "n height width channel"]], Float[np.ndarray, "n classes"]]


MOST_PIXELS = 2**24


class Prediction(NamedTuple):
    """The classes of one picture.

    Attributes:
        image: Its file; for an image of an npz file with its number in brackets.
        top: Class and probability, the likeliest first; empty if the picture could not be read.
        pixels: The picture as the network takes it.
        note: What was changed in the picture: its size, its frames, its colours.
        error: Why it could not be read.
    """

    image: str
    top: tuple[tuple[str, float], ...] = ()
    pixels: UInt8[np.ndarray, "height width channel"] | None = None
    note: str = ""
    error: str | None = None


def predict(
    predictor: Predictor,
    inputs: Iterable[str],
    *,
    top_k: int = 5,
    fit: pictures.Fit = "crop",
    array: str = archive.KEYS["test_images"],
    batch_size: int = 256,
) -> Generator[Prediction, None, None]:
    """Predict the classes of each picture, in the order of the inputs; never more than two batches are in memory.

    Args:
        predictor: The network.
        inputs: Picture files, folders (with all below them), patterns such as `photos/*.png`, npz files.
        top_k: How many classes to name, or all if there are fewer.
        fit: How a picture becomes the network's size, see `pictures.decode`.
        array: The images' name in npz files.
        batch_size: Pictures at a time.
    """
    items = list_pictures(inputs, array, batch_size)
    with warnings.catch_warnings(action="ignore"), ThreadPool() as pool:  # of odd metadata

        def decode(chunk: list[Any]) -> Any:
            return pool.map_async(lambda item: _read(item, predictor.image_shape, fit), chunk) if chunk else None

        # While the network works on a batch, the next one is decoded.
        following = decode(list(islice(items, batch_size)))
        while following is not None:
            current, following = following, decode(list(islice(items, batch_size)))
            yield from _classify(predictor, current.get(), top_k)


def load_run(run: str, accelerator: str = "auto", trusted: Sequence[str] = ()) -> Predictor:
    """Return a run's network.

    Args:
        run: What `record.find_run` takes.
        accelerator: In Lightning's words.
        trusted: Packages that may be imported although the run's folder names them.
    """
    with importing():
        import torch

        from cnnlab.machine import check_accelerator, device_for, keep_freed_memory
        from cnnlab.restore import restore

    check_accelerator(accelerator, "--accelerator ")
    keep_freed_memory()
    state = restore(run, trusted)
    device = device_for(accelerator)
    network = state.network.to(device)

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
            return network(batch).float().softmax(1).cpu().numpy()

    return Predictor(state.classes, state.image_shape, predict)


def load_onnx(path: str | Path, threads: int = 0) -> Predictor:
    """Return an exported network; needs onnxruntime alone.

    Args:
        path: What `cnnlab export` wrote.
        threads: How many onnxruntime uses; 0 leaves it the choice.

    Raises:
        CheckpointError: The file is damaged, or `cnnlab export` did not write it.
        MachineError: onnxruntime is not installed.
    """
    session, metadata = _open_onnx(path, threads)
    try:
        classes, shape = json.loads(metadata[CLASSES]), json.loads(metadata[SHAPE])
        check_type(classes, list[str], f"{path}: {CLASSES}")
        check_type(shape, list[int], f"{path}: {SHAPE}")
        height, width, channels = shape
        kind = INPUTS.index(metadata[INPUT])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not name its classes and its input: `cnnlab export` makes one.") from error
    if min(shape) < 1 or math.prod(shape) > MOST_PIXELS:
        raise CheckpointError(f"{path}: {SHAPE} must be that of a picture, got {shape}.")

    def predict(images: np.ndarray) -> np.ndarray:
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if INPUTS[kind] == "float":
            batch = pictures.as_floats(batch)
        try:
            (entry,) = session.get_inputs()
            probabilities = session.run(["probabilities"], {entry.name: batch})[0]
        except Exception as error:  # likewise
            raise CheckpointError(f"{path} can't be used: {' '.join(str(error).split())[:200]}") from error
        expected = (len(images), len(classes))
        if np.shape(probabilities) != expected or not np.isfinite(probabilities).all():
            raise CheckpointError(
                f"{path} must give {expected[1]} probabilities for each picture, it gives {np.shape(probabilities)}."
            )
        return probabilities

    predict(np.zeros((1, *shape), np.uint8))
    return Predictor(tuple(classes), (height, width, channels), predict)


def _open_onnx(path: str | Path, threads: int) -> tuple[Any, dict[str, str]]:
    """Return a session of onnxruntime's, and the file's metadata."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError("this needs onnxruntime: pip install 'cnnlab[export]'.") from error
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session, session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise CheckpointError(f"{path} can't be loaded: {' '.join(str(error).split())[:200]}") from error


class _Item(NamedTuple):
    """A picture to predict: a file, or the pixels of one in an npz file, or what is wrong with the input."""

    name: str
    path: Path | None = None
    pixels: np.ndarray | None = None
    error: str | None = None


def list_pictures(inputs: Iterable[str], array: str, count: int) -> Iterator[_Item]:
    """Yield the pictures that the inputs name."""
    for text in inputs:
        path = Path(text).expanduser()
        matches = [path] if path.exists() else []
        is_pattern = not matches and any(letter in text for letter in "*?[")
        if is_pattern:
            # pathlib has no search for absolute patterns.
            matches = [Path(match) for match in sorted(iglob(str(path), recursive=True))]  # noqa: PTH207
        for match in matches:
            yield from _list_folder(match) if match.is_dir() else _list_file(match, array, count)
        if not matches:
            yield _Item(text, error="nothing is called so" if is_pattern else "there is no such file")


def _list_folder(path: Path) -> Iterator[_Item]:
    """Yield the pictures in a folder and below it; hidden files and those without a picture's ending are skipped."""
    for place, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in pictures.EXTENSIONS:
                yield _Item(str(Path(place, name)), Path(place, name))


def _list_file(path: Path, array: str, count: int) -> Iterator[_Item]:
    if path.suffix.lower() != ".npz":
        yield _Item(str(path), path)
        return
    number = 0
    try:
        for piece in archive.pieces(path, array, count):
            for pixels in piece:
                yield _Item(f"{path}[{number}]", pixels=pixels)
                number += 1
    except CnnlabError as error:
        yield _Item(str(path), error=str(error))


def _read(item: _Item, image_shape: tuple[int, int, int], fit: pictures.Fit) -> Prediction:
    """Return a picture as the network takes it, without its classes."""
    name = item.name.encode(errors="surrogateescape").decode(errors="replace")
    if item.error is not None:
        return Prediction(name, error=item.error)
    *size, channels = image_shape
    notes = []
    try:
        if item.pixels is not None:
            image, before = item.pixels, item.pixels.shape[:2]
            if image.dtype == np.uint16:
                image = pictures.as_floats(image)
            if image.shape != image_shape:
                image = pictures.fitted(Image.fromarray(image.squeeze()).convert("RGB"), (size[0], size[1]), fit)
        else:
            assert item.path is not None
            image, before, frames, _ = pictures.decode(item.path, (size[0], size[1]), fit)
            if frames > 1:
                notes.append(f"first of {frames} frames")
        if image.shape[2] > channels:
            image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
            notes.append("made grey")
        if image.shape[2] != channels:
            raise ValueError(f"the network takes {channels} channels, this has {image.shape[2]}")
    except Exception as error:  # decoders of broken files raise whatever they come across
        return Prediction(name, error=" ".join(f"{type(error).__name__}: {error}".split()))
    if before != tuple(size):
        notes.insert(0, f"{before[1]}×{before[0]} to {size[1]}×{size[0]}")
    return Prediction(name, pixels=image, note="; ".join(notes))


def _classify(predictor: Predictor, taken: Sequence[Prediction], top_k: int) -> Iterator[Prediction]:
    readable = [picture.pixels for picture in taken if picture.pixels is not None]
    if len({pixels.dtype for pixels in readable}) > 1:
        readable = [pictures.as_floats(pixels) for pixels in readable]
    answers = iter(predictor.predict(np.stack(readable)) if readable else ())
    for picture in taken:
        if picture.pixels is None:
            yield picture
            continue
        probabilities = next(answers)
        likeliest = np.argsort(-probabilities, kind="stable")[:top_k]
        yield picture._replace(
            top=tuple((predictor.classes[label], float(probabilities[label])) for label in likeliest)
        )


def load_predictor(name: str, accelerator: str = "auto", trusted: Sequence[str] = ()) -> Predictor:
    """Return the network of a run or of an ONNX file."""
    if name.lower().endswith(".onnx"):
        if accelerator not in ("auto", "cpu"):
            raise ConfigError(f"--accelerator {accelerator}: an ONNX file is run on the CPU.")
        return load_onnx(name)
    return load_run(name, accelerator, trusted)
