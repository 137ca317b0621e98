"""The wheel: what it carries, and that it trains from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, read


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_trains_from_another_folder(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cnnlab"}
    assert {"cnnlab/train.py", "cnnlab/conf/train.yaml", "cnnlab/conf/experiment/quickstart.yaml"} <= set(names)

    # An environment of its own that borrows this one's packages, but not its checkout of cnnlab.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=60)
    (site,) = environment.glob("lib/python*/site-packages")
    install = ["--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *install], check=True, timeout=120)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "zz_borrowed.pth").write_text(packages + "\n")

    def cnnlab(*arguments: str) -> subprocess.CompletedProcess:
        code = "import sys; from cnnlab.cli import app; sys.argv[0] = 'cnnlab'; app()"
        command = [str(environment / "bin" / "python"), "-c", code, *arguments]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, cwd=elsewhere, env=clean, capture_output=True, text=True, timeout=300)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trained = cnnlab("train", "experiment=quickstart", "trainer.max_epochs=1")
    assert trained.returncode == 0, trained.stderr
    (record,) = elsewhere.glob("outputs/*/*/run.json")
    assert read(record)["status"] == "completed"
    assert read(record)["git"] is None
    wrong = cnnlab("train", "model=resnet81")
    assert wrong.returncode == 2
    assert "resnet18" in wrong.stderr
