"""Run folders of strangers drawn at random, and a verb for each: nothing runs, leaks, hangs or is unexpected."""

import json
import os
import random
import resource
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cnnlab.checkpoint import write_checkpoint, write_sealed
from cnnlab.config import quote
from tests.prove.child import Child
from tests.prove.table import Row, expect

SECRET = "s3cr3t-0f-th3-3nv1r0nm3nt"
ESCAPES = "\x1b]0;title\x07\x1b[31mred\x1b[2J\x9b5A\x1b]8;;http://x\x1b\\"
TEXTS = ("run.json", "metrics.json", "history.csv", ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml")
FILES = (*TEXTS, "train.log", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "evaluation.json", "evaluation.npz")
FOLDERS = ("checkpoints", "tensorboard", "figures", "wandb", "csv")
SECTIONS = ("model", "data", "metrics", "eval", "trainer", "loss", "optimizer", "logger", "callbacks", "augment")
MOST_SECONDS = 10.0  # of the processor's time

Damage = Callable[[Path, random.Random], object]


class World:
    """What a stranger aims at: a file that appears if something runs, and one of the user's outside of the run."""

    def __init__(self, folder: Path) -> None:
        self.canary, self.outside = folder / "canary", folder / "outside"
        self.outside.mkdir()
        (self.outside / "mine.txt").write_text("mine")

    def call(self, chance: random.Random) -> dict[str, Any]:
        """Return a section that runs something, once it is built."""
        touch = f"touch {self.canary}"
        return chance.choice(
            [
                {"_target_": "os.system", "command": touch},
                {"_target_": "subprocess.getoutput", "cmd": touch},
                {"_target_": "builtins.open", "file": str(self.canary), "mode": "w"},
                {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(self.canary)]}},
                {"_target_": "torch.nn.Sequential", "_args_": ({"_target_": "os.system", "command": touch},)},
                {"_target_": "cnnlab.files.write_text", "path": str(self.canary), "text": "x"},
                {"_target_": "os.system", "_partial_": True, "command": {"_target_": "os.system", "command": touch}},
            ]
        )

    def text(self, chance: random.Random) -> str:
        """Return a text that means more to somebody than its letters."""
        return chance.choice(
            [
                "${oc.env:CNNLAB_SECRET}", "$CNNLAB_SECRET", "${CNNLAB_SECRET}", "~", "${oc.decode:${oc.env:HOME}}",
                "${hydra:runtime.cwd}", str(self.outside / "mine.txt"), "../outside", ESCAPES, f"x{ESCAPES}", "\ud800",
                "=HYPERLINK(1)", "a" * 100_000, "<script>alert(1)</script>", "[red]x[/red]", "\x00", "\u202e",
            ]
        )  # fmt: skip

    def value(self, chance: random.Random, depth: int = 0) -> Any:
        """Return a value of any type that a pickle of containers and tensors can hold."""
        if depth < 4 and chance.random() < 0.5:
            inner = [self.value(chance, depth + 1) for _ in range(chance.randrange(4))]
            return chance.choice(
                [inner, tuple(inner), OrderedDict(enumerate(inner)), {f"k{i}": v for i, v in enumerate(inner)}]
            )
        return chance.choice(
            [
                None, True, 0, -1, 2**62, 10**400, 1.5, float("nan"), float("inf"), b"bytes", {}, [], (), {1}, {(): 1},
                {None: 1}, torch.zeros(2), torch.zeros(1).expand(10**6), self.text(chance), self.call(chance),
                (self.call(chance),), [(OrderedDict(self.call(chance)),)], _nest(chance.choice([60, 200])),
            ]
        )  # fmt: skip


def _nest(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def prove(folder: Path, good: Path, inputs: int, seed: int) -> Iterator[Row]:
    """Draw so many strange folders, and have a verb take each."""
    os.environ["CNNLAB_SECRET"] = SECRET
    chance, world = random.Random(seed), World(folder)
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    damages = settings, records, places, packed, lines
    seconds: dict[str, list[float]] = {damage.__name__: [] for damage in damages}
    codes: dict[str, set[int]] = {damage.__name__: set() for damage in damages}
    for number in range(inputs):
        damage = damages[number % len(damages)]
        victim = folder / "stranger"
        shutil.rmtree(victim, ignore_errors=True)
        shutil.copytree(good, victim)
        told = damage(world, victim, chance)
        code, cost = attempt(world, folder, victim, "resume" if damage is lines else chance.choice(VERBS), told)
        seconds[damage.__name__].append(cost)
        codes[damage.__name__].add(code)
    for damage in damages:
        spent = seconds[damage.__name__]
        figure = (
            f"exit codes {', '.join(map(str, sorted(codes[damage.__name__])))}; at most {max(spent, default=0):.1f} s"
        )
        yield Row(f"drawn: {(damage.__doc__ or '').rstrip('.')}", len(spent), len(spent), figure)


VERBS = ("evaluate", "evaluate", "predict", "export", "report", "runs", "compare", "show", "resume")


def attempt(world: World, folder: Path, victim: Path, verb: str, told: str) -> tuple[int, float]:
    """Have a verb take a folder; return the exit code and the processor's seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    inside = set(folder.iterdir())
    child = Child([f"resume={quote(victim)}", "trainer.max_epochs=2"], folder / "out.txt", call=_verb(verb, victim))
    code = child.wait(90)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text, what = child.output.read_bytes(), f"{verb} of {told}"
    tail = text[-1500:].decode(errors="replace")
    expect(not world.canary.exists(), f"{what} executed something")
    expect(code in (0, 2, 3, 4, 5, 7, 8), f"{what} ended with {code}: {tail}")
    expect(b"unexpected" not in text and b"Traceback" not in text, f"{what} is unexpected: {tail}")
    expect(SECRET.encode() not in text, f"{what} printed a secret: {tail}")
    expect(not {"\x1b", "\x07", "\x9b"} & set(text.decode(errors="replace")), f"{what} commands: {tail!r}")
    expect(cost < MOST_SECONDS, f"{what} took {cost:.1f} s")
    mine = world.outside / "mine.txt"
    expect([*world.outside.iterdir()] == [mine] and mine.read_text() == "mine", f"{what} wrote outside")
    new = set(folder.iterdir()) - inside - {folder / "out.txt"}
    expect(not new, f"{what} wrote {new} beside the run")
    for path in victim.rglob("*"):
        expect(SECRET not in path.name, f"{what} named {path} by a secret")
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24
        if small and path.suffix in (".json", ".html", ".csv", ".yaml"):
            expect(SECRET.encode() not in path.read_bytes(), f"{what} wrote a secret into {path}")
    return code, cost


def _verb(verb: str, victim: Path) -> Callable[[], object] | None:
    if verb == "resume":
        return None
    name = str(victim)
    arguments = {
        "evaluate": [name, "--no-figures"], "predict": [name, str(victim.parent / "picture.png")],
        "export": [name, "--format", "safetensors"], "report": [name], "runs": [name, "--csv"],
        "compare": [name, str(victim.parent / "good")], "show": ["filters", name],
    }[verb]  # fmt: skip

    def call() -> None:
        from cnnlab.cli import app

        app([verb, *arguments])

    return call


def settings(world: World, victim: Path, chance: random.Random) -> str:
    """Settings of other types in a checkpoint, with calls hidden in them."""
    name = chance.choice(["best", "last"])
    content = torch.load(victim / "checkpoints" / f"{name}.ckpt", weights_only=True)
    hyper = content["hyper_parameters"]
    section: Any = chance.choice([content, hyper, hyper["config"], *(hyper["config"].get(key) for key in SECTIONS)])
    if not isinstance(section, dict):
        section = hyper["config"]
    key, value = chance.choice([*section, "extra"]), world.value(chance)
    if chance.random() < 0.5:
        section, key = hyper["config"][chance.choice(["model", "model", "metrics"])], "extra"
        value = world.call(chance)
        for _ in range(chance.randrange(4)):
            value = chance.choice([(value,), [value], {"k": value}, OrderedDict(k=value), (1, value)])
    section[key] = value
    write_checkpoint(content, victim / "checkpoints" / f"{name}.ckpt")
    if name == "last":
        (victim / "checkpoints" / "best.ckpt").unlink()
    return f"{key}={section[key]!r:.200}"


def records(world: World, victim: Path, chance: random.Random) -> str:
    """Records of other types, damaged, or with texts that command."""
    name = chance.choice(TEXTS)
    value: Any = chance.choice([None, 5, "x", [], {}, [[]], True, 1e308, world.text(chance)])
    if name.endswith(".json") and chance.random() < 0.7:
        content = json.loads((victim / name).read_text())
        content[chance.choice([*content, "extra"])] = value
        text = json.dumps(content).encode()
    else:
        text = chance.choice(
            [
                b"", b"{", b"[" * 20_000, b'{"a":' * 20_000, chance.randbytes(50), b"\xff\xfe", b"1" * 5000, b"NaN",
                json.dumps(value).encode(), f"epoch,{world.text(chance)}\n1,2\n".encode(errors="replace"), b"&a [*a]",
                b"- !!python/name:os.system",
            ]
        )  # fmt: skip
    (victim / name).write_bytes(text)
    return f"{name}: {text!r:.100}"


def places(world: World, victim: Path, chance: random.Random) -> str:
    """Pipes, devices, folders, links and links of links in the place of a file."""
    name = chance.choice([*FILES, *FOLDERS])
    path = victim / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    kind = chance.choice(["fifo", "zero", "folder", "outside", "loop", "dangling", "hard", "sparse"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "hard":
        path.hardlink_to(world.outside / "mine.txt")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**36)
    elif kind == "loop":
        path.symlink_to(path.with_name("loop"))
        path.with_name("loop").symlink_to(path)
    else:
        mine = world.outside if name in FOLDERS else world.outside / "mine.txt"
        path.symlink_to({"zero": Path("/dev/zero"), "outside": mine, "dangling": world.outside / "new"}[kind])
    return f"{name} as {kind}"


def packed(world: World, victim: Path, chance: random.Random) -> str:
    """Checkpoints whose zip file is packed, doubled, cut or lies about itself."""
    path = victim / "checkpoints" / chance.choice(["best.ckpt", "last.ckpt"])
    (victim / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    content = path.read_bytes()
    kind = chance.choice(["packed", "bomb", "doubled", "flipped", "cut", "named"])
    if kind in ("flipped", "cut"):
        at = chance.randrange(len(content))
        path.write_bytes(content[:at] + (b"" if kind == "cut" else bytes([content[at] ^ 1]) + content[at + 1 :]))
        return kind
    part = victim / "part.zip"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(part, "w") as spoilt:
        for member in whole.infolist():
            packing = zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
            name = f"../../{member.filename}" if kind == "named" else member.filename
            data = whole.read(member)
            spoilt.writestr(name, data + bytes(2**28 if kind == "bomb" and "data/0" in name else 0), packing)
            if kind == "doubled" and member.filename.endswith("data.pkl"):
                with warnings.catch_warnings(action="ignore"):
                    spoilt.writestr(name, b"cos\nsystem\n(S'true'\ntR.", packing)
    write_sealed(path, part.read_bytes())
    part.unlink()
    return kind


def lines(world: World, victim: Path, chance: random.Random) -> str:
    """Overrides that name code, places, secrets, other loggers, or take long to read."""
    call = chance.choice(["os.system", "builtins.eval", "torch.hub.load", "cnnlab.files.write_text", "subprocess.run"])
    place = chance.choice(
        [str(world.outside), "../outside", "~/x", "$CNNLAB_SECRET", "${oc.env:CNNLAB_SECRET}", "null"]
    )
    section = chance.choice(["callbacks", "logger", "augment", "init", "metrics"])
    plus = chance.choice(["", "+", "++"])
    line = chance.choice(
        [
            f"{plus}{section}.x={{_target_: {call}, command: 'touch {world.canary}'}}",
            f"{plus}{section}.x={{_target_: torch.nn.Sequential, _args_: [{{_target_: {call}}}]}}",
            f"{chance.choice(['model', 'optimizer', 'schedule', 'trainer', 'data', 'loss'])}._target_={call}",
            f"trainer.default_root_dir={place}", f"logger.tensorboard.{chance.choice(['save_dir', 'name'])}={place}",
            "logger.tensorboard.version=$CNNLAB_SECRET", "logger.tensorboard.version=${oc.env:CNNLAB_SECRET}",
            f"logger={chance.choice(['wandb', 'mlflow', '[tensorboard,wandb]', '[mlflow,csv]'])}",
            "+logger.x={_target_: pytorch_lightning.loggers.WandbLogger, project: x}",
            f"{plus}trainer.profiler={{_target_: {call}}}", "seed=${oc.decode:1}", "note=${oc.env:CNNLAB_SECRET}",
            f"data.classes=[{','.join('a' * chance.choice([10, 20_000]))}]", f"note={'[' * 400}{']' * 400}",
            f"hydra.run.dir={world.outside}", f"hydra.job_logging.handlers.file.filename={world.outside}/log",
            f"hydra.searchpath=[file://{world.outside}]", f"trusted=[{call.split('.')[0]}]", f"resume={world.outside}",
            "callbacks.checkpoint._target_=pytorch_lightning.callbacks.ModelCheckpoint", f"note={ESCAPES}",
            f"+callbacks.x={{_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: {world.outside}}}",
        ]
    )  # fmt: skip
    path = victim / ".hydra" / "overrides.yaml"
    escaped = "".join(f"\\x{ord(letter):02x}" if ord(letter) < 32 or ord(letter) > 126 else letter for letter in line)
    quoted = escaped.replace("\\x", "\0").replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\x")
    path.write_text(f'{path.read_text()}- "{quoted}"\n')
    return line[:200]
