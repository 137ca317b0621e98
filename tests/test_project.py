"""A project of one's own: a conf folder and modules beside it are found by every verb, a stranger's never."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from cnnlab import trust
from cnnlab.commands.completion import propose
from cnnlab.commands.new import new
from cnnlab.config import CONF, own_classes, preflight, replaced
from cnnlab.config.schema import make_schema
from cnnlab.config.tree import content, groups, options
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


def test_classes_that_the_own_conf_names_need_no_word_in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trust, "_vouched", set())
    with pytest.raises(UnsafeError, match=r"trusted=\[nets\]"):
        trust.check({"_target_": "nets.Small"}, "model")
    assert own_classes() == {"nets.Small"}
    trust.vouch(own_classes())
    trust.check({"_target_": "nets.Small"}, "model")
    with pytest.raises(UnsafeError):
        trust.check({"_target_": "nets.Other"}, "model")


def test_tab_proposes_own_options(project: Path):
    assert propose(["train", "model=sm"]) == ["model=small"]
    assert propose(["check", "experiment=w"]) == ["experiment=wide"]
    assert propose(["show", "model", "model=small"]) == ["model=small"]


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


def test_own_project_trains_and_is_resumed_as_the_log_says(project: Path):
    run = cnnlab("train", "model=lenet", "~callbacks.figures", "hydra.run.dir=run", cwd=project)
    assert run.returncode == 0, run.stderr
    assert "in place of cnnlab's" in run.stdout
    (command,) = [line.strip() for line in run.stdout.splitlines() if "resume=" in line]
    words = command.split("cnnlab train ")[1].replace("...", "2").split()
    resumed = cnnlab("train", *words, cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert len((project / "run" / "history.csv").read_text().splitlines()) == 3


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["class", "Torch", "json", "conf"])
def test_a_new_project_hides_no_package_and_can_be_imported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is taken"):
        new(name)
    assert not list(tmp_path.iterdir())


def test_a_new_project_trains_and_passes_its_own_test_as_it_is_made(tmp_path: Path):
    made = cnnlab("new", "my-project", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "my-project"
    run = cnnlab("train", "experiment=first", "trainer.max_epochs=1", "~callbacks.figures", cwd=folder)
    assert run.returncode == 0, run.stderr
    own_classes = re.findall(r"([\w.]+) is my_project\.\S+, which is none of cnnlab's", run.stdout)
    assert sorted(own_classes) == ["data.test", "data.train", "loss", "model"]  # each once
    listed = cnnlab("options", "--json", cwd=folder)
    own = {f"{row['group']}={row['option']}" for row in json.loads(listed.stdout) if row["own"]}
    assert own == {"data=my_project", "loss=my_project", "model=my_project", "experiment=first"}
    assert "my_project" in cnnlab("train", "--help", cwd=folder).stdout
    again = cnnlab("new", "my-project", cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert cnnlab("new", "../a b", cwd=tmp_path).returncode == 2


def fits(value: object, schema: dict) -> bool:
    """Whether a value fits a schema; of JSON schema's words those that ours use."""
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(word) and value == word for word in schema["enum"])
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match schema.get("type"):
        case "integer":
            right = number and isinstance(value, int)
        case "number":
            right = number
        case None:
            right = True
        case kind:
            right = isinstance(value, types[kind])
    if right and number:
        right = (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    if right and isinstance(value, str) and "pattern" in schema:
        right = re.search(schema["pattern"], value) is not None
    if right and isinstance(value, list) and "items" in schema:
        right = all(fits(element, schema["items"]) for element in value)
    if right and isinstance(value, dict):
        properties = schema.get("properties", {})
        right = schema.get("additionalProperties", True) or set(value) <= set(properties)
        right = right and all(fits(inner, properties.get(name, {})) for name, inner in value.items())
    return right


def test_every_file_of_the_tree_fits_the_schema_and_wrong_ones_do_not():
    whole = make_schema()
    for group in groups():
        for option in options(group) if group != "search" else ():
            text = (CONF / group / f"{option}.yaml").read_text().replace("init_from: ''", "")  # still to be given
            schema = whole if group == "experiment" else make_schema(group)
            assert fits(yaml.safe_load(text) or {}, schema), f"{group}/{option}"
    for wrong in (
        {"seed": -1}, {"sed": 0}, {"optimizer": {"lr": 0}}, {"optimizer": {"lr": "fast"}}, {"model": {"dropout": 1}},
        {"trainer": {"max_epoch": 3}}, {"trainer": {"precision": "bf17"}}, {"loss": {"label_smoothing": 2}},
        {"callbacks": {"checkpoint": {"every_n_steps": 0}}}, {"objective": {"mode": "best"}},
    ):  # fmt: skip
        assert not fits(wrong, whole), wrong
    accepted: list[dict] = [
        {"seed": 3},
        {"optimizer": {"lr": 0.5}},
        {"model": {"channels": [1, 2]}},
        {"hydra": {"run": {}}},
    ]
    for right in accepted:
        assert fits(right, whole), right


def test_schema_is_written_for_a_project_s_own_options_too(project: Path):
    model = json.loads(cnnlab("schema", "model", cwd=project).stdout)
    assert fits({"_target_": "nets.Small", "width": 3}, model)
    assert not fits({"width": 0}, model)
    assert cnnlab("schema", "nothing", cwd=project).returncode == 2
