import importlib.metadata
import json
import logging
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab import cli
from cnnlab.cli import COMMANDS, app
from cnnlab.console import ConsoleHandler

PACKAGE = Path(cnnlab.__file__).parent
CALL = [sys.executable, "-c", "import sys; sys.argv[0] = 'cnnlab'; from cnnlab.cli import app; app()"]


def run(cwd, *args, root=PACKAGE.parent, **environment):
    """Run the command as a process of its own, from a folder that is not the checkout."""
    return subprocess.run(
        [*CALL, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "100"} | environment,
        check=False,
    )


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in this process; return its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args):
        with pytest.raises(SystemExit) as end:
            app([str(arg) for arg in args], prog_name="cnnlab")
        return end.value.code or 0, *capsys.readouterr()

    return call


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
    images[1] = images[0]
    labels = np.arange(30) % 3
    path = tmp_path / "data.npz"
    np.savez(path, X_train=images[:20], y_train=labels[:20], X_test=images[[0, 21]], y_test=labels[[0, 21]])
    return path


def test_importing_the_command_imports_nothing_heavy():
    heavy = ("torch", "numpy", "pytorch_lightning", "hydra", "omegaconf", "PIL", "requests", "rich.console")
    assert python(f"import sys, cnnlab.cli; print([name for name in {heavy} if name in sys.modules])") == "[]\n"


def test_data_commands_import_no_torch():
    code = "import sys, cnnlab.commands.data; print('torch' in sys.modules, 'requests' in sys.modules)"
    assert python(code) == "False False\n"


def test_help_names_every_command_and_imports_none_of_them():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; from cnnlab.cli import app, COMMANDS\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*COMMANDS, [name for name in sys.modules if name.startswith('cnnlab.commands.')])"
    )
    *shown, last = python(code).splitlines()
    assert last.endswith(" []")
    assert all(any(f" {name} " in line for line in shown) for name in ("train", *last.split()[:-1]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command_comes_without_torch_within_a_second(command):
    code = (
        "import resource, sys; sys.argv = ['cnnlab', *sys.argv[1:]]; from cnnlab.cli import app\n"
        "try: app()\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('torch' in sys.modules, used.ru_utime + used.ru_stime < 1)"
    )
    ran = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True)
    *shown, last = ran.stdout.splitlines()
    assert last == "False True"
    assert any(f"Usage: cnnlab {command}" in line for line in shown)


def test_what_nobody_foresaw_is_one_line_too(call, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr("cnnlab.ledger.list_runs", fail)
    code, _, err = call("runs", ".")
    assert code == 1
    assert err.splitlines()[0] == "cnnlab: error: unexpected ZeroDivisionError: nobody foresaw this"
    assert "--debug" in err
    assert "Traceback" not in err
    assert "Traceback" in call("runs", ".", "--debug")[2]


def test_a_folder_that_may_not_be_written_is_the_machines_fault(call, monkeypatch):
    def fail(*args, **options):
        raise PermissionError(13, "Permission denied", "evaluation.json")

    monkeypatch.setattr("cnnlab.ledger.list_runs", fail)
    code, _, err = call("runs", ".")
    assert code == 5
    assert "cannot write evaluation.json" in err


@pytest.mark.parametrize("args", [["data"], ["data", "--help"], ["data", "pack", "--help"], []])
def test_help_of_each_level_is_shown(call, args):
    code, out, err = call(*args)
    assert "Usage: cnnlab" in out
    assert code in (0, 2)
    assert err == ""


@pytest.mark.parametrize("args", [["dta"], ["data", "chek"], ["data", "pack"], ["data", "fetch", "mnist"]])
def test_wrong_command_line_exits_with_2(call, args):
    code, _, err = call(*args)
    assert code == 2
    assert "Usage: cnnlab" in err


def test_error_is_one_line_with_its_exit_code(tmp_path):
    result = run(tmp_path, "data", "check", "nowhere.npz")
    assert result.returncode == 3
    assert result.stderr.startswith("cnnlab: error: nowhere.npz does not exist.")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", ["--debug data check nowhere.npz", "data check nowhere.npz --debug"])
def test_debug_shows_the_traceback_before_the_error(call, args):
    code, _, err = call(*args.split())
    assert code == 3
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("cnnlab: error: nowhere.npz does not exist.")


def test_check_shows_what_a_file_holds(call, npz):
    code, out, err = call("data", "check", npz)
    assert (code, err) == (0, "")
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert ["X_train", "uint8", "20 × 5 × 4 × 3"] in rows
    assert ["y_test", "int64", "2"] in rows
    assert ["1", "1", "7", "35.0", "0", "0.0"] in rows
    assert ["within train", "1", "1"] in rows
    assert ["within test", "0", "0"] in rows
    assert ["test images in train", "1", "0"] in rows
    assert "note: 1 of 2 test images are in the training set too" in out
    assert "Usable, but see the notes." in out
    content = json.loads(call("data", "check", npz, "--json")[1])
    assert content["duplicates"][2] == {"where": "test images in train", "copies": 1, "with another label": 0}
    assert len(content["notes"]) == 1
    assert f"cnnlab train data=npz data.path={npz}" in out


def test_check_of_an_unusable_file_shows_its_arrays_and_the_reason(call, npz):
    np.savez(npz, X_train=np.zeros((2, 3, 8, 8), np.uint8))
    code, out, err = call("data", "check", npz)
    assert code == 3
    assert "2 × 3 × 8 × 8" in out
    assert "lacks y_train; it holds X_train" in err
    npz.write_bytes(pickle.dumps([1]))
    assert call("data", "check", npz)[0] == 8


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_refuses_images_that_are_no_numbers(call, npz, split, value):
    with np.load(npz) as file:
        arrays = {name: array.astype(np.float32) / 255 if name[0] == "X" else array for name, array in file.items()}
    arrays[f"X_{split}"][-1, 0, 0, 0] = value
    np.savez(npz, **arrays)
    code, _, err = call("data", "check", npz)
    assert code == 3
    assert f"the {split} images must be finite" in err


def test_check_takes_other_array_names(call, npz):
    with np.load(npz) as file:
        np.savez(npz, images=file["X_train"], **{key: file[key] for key in ("y_train", "X_test", "y_test")})
    assert call("data", "check", npz)[0] == 3
    code, out, _ = call("data", "check", npz, "--key", "train_images=images")
    assert code == 0
    assert out.rstrip().endswith("data.keys.train_images=images")
    code, _, err = call("data", "check", npz, "--key", "images")
    assert code == 2
    assert "--key must be ROLE=NAME" in err


def test_pictures_are_packed_and_checked_with_two_commands(call, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [ConsoleHandler()])  # as an earlier verb may have left it
    for number in range(12):
        path = tmp_path / "my pictures" / ("ant" if number % 2 else "[bee]") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (20 * number, 9 * number, 99 - 9 * number)).save(path)
    (path.parent / "broken.jpg").write_bytes(b"broken")
    code, out, err = call("data", "pack", "my pictures", "out.npz", "--size", 16, "--fit", "pad")
    assert code == 7
    left_out, error = err.splitlines()
    assert left_out.startswith("cnnlab: left out my pictures/ant/broken.jpg: UnidentifiedImageError")
    assert error == ("cnnlab: error: 1 of 13 pictures could not be read and are left out; out.npz holds the other 12.")
    assert "2 classes. Train: cnnlab train data=npz data.path=out.npz" in out
    code, out, _ = call("data", "pack", "my pictures", "out.npz", "--size", 16, "--overwrite", "--json")
    packed = json.loads(out)
    assert code == 7
    assert packed["num_train"] + packed["num_test"] == 12
    assert [entry["image"] for entry in packed["unreadable"]] == ["my pictures/ant/broken.jpg"]
    code, out, _ = call("check", *shlex.split(packed["command"])[2:], "data.val_size=2", "data.batch_size=4", "--json")
    rehearsed = json.loads(out)
    assert rehearsed["go"] == (code == 0) == all(row["error"] is None for row in rehearsed["findings"])
    assert {"data", "gradients", "by heart"} <= {row["subject"] for row in rehearsed["findings"]}
    code, out, _ = call(
        "show",
        "model",
        *shlex.split(packed["command"])[2:],
        "data.val_size=2",
        "data.batch_size=4",
        "model=resnet20",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["layers"][-1]["shape"] == [2]
    code, out, _ = call("data", "check", "out.npz")
    assert code == 0
    assert "[bee]" in out
    assert "16 × 16 × 3" in out
    before = (tmp_path / "out.npz").read_bytes()
    assert call("data", "pack", "my pictures", "out.npz")[0] == 2
    assert (tmp_path / "out.npz").read_bytes() == before
    (path.parent / "broken.jpg").unlink()
    assert call("data", "pack", "my pictures", "out.npz", "--overwrite")[0] == 0


def test_fetch_without_a_network_names_the_ways_out(call, tmp_path, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    code, _, err = call("data", "fetch", "cifar10")
    assert code == 3
    assert err.startswith("cnnlab: error: data/cifar10.npz is missing")
    for way_out in ("data.path=", "`cnnlab data fetch cifar10`", "experiment=quickstart"):
        assert way_out in err
    assert len(err.splitlines()) == 2
    (tmp_path / "data" / "cifar10.npz").touch()
    code, out, _ = call("data", "fetch", "cifar10")
    assert code == 0
    assert "was there already" in out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_command_with_its_code_and_no_traceback(tmp_path, signum, code):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {
            "PYTHONPATH": str(PACKAGE.parent),
            "https_proxy": proxy,
            "HTTPS_PROXY": proxy,
        }
        process = subprocess.Popen(
            [*CALL, "data", "fetch", "cifar10"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()  # it has come as far as to wait for an answer
        with connection:
            time.sleep(0.1)
            process.send_signal(signum)
            _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert not (tmp_path / "data" / "cifar10.npz").exists()


TRAIN = """
import sys
from pathlib import Path
import cnnlab, own_network
from cnnlab.errors import DataError
if __name__ == "__main__":
    print(sys.argv[1:], Path(sys.argv[0]) == Path(__file__), own_network.NAME)
    if "fail" in sys.argv:
        raise DataError("no data")
    sys.exit(6 if "diverge" in sys.argv else 0)
"""


@pytest.fixture(params=["checkout", "wheel"])
def installed(request, tmp_path):
    """A copy of the package with a train.py that shows how it was called, and a folder of the user's."""
    root = tmp_path / "installed"
    shutil.copytree(PACKAGE, root / "cnnlab", ignore=shutil.ignore_patterns("conf", "train.py", "__pycache__"))
    beside = root if request.param == "checkout" else root / "cnnlab"
    (beside / "conf").mkdir()
    (beside / "train.py").write_text(TRAIN)
    work = tmp_path / "work"
    work.mkdir()
    (work / "own_network.py").write_text("NAME = 'own'")
    return root, work


def test_everything_after_train_reaches_train_py_untouched(installed):
    root, work = installed
    args = [
        "-m",
        "--help",
        "optimizer.lr=0.1,0.01",
        "--debug",
        "--",
        "--cfg",
        "job",
        "-xvf",
        "a b",
        "",
        "--debug",
    ]
    result = run(work, "train", *args, root=root)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{args} True own\n"


def test_exit_code_and_error_of_train_py_are_passed_on(installed):
    root, work = installed
    assert run(work, "train", "diverge", root=root).returncode == 6
    result = run(work, "train", "fail", root=root)
    assert (result.returncode, result.stderr) == (3, "cnnlab: error: no data\n")
    assert "Traceback" in run(work, "--debug", "train", "fail", root=root).stderr


def test_missing_train_py_is_named(installed):
    root, work = installed
    for path in root.rglob("train.py"):
        path.unlink()
    result = run(work, "train", root=root)
    assert result.returncode == 5
    assert "train.py and conf must stand in" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], {"train", "evaluate", "completion", "--version"}),
        (["show", ""], {"convolution", "pooling", "model"}),
        (["train", "mod"], {"model="}),
        (["train", "model=res"], {"model=resnet18", "model=resnet20"}),
        (["train", "optimizer.l"], {"optimizer.lr="}),
        (["evaluate", ""], {"last", "best", "outputs/day/run"}),
        (["evaluate", "last", "--sp"], {"--split"}),
        (["evaluate", "last", "--split", ""], {"test", "val", "train"}),
        (["export", "last", "--format", "o"], {"onnx"}),
        (["nonsense", ""], set()),
    ],
)
def test_tab_proposes_what_may_follow(call, tmp_path, words, expected):
    (tmp_path / "outputs" / "day" / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "outputs" / "day" / "run" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    code, out, err = call("completion", "words", "--", *words)
    assert (code, err) == (0, "")
    proposals = out.split()
    assert expected <= set(proposals) or (not expected and not proposals)
    assert all(text.startswith(words[-1]) for text in proposals)


def test_bash_completes_with_the_script_it_is_told_to_read(tmp_path):
    script = (
        f'cnnlab() {{ {shlex.join(CALL)} "$@"; }}; eval "$(cnnlab completion bash)"; compopt() {{ :; }}; '
        'COMP_LINE="cnnlab train model=resnet1"; COMP_POINT=${#COMP_LINE}; _cnnlab; echo "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "resnet18\n", "bash has the part before the = already"


def test_version_is_printed(call):
    assert call("--version")[:2] == (0, f"cnnlab {importlib.metadata.version('cnnlab')}\n")


def test_each_verb_that_asks_for_trust_knows_a_projects_classes_without():
    sources = {name: Path(cli.__file__).with_name("commands") / f"{name}.py" for name in COMMANDS}
    asking = {name for name, path in sources.items() if "trust: Trust" in path.read_text()}
    assert {"evaluate", "data"} <= asking <= {*cli.COMPOSE, *cli.RESTORE}
