"""Damaged files, a full disk, no permission, no memory, another config: refused or survived, and said."""

import contextlib
import ctypes
import functools
import itertools
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cnnlab.checkpoint import is_whole, read_checkpoint, write_checkpoint
from cnnlab.config import quote
from cnnlab.data import archive
from cnnlab.errors import CheckpointError, DataError, UnsafeError
from tests.conftest import drawn, read
from tests.prove.child import Child, announce, run
from tests.prove.resume import data
from tests.prove.table import Row, expect

OPTIONS = [
    "data=npz", "data.val_size=200", "data.batch_size=32", "callbacks.figures=null", "callbacks.dashboard=null",
    "trainer.max_epochs=2",
]  # fmt: skip

Files = dict[Path, bytes]


def prove(folder: Path, damages: int, seed: int = 0) -> Iterator[Row]:
    """Go through the faults; so many random damages to data and checkpoints; below 1,000, only what takes seconds."""
    chance = random.Random(seed)
    options = [*OPTIONS, f"data.path='{data(folder)}'"]
    good, out = folder / "good", folder / "out.txt"
    expect_code(0, *run([*options, f"hydra.run.dir='{good}'"], out))
    yield damaged_data(folder, damages // 2, chance)
    yield damaged_checkpoint(good / "checkpoints" / "last.ckpt", folder, damages - damages // 2, chance)
    if damages < 1000:
        yield forbidden(folder, good, out)
        return
    yield from last(folder, good, out)
    yield from changed(good, out)
    yield from machine(folder, options, good, out)
    yield from odd(folder, options, out)
    yield together(folder, options)
    yield from surroundings(folder, options, good, out)


def expect_code(wanted: int, code: int, text: str) -> str:
    """Check an exit code, that the error is one or two lines without a traceback, and return what was printed."""
    expect(code == wanted, f"exit code {code}, not {wanted}: {text[-2000:]}")
    expect("Traceback" not in text and "Logging error" not in text, f"a traceback: {text[-3000:]}")
    errors = [line for line in text.splitlines() if line.startswith("cnnlab: error:")]
    expect(bool(errors) == (wanted not in (0, 130, 143)), f"{len(errors)} lines of errors: {text[-2000:]}")
    return text


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut the end off, or overwrite a stretch."""
    kind, at = chance.randrange(10), chance.randrange(len(content))
    if kind < 6:
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind < 8:
        return content[:at]
    return content[:at] + chance.randbytes(min(100, len(content) - at)) + content[at + 100 :]


def damaged_data(folder: Path, times: int, chance: random.Random) -> Row:
    """Read damaged npz files: an error, or the same pixels and labels."""
    path, refused = folder / "damaged.npz", 0
    train, test = drawn(12, 4, seed=0), drawn(8, 4, seed=1)
    archive.write(path, train[0], train[1], test[0], test[1], ["a", "b", "c", "d"])
    content, wanted = path.read_bytes(), archive.read(path)
    for _ in range(times):
        path.write_bytes(damage(content, chance))
        try:
            found = archive.read(path)
        except (DataError, UnsafeError):
            refused += 1
            continue
        for split in ("train", "test"):
            expect(np.array_equal(found.images[split], wanted.images[split]), f"other {split} images without a word")
            expect(np.array_equal(found.targets[split], wanted.targets[split]), f"other {split} labels without a word")
        expect(found.classes == wanted.classes, "other classes without a word")
    return Row("damaged npz: refused, or the same data", times, times, f"{refused:,} refused, 0 silently wrong")


def damaged_checkpoint(good: Path, folder: Path, times: int, chance: random.Random) -> Row:
    """Read damaged checkpoints: all are refused."""
    path, content = folder / "damaged.ckpt", good.read_bytes()
    for _ in range(times):
        spoilt = damage(content, chance)
        path.write_bytes(spoilt)
        try:
            read_checkpoint(path)
        except (CheckpointError, UnsafeError):
            continue
        expect(spoilt == content, "a damaged checkpoint was loaded")
    return Row("damaged checkpoint: refused", times, times, "0 silently wrong")


def last(folder: Path, good: Path, out: Path) -> Iterator[Row]:
    """Resume runs whose last.ckpt is not what it was, with and without the one before it."""
    content = (good / "checkpoints" / "last.ckpt").read_bytes()
    state = torch.load(good / "checkpoints" / "last.ckpt", weights_only=True)

    def cut(path: Path) -> None:
        path.write_bytes(content[: len(content) // 2])

    def flip(path: Path) -> None:
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 4]) + content[5001:])

    def another(path: Path) -> None:
        weights = {name: value.flatten()[:1] for name, value in state["state_dict"].items()}
        write_checkpoint(state | {"state_dict": weights}, path)

    def newer(path: Path) -> None:
        write_checkpoint(state | {"pytorch-lightning_version": "99.0.0"}, path)

    kinds: list[tuple[Callable[[Path], None], int]] = [
        (cut, 0), (flip, 0), (Path.unlink, 0), (another, 4), (newer, 4),
    ]  # fmt: skip
    codes = []
    for kind, code in kinds:
        for alone in (False, True):
            victim = copy(good, folder)
            kind(victim / "checkpoints" / "last.ckpt")
            if kind in (another, newer):
                (victim / "checkpoints" / "previous.ckpt").unlink()
            if alone:
                (victim / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
            wanted = 4 if alone else code
            text = expect_code(wanted, *run([f"resume='{victim}'", "trainer.max_epochs=3"], out))
            if wanted == 0:
                expect("resuming from the one before it" in text, f"{kind} said nothing: {text[-1000:]}")
                expect("epoch 1/3" not in text, f"{kind} began again")
            codes.append(wanted)
    yield Row(
        "last.ckpt cut, flipped, missing, another's, newer", len(codes), len(codes),
        f"{codes.count(0)} went on from the one before, {codes.count(4)} ended with 4",
    )  # fmt: skip


def copy(good: Path, folder: Path) -> Path:
    """Return a copy of a run's folder."""
    victim = folder / "victim"
    shutil.rmtree(victim, ignore_errors=True)
    return Path(shutil.copytree(good, victim))


def changed(good: Path, out: Path) -> Iterator[Row]:
    """Resume with another config."""
    changes = ["seed=1", "optimizer.lr=0.5", "model.dropout=0.5", "data.batch_size=64", "augment=cutout"]
    for change in changes:
        text = expect_code(2, *run([f"resume='{good}'", change], out))
        expect("was" in text and "now" in text, f"{change}: no difference is named")
    yield Row("another config at resume", len(changes), len(changes), "exit code 2, with the differences")


def machine(folder: Path, options: list[str], good: Path, out: Path) -> Iterator[Row]:
    """A full disk at every write, no permission, no memory, no device, another run in the folder."""
    if not torch.cuda.is_available():
        for override in (["trainer.accelerator=gpu"], ["trainer.accelerator=mps"]):
            expect_code(5, *run([*options, *override, f"hydra.run.dir='{folder}/none'"], out))
        yield Row("a device that is not there", 2, 2, "exit code 5")
    yield full_disk(folder, good, out)
    yield forbidden(folder, good, out)
    yield no_memory(folder, options, out)
    yield shared(folder, options, out)


def contents(folder: Path) -> Files:
    """Return the checkpoints of a run."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("checkpoints/*.ckpt")}


def check_kept(before: Files, victim: Path) -> None:
    """Check that each checkpoint is the one from before, or a whole newer one."""
    for path, content in before.items():
        now = (victim / path).read_bytes()
        expect(now == content or is_whole(victim / path), f"{path} was spoilt")
    expect((victim / "checkpoints" / "last.ckpt").read_bytes() in before.values() or
           is_whole(victim / "checkpoints" / "last.ckpt"), "last.ckpt was spoilt")  # fmt: skip
    expect(not list(victim.rglob("*.part")), "something half-written is left")


@contextlib.contextmanager
def small_disk(mebibytes: float) -> Iterator[Path | None]:
    """Mount a small file system in memory; None where that is not allowed."""
    with tempfile.TemporaryDirectory() as place:
        size = f"size={int(mebibytes * 1024)}k"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True)
        if mounted.returncode:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def full_disk(folder: Path, good: Path, out: Path) -> Row:
    """Resume on disks that are full after ever more bytes, until one is large enough."""
    size = sum(path.stat().st_size for path in good.rglob("*") if path.is_file()) / 2**20
    codes = []
    for spare in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 8.0):
        with small_disk(size + spare + 0.1) as disk:
            if disk is None:
                return Row("a full disk at every write", 1, 1, "not tried: nothing may be mounted here")
            victim = disk / "run"
            shutil.copytree(good, victim)
            before = contents(victim)
            code, text = run([f"resume='{victim}'", "trainer.max_epochs=4"], out)
            expect(code in (0, 5), f"with {spare} MiB left: {code}: {text[-2000:]}")
            if code:
                expect_code(5, code, text)
                expect("No space left" in text, f"no space is not named: {text[-1000:]}")
            check_kept(before, victim)
            codes.append(code)
    expect(codes[-1] == 0 and 5 in codes, f"exit codes {codes}")
    return Row(
        "a full disk at every write", len(codes), len(codes), f"{codes.count(5)} ended with 5, checkpoints whole"
    )


def forbidden(folder: Path, good: Path, out: Path) -> Row:
    """Resume where the checkpoints, or the whole folder, may not be written."""
    tried = 0
    for place in ("checkpoints", "."):
        victim = copy(good, folder)
        before = contents(victim)
        (victim / place).chmod(0o555)
        child = Child([f"resume='{victim}'", "trainer.max_epochs=3"], out, lambda tell: without_rights())
        try:
            text = expect_code(5, child.wait(), child.text())
        finally:
            (victim / place).chmod(0o755)
        expect("ermission denied" in text, f"{place}: {text[-1000:]}")
        expect(contents(victim) == before, f"{place}: a checkpoint changed")
        tried += 1
    return Row("no permission to write", tried, tried, "exit code 5, checkpoints byte-identical")


def without_rights() -> None:
    """Give up what lets root write everywhere: file modes count as they do for everybody."""
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, this process
    ctypes.CDLL(None).capset(version, (ctypes.c_uint32 * 6)())


def no_memory(folder: Path, options: list[str], out: Path) -> Row:
    """Train with batches that are too large for a limit on the process' memory."""
    victim = folder / "memory"

    def limit(tell: Callable[[str], None]) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, used + 400 * 2**20))

    child = Child(
        [*options, "data.batch_size=800", "model=resnet18", f"hydra.run.dir='{victim}'"], out, limit
    )  # fmt: skip
    text = expect_code(5, child.wait(300), child.text())
    expect(
        "out of memory with data.batch_size=800: try data.batch_size=400" in text,
        f"the next try is not named: {text[-1000:]}",
    )
    return Row("out of memory", 1, 1, "exit code 5, the next batch size named")


def shared(folder: Path, options: list[str], out: Path) -> Row:
    """Start a run in the folder of one that is under way, and go on with it once that is dead."""
    victim = folder / "shared"
    first = Child([*options, "trainer.max_epochs=500", f"hydra.run.dir='{victim}'"], folder / "first.txt", announce)
    expect(first.reach("v"), f"the first run ended: {first.text()[-1000:]}")
    config = (victim / ".hydra" / "config.yaml").read_bytes()
    for arguments in ([*options, f"hydra.run.dir='{victim}'"], [f"resume='{victim}'"]):
        text = expect_code(5, *run(arguments, out))
        expect(str(first.pid) in text, f"the holder is not named: {text}")
    expect((victim / ".hydra" / "config.yaml").read_bytes() == config, "the second writer changed the record")
    first.kill(signal.SIGKILL)
    first.wait()
    stale = (victim / ".lock").read_text()
    expect(str(first.pid) in stale, "the lock does not name its holder")
    expect_code(0, *run([f"resume='{victim}'", "trainer.max_epochs=1"], out))
    return Row("a second writer; a stale lock", 3, 3, "exit code 5 with the holder's process id; taken over")


def together(folder: Path, options: list[str], pairs: int = 5) -> Row:
    """Start two runs at the same instant in one folder, whose name has a reference in it: exactly one writes."""
    longer = [*options, "trainer.max_epochs=5000"]
    for number in range(pairs):
        place = f"hydra.run.dir='{folder}/pair{number}-${{hydra.job.name}}'"
        # Only a run that is still under way can refuse the other: on a busy machine a short one would be over before.
        children = {
            seed: Child([*longer, f"seed={seed}", place], folder / f"pair{seed}.txt", announce) for seed in (1, 2)
        }
        first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        refused = next(seed for seed, child in children.items() if first is not None and child.pid == first.si_pid)
        expect_code(5, children[refused].wait(), children[refused].text())
        writer = children[3 - refused]
        expect(writer.reach("t"), f"neither run trained: {writer.text()[-1000:]}")
        writer.kill(signal.SIGTERM)
        expect_code(128 + signal.SIGTERM, writer.wait(), writer.text())
        config = (folder / f"pair{number}-train" / ".hydra" / "config.yaml").read_text()
        expect(f"seed: {3 - refused}" in config, "the refused run changed .hydra")
        code, text = run([*options, place], folder / "third.txt")
        expect_code(2, code, text)
    return Row(
        "two runs at the same instant in one folder",
        2 * pairs,
        2 * pairs,
        "one trained until it was stopped, one ended with 5",
    )


def verb(*arguments: object, shell: str = "{}") -> tuple[int, str]:
    """Run a command of cnnlab's in a process of its own, in a line of the shell's; return exit code and output."""
    words = [sys.executable, "-c", "from cnnlab.cli import app; app()", *map(str, arguments)]
    line = "set -o pipefail; " + shell.replace("{}", " ".join(map(shlex.quote, words)))
    process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, errors="replace", timeout=300)
    return process.returncode, process.stdout + process.stderr


def surroundings(folder: Path, options: list[str], good: Path, out: Path) -> Iterator[Row]:
    """What a shell, a disk or a crowd may do to commands."""
    evaluate = ("evaluate", good, "--no-figures")
    shells = [
        "{} 2>&-", "{} >&-", "{} <&- >&- 2>&-", "{} | head -c 10", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}",
        "PYTHONIOENCODING=latin-1 {}", "RANK=1 SLURM_PROCID=3 {}", "env -u HOME -u TERM {}",
    ]  # fmt: skip
    for shell in shells:
        expect_code(0, *verb(*evaluate, shell=shell))
    yield Row("closed, unread, ASCII and Latin-1 streams; stale ranks", len(shells), len(shells), "exit code 0")

    gone = f"mkdir {folder}/gone; cd {folder}/gone; rmdir {folder}/gone; {{}}"
    for shell, code in ((gone, 5), ("{} >/dev/full", 5)):
        text = expect_code(code, *verb(*evaluate, shell=shell))
        expect("working folder was deleted" in text or "No space left" in text, text)
    yield Row("a deleted working folder, a full output", 2, 2, "exit code 5, what and why is said")

    braces = folder / "${HOME}"
    braces.mkdir()
    expect_code(0, *verb(*evaluate, shell=f"cd '{braces}'; {{}}"))
    expect_code(2, *verb("train", *options, shell=f"cd '{braces}'; {{}}"))
    yield Row("a working folder called ${HOME}", 2, 2, "evaluated; training is refused with 2")

    yield full_export(good)

    pictures = folder / "pictures"
    for split, name in itertools.product(("train", "test"), "ab"):
        (pictures / split / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(pictures / split / name / f"{number}.png")
    packed = folder / "packed.npz"
    (folder / ".packed.npz.1-00000000.part").write_bytes(b"left by a killed process")

    def pack() -> None:
        from cnnlab.cli import app

        app(["data", "pack", str(pictures), str(packed), "--size", "8"])

    packers = [Child([], folder / f"pack{number}.txt", call=pack) for number in range(4)]
    codes = sorted(packer.wait() for packer in packers)
    expect(codes == [0, 2, 2, 2], f"four packed at once: {codes}: {[packer.text()[-500:] for packer in packers]}")
    expect(not list(folder.glob(".packed*")), "a temporary file is left")
    yield Row("four data pack to one name; a killed one's file", 4, 4, "one wrote, three ended with 2; cleaned up")

    inside = folder / "work" / "outputs"
    shutil.copytree(good, inside / "good")
    for name in ("closed", "damaged"):
        shutil.copytree(good, inside / name)
    (inside / "damaged" / "run.json").write_text("")
    os.utime(inside / "damaged" / "run.json", (0, 0))  # or it would be the last one, and named as damaged
    (inside / "closed").chmod(0)
    try:
        for name in ("last", "best"):
            hook = functools.partial(_enter, folder / "work")
            child = Child([], out, hook, call=functools.partial(_app, "evaluate", name, "--no-figures"))
            expect_code(0, child.wait(), child.text())
        child = Child([], out, functools.partial(_enter, folder / "work"), call=functools.partial(_app, "runs"))
        text = expect_code(0, child.wait(), child.text())
        expect("damaged" in text and "closed" in text, f"nothing is said of what was left out: {text}")
    finally:
        (inside / "closed").chmod(0o755)
    yield Row("an unreadable and a damaged run below outputs", 3, 3, "the others are listed, found, evaluated")

    victim = copy(good, folder)
    for path in (*victim.rglob("*"), victim):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        elsewhere = folder / "elsewhere"
        call = functools.partial(_app, "evaluate", str(victim), "--no-figures", "--output", str(elsewhere))
        child = Child([], out, lambda tell: without_rights(), call=call)
        expect_code(0, child.wait(), child.text())
        expect((elsewhere / "evaluation.json").is_file(), "nothing was written")
    finally:
        for path in (victim, *victim.rglob("*")):
            path.chmod(0o755)
    yield Row("evaluate --output of a run that may only be read", 1, 1, "written elsewhere")


def _app(*arguments: str) -> None:
    from cnnlab.cli import app

    app(list(arguments))


def _enter(folder: Path, tell: Callable[[str], None]) -> None:
    os.chdir(folder)
    without_rights()


def full_export(good: Path) -> Row:
    """Export to a disk that is full, and log to one."""
    formats = ("safetensors", "torch_export")
    with small_disk(0.1) as disk:
        if disk is None:
            return Row("a full disk in export", 1, 1, "not tried: nothing may be mounted here")
        for format in formats:
            path = disk / f"model-{format}"
            text = expect_code(5, *verb("export", good, "--format", format, "--output", path))
            expect(str(path) in text and "No space left" in text, f"the file is not named: {text}")
            expect(not list(disk.iterdir()), "something half-written is left")
    return Row("a full disk in export", len(formats), len(formats), "exit code 5, the file named, nothing left")


def odd(folder: Path, options: list[str], out: Path) -> Iterator[Row]:
    """Things that must not stop a run."""
    names = ["with space", "ünïcode-目", "a=b,c", "it's [x] {y}", 'say "x"', "$HOME #1 \\n"]
    for name in names:
        place = quote(folder / "odd" / name)
        code, text = run([*options, "trainer.max_epochs=1", f"hydra.run.dir={place}"], out)
        expect_code(0, code, text)
        expect((folder / "odd" / name / "metrics.json").is_file(), f"{name}: written elsewhere")
        expect_code(0, *run([f"resume={place}", "trainer.max_epochs=2"], out))
    yield Row("paths with spaces, unicode, = and commas", 2 * len(names), 2 * len(names), "trained, and gone on with")

    def backward(tell: Callable[[str], None]) -> None:
        clock, ticks = time.time, iter(range(10**9))
        time.time = lambda: clock() - 3600 * next(ticks)

    def elsewhere(tell: Callable[[str], None]) -> None:
        os.environ |= {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8", "LANG": "C"}
        time.tzset()

    def swept(tell: Callable[[str], None]) -> None:
        from cnnlab.callbacks import Checkpoint

        plain = Checkpoint.on_validation_start

        def gone(self: Checkpoint, trainer, pl_module) -> None:
            shutil.rmtree(Path(trainer.default_root_dir) / "tensorboard", ignore_errors=True)
            plain(self, trainer, pl_module)

        Checkpoint.on_validation_start = gone  # type: ignore[method-assign]

    hooks = (backward, elsewhere, swept)
    for hook in hooks:
        victim = folder / "odd" / hook.__name__
        expect_code(0, *run([*options, f"hydra.run.dir='{victim}'"], out, hook))
        expect(read(victim / "run.json")["status"] == "completed", f"{hook.__name__} is not completed")
    yield Row("a clock set back, odd zone and locale, events deleted", len(hooks), len(hooks), "went on")
