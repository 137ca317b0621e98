"""A checkpoint says itself whether it is whole, and the one before it is there when it is not."""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cnnlab import checkpoint
from cnnlab.checkpoint import is_whole, read_checkpoint, seal, write_checkpoint, write_sealed
from cnnlab.errors import CheckpointError, UnsafeError
from tests.conftest import Train, read

STATE = {"state_dict": {"weight": torch.arange(40.0)}, "epoch": 3}


def save(path: Path, **more: object) -> Path:
    write_checkpoint(STATE | more, path)
    return path


def test_a_sealed_file_is_what_torch_and_zip_readers_expect(tmp_path: Path):
    path = save(tmp_path / "best.ckpt")
    assert is_whole(path)
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["weight"], torch.arange(40.0))
    assert zipfile.ZipFile(path).testzip() is None
    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]


def test_every_single_bit_counts(tmp_path: Path):
    path = save(tmp_path / "x.ckpt")
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 97):
        byte, bit = divmod(place, 8)
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :])
        assert not is_whole(path), place
    for length in (0, 1, 50, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole(path)
    path.write_bytes(content + b"x")
    assert not is_whole(path)


def test_a_file_without_a_seal_is_refused_and_a_hostile_one_told_apart(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    torch.save(STATE, path)
    with pytest.raises(CheckpointError, match="no seal"):
        read_checkpoint(path)
    for name, sealed in (("plain", False), ("sealed", True)):
        buffer = io.BytesIO()
        torch.save(STATE | {"epoch": os.getcwd}, buffer)
        path = tmp_path / name
        path.write_bytes(b"".join(seal(buffer.getvalue())) if sealed else buffer.getvalue())
        with pytest.raises(UnsafeError, match="was not loaded"):
            read_checkpoint(path)


def test_the_one_before_stays_and_a_failed_write_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    save(last)
    first = last.read_bytes()
    save(last, epoch=4)
    assert previous.read_bytes() == first
    second = last.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(last, epoch=5)
    assert (previous.read_bytes(), last.read_bytes()) == (first, second)
    assert {each.name for each in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_what_a_killed_run_left_half_written_is_no_obstacle(tmp_path: Path):
    (tmp_path / ".last.ckpt.part").write_bytes(b"half")
    (tmp_path / ".previous.ckpt.part").write_bytes(b"half")
    for epoch in (1, 2):
        save(tmp_path / "last.ckpt", epoch=epoch)
    assert {each.name for each in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_nothing_is_written_through_a_link(tmp_path: Path):
    outside = tmp_path / "outside"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.ckpt.part").symlink_to(outside)
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    write_sealed(tmp_path / "run" / "last.ckpt", buffer.getvalue())
    assert not outside.exists()


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_used(train: Train):
    folder = train("trainer.max_epochs=3")
    last = folder / "checkpoints" / "last.ckpt"
    wanted = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:-100])
    train(f"resume='{folder}'", "trainer.max_epochs=4", folder=folder)
    said = (folder / "train.log").read_text()
    assert "last.ckpt is damaged: resuming from the one before it" in said
    assert "epoch 3/4" in said  # again; and to the same bits
    assert "epoch 2/4" not in said
    now = torch.load(folder / "checkpoints" / "previous.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(now[name], wanted[name]) for name in wanted)
    assert read(folder / "run.json")["status"] == "completed"


def test_two_damaged_checkpoints_are_both_named_with_a_way_on(train: Train, capsys: pytest.CaptureFixture):
    folder = train("trainer.max_epochs=2")
    for name in ("last", "previous"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit) as ended:
        train(f"resume='{folder}'", "trainer.max_epochs=4", folder=folder)
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert all(word in said for word in ("last.ckpt", "previous.ckpt", "init_from=", "best.ckpt"))


def test_a_damaged_checkpoint_is_named_with_a_whole_one_beside_it(tmp_path: Path):
    last = tmp_path / "last.ckpt"
    for epoch in (1, 2):
        save(last, epoch=epoch)
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.ckpt .*damaged.* take previous\.ckpt beside it"):
        read_checkpoint(last)
    (tmp_path / "previous.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"Put a copy of it back\.$"):
        read_checkpoint(last)


def test_a_resume_hashes_and_loads_the_checkpoint_once(train: Train, monkeypatch: pytest.MonkeyPatch):
    folder = train("trainer.max_epochs=1", "data.val_size=0", "objective.metric=test/accuracy")
    last = folder / "checkpoints" / "last.ckpt"
    read: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, **options: object) -> object:
            read[name] += path == last
            return function(path, **options)

        return call

    monkeypatch.setattr(checkpoint, "is_whole", counted("hashed", checkpoint.is_whole))
    monkeypatch.setattr(torch, "load", counted("loaded", torch.load))
    train(f"resume='{folder}'", "trainer.max_epochs=2", folder=folder)
    assert read == {"hashed": 1, "loaded": 1}
    assert "epoch 2/2" in (folder / "train.log").read_text()
