"""Hydra's composition step by step, and the one importer of its internals.

Hydra composes all overrides at once and stops at the first mistake; here they are applied one after the other, so that
each mistake is answered. The private names were read in hydra-core 1.3.8; `tests/test_config.py` compares the result
with Hydra's own.
"""

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, cast

import yaml  # type: ignore[import-untyped]
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.checks import unknown
from cnnlab.config.lines import sets, text_of
from cnnlab.config.project import CONF, ROOT, config_name
from cnnlab.config.references import without_hydra
from cnnlab.config.words import as_typed, refusal
from cnnlab.files import flatten


def read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read Hydra's flags, which may stand anywhere, and return with them the words that are no overrides.

    Raises:
        ConfigError: There is no such flag, or two exclude each other.
    """

    def refuse(message: str) -> NoReturn:
        raise refusal(f"{message}: a setting is written KEY=VALUE, and --help shows the rest")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(list(argv))
    if sum(map(bool, (flags.run, flags.multirun, flags.cfg, flags.info))) > 1:
        refuse("only one of --run, --multirun, --cfg and --info can be given")
    if flags.resolve and not flags.cfg:
        refuse("--resolve needs --cfg")
    words = [word for word in argv if word != "--"]
    for line in flags.overrides:
        words.remove(line)
    return flags, words


class Loader:
    """The config files that a command line can see, and what it composes of them.

    Args:
        flags: Hydra's flags.
        overrides: All overrides; those of `hydra.searchpath` add folders.

    Raises:
        ConfigError: A folder of configs, or the main config, is not there.
    """

    def __init__(self, flags: argparse.Namespace, overrides: Sequence[Override]) -> None:
        version.setbase("1.3")
        JobRuntime.instance().set("name", "train")
        self.main = config_name()
        paths = [text_of(override) for override in overrides if sets(override, "hydra.searchpath")]
        try:
            self.hydra = ConfigLoaderImpl(_search_path(flags))
            with warnings.catch_warnings(action="error", category=UserWarning):  # a search path that isn't there
                self._files = self.hydra._parse_overrides_and_create_caching_repo(self.main, paths)[1]
        except Exception as error:
            raise refusal(first_cause(error)) from error

    def is_group(self, key: str) -> bool:
        """Whether there is a folder of options with this name."""
        return self._files.group_exists(key)

    def options(self, group: str) -> list[str]:
        """List the options of a group."""
        return self._files.get_group_options(group)

    def has_option(self, group: str, option: str) -> bool:
        """Whether a group has an option."""
        return self._files.config_exists(f"{group}/{option}")

    def compose(self, overrides: Sequence[Override]) -> DictConfig:
        """Compose the config of these overrides alone, with its `hydra` part; raises what Hydra raises."""
        return self.hydra.load_configuration(self.main, [text_of(override) for override in overrides], RunMode.RUN)

    def apply(self, override: Override, config: DictConfig) -> Iterator[str]:
        """Apply an override to a composed config as Hydra does; yield a line where that goes wrong."""
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
        except Exception as error:
            yield _in_words(override, config, error)


def as_containers(config: DictConfig) -> dict[str, Any]:
    """Return a config with its `hydra` part as plain containers, references as they stand."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def first_cause(error: BaseException) -> str:
    """Return the first line of the error that began a chain, of 200 characters at most."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name} is no YAML: {error.problem} in line {mark.line + 1}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:197]}..."


def _search_path(flags: argparse.Namespace) -> Any:
    """Return the folders in which Hydra's main will look for configs."""
    path = flags.config_path or CONF
    return create_config_search_path(str(path) if "://" in str(path) else str(ROOT / path))


def _in_words(override: Override, config: DictConfig, error: Exception) -> str:
    """Say why an override could not be applied."""
    key, value = override.key_or_group, override.value()
    content = as_containers(config) if re.match(r"hydra\b", key) else without_hydra(config)
    keys = {name for name, _ in flatten(content, sections=True)}
    if override.is_add() and key in keys:
        return f"{key} exists already: leave out the plus"
    if override.is_delete() and key in keys:
        return f"~{key} is null: there is nothing to delete"
    if not (override.is_add() or override.is_force_add()):
        names = (name for name, _ in flatten({key: value}, sections=True))
        if missing := next((name for name in names if name not in keys), None):
            return unknown(missing, content)
    return f"{as_typed(override.input_line)}: {first_cause(error)}"
