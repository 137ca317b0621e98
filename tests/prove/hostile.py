"""Files of a stranger: whatever they ask for, nothing is executed and nothing is written elsewhere."""

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.checkpoint import seal
from tests.prove import strangers
from tests.prove.child import run
from tests.prove.resume import data
from tests.prove.table import Row, expect

OPTIONS = ["data=npz", "data.val_size=200", "callbacks.figures=null", "trainer.max_epochs=1"]

REFUSED = (2, 3, 4, 8)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(canary: Path) -> list[Payload]:
    """Return objects whose unpickling would touch a file."""
    code = f"open({str(canary)!r}, 'w').close()"
    return [
        Payload(os.system, f"touch '{canary}'"),
        Payload(eval, code),
        Payload(exec, code),
        Payload(open, str(canary), "w"),
        Payload(os.mkdir, str(canary)),
        Payload(shutil.copy, "/etc/hostname", str(canary)),
        Payload(np.save, str(canary), 1),
        Payload(Path.touch, canary),
    ]


def prove(folder: Path, inputs: int, seed: int = 0) -> Iterator[Row]:
    """Have train.py and the verbs take hostile files: all of the list (below 50, some), and as many drawn at random."""
    expect(os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1", "the environment is not as bad as it could be")
    good, npz, canary, out = folder / "good", data(folder), folder / "canary", folder / "out.txt"
    code, text = run([*OPTIONS, f"data.path='{npz}'", f"hydra.run.dir='{good}'"], out)
    expect(code == 0, text[-2000:])
    total = 0
    for promise, tries in (
        ("checkpoints that are pickles", checkpoints(folder, good, canary, out)),
        ("npz files with objects, or pickles", arrays(folder, canary, out)),
        ("run folders that name code or other places", folders(folder, good, canary, out)),
        ("tar archives that lead outside", tars(folder)),
    ):
        codes = []
        for name, code in tries if inputs >= 50 else islice(tries, max(1, inputs // 4)):
            expect(not canary.exists(), f"{promise}: {name} was executed")
            expect(code in REFUSED, f"{promise}: {name} ended with {code}: {out.read_text()[-1500:]}")
            codes.append(code)
        total += len(codes)
        yield Row(promise, len(codes), len(codes), f"exit codes {', '.join(map(str, sorted(set(codes))))}")
    drawn = max(inputs - total, inputs * 2 // 3)
    yield from strangers.prove(folder, good, drawn, seed)
    total += drawn
    yield Row("executions", total, total, "0 of them")


def checkpoints(folder: Path, good: Path, canary: Path, out: Path) -> Iterator[tuple[str, int]]:
    """Resume runs whose checkpoints are hostile: sealed, unsealed, in torch's older format, bare pickles."""
    from cnnlab.errors import CnnlabError
    from cnnlab.restore import restore

    state = torch.load(good / "checkpoints" / "last.ckpt", weights_only=True)
    for number, payload in enumerate(payloads(canary)):
        forms: dict[str, bytes] = {}
        buffer = io.BytesIO()
        torch.save(state | {"epoch": payload}, buffer)
        forms["sealed"] = b"".join(seal(buffer.getvalue()))
        if number % 4 == 0:
            forms["unsealed"] = buffer.getvalue()
            buffer = io.BytesIO()
            torch.save(state | {"epoch": payload}, buffer, _use_new_zipfile_serialization=False)
            forms["older"] = buffer.getvalue()
        if number % 4 == 1:
            forms["pickle"] = pickle.dumps(payload, protocol=number % 6)
        for form, content in forms.items():
            victim = folder / "victim"
            shutil.rmtree(victim, ignore_errors=True)
            shutil.copytree(good, victim)
            (victim / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
            for name in ("last", "best"):
                (victim / "checkpoints" / f"{name}.ckpt").write_bytes(content)
            name = f"{form} {payload.call[0].__name__}"
            if number % 2 == 0:
                yield name, run([f"resume='{victim}'", "trainer.max_epochs=2"], out)[0]
            try:
                restore(str(victim))
            except CnnlabError as error:
                yield f"{name}, restored", error.exit_code
            else:
                yield f"{name}, restored", 0


def arrays(folder: Path, canary: Path, out: Path) -> Iterator[tuple[str, int]]:
    """Train on npz files that hold objects, and on pickles with an npz name."""
    fine = np.zeros((100, 8, 8, 3), np.uint8)
    path = folder / "hostile.npz"
    for number, payload in enumerate(payloads(canary)):
        objects = np.array([payload] * 100, dtype=object)
        if number % 2:
            path.write_bytes(pickle.dumps({"X_train": payload}, protocol=number % 6))
        else:
            key = ("y_train", "X_train", "classes", "y_test")[number // 2]
            content = {"X_train": fine, "y_train": np.arange(100) % 10, "X_test": fine, "y_test": np.arange(100) % 10}
            np.savez(path, **(content | {key: objects}))  # type: ignore[arg-type]
        code, _ = run(
            [*OPTIONS, "data.val_size=20", f"data.path='{path}'", f"hydra.run.dir='{folder}/npz{number}'"], out
        )
        yield f"{payload.call[0].__name__} as {'pickle' if number % 2 else key}", code


def folders(folder: Path, good: Path, canary: Path, out: Path) -> Iterator[tuple[str, int]]:
    """Resume runs whose folder was written by a stranger."""
    touch = f"touch {canary}"
    lines = {
        "a callback": f"+callbacks.x={{_target_: os.system, command: '{touch}'}}",
        "a nested call": f"+callbacks.x={{_target_: pytorch_lightning.callbacks.LambdaCallback, on_fit_start: "
        f"{{_target_: os.system, command: '{touch}'}}}}",
        "a module's import": f"+callbacks.x={{_target_: cnnlab.run.os.system, command: '{touch}'}}",
        "a logger": f"+logger.x={{_target_: subprocess.getoutput, cmd: '{touch}'}}",
        "a network": "model._target_=os.system",
        "an optimizer": "optimizer._target_=builtins.exec",
        "a plugin": f"trainer.plugins={{_target_: os.system, command: '{touch}'}}",
        "a profiler": f"trainer.profiler={{_target_: os.system, command: '{touch}'}}",
        "a strategy": f"trainer.strategy={{_target_: os.system, command: '{touch}'}}",
        "the Trainer": "trainer._target_=os.system",
        "an augmentation": f"+augment.x={{_target_: builtins.eval, source: '{touch}'}}",
        "a schedule": "schedule._target_=torch.hub.load",
        "a resolver": "optimizer.lr=${oc.decode:0.1}",
        "the environment": "logger.tensorboard.name=${oc.env:HOME}",
        "another place": "logger.tensorboard.save_dir=/tmp/elsewhere",
        "another root": "trainer.default_root_dir=/tmp/elsewhere",
        "data to be drawn elsewhere": "data.path=/tmp/elsewhere/x.npz",
        "our own writer": f"+callbacks.x={{_target_: cnnlab.record.write_text, path: x, text: '{touch}'}}",
        "our own lock": "+callbacks.x={_target_: cnnlab.lock.take, folder: x}",
        "what removes what a checkpoint names": "+callbacks.x={_target_: pytorch_lightning.callbacks.ModelCheckpoint}",
        "a callback that computes": "+callbacks.x={_target_: pytorch_lightning.callbacks.LambdaCallback, "
        "on_fit_start: {_target_: torch.nn.utils.clip_grad_norm_, _partial_: true}}",
        "a function of torch's": "model._target_=torch.nn.functional.relu",
        "a network as a callback": "+callbacks.x={_target_: torch.nn.Linear, in_features: 1, out_features: 1}",
        "data as a callback": "+callbacks.x={_target_: cnnlab.data.ImageData, path: x.npz, source: shapes}",
        "an optimizer's function": "optimizer._target_=torch.optim.swa_utils.get_ema_avg_fn",
        "a metric that downloads": "model._target_=torchmetrics.image.FrechetInceptionDistance",
        "a logger that sends": "+logger.x={_target_: pytorch_lightning.loggers.WandbLogger, project: x}",
        "a folder beside": "logger.tensorboard.save_dir=elsewhere",
        "who is trusted": f"+callbacks.x={{_target_: os.system, command: '{touch}'}}",
        "yaml that makes objects": f"!!python/object/apply:os.system ['{touch}']",
    }
    for name, line in lines.items():
        victim = fresh(folder, good)
        kept = (victim / ".hydra" / "overrides.yaml").read_text()
        if name == "who is trusted":
            kept += "- trusted=[os]\n"
        if name == "data to be drawn elsewhere":
            kept += "- data.source=shapes\n"
        quoted = line if line.startswith("!!") else '"' + line.replace('"', '\\"') + '"'
        (victim / ".hydra" / "overrides.yaml").write_text(f"{kept}- {quoted}\n")
        yield name, run([f"resume='{victim}'", "trainer.max_epochs=2"], out)[0]
    for name in ("train.log", "checkpoints", "figures", "tensorboard"):
        victim = fresh(folder, good)
        place = victim / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.symlink_to(folder / "outside")
        yield f"{name} as a link", run([f"resume='{victim}'", "trainer.max_epochs=2"], out)[0]
        expect(not (folder / "outside").exists(), f"{name}: written through a link")
    victim = fresh(folder, good)
    yield "hydra's own rerun", run(["--experimental-rerun", str(victim / ".hydra" / "config.pickle")], out)[0]


def fresh(folder: Path, good: Path) -> Path:
    """Return a copy of a run's folder."""
    victim = folder / "victim"
    shutil.rmtree(victim, ignore_errors=True)
    shutil.copytree(good, victim)
    return victim


def tars(folder: Path) -> Iterator[tuple[str, int]]:
    """Convert archives whose members lead outside."""
    from cnnlab.data import cifar
    from cnnlab.errors import CnnlabError

    inside = folder / "tars"
    inside.mkdir()
    wanted = "cifar-10-batches-bin/data_batch_1.bin"
    for name, kind in (
        ("../escaped", tarfile.REGTYPE), ("/tmp/escaped", tarfile.REGTYPE), ("a/../../escaped", tarfile.REGTYPE),
        (wanted, tarfile.SYMTYPE), (wanted, tarfile.LNKTYPE), (wanted, tarfile.CHRTYPE), (wanted, tarfile.FIFOTYPE),
    ):  # fmt: skip
        path = inside / "hostile.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        try:
            cifar.convert("cifar10", path, inside / "x.npz")
        except CnnlabError as error:
            yield name, error.exit_code
        else:
            yield name, 0
        expect([each.name for each in inside.iterdir()] == ["hostile.tar.gz"], f"{name}: something was written")
        expect(not (folder / "escaped").exists(), f"{name}: something was written outside")
