import os
import pickle
import random
import re
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnnlab.data import archive
from cnnlab.data.npz import layouts
from cnnlab.errors import CnnlabError, ConfigError, DataError, MachineError, UnsafeError


def arrays(train=12, test=6, num_classes=3, shape=(5, 4, 3), **replaced):
    rng = np.random.default_rng(0)
    content = {
        "X_train": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": np.arange(train, dtype=np.uint8) % num_classes,
        "X_test": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": np.arange(test, dtype=np.uint8) % num_classes,
    } | replaced
    return {name: array for name, array in content.items() if array is not None}


def saved(path, save=np.savez, **replaced):
    with path.open("wb") as file:
        save(file, **arrays(**replaced))
    return path


def by_role(content):
    return {role: content[key] for role, key in archive.KEYS.items() if key in content}


@pytest.fixture
def npz(tmp_path):
    return tmp_path / "data set=1, ü.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", "u4", "i8", ">u8"])
@pytest.mark.parametrize("column", [False, True])
def test_labels_of_any_integer_type_and_both_shapes_come_back_as_int64(npz, save, dtype, column):
    labels = arrays()["y_train"].astype(dtype)
    data = archive.read(saved(npz, save, y_train=labels[:, None] if column else labels))
    assert data.targets["train"].dtype == np.int64
    assert data.targets["train"].tolist() == labels.tolist()
    np.testing.assert_array_equal(data.images["train"], arrays()["X_train"])
    np.testing.assert_array_equal(data.images["test"], arrays()["X_test"])
    assert data.image_shape == (5, 4, 3)


def test_a_read_begun_ahead_is_the_one_that_counts(npz, monkeypatch):
    archive.read_ahead(saved(npz), {"train_images": "X_train"}, ["a", "b", "c"])
    [future] = archive._reads.values()
    future.result()
    monkeypatch.setattr(archive, "_read", lambda *_: pytest.fail("read twice"))
    data = archive.read(str(npz), archive.KEYS, ("a", "b", "c"))
    assert data.classes == ("a", "b", "c")
    np.testing.assert_array_equal(data.images["train"], arrays()["X_train"])


def test_a_read_begun_ahead_serves_no_other_request(npz):
    archive.read_ahead(saved(npz))
    assert archive.read(npz, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    saved(npz, train=15)  # another file in its place
    assert len(archive.read(npz).targets["train"]) == 15
    archive.read_ahead(npz)
    npz.unlink()
    with pytest.raises(DataError, match="does not exist"):
        archive.read(npz)


def test_a_fault_met_ahead_is_raised_at_the_read(npz):
    archive.read_ahead(npz)  # nothing is there yet
    content = saved(npz).read_bytes()
    npz.write_bytes(content[: len(content) // 2])
    archive.read_ahead(npz)
    with pytest.raises(DataError):
        archive.read(npz)
    with pytest.raises(DataError):
        archive.read(npz)


def test_gray_images_and_fortran_order_are_read_as_contiguous_nhwc(npz):
    images = arrays(shape=(7, 5, 1))["X_train"]
    data = archive.read(saved(npz, shape=(7, 5, 1), X_train=np.asfortranarray(images)))
    np.testing.assert_array_equal(data.images["train"], images)
    assert data.images["train"].flags.c_contiguous
    assert data.images["train"].flags.writeable
    assert data.image_shape == (7, 5, 1)


def test_class_names_come_from_the_argument_then_the_file_then_the_numbers(npz):
    assert archive.read(saved(npz)).classes == ("0", "1", "2")
    saved(npz, classes=np.array(["ant", "bee", "käfer"]))
    assert archive.read(npz).classes == ("ant", "bee", "käfer")
    assert archive.read(npz, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    saved(npz, classes=np.array([b"ant", b"bee", b"cow"]))
    assert archive.read(npz).classes == ("ant", "bee", "cow")


def test_class_without_training_images_is_a_warning_that_names_it(npz, caplog):
    data = archive.read(saved(npz, classes=np.array(["ant", "bee", "cow", "dog"])))
    assert data.num_classes == 4
    assert [record.name for record in caplog.records] == ["cnnlab.data.archive"]
    assert "1 of 4 classes have no training image: dog" in caplog.text


def test_sets_that_the_file_lacks_are_none_of_the_archives(npz):
    data = archive.read(saved(npz, X_test=None, y_test=None))
    assert list(data.images) == list(data.targets) == ["train"]
    with pytest.raises(DataError, match="lacks X_test"):
        archive.read(saved(npz, X_test=None))
    with pytest.raises(DataError, match="lacks pictures"):
        archive.read(saved(npz), keys={"test_images": "pictures"})
    data = archive.read(npz, keys={"test_images": None, "test_targets": None})
    assert list(data.images) == ["train"]


def test_validation_set_and_groups_of_the_files_own_are_read(npz):
    names = np.array(["b", "a", "c"] * 4)
    data = archive.read(saved(npz, X_val=X[:5], y_val=Y[:5], groups=names))
    np.testing.assert_array_equal(data.images["val"], X[:5])
    assert data.targets["val"].tolist() == Y[:5].tolist()
    assert data.groups is not None
    assert data.groups.tolist() == [1, 0, 2] * 4
    labels, groups = archive.read_labels(npz)
    assert {split: part.tolist() for split, part in labels.items()} == {
        split: part.tolist() for split, part in data.targets.items()
    }
    assert groups is not None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, ">u2", ">f4"])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 4), (6, 6, 13)])
def test_images_of_each_type_and_any_number_of_channels_are_read_as_they_are(npz, dtype, shape):
    random = np.random.default_rng(0)
    images = (random.random((12, *shape)) * 300 - (30 if np.dtype(dtype).kind == "f" else 0)).astype(dtype)
    data = archive.read(saved(npz, X_train=images, X_test=images[:6]))
    expected = images if len(shape) == 3 else images[..., None]
    np.testing.assert_array_equal(data.images["train"], expected)
    assert data.images["train"].dtype == np.dtype(dtype).newbyteorder("=")
    assert data.image_shape == (*shape[:2], shape[2] if len(shape) == 3 else 1)
    assert all(np.array_equal(piece, images.reshape(expected.shape)[start : start + 5]) for start, piece in zip(
        range(0, 12, 5), archive.pieces(npz, "X_train", 5), strict=True
    ))  # fmt: skip


def test_mapped_images_are_those_that_are_read(npz):
    images = np.random.default_rng(0).random((12, 5, 4, 3)).astype(np.float32)
    saved(npz, X_train=images, X_test=images[:6])
    data = archive.read(npz, mapped=True)
    np.testing.assert_array_equal(data.images["train"], images)
    np.testing.assert_array_equal(data.images["test"], images[:6])
    assert not data.images["train"].flags.writeable
    with pytest.raises(DataError, match="uncompressed"):
        archive.read(saved(npz, np.savez_compressed), mapped=True)


def test_class_that_only_the_test_set_has_counts(npz, caplog):
    data = archive.read(saved(npz, y_test=np.array([0, 1, 2, 3, 3, 3])))
    assert data.num_classes == 4
    assert "1 of 4 classes have no training image: 3" in caplog.text


def test_other_array_names_are_read_by_config(npz):
    content = arrays()
    np.savez(npz.with_suffix(""), images=content.pop("X_train"), **content)
    with pytest.raises(DataError, match=r"lacks X_train; it holds images, y_train, .* data\.keys"):
        archive.read(npz)
    assert len(archive.read(npz, keys={"train_images": "images"}).images["train"]) == 12
    with pytest.raises(ConfigError, match=r"data\.keys may hold train_images, .*; got images"):
        archive.read(npz, keys={"images": "images"})


X, Y = arrays()["X_train"], arrays()["y_train"]
RULES = {
    "nchw": ({"X_train": X.transpose(0, 3, 1, 2)}, r"X_train .*got uint8 \(12, 3, 5, 4\).*transpose"),
    "float64 images": ({"X_train": X / 255}, r"X_train .*uint8.*got float64 \(12, 5, 4, 3\).*float32"),
    "int images": ({"X_train": X.astype(np.int64)}, r"X_train .*got int64 .*cast"),
    "bool images": ({"X_train": X > 127}, r"X_train .*got bool"),
    "rows of pixels": ({"X_train": X[..., 0].reshape(12, -1)}, r"X_train .*\(12, 20\)"),
    "no pixels": ({"X_train": X[:, :0]}, r"X_train .*\(12, 0, 4, 3\).*no pixels"),
    "no rows": ({"X_train": X[:0], "y_train": Y[:0]}, r"X_train .*\(0, 5, 4, 3\)"),
    "one class": ({"y_train": 0 * Y}, r"y_train must hold at least two classes, got 1 \(0\)"),
    "no test rows": ({"X_test": X[:0], "y_test": Y[:0]}, r"X_test .*\(0, 5, 4, 3\)"),
    "scalar": ({"y_train": np.int64(3)}, r"y_train .*got int64 \(\)"),
    "other test size": ({"X_test": X[:6, :4]}, r"X_test .*\(5, 4, 3\), got uint8 \(4, 4, 3\)"),
    "other test channels": ({"X_test": X[:6, ..., :1]}, r"X_test .*\(5, 4, 3\), got uint8 \(5, 4, 1\)"),
    "float labels": ({"y_train": Y.astype(float)}, r"y_train .*got float64 \(12,\).*astype"),
    "one-hot": ({"y_train": np.eye(3, dtype=np.uint8)[Y]}, r"y_train .*got uint8 \(12, 3\).*argmax"),
    "string labels": ({"y_train": Y.astype(str)}, r"y_train .*integer"),
    "negative": ({"y_train": Y.astype(np.int8) - 1}, r"y_train .*from 0 to 2.*got -1 to 1"),
    "all negative": ({"y_train": np.full(12, -1), "y_test": np.full(6, -1)}, r"y_train .*got -1 to -1"),
    "beyond the names": ({"classes": np.array(["a", "b"])}, r"y_train .*from 0 to 1.*2 classes, got 0 to 2"),
    "stray label": ({"y_test": np.full(6, 2**60)}, r"y_test .*got 1152921504606846976"),
    "huge unsigned label": (
        {"y_test": np.full(6, 2**64 - 1, np.uint64)},
        r"y_test .*got 1844674407370955161",
    ),
    "lengths": (
        {"y_train": Y[:11]},
        r"X_train and y_train must be equally long, got 12 images and 11 labels",
    ),
    "other test type": ({"X_test": X[:6].astype(np.uint16)}, r"X_test .*uint8 \(5, 4, 3\), got uint16 \(5, 4, 3\)"),
    "missing": ({"y_train": None, "y_test": None}, r"lacks y_train, y_test"),
    "groups": ({"groups": np.arange(11)}, r"groups must hold one group for each of the 12 training images"),
    "numeric names": ({"classes": np.arange(3)}, r"classes must hold strings .*got int64 \(3,\)"),
    "same name twice": ({"classes": np.array(["a", "b", "a"])}, r"unique.*a, b, a"),
}


@pytest.mark.parametrize("fault", RULES)
def test_broken_rule_is_named_with_expected_and_got(npz, fault):
    replaced, message = RULES[fault]
    saved(npz, **replaced)
    with pytest.raises(DataError, match=message) as caught:
        archive.read(npz)
    assert str(npz) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("fault", [fault for fault in RULES if fault not in ("missing", "numeric names", "groups")])
def test_nothing_is_written_that_would_not_be_read(npz, fault):
    content = arrays(**RULES[fault][0])
    with pytest.raises(DataError):
        archive.write(npz, **by_role(content), classes=content.get("classes"))
    assert list(npz.parent.iterdir()) == []


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_object_array_is_refused_and_not_executed(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(npz, y_train=np.array([Bomb()] * 12))
    with pytest.raises(UnsafeError, match="y_train holds pickled Python objects"):
        archive.read(npz)
    assert not Path("executed").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_with_an_npz_name_is_refused_and_not_executed(npz, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    npz.write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(UnsafeError, match="is a Python pickle"):
        archive.read(npz)
    assert not Path("executed").exists()


def test_what_is_no_npz_is_named(npz, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        archive.read(npz)
    with pytest.raises(DataError, match="folder"):
        archive.read(tmp_path)
    for content, message in {b"": "empty", b"<!DOCTYPE html>": "starts with b'<!DOCT'"}.items():
        npz.write_bytes(content)
        with pytest.raises(DataError, match=message):
            archive.read(npz)
    with npz.open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match="single npy array"):
        archive.read(npz)


def member(header: bytes, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped(path, content: dict[str, bytes], compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def test_header_that_claims_16_tib_is_refused(npz):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 4, 4, 1), }\n"
    saved(npz)
    with zipfile.ZipFile(npz) as file:
        content = {info.filename: file.read(info) for info in file.infolist()}
    with pytest.raises(UnsafeError, match=r"X_train claims 17,592,186,04\d,\d\d\d bytes"):
        archive.read(zipped(npz, content | {"X_train.npy": member(header)}))


def test_zip_directory_that_claims_16_tib_is_refused(npz):
    zipped(npz, {"X_train.npy": member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }\n")})
    with zipfile.ZipFile(npz, "a") as file:
        for name in ("y_train", "X_test", "y_test"):
            file.writestr(f"{name}.npy", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }\n"))
        file.filelist[0].file_size = 2**44
    with pytest.raises(UnsafeError, match="more than the"):
        archive.read(npz)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4, 1), }\n",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -8, 1, 1), }\n",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (2.5,), }\n",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }\n",
        b"{'descr': '|q9', 'fortran_order': False, 'shape': (3,), }\n",
        b"{'descr': '|u1', 'fortran_order': False}\n",
        b"__import__('os').mkdir('executed')\n",
        b"(" * 9000,
        b"[" * 200 + b"]" * 200,
        b"\xff" * 100,
        b"",
    ],
)
def test_nonsense_in_a_header_is_bad_data(npz, tmp_path, monkeypatch, header):
    monkeypatch.chdir(tmp_path)
    saved(npz)
    with zipfile.ZipFile(npz) as file:
        content = {info.filename: file.read(info) for info in file.infolist()}
    with pytest.raises(DataError):
        archive.read(zipped(npz, content | {"X_train.npy": member(header, bytes(16))}))
    assert not Path("executed").exists()


def test_header_longer_than_any_array_needs_is_bad_data(npz):
    zipped(
        npz,
        {f"{key}.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 10**6 for key in archive.KEYS.values()},
    )
    with pytest.raises(DataError, match="no readable npy header"):
        archive.read(npz)


def test_compression_that_takes_memory_by_its_own_word_is_refused(npz):
    zipped(npz, {f"{key}.npy": b"" for key in archive.KEYS.values()}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="neither stored nor deflated"):
        archive.read(npz)


def test_zip_bomb_is_refused_before_it_takes_memory(npz):
    rows = 2**27 // 3072
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }\n" % rows
    small = member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 32, 32, 3), }\n", bytes(3072))
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("X_train.npy", "w", force_zip64=True) as stream:
            stream.write(member(header))
            piece = bytes(3072 * 1024)
            for start in range(0, rows, 1024):
                stream.write(piece[: 3072 * min(1024, rows - start)])
        for name in ("y_train", "X_test", "y_test"):
            file.writestr(f"{name}.npy", small)
    with pytest.raises(UnsafeError, match="zip bomb"):
        archive.read(npz)
    # In a process of its own: beside what this one has held before, nothing would show.
    code = (
        "import sys; from cnnlab.data import archive; from cnnlab.errors import UnsafeError\n"
        "from cnnlab.machine import peak_memory\n"
        "before = peak_memory()\n"
        "try: archive.read(sys.argv[1])\n"
        "except UnsafeError: print(peak_memory() - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, npz], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20e6


def outcome(path):
    """What reading gives: all the bytes, or the class of the error."""
    try:
        data = archive.read(path)
    except CnnlabError as error:
        return type(error)
    parts = (data.images["train"], data.targets["train"], data.images["test"], data.targets["test"])
    return *(part.tobytes() for part in parts), data.classes


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_file_is_bad_data(npz, save):
    whole = saved(npz, save, classes=np.array(["a", "b", "c"])).read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(100))]:
        npz.write_bytes(whole[:length])
        assert outcome(npz) is DataError, length


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bit_is_bad_data_or_changes_nothing(npz, save):
    whole = saved(npz, save, classes=np.array(["a", "b", "c"])).read_bytes()
    right = outcome(npz)
    rng = random.Random(0)
    for _ in range(1000):
        damaged = bytearray(whole)
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        damaged[place] ^= 1 << bit
        npz.write_bytes(damaged)
        assert outcome(npz) in (right, DataError), (place, bit)


def test_random_bytes_never_escape_as_another_error(npz):
    whole = saved(npz, classes=np.array(["a", "b", "c"])).read_bytes()
    rng = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        start = rng.randrange(len(whole))
        damaged[start : start + rng.randrange(40)] = rng.randbytes(rng.randrange(40))
        npz.write_bytes(damaged)
        result = outcome(npz)
        assert isinstance(result, tuple) or issubclass(result, DataError | UnsafeError)


MEASURE = """
import sys
from cnnlab.data import archive
from cnnlab.machine import peak_memory
before = peak_memory()
data = archive.read(sys.argv[1])
print((peak_memory() - before) / (data.images["train"].nbytes + data.images["test"].nbytes))
"""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_takes_the_memory_of_the_arrays_and_no_copy(npz, save):
    images = np.random.default_rng(0).integers(0, 256, (8_000, 32, 32, 3), dtype=np.uint8)
    saved(npz, save, X_train=images, y_train=np.arange(8_000) % 2, X_test=images[:9], y_test=np.zeros(9, int))
    result = subprocess.run([sys.executable, "-c", MEASURE, npz], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.15


def test_layouts_are_read_without_the_data(npz):
    saved(npz, notes=np.array([Bomb()], dtype=object))
    in_file = layouts(npz)
    assert list(in_file) == ["X_train", "y_train", "X_test", "y_test", "notes"]
    assert str(in_file["X_train"]) == "uint8 (12, 5, 4, 3)"


def test_written_file_reads_back_and_opens_with_numpy(npz):
    content = arrays()
    archive.write(npz.parent / "new" / "folder" / npz.name, **by_role(content), classes=["a", "b", "ü"])
    npz = npz.parent / "new" / "folder" / npz.name
    data = archive.read(npz)
    np.testing.assert_array_equal(data.images["train"], content["X_train"])
    assert data.targets["test"].tolist() == content["y_test"].tolist()
    assert data.classes == ("a", "b", "ü")
    with np.load(npz, allow_pickle=False) as file:
        assert sorted(file) == ["X_test", "X_train", "classes", "y_test", "y_train"]
    assert list(npz.parent.iterdir()) == [npz]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(npz.stat().st_mode) == 0o666 & ~umask


def test_same_arrays_give_the_same_bytes(npz):
    archive.write(npz, **by_role(arrays()))
    first = npz.read_bytes()
    archive.write(npz, **by_role(arrays()))
    assert npz.read_bytes() == first


def test_interrupted_write_leaves_the_old_file_and_nothing_else(npz, monkeypatch):
    old = saved(npz).read_bytes()

    def interrupted(file, content):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.npz, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archive.write(npz, **by_role(arrays(train=30)))
    assert npz.read_bytes() == old
    assert list(npz.parent.iterdir()) == [npz]


def test_full_disk_leaves_the_old_file_and_says_so(npz):
    old = saved(npz).read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # a write beyond it fails; Python ignores SIGXFSZ
    try:
        with pytest.raises(MachineError, match="could not be written: File too large"):
            archive.write(npz, **by_role(arrays(train=3000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert npz.read_bytes() == old
    assert list(npz.parent.iterdir()) == [npz]


@pytest.mark.parametrize("shape", [(600, 5, 4, 3), (300, 70, 90, 1), (1, 1, 1, 3), (513, 33, 401, 3)])
def test_channel_statistics_equal_numpys_in_float64(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[: len(images) // 2] = 255
    mean, std = archive.channel_statistics(images)
    scaled = images.reshape(-1, shape[-1]) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "unit"), [(np.uint16, 65535), (np.float32, 1)])
def test_channel_statistics_of_other_numbers_equal_numpys(dtype, unit):
    images = (np.random.default_rng(0).random((600, 5, 4, 2)) * [3000, 9] + [40_000, 1_000]).astype(dtype)
    mean, std = archive.channel_statistics(images)
    scaled = images.reshape(-1, 2) / np.float64(unit)
    np.testing.assert_allclose(mean, scaled.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=0), rtol=1e-9)


def test_constant_channel_has_a_standard_deviation_of_exactly_zero():
    assert archive.channel_statistics(np.full((700, 9, 9, 1), 77, np.uint8)) == ((77 / 255,), (0.0,))


@pytest.mark.parametrize(
    ("at", "value", "cause"), [(6, 1, "is encrypted"), (8, 99, "compression method is not supported")]
)
def test_members_that_zipfile_cannot_open_are_bad_data(tmp_path, at, value, cause):
    path = saved(tmp_path / "odd.npz")
    content = bytearray(path.read_bytes())
    # The field stands in each member's own header, and two bytes further in the directory.
    for signature, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            content[match.start() + offset : match.start() + offset + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=cause):
        archive.read(path)


def test_unreadable_file_and_folder_are_the_machines_fault(tmp_path):
    code = """
import os, sys
from pathlib import Path
import numpy as np
from cnnlab.data import archive
from cnnlab.data.npz import layouts
from cnnlab.errors import MachineError
if os.getuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
parts = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])
for act in (lambda: archive.read("secret.npz"), lambda: archive.write("new.npz", *parts, *parts)):
    try:
        act()
    except MachineError as error:
        print(error)
"""
    saved(tmp_path / "secret.npz").chmod(0)
    tmp_path.chmod(0o555)
    environment = os.environ | {"PYTHONPATH": str(Path(archive.__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    tmp_path.chmod(0o755)
    assert result.stdout.splitlines() == [
        "secret.npz may not be read: Permission denied.",
        "new.npz could not be written: Permission denied.",
    ], result.stderr


def test_annotations_of_a_zip_do_not_matter(npz):
    with zipfile.ZipFile(saved(npz), "a") as file:
        file.comment = b"x" * 1000
        file.writestr("readme.txt", "no array")
    assert len(archive.read(npz).images["train"]) == 12
    assert list(layouts(npz)) == ["X_train", "y_train", "X_test", "y_test"]


def test_member_header_is_held_against_the_directory(npz):
    content = bytearray(saved(npz, classes=np.array(["a", "b", "c"])).read_bytes())
    place = content.rindex(b"classes.npy")
    content[place : place + 7] = b"glasses"
    npz.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        archive.read(npz)
