"""Many runs: every combination or a search, resumable, side by side, and a table at the end.

Imports neither torch nor Lightning: what is done already is passed over before they are needed.
"""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from cnnlab.sweep.local import Local
from cnnlab.sweep.remote import Ray, Slurm
from cnnlab.sweep.sweeper import Sweeper

__all__ = ["Local", "Ray", "Slurm", "Sweeper", "register"]


def register() -> None:
    """Let Hydra know `hydra/sweeper=cnnlab` and the launchers.

    Hydra takes plugins by a name in the package `hydra_plugins` only; what stands there need not be a file.
    """
    place = ModuleType("hydra_plugins.cnnlab")
    try:
        package = importlib.import_module("hydra_plugins")  # there if another plugin is installed
    except ModuleNotFoundError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    package.cnnlab = sys.modules[place.__name__] = place  # type: ignore[attr-defined]
    for plugin in (Local, Slurm, Ray, Sweeper):
        plugin.__module__ = place.__name__
        setattr(place, plugin.__name__, plugin)
        Plugins.instance().register(plugin)
