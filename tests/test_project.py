"""A project of one's own: a conf folder and modules beside it are found by every verb, a stranger's never."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlab.config import preflight, replaced
from cnnlab.config.tree import content, options
from cnnlab.errors import ConfigError, UnsafeError
from tests.conftest import ROOT, read

NETWORK = """
from torch import nn
from cnnlab.bounds import PositiveInt

class Small(nn.Sequential):
    def __init__(self, in_channels: int, num_classes: int, width: PositiveInt = 4):
        super().__init__(
            nn.Conv2d(in_channels, width, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, num_classes),
        )
"""


@pytest.fixture
def project(tmp_path: Path, npz: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, options, a recipe and own defaults; the working folder."""
    files = {
        "nets.py": NETWORK,
        "conf/model/small.yaml": "defaults: [custom, _self_]\n_target_: nets.Small\nwidth: 4\n",
        "conf/model/lenet.yaml": "defaults: [custom, _self_]\n_target_: nets.Small\nwidth: 2\n",
        "conf/experiment/wide.yaml": "# @package _global_\nmodel:\n  width: 8\n",
        "conf/project.yaml": f"""\
defaults:
  - override /data: npz
  - override /model: small
data:
  path: {npz}
  val_size: 80
  batch_size: 32
trainer:
  max_epochs: 1
""",
    }
    folder = tmp_path / "project"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def cnnlab(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    code = "import sys; sys.argv[0] = 'cnnlab'; from cnnlab.cli import app; app()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, timeout=240,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(cwd)},
    )  # fmt: skip


def shown(cwd: Path, *words: str) -> str:
    run = cnnlab("train", *words, "--cfg", "job", cwd=cwd)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_own_defaults_options_and_recipes_are_found(project: Path):
    assert "small" in options("model")
    assert content("model", "small") == {
        "_target_": "nets.Small", "width": 4, "channels_last": True, "compile": False,
    }  # fmt: skip
    assert "width: 4\n" in shown(project)
    assert "width: 8\n" in shown(project, "experiment=wide")
    assert "max_epochs: 1\n" in shown(project)
    assert "max_epochs: 5\n" in shown(project, "trainer.max_epochs=5")


def test_an_own_option_wins_over_the_package_s_and_the_log_says_so(project: Path):
    assert "_target_: nets.Small\n" in shown(project, "model=lenet")
    assert replaced() == [f"model=lenet is {project / 'conf/model/lenet.yaml'}, in place of cnnlab's"]


def test_own_options_are_checked_like_the_package_s(project: Path):
    for argv, part in (
        (["model.width=0"], "model.width must be a whole number of at least 1, got 0"),
        (["model.widht=2"], "did you mean model.width?"),
        (["model=smal"], "did you mean model=small?"),
        (["experiment=wid"], "did you mean experiment=wide?"),
    ):
        with pytest.raises(ConfigError) as caught:
            preflight(argv)
        assert part in str(caught.value)


def test_own_project_trains_and_is_resumed_and_swept_in_processes(project: Path):
    run = cnnlab("train", "model=lenet", "~callbacks.figures", "hydra.run.dir=run", cwd=project)
    assert run.returncode == 0, run.stderr
    assert "in place of cnnlab's" in run.stdout
    (command,) = [line.strip() for line in run.stdout.splitlines() if "resume=" in line]
    words = command.split("cnnlab train ")[1].replace("...", "2").split()
    resumed = cnnlab("train", *words, cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert len((project / "run" / "history.csv").read_text().splitlines()) == 3
    sweep = cnnlab(
        "train", "-m", "model.width=2,3", "~callbacks.figures", "hydra/launcher=local", "hydra.sweep.dir=sweep",
        cwd=project,
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stderr
    assert [read(path)["status"] for path in (project / "sweep").glob("*/run.json")] == ["completed"] * 2


def test_config_dir_goes_before_the_package_everywhere_and_is_in_the_printed_command(project: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    flags = ["--config-dir", str(project / "conf")]
    assert "_target_: nets.Small\n" in shown(elsewhere, "model=lenet", *flags)
    check = cnnlab("check", *flags, "trainer.max_epochs=1", cwd=elsewhere)
    assert "go" in check.stdout.splitlines()[-1], check.stderr
    run = cnnlab("train", *flags, "~callbacks.figures", "hydra.run.dir=run", cwd=elsewhere)
    assert run.returncode == 0, run.stderr
    assert f"--config-dir {project / 'conf'}" in run.stdout.splitlines()[-1]
    assert str(project / "conf") in read(elsewhere / "run" / "run.json")["command"]


def test_a_run_s_folder_is_no_project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The conf folder and the modules in a stranger's run are never found, wherever it is resumed from."""
    run = shutil.copytree(trained, tmp_path / "stranger")
    (run / "conf" / "model").mkdir(parents=True)
    (run / "conf" / "model" / "lenet.yaml").write_text("_target_: evil.Net\n")
    (run / "conf" / "project.yaml").write_text("seed: 5\n")
    (run / "evil.py").write_text("raise SystemExit('executed')\n")
    for place in (run, run / "conf", tmp_path):
        monkeypatch.chdir(place)
        preflight(["model=lenet", "model.dropout=0.1"])  # the package's
        preflight([f"resume={run}", "trainer.max_epochs=3"], verify_presence=True)
        assert replaced() == []
        assert str(run) not in sys.path
    overrides = run / ".hydra" / "overrides.yaml"
    overrides.write_text(overrides.read_text() + "- model._target_=evil.Net\n")
    with pytest.raises(UnsafeError, match="none of the classes"):
        preflight([f"resume={run}"], verify_presence=True)
