"""What users extend, each in the lines that it may take, in a project made by `cnnlab new` beside an installed wheel.

Each row is trained, killed and resumed to the same bits, swept, evaluated, predicted, exported and reported.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import drawn, read
from tests.installed import Installed, Step, build_wheel, install
from tests.prove.resume import compare, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATA = "defaults: [npz, _self_]\npath: data.npz\nval_size: 80\nbatch_size: 32\n"
BASE = """\
defaults: [override /data: base]
trainer: {max_epochs: 2}
callbacks: {figures: null, dashboard: null, checkpoint: {every_n_steps: 3}}
"""
FILES = {"conf/project.yaml": BASE, "conf/data/base.yaml": DATA}


class Row(NamedTuple):
    """What a user adds.

    Attributes:
        yaml: Most lines of config that it may take: those of files, and the values on the command line.
        py: Most lines of Python.
        words: The command line.
        files: Texts of files of the project by name.
        sweep: What is swept.
        predicted: What is predicted.
    """

    yaml: int
    py: int
    words: Sequence[str] = ()
    files: Mapping[str, str] = {}
    sweep: str = "seed=0,1"
    predicted: str = "pictures"


NETWORK = """\
from torch import nn
from cnnlab.bounds import PositiveInt

class Net(nn.Sequential):
    def __init__(self, in_channels: int, num_classes: int, width: PositiveInt = 8):
        super().__init__(
            nn.Conv2d(in_channels, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes),
        )
"""
LOSS = """\
import torch.nn.functional as F
from torch import nn

class Loss(nn.Module):
    def __init__(self, num_classes, penalty=0.01):
        super().__init__()
        self.penalty = penalty
    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets) + self.penalty * logits.square().mean()
"""
METRIC = """\
import torch
from torchmetrics import Metric

class Wrong(Metric):
    higher_is_better = False
    def __init__(self):
        super().__init__()
        self.add_state("wrong", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
    def update(self, logits, targets):
        self.wrong += (logits.argmax(1) != targets).sum()
        self.count += len(targets)
    def compute(self):
        return self.wrong / self.count
"""
AUGMENTATION = """\
import torch

class Invert:
    def __init__(self, share: float = 0.5):
        self.share = share
    def __call__(self, batch, generator, epoch):
        images = batch.images
        chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < self.share
        return batch._replace(images=torch.where(chosen, 255 - images, images))
"""
OPTIMIZER = """\
import torch
class Signed(torch.optim.Optimizer):
    def __init__(self, params, lr=0.001):
        super().__init__(params, {"lr": lr})
    def step(self, closure=None):
        loss = closure()
        for lr, weight in ((group["lr"], weight) for group in self.param_groups for weight in group["params"]):
            average = self.state[weight].setdefault("average", torch.zeros_like(weight))
            weight.data -= lr * average.lerp_(weight.grad, 0.1).sign()
        return loss
"""
SCHEDULE = """\
class Halving:
    def __init__(self, times: int = 3):
        self.times = times
    def __call__(self, step, total_steps):
        return 0.5 ** (self.times * step // total_steps)
"""
SCHEDULER = """\
from torch.optim.lr_scheduler import LRScheduler

class Root(LRScheduler):
    def __init__(self, optimizer, power: float = 0.5):
        self.power = power
        super().__init__(optimizer)
    def get_lr(self):
        return [lr * (self.last_epoch + 1) ** -self.power for lr in self.base_lrs]
"""
INIT = """\
from torch import nn

class Orthogonal:
    def __call__(self, network, images):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
"""
CALLBACK = """\
from pytorch_lightning import Callback

class Seen(Callback):
    images = 0
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.images += len(batch.images)
    def state_dict(self):
        return {"images": self.images}
    def load_state_dict(self, state):
        self.images = state["images"]
"""
LOGGER = """\
from pytorch_lightning.loggers.logger import Logger

class Lines(Logger):
    name = version = "lines"
    def __init__(self, path):
        self.path = path
    def log_hyperparams(self, params, *args, **kwargs): ...
    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file: print(step, metrics, file=file)
"""
MEAN_TEACHER = """\
import copy
import torch
from cnnlab import Classifier

class MeanTeacher(Classifier):
    def __init__(self, network, num_classes, decay: float = 0.9, weight: float = 1.0, **options):
        super().__init__(network, num_classes, **options)
        self.decay, self.weight = decay, weight
        self.teacher = copy.deepcopy(network).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.reseed()
        with torch.no_grad():
            for theirs, ours in zip(self.teacher.parameters(), self.network.parameters()):
                theirs.lerp_(ours, 1 - self.decay)
            answers = self.teacher(batch.images).softmax(1)
        logits = self.network(batch.images)
        distance = (logits.softmax(1) - answers).square().mean()
        self.log("train/distance", distance, on_step=False, on_epoch=True)
        return {"loss": self.loss(logits, batch.targets) + self.weight * distance, "logits": logits.detach()}
"""
SELF_SUPERVISED = """\
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import nn

class Rotations(LightningModule):
    def __init__(self, network, num_classes, loss, optimizer):
        super().__init__()
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.turn = nn.Linear(num_classes, 4)

    def step(self, batch, name):
        turns = torch.arange(len(batch.images), device=self.device) % 4
        images = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(batch.images, turns)])
        auxiliary = F.cross_entropy(self.turn(self.network(images)), turns)
        logits = self.network(batch.images)
        right = (logits.argmax(1) == batch.targets).float().mean()
        self.log_dict({f"{name}/accuracy": right, f"{name}/turn_loss": auxiliary}, batch_size=len(turns),
                      on_step=False, on_epoch=True)
        return self.loss(logits, batch.targets) + auxiliary

    def training_step(self, batch, batch_idx):
        loss = self.step(batch, "train")
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def configure_optimizers(self):
        return self.optimizer(self)
"""
PHOTOS = """\
from pathlib import Path
from PIL import Image
class Photos:
    def __init__(self, folder="photos"):
        self.paths = sorted(Path(folder).glob("*/*.jpg"))
        self.targets = [int(path.parent.name == "dogs") for path in self.paths]
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, row):
        return Image.open(self.paths[row]).convert("RGB").resize((224, 224)), self.targets[row]
"""
MODULE = """\
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset
class Noise(LightningDataModule):
    classes = ("dark", "bright")
    def setup(self, stage):
        targets = torch.arange(200) % 2
        images = torch.rand(200, 3, 24, 24) / 2 + targets[:, None, None, None] / 2
        self.train, self.held_out = TensorDataset(images, targets), TensorDataset(images[:40], targets[:40])
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=20)
    test_dataloader = val_dataloader
"""
SMALLER = ["augment.resized_crop.size=64", "eval.resize=64"]
TIMM = """\
from torch import nn
def create_model(model_name, pretrained=False, **kwargs):
    assert not pretrained
    head = nn.Linear(16 * kwargs["in_chans"], kwargs["num_classes"])
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), head)
"""

ROWS = {
    "network, recipe": Row(
        6, 20, ["experiment=wide"],
        {
            "nets.py": NETWORK,
            "conf/model/net.yaml": "defaults: [custom, _self_]\n_target_: nets.Net\n",
            "conf/experiment/wide.yaml": "# @package _global_\ndefaults: [override /model: net]\nmodel: {width: 12}\n",
        },
        sweep="model.width=4,6",
    ),
    "defaults of the project's own": Row(
        5, 0, [], {"conf/project.yaml": BASE.replace("base]", "base, override /optimizer: adam]")}
    ),
    "an option with a built-in's name": Row(
        3, 0, ["optimizer=adam"], {"conf/optimizer/adam.yaml": "_target_: torch.optim.NAdam\nlr: 0.002\n"}
    ),
    "class weights": Row(1, 0, ["loss.class_weights=balanced"]),
    "balanced sampling": Row(1, 0, ["data.sampler=balanced"]),
    "loss": Row(2, 10, ["loss=mine"], {"mine.py": LOSS, "conf/loss/mine.yaml": "_target_: mine.Loss\npenalty: 0.02\n"}),
    "a metric of torchmetrics as objective": Row(
        2, 0, ["+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC", "objective.metric=val/auroc"]
    ),
    "metric": Row(
        3, 15, ["metrics=[default,wrong]", "objective.metric=val/wrong"],
        {"mine.py": METRIC, "conf/metrics/wrong.yaml": "wrong:\n  _target_: mine.Wrong\n"},
    ),
    "augmentation": Row(
        2, 10, ["augment=invert"],
        {"mine.py": AUGMENTATION, "conf/augment/invert.yaml": "invert:\n  _target_: mine.Invert\n"},
    ),
    "optimizer": Row(
        2, 10, ["optimizer=signed"],
        {"mine.py": OPTIMIZER, "conf/optimizer/signed.yaml": "_target_: mine.Signed\nlr: 0.003\n"},
    ),
    "schedule": Row(
        2, 10, ["schedule=halving"],
        {"mine.py": SCHEDULE, "conf/schedule/halving.yaml": "_target_: mine.Halving\ntimes: 4\n"},
    ),
    "scheduler of torch's kind": Row(
        2, 10, ["schedule=root"],
        {"mine.py": SCHEDULER, "conf/schedule/root.yaml": "_target_: mine.Root\ninterval: step\n"},
    ),
    "init": Row(
        2, 10, ["init=orthogonal"],
        {"mine.py": INIT, "conf/init/orthogonal.yaml": "orthogonal:\n  _target_: mine.Orthogonal\n"},
    ),
    "callback": Row(
        2, 10, ["callbacks=[default,seen]"],
        {"mine.py": CALLBACK, "conf/callbacks/seen.yaml": "seen:\n  _target_: mine.Seen\n"},
    ),
    "logger": Row(
        2, 10, ["logger=[tensorboard,lines]"],
        {
            "mine.py": LOGGER,
            "conf/logger/lines.yaml": "lines:\n  {_target_: mine.Lines, path: '${hydra:runtime.output_dir}/lines'}\n",
        },
    ),
    "plateau": Row(1, 0, ["schedule=plateau"]),
    "distillation": Row(3, 0, ["classifier=distillation", "classifier.teacher=teacher", "classifier.share=0.5"]),
    "mean teacher": Row(
        3, 40, ["classifier=teacher"],
        {"mine.py": MEAN_TEACHER, "conf/classifier/teacher.yaml": "_target_: mine.MeanTeacher\ndecay: 0.95\n"},
    ),
    "self-supervised, auxiliary loss": Row(
        3, 40, ["classifier=rotations"],
        {"mine.py": SELF_SUPERVISED, "conf/classifier/rotations.yaml": "_target_: mine.Rotations\n"},
    ),
    "dataset of JPEGs": Row(
        4, 10, ["data=photos", "data.batch_size=8", "augment=resized_crop", *SMALLER],
        {"mine.py": PHOTOS, "conf/data/photos.yaml": "defaults: [dataset, _self_]\ntrain: {_target_: mine.Photos}\n"},
    ),
    "LightningDataModule": Row(
        3, 15, ["data=noise"], {"mine.py": MODULE, "conf/data/noise.yaml": "_target_: mine.Noise\n"}
    ),
    "a validation set of the file's own": Row(
        1, 0, ["data.path=own_val.npz", "data.val_size=0"], predicted="own_val.npz"
    ),
    "no test set": Row(1, 0, ["data.path=no_test.npz", "data.test_size=0.25"]),
    "folds": Row(1, 0, ["data.folds=3"], sweep="data.fold=0,1,2"),
    "a part of the data": Row(1, 0, ["data.train_size=0.5"]),
    "label noise": Row(1, 0, ["data.label_noise=0.2"]),
    **{
        f"{channels} channels of {dtype}": Row(
            0, 0, [f"data.path={dtype}_{channels}.npz"], predicted=f"{dtype}_{channels}.npz"
        )
        for channels, dtype in ((1, "uint8"), (2, "uint16"), (3, "float32"), (4, "uint8"), (13, "uint16"))
    },
    "200 images, 48×64, grey": Row(0, 0, ["data.path=few.npz"], predicted="few.npz"),
    "1000 classes, 28×28": Row(0, 0, ["data.path=classes.npz"], predicted="classes.npz"),
    "weights from a file of tensors": Row(2, 0, ["init_from=weights.pth"]),
    "a network of another package's": Row(2, 0, ["model=timm", "model.name=resnet18"]),
}  # fmt: skip


def lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("wheel")
    environment = install(build_wheel(folder), folder / "environment")
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def project(installed: Installed, npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of data of all kinds, a trained network and weights in it."""
    folder = tmp_path_factory.mktemp("home") / "lab"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with np.load(npz) as file:
        arrays = dict(file)
    np.savez(folder / "data.npz", **arrays)
    np.savez(folder / "no_test.npz", X_train=arrays["X_train"], y_train=arrays["y_train"])
    np.savez(folder / "own_val.npz", **arrays, X_val=arrays["X_test"][::2], y_val=arrays["y_test"][::2])

    def write(name: str, images: np.ndarray, targets: np.ndarray) -> None:
        count = len(images) * 3 // 4
        np.savez(folder / name, X_train=images[:count], y_train=targets[:count], X_test=images[count:],
                 y_test=targets[count:])  # fmt: skip

    images, targets = drawn(400, 10, seed=2)
    wide = np.concatenate([images] * 5, axis=3)
    for channels, dtype in ((1, "uint8"), (2, "uint16"), (3, "float32"), (4, "uint8"), (13, "uint16")):
        scale = {"uint8": 1, "uint16": 257, "float32": 1 / 64}[dtype]
        write(f"{dtype}_{channels}.npz", (wide[..., :channels] * np.asarray(scale, dtype)).astype(dtype), targets)
    write("few.npz", np.tile(images[:200, :, :, 0], (1, 2, 2))[:, :48], targets[:200])
    write("classes.npz", np.random.default_rng(0).integers(0, 256, (4000, 28, 28), np.uint8), np.arange(4000) % 1000)
    for kind in ("cats", "dogs"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number, image in enumerate(images[:40]):
            picture = Image.fromarray(image).resize((240, 230))
            picture.save(folder / "photos" / kind / f"{number}.jpg")
    (folder / "timm.py").write_text(TIMM)
    (folder / "pictures").mkdir()
    for number, size in enumerate([(32, 32), (100, 60)]):
        Image.fromarray(images[number]).resize(size).save(folder / "pictures" / f"{number}.png")
    installed.run(Step(["train", "hydra.run.dir=teacher"]), folder)
    state = torch.load(folder / "teacher" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.save(
        {name: value for name, value in state.items() if "body" in name or ".1." in name}, folder / "weights.pth"
    )
    return folder


def steps(row: Row) -> list[Step]:
    """Return the verbs that a row goes through."""
    return [
        Step(["train", *row.words, "hydra.run.dir=whole"]),
        Step(["train", *row.words, "hydra.run.dir=part"], code=-9, killed_at=4),
        Step(["train", "resume=part"]),
        Step(["train", "-m", *row.words, row.sweep, "hydra/launcher=local", "hydra.sweep.dir=sweep"]),
        Step(["evaluate", "whole"]),
        Step(["predict", "whole", row.predicted, "--output", "classes.csv"]),
        Step(["export", "whole", "--output", "network.onnx"]),
        Step(["predict", "network.onnx", row.predicted, "--output", "exported.csv"]),
        Step(["report", "whole"]),
        Step(["report", "sweep"]),
    ]


def check(folder: Path, row: Row) -> None:
    """Check what the verbs of `steps` have left."""
    difference = compare(outcome(folder / "whole"), outcome(folder / "part"))
    assert not difference, difference
    table = read(folder / "sweep" / "sweep.json")
    assert set(table["counts"]) == {"completed"}, table["counts"]
    assert table["counts"]["completed"] >= 2
    metrics, measured = read(folder / "whole" / "metrics.json"), read(folder / "whole" / "evaluation.json")["metrics"]
    assert measured["accuracy"] == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    answers = [(folder / f"{name}.csv").read_text().splitlines() for name in ("classes", "exported")]
    assert len(answers[0]) == len(answers[1]) > 2
    for ours, theirs in zip(*answers, strict=True):
        assert ours.split(",")[:2] == theirs.split(",")[:2]
    if row.predicted.endswith(".npz"):
        with np.load(folder / row.predicted) as file:
            labels = file["y_test"].ravel()
        right = [line.split(",")[1] == str(label) for line, label in zip(answers[0][1:], labels, strict=True)]
        assert np.mean(right) == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    page = (folder / "whole" / "report.html").read_text()
    assert "Confusion matrix" in page
    assert (folder / "sweep" / "report.html").is_file()


EACH_KIND = (
    "network, recipe", "loss", "metric", "scheduler of torch's kind", "callback", "logger", "distillation",
    "mean teacher", "self-supervised, auxiliary loss", "dataset of JPEGs", "LightningDataModule", "folds",
    "a network of another package's",
)  # fmt: skip
"""The rows of the default suite: one of each kind of thing that a user writes."""


@pytest.mark.parametrize(
    "name", [name if name in EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
def test_each_row_goes_from_training_to_report(name: str, installed: Installed, project: Path, tmp_path: Path):
    row = ROWS[name]
    configs = sum(lines(text) for path, text in row.files.items() if path.endswith(".yaml"))
    values = sum(
        "." in word.partition("=")[0] and not word.startswith(("data.path", "data.batch_size")) for word in row.words
    )
    assert configs + values <= row.yaml, "more lines of yaml than it may take"
    assert sum(lines(text) for path, text in row.files.items() if path.endswith(".py")) <= row.py
    folder = tmp_path / "lab"
    folder.mkdir()
    for source in project.iterdir():
        if source.name not in ("conf", "outputs"):
            (folder / source.name).symlink_to(source)
    for path, text in {**FILES, **row.files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for step in steps(row):
        installed.run(step, folder)
    check(folder, row)


PARTS = (
    "metric", "classifier", "schedule", "optimizer", "callback", "logger", "augmentation", "init",
)  # fmt: skip


def test_a_new_project_with_own_parts_of_every_kind_passes_its_test_and_keeps_every_guarantee(
    installed: Installed, project: Path, tmp_path: Path
):
    made = installed.cnnlab("new", "lab", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "lab"
    (folder / "pictures").symlink_to(project / "pictures")
    installed.run(Step(["train", "experiment=first"]), folder)  # as it is made
    installed.run(Step(["evaluate", "last"]), folder)
    words = [
        "metrics=[default,wrong]", "classifier=teacher", "schedule=halving", "optimizer=signed",
        "callbacks=[default,seen]", "logger=[tensorboard,lines]", "augment=invert", "init=orthogonal",
        "callbacks.checkpoint.every_n_steps=3", "callbacks.figures=null", "callbacks.dashboard=null",
        "trainer.max_epochs=2", "objective.metric=val/wrong",
    ]  # fmt: skip
    for name in ("metric", "mean teacher", "schedule", "optimizer", "callback", "logger", "augmentation", "init"):
        for path, text in ROWS[name].files.items():
            module = name.replace(" ", "_")
            target = folder / path.replace("mine.py", f"lab/{module}.py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("mine.", f"lab.{module}."))
    row = Row(0, 0, words)
    for step in steps(row):
        installed.run(step, folder)
    check(folder, row)
    state = torch.load(folder / "part" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert state["Seen"]["images"] == 2 * 540
    assert len((folder / "part" / "lines").read_text().splitlines()) >= 2
    ensemble = "sweep/seed-0,sweep/seed-1"
    installed.run(Step(["evaluate", ensemble, "--output", "both"]), folder)
    installed.run(Step(["predict", ensemble, "pictures", "--output", "both.csv"]), folder)
    installed.run(Step(["export", ensemble, "--output", "both.onnx"]), folder)
    installed.run(Step(["predict", "both.onnx", "pictures", "--output", "both_exported.csv"]), folder)
    tested = installed.call("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert tested.returncode == 0, tested.stdout[-3000:]
    assert f"{len(list(folder.glob('conf/*/*.yaml')))} passed" in tested.stdout


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=local"],
        ["hydra/launcher=local", "hydra.launcher.start=spawn"],
        ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.n_jobs=2"],
    ],
    ids=["local", "spawn", "slurm"],
)
def test_own_configs_reach_the_trials_of_every_launcher(
    launcher: list[str], installed: Installed, project: Path, tmp_path: Path
):
    """Those of ./conf, and from elsewhere those of `--config-dir` with a main config of `-cn`."""
    for path, text in {**FILES, **ROWS["network, recipe"].files}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("data.npz", str(project / "data.npz")))
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [train, _self_]\noptimizer: {lr: 0.02}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    sweep = ["-m", "experiment=wide", "model.width=4,6", "trainer.max_epochs=1", "hydra.sweep.dir=sweep", *launcher]
    flags = ["--config-dir", str(tmp_path / "conf"), "-cn", "mine"]
    tables = []
    for place, words in ((tmp_path, [*sweep, "optimizer.lr=0.02"]), (elsewhere, [*sweep, *flags])):
        installed.run(Step(["train", *words]), place)
        table = read(place / "sweep" / "sweep.json")
        assert table["counts"] == {"completed": 2}
        tables.append([(row["name"], row["objective"]) for row in table["trials"]])
        trial = place / "sweep" / table["trials"][0]["name"]
        assert "_target_: nets.Net" in (trial / ".hydra" / "config.yaml").read_text()
        installed.run(Step(["train", f"resume={trial}", "trainer.max_epochs=2", *words[len(sweep) :]]), place)
    assert tables[0] == tables[1]
