"""The overrides of one command line, and whether the configs that they make are right."""

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from cnnlab.config import space
from cnnlab.config.checks import CLOSED, mistakes_at, mistakes_in
from cnnlab.config.lines import parse_all, sets
from cnnlab.config.loader import Loader, as_containers, first_cause
from cnnlab.config.presence import check_data, unimportable
from cnnlab.config.references import get, without_hydra
from cnnlab.config.tree import Key, chosen, groups
from cnnlab.config.words import as_typed, nearest
from cnnlab.errors import ConfigError

MOST_VALUES = 1000  # of one sweep are checked
SWEEPERS = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra_plugins.cnnlab.Sweeper")
# Where each trial is a process with a command line of its own, so that the processes it starts get that one.
REMOTE = ("hydra_plugins.cnnlab.Slurm", "hydra_plugins.cnnlab.Ray")
ALONE = ("hydra_plugins.cnnlab.Local", *REMOTE)


class Command:
    """The overrides of one command line, and the configs that they make.

    Args:
        flags: Hydra's flags.
        overrides: The overrides.
        multirun: Whether they make a sweep.

    Attributes:
        config: That of the run, or of a sweep's first trial, as plain containers without the `hydra` part.
        run_dir: Where the run will stand, references as they are.

    Raises:
        ConfigError: A folder of configs, or the main config, is not there.
    """

    def __init__(self, flags: argparse.Namespace, overrides: Sequence[Override], multirun: bool) -> None:
        self.config: dict[str, Any] = {}
        self.run_dir = "."
        self._overrides = overrides
        self._multirun = multirun
        self._is_shown_only = bool(flags.cfg or flags.info)  # and so may be unfinished
        self._trials_are_processes = self._is_remote = False
        self._values: list[Override] = []  # one for each value of each override
        self._choices: dict[str, Any] = {}  # of the config composed last
        self._misspelt_groups: set[str] = set()  # their keys can't be judged
        self._loader = Loader(flags, overrides)

    def mistakes(self) -> list[str]:
        """Compose the config, and list what is wrong with the overrides, a line each."""
        mistakes: list[str] = []
        swept = [values for override in self._overrides if (values := self._values_of(override, mistakes))]
        self._values = [value for values in swept for value in values]
        first = [values[0] for values in swept]
        composed, lines = self._compose(first)
        mistakes += lines
        if composed is None:
            return mistakes
        self.config = without_hydra(composed)
        mistakes += self._disputes()
        searching = bool(self.config.get("search"))
        sweeper = get(as_containers(composed), "hydra", "sweeper", "_target_")
        mistakes += [
            f"{as_typed(override.input_line)}: an interval is for a search; here give values, A,B,C"
            for override in self._overrides
            if override.is_interval_sweep() and sweeper in SWEEPERS and not searching
        ]
        if searching and not mistakes:
            mistakes += self._mistakes_in_space(first)
        for index, values in enumerate(swept):
            for value in values[1:]:
                others = (*first[:index], value, *first[index + 1 :])
                lines, note = self._mistakes_of_value(value, others)
                mistakes += [line + note for line in lines if line not in mistakes and line + note not in mistakes]
        return mistakes

    def _disputes(self) -> Iterator[str]:
        """List the overrides that say again, and otherwise, what a key above them says, a line each."""
        budget = self.config.get("budget")
        for override in self._overrides:
            key = override.key_or_group
            if key == "trainer.default_root_dir":
                yield (
                    f"{override.input_line}: what a run writes stays together in its own folder: give hydra.run.dir, "
                    "or hydra.sweep.dir for a sweep"
                )
            is_limit = key in ("trainer.max_epochs", "trainer.max_steps") and not override.is_delete()
            if budget is not None and is_limit and override.value() not in (-1, None):
                line = override.input_line
                yield f"budget={as_typed(budget)} and {line} both say when the run ends: give one of them"

    def without(self, overrides: Sequence[Override]) -> dict[str, Any]:
        """Return the config that the command line makes without some overrides, as plain containers, unjudged."""
        others = [override for override in self._overrides if override not in overrides]
        choices = [override for override in others if self.is_choice(override)]
        config = self._loader.compose(choices)
        for override in others:
            if override not in choices:
                list(self._loader.apply(override, config))
        return without_hydra(config)

    def missing(self) -> list[str]:
        """List the classes that are not there, a line each; those on another machine are for that to look for.

        Raises:
            DataError: A data file that was named is not there.
        """
        if self._is_shown_only or self._is_remote:
            return []
        values = [value for value in self._values if not self.is_choice(value)]
        paths = [value.value() for value in values if sets(value, "data.path")]
        parts = [self.config]
        if self._multirun:
            parts += [{value.key_or_group: value.value()} for value in values]
        else:  # what one run sets twice, as a resumed one does, has its last value
            paths = paths[-1:]
        check_data(paths, self.config)
        return list(dict.fromkeys(line for part in parts for line in unimportable(part)))

    def is_choice(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        key = override.key_or_group
        return key != "" and not isinstance(override.value(), Mapping) and self._loader.is_group(key)

    def _mistakes_of_value(self, value: Override, overrides: Sequence[Override]) -> tuple[list[str], str]:
        """List what a further value of a sweep makes wrong, with what each line is to end in."""
        if self.is_choice(value):  # one composition for each option, not for each combination
            return self._compose(overrides)[1], f" (with {value.input_line})"
        key = tuple(value.key_or_group.split("."))
        return self._judge(_with(self.config, key, value.value()), key), ""

    def _mistakes_in_space(self, first: list[Override]) -> list[str]:
        """List what is wrong with a search's space: its form, its keys, the ends of its ranges, its choices."""
        try:
            dimensions = space.parse_space(get(self.config, "search", "space") or {})
        except ConfigError as error:
            return str(error).splitlines()
        mistakes: list[str] = []

        def walk(outer: list[Override], dimensions: Sequence[space.Dimension]) -> None:
            for dimension in dimensions:
                for line, inner in zip(dimension.ends(), [*dimension.choices.values()] or [(), ()], strict=True):
                    overrides, lines = parse_all([line])
                    if not lines and any(self.is_choice(override) for override in overrides):
                        lines = [text for override in overrides for text in self._wrong_options(override)]
                    if not lines:
                        lines = self._compose([*outer, *overrides])[1]
                    mistakes.extend(f"search.space: {text}" for text in lines)
                    if not lines:
                        walk([*outer, *overrides], inner)

        walk(first, dimensions)
        return list(dict.fromkeys(mistakes))

    def _values_of(self, override: Override, mistakes: list[str]) -> list[Override]:
        """Return an override for each value that can be judged, and add what is wrong to `mistakes`."""
        values = self._sweep_values(override, mistakes) if override.is_sweep_override() else [override]
        if not self.is_choice(override):
            return values
        right = []
        for value in values:
            lines = list(self._wrong_options(value))
            mistakes += lines
            right += [] if lines else [value]
        if not right:
            group = override.key_or_group
            self._misspelt_groups |= set(groups()) - set(CLOSED) if group == "experiment" else {group}
        return right

    def _sweep_values(self, override: Override, mistakes: list[str]) -> list[Override]:
        line = as_typed(override.input_line)
        most = MOST_VALUES if self._multirun else 1
        if not self._multirun:
            mistakes.append(f"{line}: several values need -m; a list is [a,b], a text with commas stands in 'quotes'")
        if override.is_hydra_override():
            mistakes.append(f"{line}: Hydra's own settings can't be swept")
            return []
        override.config_loader = self._loader.hydra
        try:
            if isinstance(sweep := override.value(), IntervalSweep):
                start, end = cast(float, sweep.start), cast(float, sweep.end)
                if not -math.inf < start <= end < math.inf:
                    mistakes.append(f"{line}: an interval begins with its smaller end, and both are finite")
                    return []
                texts = iter([str(start), str(end if isinstance(end, int) else math.nextafter(end, start))])
            else:
                texts = override.sweep_string_iterator()
            parser = OverridesParser.create()
            key = override.get_key_element()
            values = [parser.parse_override(f"{key}={text}") for text in islice(texts, most)]
        except Exception as error:
            mistakes.append(f"{line}: {first_cause(error)}")
            return []
        if not values:
            mistakes.append(f"{line}: there is nothing to sweep over")
        return values

    def _wrong_options(self, override: Override) -> Iterator[str]:
        group, value = override.key_or_group, override.value()
        options = self._loader.options(group)
        if override.is_delete():
            if group in groups() and group != "experiment":
                meant = f"; did you mean {group}=none?" if "none" in options else ""
                yield f"~{group}: {group} is missing, and a run needs it{meant}"
            return
        if override.is_add() and group in groups() and override.package is None:
            yield f"{as_typed(override.input_line)}: {group} exists already: leave out the plus"
            return
        if isinstance(value, list) and not groups().get(group, True):
            yield f"{group}={as_typed(value)}: {group} takes one option"
            return
        for option in value if isinstance(value, list) else [value]:
            # A path that leads out of the tree is no option, whatever Hydra would make of it.
            if option is None and group in groups() and not chosen(group):
                yield (
                    f"{group}=null: Hydra cannot choose nothing; leave {group} out; in a sweep choose a file of your "
                    f"own that changes nothing (conf/{group}/plain.yaml: # @package _global_)"
                )
                continue
            if not isinstance(option, str) or not re.fullmatch(r"[\w-]+(/[\w-]+)*(\.yaml)?", option):
                near = "none" if option is None and "none" in options else None
            elif self._loader.has_option(group, option):
                continue
            else:
                near = nearest(option, options)
            yield f"{group}={as_typed(option)}: no such option; " + (
                f"did you mean {group}={near}? ({', '.join(options)})" if near else f"choose from {', '.join(options)}"
            )

    def _compose(self, overrides: Sequence[Override]) -> tuple[DictConfig | None, list[str]]:
        """Compose a config as Hydra will, but one override at a time, so that each mistake is answered."""
        early = [override for override in overrides if self.is_choice(override) or sets(override, "hydra.searchpath")]
        try:
            config = self._loader.compose(early)
        except Exception as error:
            return None, [first_cause(error)]
        late = [override for override in overrides if override not in early]
        mistakes = [line for override in late for line in self._loader.apply(override, config)]
        content = as_containers(config)
        self.run_dir = str(content["hydra"]["run"]["dir"])
        if get(content, "hydra", "job", "chdir") is True:
            mistakes.append(
                "hydra.job.chdir=true: a run stays in the folder that it was started in, so that paths mean the same "
                "before and after; leave it out"
            )
        launcher = get(content, "hydra", "launcher", "_target_")
        self._trials_are_processes, self._is_remote = launcher in ALONE, self._multirun and launcher in REMOTE
        self._choices = get(content, "hydra", "runtime", "choices") or {}
        plain = without_hydra(config)
        if not mistakes:
            return config, self._judge(plain)
        # A key that isn't there is answered at once: the rest of the command line is judged, and not the whole config.
        keys = [tuple(override.key_or_group.split(".")) for override in late if not override.is_delete()]
        present = [key for key in keys if key[0] != "hydra" and get(plain, *key[:-1], key[-1]) is not None]
        return config, self._without_misspelt(mistakes) + [line for key in present for line in self._judge(plain, key)]

    def _judge(self, config: dict[str, Any], key: Key | None = None) -> list[str]:
        if self._is_shown_only:
            return []
        mistakes = mistakes_at(config, key) if key else mistakes_in(config, self._choices)
        if self._multirun and not self._trials_are_processes:
            mistakes += _several_devices(config)
        return self._without_misspelt(mistakes)

    def _without_misspelt(self, lines: list[str]) -> list[str]:
        return [line for line in lines if line.split(".")[0] not in self._misspelt_groups]


def _with(content: Any, key: Sequence[str], value: object) -> Any:
    """Return a config with another value at a key; the parts that it doesn't touch are shared."""
    if not key:
        return value
    name, *rest = key
    if isinstance(content, list) and name.isdecimal() and int(name) < len(content):
        at = int(name)
        return [*content[:at], _with(content[at], rest, value), *content[at + 1 :]]
    section = content if isinstance(content, dict) else {}
    return {**section, name: _with(section.get(name), rest, value)}


def _several_devices(config: dict[str, Any]) -> Iterator[str]:
    devices, nodes = (get(config, "trainer", name) for name in ("devices", "num_nodes"))
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part] if "," in devices else devices
    single = nodes in (1, None) and (
        devices in (1, "1", "auto", None) or (isinstance(devices, list) and len(devices) == 1)
    )
    # The other processes run the whole command line again, -m included: each would go through the sweep on its own.
    if not single:
        yield (
            "trainer.devices must be 1 in a sweep: other processes would run other trials; hydra/launcher=local gives "
            "each trial a process of its own, which may start others"
        )
