"""Pictures of any kind get an answer, or a reason; an exported file gives the same ones without torch."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cnnlab import plots
from cnnlab.cli import app
from cnnlab.commands import predict as predict_command
from cnnlab.errors import CheckpointError
from cnnlab.export import export
from cnnlab.prediction import Predictor, load_onnx, load_run, predict
from tests.conftest import ROOT, drawn


@pytest.fixture(scope="module")
def onnx(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return export(str(trained), output=tmp_path_factory.mktemp("export") / "model.onnx").path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process, elsewhere; return its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app([str(arg) for arg in args], prog_name="cnnlab")
        return end.value.code or 0, *capsys.readouterr()  # type: ignore[return-value]

    return call


def brightness(shape: tuple[int, int, int] = (8, 8, 3)) -> Predictor:
    """Return a predictor whose classes are told apart by how bright an image is."""

    def predict_brightness(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.shape[1:] == shape
        light = images.reshape(len(images), -1).mean(1) / 255
        return np.stack([1 - light, light], axis=1)

    return Predictor(("dark", "light"), shape, predict_brightness)


def test_bytes_and_16_bits_of_the_same_brightness_get_the_same_answer(tmp_path: Path):
    """Also together in a batch; a network takes 16 bits as floats from 0 to 1."""
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * 60 * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "bytes.npz", X_test=images)
    np.savez(tmp_path / "deep.npz", X_test=images.astype(np.uint16) * 257)

    def answer(images: np.ndarray) -> np.ndarray:
        light = images.reshape(len(images), -1).mean(1) / (255 if images.dtype == np.uint8 else 1)
        return np.stack([1 - light, light], axis=1)

    files = [str(tmp_path / "bytes.npz"), str(tmp_path / "deep.npz")]
    answers = [dict(each.top)["light"] for each in predict(Predictor(("dark", "light"), (8, 8, 3), answer), files)]
    assert answers[:5] == pytest.approx([0, 60 / 255, 120 / 255, 180 / 255, 240 / 255], abs=1e-6)
    assert answers[5:] == pytest.approx(answers[:5], abs=1e-6)


def picture(path: Path, mode: str, size: tuple[int, int] = (40, 20), light: int = 255, **options: object) -> Path:
    deep = np.full(size[::-1], light * 257, np.uint16)
    image = Image.fromarray(deep) if mode == "I;16" else Image.new("L", size, light).convert(mode)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_pictures_of_every_kind_are_read(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    paths = [
        picture(tmp_path / "grey.png", "L"), picture(tmp_path / "cmyk.jpg", "CMYK"),
        picture(tmp_path / "deep.png", "I;16"), picture(tmp_path / "palette.gif", "P"),
        picture(tmp_path / "alpha.png", "LA"), picture(tmp_path / "bits.tif", "1"),
        picture(tmp_path / "turned.jpg", "RGB", exif=exif), picture(tmp_path / "small.bmp", "RGB", size=(8, 8)),
    ]  # fmt: skip
    made = list(predict(brightness(), map(str, paths), top_k=9))
    assert [(one.image, one.top[0][0], one.error) for one in made] == [(str(path), "light", None) for path in paths]
    assert [one.note for one in made] == ["40×20 to 8×8"] * 6 + ["20×40 to 8×8", ""]
    assert all(len(one.top) == 2 for one in made)
    (made_grey,) = predict(brightness((8, 8, 1)), [str(paths[0])])
    assert made_grey.note == "40×20 to 8×8; made grey"
    (short,) = predict(brightness((8, 8, 13)), [str(paths[0])])
    assert short.error == "ValueError: the network takes 13 channels, this has 3"


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), light) for light in ("white", "black", "red")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (made,) = predict(brightness(), [str(tmp_path / "moving.gif")])
    assert (made.top[0][0], made.note) == ("light", "first of 3 frames")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path):
    good = picture(tmp_path / "good.png", "RGB")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:60])
    picture(tmp_path / "wide.png", "1", size=(50_000, 2_000))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    names = ["text.png", "empty.jpg", "half.png", "wide.png", "broken.npz", "nowhere.png", "*.webp", "good.png"]
    made = list(predict(brightness(), [str(tmp_path / name) for name in names], batch_size=3))
    assert [one.error is None for one in made] == [False] * 7 + [True]
    reasons = " ".join(str(one.error) for one in made)
    for reason in ("cannot identify", "50000 x 2000 pixels", "no such file", "nothing is called so", "damaged"):
        assert reason in reasons


def test_folders_patterns_and_archives_are_listed_in_order(tmp_path: Path):
    for name in ("b/2.png", "b/1.PNG", "a/x.png", "b/.hidden/y.png", "b/._junk.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name, "RGB", size=(8, 8))
    (tmp_path / "b" / "notes.txt").write_text("passed over")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    for name, stored in (("c.npz", images), ("fortran.npz", np.asfortranarray(images))):
        np.savez(tmp_path / name, X_test=stored)
    given = [str(tmp_path / name) for name in ("b", "a/*.png", "c.npz", "fortran.npz")]
    made = list(predict(brightness(), given, batch_size=2))
    assert [one.image.removeprefix(f"{tmp_path}/") for one in made] == [
        "b/1.PNG", "b/2.png", "a/x.png", *(f"{name}.npz[{n}]" for name in ("c", "fortran") for n in range(5)),
    ]  # fmt: skip
    for one, image in zip(made[3:], [*images, *images], strict=True):
        np.testing.assert_array_equal(one.pixels, image)
    np.savez(tmp_path / "other.npz", X=images[:, :6])
    (without,) = predict(brightness(), [str(tmp_path / "other.npz")])
    assert without.error is not None
    assert "lacks X_test; it holds X" in without.error
    first, *_ = predict(brightness(), [str(tmp_path / "other.npz")], array="X")
    assert first.note == "8×6 to 8×8"


def test_pictures_are_read_as_they_are_needed(tmp_path: Path):
    images = np.zeros((50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "many.npz", X_test=images)
    taken = 0

    def inputs():
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield str(tmp_path / "many.npz")

    running = predict(brightness(), inputs(), batch_size=50)
    for _ in range(100):
        next(running)
    assert taken <= 4
    running.close()


def test_the_table_and_the_lines_say_the_same(trained: Path, npz: Path, tmp_path: Path, call):
    code, table, err = call("predict", trained, npz, "--top-k", "2")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(table.splitlines()))
    assert list(rows[0]) == ["image", "class", "probability", "class_2", "probability_2", "note"]
    code, out, _ = call("predict", trained, npz, "--output", "found.jsonl", "--sheet", "sheet.png")
    assert code == 0
    assert "found.jsonl: 100 pictures; sheet.png" in out
    lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert [(row["image"], row["class"]) for row in rows] == [(line["image"], line["class"]) for line in lines]
    assert all(len(line["top"]) == 3 and line["probability"] == line["top"][0]["probability"] for line in lines)
    # The network's answers on the images that it was tested on.
    _, targets = drawn(100, 10, seed=1)
    right = sum(line["class"] == str(target) for line, target in zip(lines, targets.ravel(), strict=True))
    assert right / 100 == pytest.approx(json.loads((trained / "metrics.json").read_text())["test/accuracy"])
    with Image.open("sheet.png") as sheet:
        assert sheet.width <= 1000
    assert not list(tmp_path.glob(".*"))


def test_bad_pictures_end_in_7_and_nothing_readable_in_3(trained: Path, tmp_path: Path, call):
    picture(tmp_path / "good.png", "RGB")
    (tmp_path / "bad.png").write_text("no picture")
    code, _, err = call("predict", trained, "good.png", "bad.png", "--output", "found.csv")
    assert code == 7
    assert "left out bad.png: UnidentifiedImageError" in err
    assert "1 of 2 pictures could not be read" in err
    assert len(Path("found.csv").read_text().splitlines()) == 2
    code, _, err = call("predict", trained, "good.png", "--output", "found.csv")
    assert code == 2
    assert "found.csv exists" in err
    assert "--overwrite" in err
    code, _, err = call("predict", trained, "bad.png", "--output", "found.csv", "--overwrite")
    assert code == 3
    assert len(Path("found.csv").read_text().splitlines()) == 2, "an earlier file stays as it was"
    assert call("predict", trained, "bad.png")[:2] == (3, ""), "no head without a row"
    assert call("predict", trained, "good.png", "good.png", "--output", "found.csv", "--overwrite")[0] == 0
    assert len(Path("found.csv").read_text().splitlines()) == 3
    (tmp_path / "none").mkdir()
    assert call("predict", trained, "none")[0] == 3
    assert call("predict", "nowhere", "good.png")[0] == 2
    assert call("predict", trained, "good.png", "--accelerator", "abacus")[0] == 2
    assert call("predict", trained, "good.png", "--output", "a/new/folder/found.csv")[0] == 0


def test_an_exported_file_answers_as_the_run_does(trained: Path, onnx: Path, npz: Path):
    with np.load(npz) as arrays:
        images = arrays["X_test"]
    network, exported = load_run(str(trained), "cpu"), load_onnx(onnx)
    assert (network.classes, network.image_shape) == (exported.classes, exported.image_shape)
    expected = network.predict(images)
    for found in (exported.predict(images), np.concatenate([exported.predict(image[None]) for image in images])):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_an_exported_file_is_asked_without_torch(onnx: Path, tmp_path: Path):
    picture(tmp_path / "a picture.png", "RGB")
    code = (
        "import sys; sys.argv = ['cnnlab', 'predict', *sys.argv[1:]]; from cnnlab.cli import app\n"
        "try: app()\n"
        "finally: print([name for name in ('torch', 'pytorch_lightning', 'hydra') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(onnx), "a picture.png"]
    ran = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *rows, modules = ran.stdout.splitlines()
    assert modules == "[]"
    assert rows[1].startswith("a picture.png,")


def test_a_file_that_is_no_export_is_refused(tmp_path: Path, onnx: Path, call):
    (tmp_path / "noise.onnx").write_bytes(b"\x08" * 99)
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_onnx(tmp_path / "noise.onnx")
    import onnx as library

    model = library.load(onnx)
    del model.metadata_props[:]
    library.save(model, tmp_path / "strange.onnx")
    with pytest.raises(CheckpointError, match="does not name its classes"):
        load_onnx(tmp_path / "strange.onnx")
    assert call("predict", onnx, "x.png", "--accelerator", "gpu")[0] == 2


def test_a_sheet_names_pictures_with_the_folders_that_tell_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    titles: list[str] = []
    image_grid = plots.image_grid

    def watch(images: np.ndarray, names: list[str]) -> plots.Figure:
        titles.extend(names)
        return image_grid(images, names)

    monkeypatch.setattr(plots, "image_grid", watch)
    answers = [
        SimpleNamespace(image=name, top=[("cat", 0.9)], pixels=np.zeros((4, 4, 3), np.uint8))
        for name in ("photos/a/1.jpg", "photos/b/1.jpg", str(Path("photos/b/2.jpg").absolute()))
    ]
    predict_command._draw(answers, tmp_path / "sheet.png")
    assert [title.split("\n")[0] for title in titles] == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100
