"""`cnnlab new`: a project of one's own, that trains and passes its test as it is made."""

import importlib.util
import json
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.config.schema import make_schema
from cnnlab.errors import ConfigError
from cnnlab.files import write_text

app = typer.Typer(add_completion=False)

TEMPLATE = Path(__file__).parent / "project"
RENAMED = {"gitignore": ".gitignore"}  # which git would heed in the template itself


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The project's name, and its folder's: letters, digits, - and _.")],
) -> None:
    """Make a project: own defaults, a recipe, a network, a loss and data with their options, and a test of them all."""
    folder = Path(name)
    if not re.fullmatch(r"[A-Za-z][\w-]*", folder.name):
        raise ConfigError(f"a project's name has letters, digits, - and _, and begins with a letter; got {folder.name}")
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name")
    package = folder.name.replace("-", "_").lower()
    if keyword.iskeyword(package) or package in ("conf", "tests", "outputs") or importlib.util.find_spec(package):
        raise ConfigError(f"a project's code is a package of its name, and {package} is taken: choose another name")
    for path in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        parts = [RENAMED.get(part, part).replace("NAME", package) for part in path.relative_to(TEMPLATE).parts]
        parts = [package if part == "package" else part for part in parts]
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8").replace("PACKAGE", package)
        write_text(target, text.replace("NAME", folder.name if target.name == "README.md" else package))
    _write_editor_settings(folder / ".vscode")
    print(f"{folder} is made. Next:\n  cd {folder}\n  cnnlab train experiment=first\n  pytest")


def _write_editor_settings(folder: Path) -> None:
    """Write schemas of the yaml files, and the settings by which Visual Studio Code's YAML extension finds them."""
    folder.mkdir()
    files = {"run": ["conf/project.yaml", "conf/experiment/*.yaml"]}
    files |= {group: [f"conf/{group}/*.yaml"] for group in ("model", "loss", "data")}
    for name in files:
        schema = make_schema(None if name == "run" else name)
        write_text(folder / f"{name}.schema.json", json.dumps(schema, ensure_ascii=False) + "\n")
    settings = {"yaml.schemas": {f"./.vscode/{name}.schema.json": patterns for name, patterns in files.items()}}
    write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
