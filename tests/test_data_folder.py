import os
import struct
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cnnlab.data import archive, folder, pictures
from cnnlab.errors import ConfigError, DataError, MachineError

RED, BLUE, BLACK, WHITE = (255, 0, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


def halves(width=40, height=20, left=RED, right=BLUE):
    picture = Image.new("RGB", (width, height), right)
    picture.paste(left, (0, 0, width // 2, height))
    return picture


def tree(root, **classes):
    """Write some pictures of a single colour, the colour naming the picture: `ant=3`, or `train_ant=3`."""
    for name, count in classes.items():
        for number in range(count):
            path = root / name.replace("_", "/") / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (len(classes), sorted(classes).index(name), number)
            Image.new("RGB", (9 + number, 8), colour).save(path)
    return root


def decoded(path, size=(8, 8), fit="crop"):
    return pictures.decode(path, size, fit).image


def test_folder_of_classes_is_split_by_class_with_sorted_names(tmp_path):
    root = tree(tmp_path / "pictures", wasp=20, ant=10, bee=5)
    packed = folder.pack(root, tmp_path / "out.npz", size=8)
    data = archive.read(packed.path)
    assert packed.classes == data.classes == ("ant", "bee", "wasp")
    assert np.bincount(data.targets["train"]).tolist() == [8, 4, 16]
    assert np.bincount(data.targets["test"]).tolist() == [2, 1, 4]
    assert (packed.num_train, packed.num_test, packed.unreadable) == (28, 7, ())
    # The second channel holds the class, the third the number: every picture is there once, with its label.
    images = np.concatenate([data.images["train"], data.images["test"]])[:, 4, 4]
    targets = np.concatenate([data.targets["train"], data.targets["test"]])
    assert images[:, 1].tolist() == targets.tolist()
    assert len(np.unique(images, axis=0)) == 35


def test_split_and_order_depend_on_the_seed_alone(tmp_path):
    root = tree(tmp_path / "pictures", ant=10, bee=10)
    files = [folder.pack(root, tmp_path / f"{seed}{n}.npz", 8, seed=seed).path for seed in (0, 1) for n in (0, 1)]
    contents = [path.read_bytes() for path in files]
    assert contents[0] == contents[1] != contents[2] == contents[3]
    targets = archive.read(files[0]).targets["train"]
    assert targets.tolist() != sorted(targets)


def test_prepared_splits_are_kept(tmp_path):
    root = tree(tmp_path / "pictures", train_ant=4, train_bee=3, test_ant=2, val_ant=9, raw_ant=1)
    packed = folder.pack(root, tmp_path / "out.npz", 8)
    assert (packed.num_train, packed.num_val, packed.num_test) == (7, 9, 2)
    assert packed.notes == ("raw stand beside train and are left out",)
    data = archive.read(packed.path)
    assert data.targets["val"].tolist() == [0] * 9
    assert np.bincount(data.targets["train"]).tolist() == [4, 3]
    assert data.targets["test"].tolist() == [0, 0]


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, [2, 1, 0]), (0.01, [1, 1, 0]), (0.99, [3, 1, 0])])
def test_each_split_gets_at_least_one_of_two(tmp_path, fraction, expected):
    root = tree(tmp_path / "pictures", ant=4, bee=2, wasp=1)
    data = archive.read(folder.pack(root, tmp_path / "out.npz", 8, test_fraction=fraction).path)
    assert np.bincount(data.targets["test"], minlength=3).tolist() == expected
    assert np.bincount(data.targets["train"], minlength=3).tolist() == [4 - expected[0], 1, 1]


def test_hidden_files_and_other_endings_are_passed_over(tmp_path):
    root = tree(tmp_path / "pictures", ant=3, bee=2)
    for name in ("ant/notes.txt", "ant/.hidden.png", "ant/Thumbs.db", "labels.csv", "ant/__MACOSX/01.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no picture")
    (root / ".cache").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "ant" / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(root / "ant" / "UPPER.JPG")
    Image.new("RGB", (8, 8)).save(root / "ant" / "IMG 0012", "PNG")
    deep = root / "ant" / "2024" / "may"
    deep.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(deep / "x.avif")
    Image.new("RGB", (8, 8)).save(root / "stray.png")
    packed = folder.pack(root, tmp_path / "out.npz", 8)
    assert packed.classes == ("ant", "bee")
    assert packed.num_train + packed.num_test == 8
    assert packed.unreadable == ()
    assert packed.num_others == 6  # each file below the classes is packed, unreadable, or no picture
    assert packed.notes == (f"1 pictures stand in {root} itself, in no class' folder, and are left out",)


def test_flat_test_folder_is_left_out_and_said_so(tmp_path):
    root = tree(tmp_path / "pictures", train_ant=4, train_bee=4)
    (root / "test").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(root / "test" / f"{number}.png")
    packed = folder.pack(root, tmp_path / "out.npz", 8)
    assert (packed.num_train, packed.num_test) == (6, 2)
    assert "the 3 pictures of" in packed.notes[0]
    assert "cnnlab predict" in packed.notes[0]


def test_one_folder_beside_a_table_of_labels_is_refused(tmp_path):
    root = tree(tmp_path / "pictures", images=4)
    (root / "labels.csv").write_text("name,label")
    with pytest.raises(DataError, match=r"two at least; it holds only images\. If labels.csv says the classes, sort"):
        folder.pack(root, tmp_path / "out.npz")


def test_class_whose_name_is_not_utf8_is_refused(tmp_path):
    root = tree(tmp_path / "pictures", ant=2, bee=2)
    (root / "ant").rename(os.fsdecode(os.fsencode(root) + b"/\xff\xfe"))
    with pytest.raises(DataError, match="is not UTF-8"):
        folder.pack(root, tmp_path / "out.npz")


@pytest.mark.parametrize(("bits", "white"), [(10, 1023), (12, 4095), (16, 65535)])
def test_pictures_of_fewer_bits_in_16_are_scaled_by_the_sets_own_range(tmp_path, bits, white):
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in range(4):
            value = white if (number, shade) == (0, 0) else white // (shade + 2)
            Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "pictures" / name / f"{shade}.png")
    packed = folder.pack(tmp_path / "pictures", tmp_path / "out.npz", 8)
    data = archive.read(packed.path)
    shades = sorted(int(image[0, 0, 0]) for image in np.concatenate([data.images["train"], data.images["test"]]))
    np.testing.assert_allclose(shades, [51, 51, 63, 63, 85, 85, 127, 255], atol=1)
    assert len(packed.notes) == (bits < 16)
    assert all(f"{white} became white" in note for note in packed.notes)


def test_heic_is_read_with_its_package_and_listed_without(tmp_path, monkeypatch):
    root = tree(tmp_path / "pictures", ant=2, bee=2)
    (root / "ant" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    packed = folder.pack(root, tmp_path / "out.npz", 8)
    assert [path.name for path, _ in packed.unreadable] == ["phone.HEIC"]
    assert "pip install 'cnnlab[heic]'" in packed.unreadable[0][1]
    registered = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    assert "HEIF" in pictures.formats()
    assert registered


def test_size_is_proposed_from_the_pictures(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "small" / name).mkdir(parents=True)
        (tmp_path / "large" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 30)).save(tmp_path / "small" / name / f"{number}.png")
            Image.new("RGB", (400, 300)).save(tmp_path / "large" / name / f"{number}.png")
    assert folder.pack(tmp_path / "small", tmp_path / "a.npz").size == 28
    assert folder.pack(tmp_path / "large", tmp_path / "b.npz").size == 64


def test_a_folder_is_packed_once_for_the_same_pictures_and_settings(tmp_path):
    root = tree(tmp_path / "pictures", ant=3, bee=3)
    first = folder.cached(root, 8)
    written = first.stat()
    assert first.parent == tmp_path
    assert folder.cached(root, 8).stat() == written
    assert folder.cached(root, 16) != first
    Image.new("RGB", (8, 8)).save(root / "ant" / "new.png")
    again = folder.cached(root, 8)
    assert again != first
    assert len(archive.read(again).targets["train"]) == 5


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height):
    """A picture that claims a size and holds no pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unreadable_pictures_are_named_and_left_out(tmp_path):
    root = tree(tmp_path / "pictures", ant=10, bee=10)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    halves = {}
    for ending in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        noise.save(tmp_path / f"whole.{ending}")
        whole = (tmp_path / f"whole.{ending}").read_bytes()
        halves[f"truncated.{ending}"] = whole[: len(whole) // 2]
    faults = halves | {
        "text.jpg": b"this is no picture",
        "empty.gif": b"",
        "bomb.png": png(50_000, 50_000),
        "large.png": png(10_000, 10_000),
        # Pillow would start Ghostscript, and run the program inside, if it were let.
        "disguised.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    }
    for name, content in faults.items():
        (root / "bee" / name).write_bytes(content)
    packed = folder.pack(root, tmp_path / "out.npz", 8)
    # In a process of its own: beside what this one has held before, nothing would show.
    code = (
        "import pathlib, sys; from cnnlab.data import folder; from cnnlab.machine import peak_memory\n"
        "before = peak_memory()\n"
        "folder.pack(*map(pathlib.Path, sys.argv[1:]), 8)\n"
        "print(peak_memory() - before)"
    )
    again = [sys.executable, "-c", code, root, tmp_path / "again.npz"]
    taken = subprocess.run(again, capture_output=True, text=True, check=True).stdout
    assert int(taken.splitlines()[-1]) < 50e6
    assert {path.name for path, _ in packed.unreadable} == set(faults)
    reasons = {path.name: reason for path, reason in packed.unreadable}
    assert "10000 x 10000 pixels, more than 89,478,485" in reasons["large.png"]
    assert all(len(reason.splitlines()) == 1 for reason in reasons.values())
    data = archive.read(packed.path)
    images = np.concatenate([data.images["train"], data.images["test"]])[:, 4, 4]
    assert len(np.unique(images, axis=0)) == len(images) == packed.num_train + packed.num_test == 20
    assert images[:, 1].tolist() == [*data.targets["train"].tolist(), *data.targets["test"].tolist()]


def test_crop_keeps_the_middle_pad_the_whole_and_stretch_the_corners(tmp_path):
    path = tmp_path / "wide.png"
    halves(80, 20).save(path)
    crop, pad, stretch = (decoded(path, (8, 8), fit) for fit in ("crop", "pad", "stretch"))
    for image in (crop, stretch):
        assert image.shape == (8, 8, 3)
        assert (image[:, 0] == RED).all()
        assert (image[:, -1] == BLUE).all()
    assert (pad[0] == BLACK).all()
    assert (pad[4, 0] == RED).all()
    assert (pad[4, -1] == BLUE).all()
    assert decoded(path, (6, 12)).shape == (6, 12, 3)


def test_exif_rotation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise by 90 degrees to see it
    halves().save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    image = decoded(tmp_path / "turned.jpg").astype(int)
    assert np.abs(image[0] - RED).max() < 8
    assert np.abs(image[-1] - BLUE).max() < 8


MODES = {
    "1": (Image.new("1", (8, 8), 1), WHITE),
    "L": (Image.new("L", (8, 8), 100), (100, 100, 100)),
    "LA transparent": (Image.new("LA", (8, 8), (100, 0)), WHITE),
    "P": (Image.new("RGB", (8, 8), RED).convert("P"), RED),
    "RGBA": (Image.new("RGBA", (8, 8), (*RED, 255)), RED),
    "RGBA transparent": (Image.new("RGBA", (8, 8), (*RED, 0)), WHITE),
    "RGBA half": (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), (204, 204, 204)),
    "16 bit": (Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), (100, 100, 100)),
    "16 bit white": (Image.fromarray(np.full((8, 8), 65535, np.uint16)), WHITE),
    "32 bit": (Image.fromarray(np.full((8, 8), 30_000, np.int32)), (116, 116, 116)),
}


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_becomes_rgb(tmp_path, mode):
    picture, colour = MODES[mode]
    picture.save(tmp_path / "picture.tif") if mode == "32 bit" else picture.save(tmp_path / "picture.png")
    (path,) = tmp_path.iterdir()
    assert (decoded(path) == colour).all()


def test_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([*RED, *BLUE])
    picture.save(tmp_path / "picture.gif", transparency=1)
    assert (decoded(tmp_path / "picture.gif") == WHITE).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "picture.jpg", quality=100)
    assert np.abs(decoded(tmp_path / "picture.jpg").astype(int) - RED).max() < 8


def test_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (BLUE, RED, RED)]
    frames[0].save(tmp_path / "picture.gif", save_all=True, append_images=frames[1:])
    assert (decoded(tmp_path / "picture.gif") == BLUE).all()


def test_floating_point_picture_is_left_out_with_the_reason(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "picture.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decoded(tmp_path / "picture.tif")


def test_fast_decoding_of_a_large_jpeg_changes_next_to_nothing(tmp_path):
    y, x = np.mgrid[:1200, :1600]
    smooth = np.stack([x / 1600, y / 1200, (x + y) / 2800], axis=2)
    picture = Image.fromarray((255 * smooth).astype(np.uint8))
    picture.save(tmp_path / "picture.jpg", quality=95)
    picture.save(tmp_path / "picture.png")
    fast, full = decoded(tmp_path / "picture.jpg", (32, 32)), decoded(tmp_path / "picture.png", (32, 32))
    assert np.abs(fast.astype(int) - full).max() <= 3


def test_odd_metadata_is_no_reason_to_leave_a_picture_out(tmp_path):
    root = tree(tmp_path / "pictures", ant=2, bee=2)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100)
    picture = Image.new("P", (8, 8))
    picture.save(root / "ant" / "odd.png", pnginfo=info, transparency=bytes(range(256)), exif=b"Exif\0\0broken")
    assert folder.pack(root, tmp_path / "out.npz", 8).unreadable == ()


def test_what_cannot_be_packed_is_named(tmp_path):
    out = tmp_path / "out.npz"
    for root, message in {
        tmp_path / "nowhere": "must be a folder",
        tree(tmp_path / "one", ant=1, bee=1): "no class has a picture for the test set",
        tree(tmp_path / "class", ant=3): "two at least; it holds only ant",
        tree(tmp_path / "test-only", train_ant=2, train_cow=2, test_ant=2, test_bee=2): "lacks: bee",
        tree(tmp_path / "train-only", train_ant=2, train_bee=2): "two at least; it holds only train",
    }.items():
        with pytest.raises(DataError, match=message):
            folder.pack(root, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"must hold a folder of pictures for each class.*it holds no folder"):
        folder.pack(tmp_path / "empty", out)
    for name in ("ant", "bee"):
        (tmp_path / "empty" / name).mkdir()
    with pytest.raises(DataError, match=r"ant must hold the pictures of its class, .*AVIF, BMP"):
        folder.pack(tmp_path / "empty", out)
    for name in ("ant/1", "ant/2", "bee/1", "bee/2"):
        (tmp_path / "empty" / f"{name}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no training picture could be read; the first: .*png: Unidentified"):
        folder.pack(tmp_path / "empty", out)
    assert not out.exists()


@pytest.mark.parametrize("option", [{"size": 0}, {"test_fraction": 0.0}, {"test_fraction": 1.0}])
def test_option_out_of_range_is_named(tmp_path, option):
    with pytest.raises(ConfigError, match=r"--.* got "):
        folder.pack(tree(tmp_path / "pictures", ant=3), tmp_path / "out.npz", **option)


def test_existing_output_is_kept_unless_overwriting_succeeds(tmp_path):
    root, out = tree(tmp_path / "pictures", ant=3, bee=3), tmp_path / "out.npz"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="--overwrite"):
        folder.pack(root, out)
    with pytest.raises(DataError):
        folder.pack(tmp_path / "nowhere", out, overwrite=True)
    assert out.read_bytes() == b"precious"
    folder.pack(root, out, overwrite=True)
    assert archive.read(out).num_classes == 2


def test_output_that_cannot_be_written_is_found_out_before_decoding(tmp_path, monkeypatch):
    root = tree(tmp_path / "pictures", ant=3, bee=3)
    monkeypatch.setattr(pictures, "decode", lambda *args: pytest.fail("decoded"))
    with pytest.raises(MachineError, match="could not be made"):
        folder.pack(root, root / "ant" / "00.png" / "out.npz")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MachineError, match="may not be written"):
        folder.pack(root, tmp_path / "out.npz")
