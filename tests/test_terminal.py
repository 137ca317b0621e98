"""What people see at terminals of 60, 80 and 120 characters stays as it was looked at.

After a change that is meant, `REWRITE_TRANSCRIPTS=1 pytest tests/test_terminal.py` writes the files anew: look at them.
"""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.conftest import ROOT
from tests.terminal import run_on_terminal

TRANSCRIPTS = Path(__file__).parent / "transcripts"
CONFIG = """\
model: {{_target_: cnnlab.model.ConvNet, channels: [{width}, 16]}}
optimizer: {{_target_: torch.optim.SGD, lr: {lr}, weight_decay: 3.0e-05}}
objective: {{metric: val/accuracy, mode: max}}
seed: {seed}
"""


def make_run(folder: Path, seed: int, accuracy: float, changes: list[str], lr: float = 0.1, width: int = 6) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    (folder / ".hydra" / "config.yaml").write_text(CONFIG.format(seed=seed, lr=lr, width=width))
    record = {
        "status": "completed", "started": f"2026-03-0{seed + 1}T10:20:30+00:00", "seconds": 61.5, "seed": seed,
        "choices": {"model": "lenet", "optimizer": "sgd"}, "overrides": changes, "device": "cpu",
        "precision": "32-true", "versions": {"python": "3.11.7", "torch": "2.13.0"}, "num_parameters": 62038,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    values = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "test/accuracy": accuracy - 0.01, "test/loss": 3e-5}
    (folder / "metrics.json").write_text(json.dumps(values | {"objective": accuracy}))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    day = tmp_path / "outputs" / "2026-03-01"
    long = [f"model.channels=[{2**power},{2**power}]" for power in range(3, 9)]
    make_run(day / "10-20-30-abcdef", 0, 0.912345, ["optimizer.lr=0.1"])
    make_run(day / "10-25-30-fedcba", 1, 0.7, long, lr=3e-5, width=8)
    make_run(day / "10-30-30-aabbcc", 2, 0.98765, [])
    return tmp_path


def check(name: str, text: str, width: int) -> None:
    """Compare a transcript with the one that was looked at."""
    lines = [line.rstrip() for line in text.splitlines()]
    tables = [line for line in lines if "95% interval" not in line]  # a sentence, which may wrap
    assert max(map(cell_len, tables)) <= width
    path = TRANSCRIPTS / f"{name}-{width}.txt"
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text("\n".join(lines) + "\n")
    assert lines == path.read_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_runs(home: Path, width: int):
    check("runs", run_on_terminal(["runs"], width=width, cwd=home), width)


def test_wide_tables_have_every_cell_whole(home: Path):
    text = run_on_terminal(["runs", "--wide"], width=60, cwd=home)
    assert "model.channels=[8,8] model.channels=[16,16] model.channels=[32,32] model.channels=[64,64]" in text
    assert "not shown" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_compare(home: Path, width: int):
    day = home / "outputs" / "2026-03-01"
    make_run(day / "10-40-30-ddeeff", 3, 0.71, [], lr=3e-5, width=8)
    first, second, third, fourth = sorted(str(path.relative_to(home)) for path in day.iterdir())
    words = ["compare", first, third, "--against", second, fourth]
    check("compare", run_on_terminal(words, width=width, cwd=home), width)


TRAIN = "import runpy, sys; sys.argv[0] = 'train.py'; runpy.run_path({script!r}, run_name='__main__')"


class SeenError(Exception):
    """What the test waits for was on the terminal."""


@pytest.mark.parametrize("width", [60, 120])
def test_the_bar_says_on_one_line_how_good_and_how_long(small: list[str], tmp_path: Path, width: int):
    said = r"epoch \d+/5000, .* left, loss [\d.]+"
    said += "" if width < 80 else r", accuracy [\d.]+%, [\d,]+ images/s, \d+ s of the epoch"
    pieces: list[bytes] = []
    bars: list[str] = []

    def look(_: float, piece: bytes) -> None:
        pieces.append(piece)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(pieces).decode(errors="ignore"))
        bars[:] = [line.rstrip() for line in re.split(r"[\r\n]+", text) if "━" in line]
        if any(re.search(said, line) for line in bars):
            raise SeenError

    # How far it comes between two looks depends on the machine: it goes on until the line was there.
    words = [*small, "trainer.max_epochs=5000", "data.batch_size=2", "~callbacks.figures", "~callbacks.dashboard"]
    code = TRAIN.format(script=str(ROOT / "train.py"))
    with pytest.raises(SeenError):
        run_on_terminal([*words, "hydra.run.dir=run"], width=width, cwd=tmp_path, code=code, seen=look)
    assert max(map(cell_len, bars)) <= width


WAITING = """
import sys, time
from cnnlab.console import exit_on_error
with exit_on_error(waiting="a long import"):
    time.sleep(4)
    print("the answer")
"""


def test_nobody_looks_at_an_empty_terminal(tmp_path: Path):
    pieces: list[tuple[float, bytes]] = []
    text = run_on_terminal([], cwd=tmp_path, code=WAITING, seen=lambda *piece: pieces.append(piece))
    assert text == "the answer\n", "the line is taken away"
    answered = next(seconds for seconds, piece in pieces if b"the answer" in piece)
    times = [seconds for seconds, piece in pieces if b"a long import" in piece]
    assert times[0] < answered - 2.5, "it comes long before the answer"
    assert max(later - earlier for earlier, later in pairwise([*times, answered])) < 3


def test_a_log_gets_a_line_a_minute(tmp_path: Path):
    code = WAITING.replace("import exit_on_error", "import Waiting, exit_on_error; Waiting.log_seconds = 1.5")
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "the answer\n"
    assert ran.stderr.splitlines()[0].startswith("a long import (")
    assert len(ran.stderr.splitlines()) == 2
