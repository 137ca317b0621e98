"""Every option and recipe of the project is composed, built and trained for two batches."""

from pathlib import Path

import pytest

import cnnlab

ROOT = Path(__file__).parent.parent
OPTIONS = sorted((path.parent.name, path.stem) for path in (ROOT / "conf").glob("*/*.yaml"))
SHORT = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks.figures=null",
    "trainer.enable_progress_bar=false",
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_trains(group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    choice = f"{group}=[default,{option}]" if group in ("callbacks", "metrics") else f"{group}={option}"
    run = cnnlab.train([choice, *SHORT, f"hydra.run.dir='{tmp_path / 'run'}'"])
    assert 0 <= run.metrics["test/accuracy"] <= 1
