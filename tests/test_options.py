"""Every option of every config group is composed, built and run for two batches; every recipe too."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

import train as script
from cnnlab import run
from cnnlab.config import preflight
from tests.conftest import ROOT, Train, read

CONF = ROOT / "conf"
OPTIONS = sorted(
    (group.name, option.stem)
    for group in CONF.iterdir()
    if group.is_dir() and group.name not in ("hydra", "experiment", "search")  # searches: tests/test_sweep_search.py
    for option in group.glob("*.yaml")
    if (group.name, option.stem) != ("data", "dataset")  # has no file: tests/test_data_datasets.py
)
NEEDS = {"kornia": "kornia", "wandb": "wandb", "mlflow": "mlflow", "timm": "timm", "torchvision": "torchvision"}
ALSO = {
    ("model", "custom"): ["model._target_=tests.test_options.Own", "+model.width=8"],
    ("logger", "wandb"): ["logger.wandb.offline=true"],
    ("callbacks", "early_stopping"): ["callbacks=[default,early_stopping]"],
    ("callbacks", "ema"): ["callbacks=[default,ema]"],
    ("callbacks", "lookahead"): ["callbacks=[default,lookahead]"],
    ("callbacks", "freeze"): ["callbacks=[default,freeze]"],
    ("callbacks", "whiten_bias"): ["callbacks=[default,whiten_bias]", "model=speednet"],
    ("init", "whiten"): ["init=whiten", "model=speednet"],
    ("metrics", "kappa"): ["metrics=[default,kappa]"],
    ("metrics", "balanced_accuracy"): ["metrics=[default,balanced_accuracy]"],
    ("model", "timm"): ["model.name=resnet18"],
    ("model", "torchvision"): ["model.name=resnet18"],
    ("augment", "resized_crop"): ["augment=resized_crop", "augment.resized_crop.size=24", "eval.resize=24"],
    ("model", "wide_resnet"): ["model.depth=10", "model.width=1"],
    ("trainer", "overfit"): ["trainer.max_epochs=2", "trainer.limit_train_batches=null"],
}
SHORT = [
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1", "data.eval_batch_size=20",
]  # fmt: skip


class Own(nn.Module):
    """A network as a user would write it."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.linear = nn.Linear(width, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.conv(images).relu().mean((2, 3)))


def data_file(option: str, npz: Path, folder: Path) -> Path:
    """Write the images of a file in the layout that an option of `data` reads."""
    with np.load(npz) as file:
        train, test = (file["X_train"], file["y_train"]), (file["X_test"], file["y_test"])
    path = folder / "data.npz"
    if option == "folder":
        for number, (image, label) in enumerate(zip(*train, strict=True)):
            path = folder / "pictures" / f"class {label[0]}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return folder / "pictures"
    if option == "mnist_keras":
        np.savez(path, x_train=train[0][..., 0], y_train=train[1][:, 0], x_test=test[0][..., 0], y_test=test[1][:, 0])
    elif option == "medmnist":
        names = (f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels"))
        np.savez(path, **dict(zip(names, (*train, *test, *test), strict=True)))
    else:
        return npz
    return path


def test_options_that_are_given_together_have_their_own_keys():
    for group in ("augment", "init", "callbacks", "logger"):
        keys = [key for path in (CONF / group).glob("*.yaml") for key in yaml.safe_load(path.read_text()) or {}]
        assert sorted(keys) == sorted({*keys}), group


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
# mlflow 3's own queries, under SQLAlchemy 2.1.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_trains(
    train: Train, npz: Path, tmp_path: Path, request: pytest.FixtureRequest, group: str, option: str
):
    if option in NEEDS and importlib.util.find_spec(NEEDS[option]) is None:
        pytest.skip(f"the extra {NEEDS[option]} is not installed")
    overrides = [f"{group}={option}", *SHORT, *(["data.batch_size=8"] if group == "model" else [])]
    if group == "data":
        path = request.getfixturevalue("drawn_shapes") if option == "shapes" else data_file(option, npz, tmp_path)
        overrides += [f"data.path='{path}'", "data.val_size=80"]
    if (group, option) in ALSO:
        overrides = [
            line
            for line in overrides
            if line.partition("=")[0] not in {key.partition("=")[0] for key in ALSO[group, option]}
        ]
        overrides += ALSO[group, option]
    if option == "distillation":
        overrides.append(f"classifier.teacher='{request.getfixturevalue('trained')}'")
    folder = train(*overrides)
    assert read(folder / "run.json")["status"] == "completed"
    assert 0 <= read(folder / "metrics.json")["test/accuracy"] <= 1


@pytest.mark.slow
def test_every_recipe_trains_in_one_sweep(
    npz: Path, drawn_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10.npz").symlink_to(npz)
    (tmp_path / "data" / "shapes.npz").symlink_to(drawn_shapes)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "-m",
        "experiment=glob(*,exclude=transfer)",
        "budget=null",  # the steps say when a run ends
        "data.val_size=80",
        "data.batch_size=8",
        "~callbacks.figures",
        "~callbacks.dashboard",
        *SHORT[:-1],
        "data.eval_batch_size=8",
    ]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight(arguments)])
    run.failed.clear()
    script.main()
    assert not run.failed
    recipes = set((CONF / "experiment").glob("*.yaml")) - {CONF / "experiment" / "transfer.yaml"}  # test_callbacks.py
    finished = [read(path)["status"] for path in tmp_path.glob("outputs/sweeps/*/*/*/run.json")]
    assert finished == ["completed"] * len(recipes)
