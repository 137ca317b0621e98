"""The door to the configs: what a key may be, and whether a command line is right.

Imports neither torch nor Lightning, so that a mistake is answered at once.
"""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.lines import quote, value_of
from cnnlab.config.preflight import compose, composed, preflight, unjudged
from cnnlab.config.project import CONF, ROOT, replaced, take_flags
from cnnlab.config.record import follow_budget, write_record
from cnnlab.config.references import by_budget
from cnnlab.config.resume import record_limits, resume_command
from cnnlab.config.tree import chosen, own_classes

__all__ = [
    "CONF", "ROOT", "chosen", "compose", "composed", "follow_budget", "own_classes", "preflight", "quote",
    "record_limits", "replaced",
    "resume_command", "take_flags", "unjudged", "value_of", "write_record",
]  # fmt: skip

# Two runs started in the same second must not share a folder: conf/train.yaml ends its name in `${unique:}`.
OmegaConf.register_new_resolver("unique", lambda: os.urandom(3).hex(), use_cache=True, replace=True)


def _by_budget(values: Any, *, _root_: DictConfig) -> Any:
    value = by_budget(values, _root_)
    # Where references are replaced by what they stand for, OmegaConf takes no plain list or mapping.
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


OmegaConf.register_new_resolver("by_budget", _by_budget, replace=True)
