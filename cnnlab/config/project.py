"""A project of one's own: a `conf` folder whose options stand before the package's, and modules beside it.

Such a folder is code, as a Makefile is: it is looked for in the working folder only, and never in a run's folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cnnlab.config.words import as_typed, refusal
from cnnlab.record import is_run, is_sweep

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""The folder that holds `conf` and `train.py`: the package itself in a wheel, its parent in a checkout."""
CONF = ROOT / "conf"

FLAGS = ("--config-dir", "-cd", "--config-name", "-cn")


class _Flags:
    """What the command line says of config files; one process reads one command line at a time."""

    config_dir: Path | None = None
    config_name: str | None = None


def use(flags: argparse.Namespace) -> None:
    """Take the folder and the main config that a command line names.

    Raises:
        ConfigError: There is no such folder.
    """
    _Flags.config_name = flags.config_name
    _Flags.config_dir = Path(flags.config_dir).absolute() if flags.config_dir else None
    if _Flags.config_dir and not _Flags.config_dir.is_dir():
        raise refusal(f"--config-dir={as_typed(flags.config_dir)} is no folder")


def take_flags(args: Sequence[str]) -> list[str]:
    """Take `--config-dir` and `--config-name` out of a verb's arguments, and have them hold for what it composes."""
    flags, rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False), list(args)
    flags.add_argument("--config-dir", "-cd")
    flags.add_argument("--config-name", "-cn")
    if any(word.split("=")[0] in FLAGS for word in args):
        content, rest = flags.parse_known_args(rest)
        use(content)
    enter()
    return rest


def words() -> list[str]:
    """Return the flags that `use` took, as words of a command line."""
    return [
        *(["--config-dir", str(_Flags.config_dir)] if _Flags.config_dir else []),
        *(["--config-name", _Flags.config_name] if _Flags.config_name else []),
    ]


def config_name() -> str:
    """Return the name of the main config."""
    return _Flags.config_name or "train"


def own_folders() -> list[Path]:
    """List the folders of the user's own configs, the first of which wins: that of `--config-dir`, then `./conf`."""
    folders = [_Flags.config_dir] if _Flags.config_dir else []
    if (here := _project()) and (here / "conf").is_dir() and not (here / "conf").samefile(CONF):
        folders.append(here / "conf")
    return folders


def folders() -> list[Path]:
    """List all folders of configs, the first of which wins."""
    return [*own_folders(), CONF]


def enter() -> None:
    """Make modules beside the user's configs importable, and have Hydra see the configs."""
    for folder in dict.fromkeys([*(folder.parent for folder in own_folders()), *filter(None, [_project()])]):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # last, so that a file lying there replaces nothing that is installed
    Plugins.instance().register(OwnFolders)


def replaced() -> list[str]:
    """Say which of the package's options are replaced by own ones of the same name."""
    return [
        f"{path.relative_to(folder).parent}={path.stem} is {path}, in place of cnnlab's"
        for folder in own_folders()
        for path in sorted(folder.glob("*/*.yaml"))
        if (CONF / path.relative_to(folder)).is_file()
    ]


class OwnFolders(SearchPathPlugin):
    """Puts the user's own folders before the package's, where Hydra puts them after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders."""
        for folder in reversed(own_folders()):
            search_path.prepend("own", f"file://{folder}", SearchPathQuery(provider="main"))


def _project() -> Path | None:
    """Return the working folder, unless it is or lies in a run's, which may be a stranger's."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    return None if any(is_run(folder) or is_sweep(folder) for folder in (here, *here.parents)) else here
