"""A run that cannot work is found out before it begins, and nothing is left behind."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train as script
from cnnlab import rehearsal
from cnnlab.errors import ConfigError
from cnnlab.run import command_line
from tests.conftest import ROOT, drawn


class Deaf(nn.Module):
    """Says the same of every image."""

    def __init__(self, num_classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(scale * torch.arange(float(num_classes)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class Detached(Deaf):
    """Gives its parameters no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.detach().expand(len(images), -1) + 0 * self.logits


class Infinite(Deaf):
    """Has no finite loss."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.inf


@pytest.fixture
def check(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run train.py with check=true in an empty folder; return its exit code, standard output and standard error."""

    def check(*overrides: str) -> tuple[object, str, str]:
        place = tmp_path / "elsewhere"
        place.mkdir()
        monkeypatch.chdir(place)
        changed = {line.partition("=")[0] for line in overrides}
        lines = [line for line in small if line.partition("=")[0] not in changed]
        code: object = 0
        try:
            with command_line():
                script.start(["check=true", *lines, *overrides, f"hydra.run.dir='{tmp_path / 'run'}'"])
        except SystemExit as end:
            code = end.code
        assert not list(place.iterdir())
        assert not (tmp_path / "run").exists()
        return code, *capsys.readouterr()

    return check


def test_a_run_that_can_begin_is_go_and_leaves_nothing_behind(check):
    code, out, err = check("augment=[flip_crop,mixup]", "trainer.max_epochs=3", "trainer.accumulate_grad_batches=3")
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if not line.startswith("device")]
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        "data", "classes", "first loss", "gradients", "by heart", "time", "memory", "disk",
    ]  # fmt: skip
    assert "train 320, val 80, test 100 images of 32 × 32 × 3, 10 classes" in out
    assert "ln(10) is 2.303" in out
    assert "for 12 steps of" in out  # of the optimizer, as everywhere: 10 batches are 4
    assert lines[-1] == "go"


def test_data_without_a_test_can_begin_too(check, tmp_path: Path):
    images, labels = drawn(200, 10, seed=0)
    np.savez(tmp_path / "untested.npz", X_train=images, y_train=labels)
    code, output, errors = check(f"data.path='{tmp_path}/untested.npz'", "data.test_size=0")
    assert code == 0, errors
    assert "test 0 images" in output


def test_a_budget_is_turned_into_steps_and_epochs(check):
    code, out, _ = check("budget=10min", "trainer.max_epochs=-1")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("time ")]
    match = re.search(
        r"about ([\d,]+) steps of .* ms, ([\d.]+) epochs in 10min; (\d+)% .* (\d+)% into validation", line
    )
    assert match, line
    steps, epochs, starting, ending = (float(text.replace(",", "")) for text in match.groups())
    assert steps / epochs == pytest.approx(10, rel=0.02)  # batches of 32 of 320 images
    assert starting < 10
    assert 0 < ending < 90


def test_a_budget_that_starting_up_uses_is_no_go(check):
    code, out, err = check("budget=1s", "trainer.max_epochs=-1")
    assert code == 2
    assert "budget=1s is too short: starting up takes" in err
    assert out.splitlines()[-1] == "no go"


@pytest.mark.parametrize(
    ("network", "code", "reason"),
    [
        ("Deaf", 2, "could not be learnt by heart"),
        ("Detached", 2, "could not be learnt by heart"),
        ("Infinite", 6, "the first loss is"),
    ],
)
def test_a_network_that_cannot_learn_is_no_go(check, network: str, code: int, reason: str):
    came, out, err = check("model=custom", f"model._target_=tests.test_rehearsal.{network}")
    assert came == code
    assert out.splitlines()[-1] == "no go"
    assert reason in err
    assert all(line.startswith("cnnlab: error: ") for line in err.splitlines())
    assert not out.count("Error executing")


def test_a_last_layer_that_knows_too_much_is_pointed_out(check):
    _, out, _ = check("model=custom", "model._target_=tests.test_rehearsal.Deaf", "+model.scale=50")
    (line,) = [line for line in out.splitlines() if line.startswith("first loss")]
    assert " look " in line


def test_a_full_disk_is_no_go(check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Path] = []
    usage = rehearsal.shutil.disk_usage("/")._replace(free=1000)

    def full(place: Path) -> object:
        asked.append(place)
        return usage

    monkeypatch.setattr(rehearsal.shutil, "disk_usage", full)
    code, out, err = check()
    assert code == 5
    assert asked == [tmp_path]  # above hydra.run.dir, not above the working folder
    assert "too full" in err
    assert out.splitlines()[-1] == "no go"


def test_data_that_cannot_be_used_has_its_own_code(check, tmp_path: Path):
    code, _, err = check(f"data.path='{tmp_path / 'nowhere.npz'}'")
    assert code == 3
    assert "nowhere.npz does not exist" in err


def test_it_looks_at_one_run_that_has_not_begun(trained: Path, small: list[str]):
    for words in ([*small, "-m", "seed=0,1"], [f"resume='{trained}'"]):
        with pytest.raises(ConfigError, match=r"only .* run that has not begun can be looked at"):
            script.start([*words, "check=true"])


def test_the_command_is_the_same(small: list[str], tmp_path: Path):
    code = "import sys; sys.argv = ['cnnlab', 'check', *sys.argv[1:]]; from cnnlab.cli import app; app()"
    ran = subprocess.run(
        [sys.executable, "-c", code, *small], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == "go"
    assert not list(tmp_path.iterdir())
