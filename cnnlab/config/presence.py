"""Whether what a command line names is there, before anything is written: classes of the user's own, files of data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnlab import trust
from cnnlab.config.references import get
from cnnlab.config.tree import package_targets
from cnnlab.config.words import as_typed
from cnnlab.errors import DataError, first_line


def unimportable(config: Mapping[str, Any]) -> Iterator[str]:
    """List the classes of a config, of plain containers, that cannot be imported, a line each.

    Those that the conf tree names are passed over: they are there, and torch takes seconds.
    """
    of_tree = package_targets()
    for key, target in trust.targets(config):
        if not isinstance(target, str) or target in of_tree or "${" in target:
            continue
        try:
            trust.import_target(target)
        except Exception as error:  # an import runs whatever its author wrote
            yield f"{key}={as_typed(target)} cannot be imported: {type(error).__name__}: {as_typed(first_line(error))}"


def check_data(paths: Iterable[Any], config: Mapping[str, Any]) -> None:
    """Check that the files exist which `data.path=` names: only where nobody gave a path, data is fetched or drawn.

    Raises:
        DataError: One of them does not, or is a folder where a file is read.
    """
    source = get(config, "data", "source")
    for path in paths:
        if not isinstance(path, str) or "${" in path:
            continue
        if source not in (None, "folder") and Path(path).expanduser().is_dir():
            raise DataError(f"data.path={path} must be an npz file, it is a folder; pictures in one are data=folder.")
        if not Path(path).expanduser().exists():
            make = f"cnnlab data fetch {source} FILE" if source in ("cifar10", "cifar100") else "cnnlab data --help"
            is_made = source not in ("npz", "folder")
            without = f", or leave data.path out to have {source} made at its own place" if is_made else ""
            raise DataError(f"data.path={path} does not exist. Check it, make it (`{make}`){without}.")
