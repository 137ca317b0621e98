"""The structure that the contributing guide promises."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

ROWS = [
    {"train", "cli"},
    {"commands", "notebook"},
    {"sweep", "doctor", "ablation"},
    {"benchmark", "export", "comparison", "report", "decision", "folds"},
    {"evaluation", "prediction", "rehearsal", "distillation"},
    {"fit", "restore"},
    {"build"},
    {"callbacks"},
    {"classifier", "data", "weights"},
    {
        "augment",
        "init",
        "model",
        "optimizer",
        "loss",
        "metrics",
        "schedule",
        "plots",
        "config",
        "run",
        "machine",
        "ledger",
    }
    | {"anatomy", "checkpoint"},
    {"answers", "identity"},
    {"batch", "patches", "probe", "record", "trust", "lock", "study", "tables", "tutorial", "tta", "stats"},
    {"console"},
    {"signals", "files", "wording"},
    {"objective"},
    {"source"},
    {"bounds"},
    {"errors"},
]
HEIGHT = {room: height for height, rooms in enumerate(reversed(ROWS)) for room in rooms}
ONLY_IN = {
    "hydra": {"train", "sweep", "build", "config"},
    "omegaconf": {"train", "sweep", "build", "config"},
    "matplotlib": {"plots"},
}
FILES = [ROOT / "train.py", *sorted((ROOT / "cnnlab").rglob("*.py"))]


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "cnnlab" and parts[1] != "__init__" else parts[0]


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rows_import_lower_rows_only(file: Path):
    room = room_of(file)
    if file == ROOT / "cnnlab" / "__init__.py":
        return  # offers every room's names, on demand
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "cnnlab" and len(parts) > 1 and parts[1] in HEIGHT and parts[1] != room:
            assert HEIGHT[parts[1]] < HEIGHT[room], f"{room} imports {name}, which does not stand below it"
        if parts[0] in ONLY_IN:
            assert room in ONLY_IN[parts[0]], f"{room} imports {parts[0]}"


def test_no_module_imports_itself_through_others():
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    left = {}
    for name, file in names.items():
        modules = {other for other in imports(file) if other in names}
        # `from cnnlab.config import resume` is about the module `resume`, not about the package's own file.
        left[name] = {other for other in modules if not any(further.startswith(f"{other}.") for further in modules)}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, "these import each other, or one that does"


def test_one_file_alone_reaches_into_hydra():
    importers = {str(file.relative_to(ROOT)) for file in FILES for name in imports(file) if "hydra._internal" in name}
    assert importers == {"cnnlab/config/loader.py"}


def test_every_room_has_a_row():
    rooms = {room_of(file) for file in FILES} - {"cnnlab"}
    assert rooms == set(HEIGHT)


def test_every_room_has_a_line_in_the_contributing_guide():
    table = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("| room | holds |")[2].partition("\n\n")[0]
    names = [name for row in re.findall(r"^\| (`.*?`) \|", table, flags=re.MULTILINE) for name in row.split(", ")]
    assert sorted(name.strip("`").removesuffix(".py") for name in names) == sorted(HEIGHT)


def test_command_line_imports_neither_torch_nor_lightning():
    code = (
        "import sys, train, cnnlab.cli, cnnlab.run, cnnlab.config, cnnlab.sweep\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_cnnlab_changes_nothing_in_another_library():
    """Every module is imported; what `patches.install` changes is as it was, and so are filters and loggers."""
    rooms = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES if "hydra_plugins" not in file.parts
    ]  # fmt: skip
    code = f"""
import importlib, logging, sys, warnings
import pytorch_lightning, tensorboard.compat, torch.utils.tensorboard, matplotlib, hydra, rich, typer, torchmetrics
from lightning_fabric.strategies.launchers import subprocess_script
from tensorboard.compat.tensorflow_stub.io import gfile

libraries = ("pytorch_lightning", "lightning_fabric", "tensorboard", "torch", "torchmetrics", "hydra", "omegaconf")

def shape():
    found = {{}}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in libraries:
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    for attribute, member in list(vars(value).items()):
                        if callable(member):
                            found[f"{{name}}.{{key}}.{{attribute}}"] = id(member)
    return found

before, filters = shape(), list(warnings.filters)
levels = {{name: logging.getLogger(name).level for name in libraries}}
for room in {rooms!r}:
    importlib.import_module(room)
after = shape()
print([name for name in before if after.get(name) != before[name]])
print(filters == list(warnings.filters), levels == {{name: logging.getLogger(name).level for name in libraries}})
from cnnlab import patches
patches.install()
after = shape()
print(sorted(name.rpartition(".")[2] for name in before if after.get(name) != before[name]))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "True True", "['_terminate_all', 'append']"]


def test_ci_installs_a_locked_version_of_every_dependency():
    """`bash .ci/lock` makes the file anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    pins = re.findall(r"(?m)^([\w.-]+)==([\w.]+)", (ROOT / ".ci" / "locked.txt").read_text())
    locked = {canonicalize_name(name): version for name, version in pins}
    for requirement in wanted:
        if requirement.name != "torch":
            assert locked.get(canonicalize_name(requirement.name), "0") in requirement.specifier, requirement


def test_top_level_is_fixed():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in files.stdout.splitlines()}
    fixed = {"conf", "cnnlab", "train.py", "tests", "pyproject.toml", "README.md"}
    assert {name for name in top if not name.startswith(".")} == fixed
