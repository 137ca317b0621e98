"""Every command in the README and the pages beside it works, their Python runs, and their lists are complete."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab import cli, errors
from cnnlab.config import preflight
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
RULES = ("CONTRIBUTING.md", "SECURITY.md")  # their commands are those of the proofs
PAGES = {
    path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md"))]
    if path.name not in RULES
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return [
        block for text in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    ]


COMMANDS = list(
    dict.fromkeys(
        part.strip()
        for block in blocks("bash")
        for line in block.splitlines()
        for part in line.partition("  #")[0].split("&&")
        if part.strip()
    )
)
# Run by others: `.ci/run` installs and tests as the README says, tests/test_browser.py starts the dashboard,
# tests/test_benchmark.py tries switches.
ELSEWHERE = {
    "git clone ADDRESS cnnlab", "cd cnnlab", "python -m venv .venv", ". .venv/bin/activate", "pip install -e .",
    "cnnlab dashboard", "pip install -e '.[search]'", "pip install -e '.[slurm]'",
    "cnnlab benchmark model=resnet18 data.batch_size=512 --sweep precision,channels_last,compile",
}  # fmt: skip
# Long, and their verbs are tried by quicker ones.
SLOW = {
    "cnnlab benchmark --against plain --figure step.png",
    "python train.py -m data=shapes data.folds=5 'data.fold=range(5)' hydra/launcher=local",
    "python train.py -m experiment=quickstart data.label_noise=0.03 data.folds=5 'data.fold=range(5)'",
    "python train.py model=resnet18 augment=flip_crop schedule=cosine trainer.max_epochs=30",
}
# What a command before makes, which another process may have run, or nobody yet.
MADE_BY = {
    "photos.npz": "cnnlab data pack photos/ photos.npz --size 32",
    "model.onnx": "cnnlab export last --output model.onnx",
}
SHORT = ["trainer.fast_dev_run=1", "data.val_size=80", "data.batch_size=32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, npz: Path, trained: Path, drawn_shapes: Path) -> Path:
    """A folder with what the README's commands name: data files, pictures, a network of the user's own."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").mkdir()
    for name in ("data/cifar10.npz", "mine.npz"):
        shutil.copy(npz, folder / name)
    shutil.copy(drawn_shapes, folder / "data" / "shapes.npz")
    random = np.random.Generator(np.random.PCG64(0))
    for label in ("cats", "dogs"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(100):
            pixels = random.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    Image.fromarray(pixels).resize((300, 200)).save(folder / "photo.jpg")
    (folder / "more").mkdir()
    Image.fromarray(pixels).save(folder / "more" / "last.jpg")
    # Runs for what comes after training: one that `last` finds, and four to compare.
    for number in range(1, 5):
        copy = shutil.copytree(trained, folder / "runs" / str(number))
        config = copy / ".hydra" / "config.yaml"  # each its own seed, as groups that are compared have
        config.write_text(config.read_text().replace("seed: 0\n", f"seed: {number}\n", 1))
    shutil.copytree(trained, folder / "outputs" / "day" / "first")
    (network,) = [block for block in blocks("python") if "class MyNet" in block]
    (folder / "mynet.py").write_text(network)
    (dataset,) = [block for block in blocks("python") if "class Photos" in block]
    (folder / "myphotos.py").write_text(dataset)
    (parts,) = [block for block in blocks("python") if "class Contractive" in block]
    (folder / "myparts.py").write_text(parts)
    return folder


def test_readme_is_read_in_five_minutes():
    """At 250 words a minute, without what is only looked up or copied: the table of options and the code."""
    prose = re.sub(r"```.*?```|^\|.*?$", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 5 * 250


def test_readme_lists_every_option_of_every_group():
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        (row,) = re.findall(rf"^\| `{group.name}` \|.*$", README, flags=re.MULTILINE)
        missing = {path.stem for path in group.glob("*.yaml")} - set(re.findall(r"`(\w+)`", row))
        assert not missing, group.name


def test_every_page_is_linked_and_every_link_leads_somewhere():
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / ".github"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).is_file(), f"{name} links {target}"
    for path in (ROOT / ".github").glob("*.md"):
        assert f"(.github/{path.name})" in README, path.name


def test_pages_name_every_verb_and_every_exit_code():
    for verb in cli.COMMANDS:
        assert any(f"cnnlab {verb}" in text for text in PAGES.values()), verb
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CnnlabError)]
    for code in {kind.exit_code for kind in kinds} - {1}:
        assert f"\n| {code} |" in PAGES["RUNS.md"], code


def test_every_command_is_known():
    assert len(COMMANDS) > 15
    assert {*COMMANDS} >= ELSEWHERE | SLOW, "no name of a command that is not written any more"
    for command in COMMANDS:
        assert command in ELSEWHERE or re.match(
            rf"python train\.py|cnnlab (--version|(train|{'|'.join(cli.COMMANDS)}) )", command
        ), command


def complete(words: list[str], home: Path) -> list[str]:
    """Put runs where a command names folders, and add settings that make it short."""
    runs = sorted(str(record.parent) for record in (home / "runs").glob("*/run.json"))
    words = [re.sub(r"FOLDER(\d)", lambda match: runs[int(match[1]) - 1], word) for word in words]
    if words[0] == "benchmark":
        words = [*words, "--rounds=1", "--seconds=0.1", "data.val_size=80", "data.batch_size=8"]
    composed = words[0] == "show" and words[1] in ("data", "augment", "schedule", "model")
    return [*words, "data.val_size=80", "data.batch_size=8"] if words[0] == "check" or composed else words


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if command in SLOW else [])
        for command in COMMANDS
        if command not in ELSEWHERE
    ],
)
def test_command_works(command: str, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.chdir(home)
    for name, maker in MADE_BY.items():
        if command == maker:
            (home / name).unlink(missing_ok=True)
        elif name in re.split("[ =]", command) and not (home / name).exists():
            test_command_works(maker, home, monkeypatch, request)
    program, *words = shlex.split(command)
    if program == "cnnlab" and words[0] != "train":
        if "SWEEP" in words:
            words[words.index("SWEEP")] = str(request.getfixturevalue("folds"))
        words = complete(words, home)
        if words[:2] == ["data", "fetch"]:
            words.append("--help")  # the download itself is tested on a server of its own
        with pytest.raises(SystemExit) as ended:
            cli.app(words, prog_name="cnnlab")
        assert not ended.value.code
        return
    arguments = words[1:]
    if "--help" in arguments or any("=gpu" in word for word in arguments):
        with pytest.raises(SystemExit) if "--help" in arguments else monkeypatch.context():
            preflight(arguments)
        return
    if any("FOLDER" in word for word in arguments):
        (newest,) = sorted((home / "outputs").glob("*/*/run.json"))[-1:]
        arguments = [word.replace("FOLDER", str(newest.parent)) for word in arguments]
    keys = {word.partition("=")[0] for word in arguments}
    if "hydra/launcher=slurm" in arguments:
        preflight(arguments)  # tests/test_sweep_remote.py runs it
        return
    arguments = ["search.n_trials=2" if word.startswith("search.n_trials=") else word for word in arguments]
    if "resume" not in keys or "-m" in arguments:
        arguments += SHORT
    monkeypatch.syspath_prepend(home)
    import train as script
    from cnnlab import run

    if "check=true" in arguments:
        script.start(arguments)
        return
    # A sweep is resumed that the page began before; another process may have run that command.
    runs = [arguments]
    if "-m" in arguments and "resume=last" in arguments:
        runs.insert(0, [word for word in arguments if word != "resume=last"])
    for words in runs:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight(words)])
        run.failed.clear()
        script.main()
    assert not run.failed


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_python_example_trains(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    (example,) = [block for block in blocks("python") if "Trainer(" in block]
    example = example.replace("batch_size=128", "batch_size=32, val_size=80").replace(
        "max_epochs=3", "fast_dev_run=True"
    )
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["classifier"].trainer.global_step == 1


def test_python_run_is_a_runs_folder(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    (example,) = [block for block in blocks("python") if "cnnlab.train([" in block]
    short = [*SHORT, "hydra.run.dir=outputs/python"]
    names: dict = {}
    exec(compile(example.replace('"optimizer.lr=0.1"', ", ".join(map(repr, short))), "README.md", "exec"), names)
    assert (home / "outputs" / "python" / "metrics.json").is_file()
    assert {row["run"] for row in names["table"]} >= {"python", "day/first"}
