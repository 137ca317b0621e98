"""Which trials a sweep has: every combination of the values with commas, or a search space."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab.config import space
from cnnlab.config.references import without_hydra
from cnnlab.errors import ConfigError
from cnnlab.sweep.trial import Trial, grid_trials, split_override


class Plan:
    """What a sweep's command line and config ask for.

    Args:
        loader: Composes configs.
        config: The sweep's own.
        arguments: Its overrides.
        varied: The keys that varied when the sweep began. They vary still, even if one value is left, and in the same
            order: a trial's name must stay the same.

    Attributes:
        base: The overrides that all trials have.
        search: The config's `search`, as plain containers; None without one.
        space: Its space, without the keys that the command line gives values to.
        keys: Those that vary.
        seeds: What each trial of a search is run with; none for the config's own seed, or where they are an axis of a
            grid.
        config: That of the first trial, as plain containers; the varied keys have any of their values.
    """

    def __init__(
        self, loader: ConfigLoader, config: DictConfig, arguments: Sequence[str], varied: Sequence[str]
    ) -> None:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
        overrides = [override for override in parsed if not _is_about_the_sweep(override)]
        search: Any = OmegaConf.to_container(config.search, resolve=True) if config.get("search") else None
        order = [] if search else list(varied)
        varies = [override.is_sweep_override() or _key(override) in order for override in overrides]
        self.base = [str(override.input_line) for override, swept in zip(overrides, varies, strict=True) if not swept]
        axes = [override for override, swept in zip(overrides, varies, strict=True) if swept]
        self._axes = sorted(axes, key=lambda override: [*order, _key(override)].index(_key(override)))
        self.search: dict[str, Any] | None = search
        fixed = {split_override(line)[0] for line in self.base} | {_key(override) for override in axes}
        dimensions = space.parse_space(search["space"]) if search else ()
        self.space = tuple(dimension for dimension in dimensions if dimension.key not in fixed)
        self.seeds = self._search_seeds(int(config.seed))
        keys = [_key(override) for override in self._axes]
        keys += [key for dimension in self.space for key in _keys(dimension)]
        keys += ["seed"] if search and search["seeds"] else []
        self.keys = list(dict.fromkeys(keys))
        first = [_values(axis)[0] for axis in self._axes if not isinstance(axis.value(), IntervalSweep)]
        whole = loader.load_configuration(config.hydra.job.config_name, [*self.base, *first], RunMode.RUN)
        self.config = without_hydra(whole)

    @property
    def proposes(self) -> bool:
        """Whether the trials are proposed one after the other, from the results so far."""
        return self.search is not None and self.search["sampler"] != "grid"

    def trials(self) -> list[Trial]:
        """Return the trials of a grid."""
        axes = [_values(axis) for axis in self._axes]
        if self.seeds:
            axes.append([f"seed={seed}" for seed in self.seeds])
        return grid_trials([*inner, *outer] for inner in space.grid(self.space) for outer in product(*axes))

    def dimensions(self) -> list[space.Dimension]:
        """Return what a search varies: the space of the config, and what the command line sweeps over.

        Raises:
            ConfigError: There is none.
        """
        dimensions = list(self.space)
        for axis in self._axes:
            key = axis.get_key_element().lstrip("+")
            value = axis.value()
            if key == "seed":
                continue
            if isinstance(value, IntervalSweep):
                is_log = "log" in value.tags
                dimensions.append(space.Dimension(key, key, value.start, value.end, is_log))  # type: ignore[arg-type]
            else:
                choices = dict.fromkeys(axis.sweep_string_iterator(), ())
                dimensions.append(space.Dimension(key, key, choices=choices))
        if not dimensions:
            raise ConfigError("search.space is empty: give it keys, or values with commas on the command line")
        return dimensions

    def _search_seeds(self, seed: int) -> list[int]:
        if self.search is None:
            return []
        swept = [split_override(value)[1] for axis in self._axes if _key(axis) == "seed" for value in _values(axis)]
        if swept:
            return [int(value) for value in swept] if self.proposes else []
        return list(range(seed, seed + (self.search["seeds"] or 0)))


def _is_about_the_sweep(override: Override) -> bool:
    """Whether an override is about the sweep, not about its trials."""
    key = override.key_or_group
    return key in ("resume", "search") or key.startswith(("search.", "hydra.", "hydra/"))


def _key(override: Override) -> str:
    return split_override(str(override.input_line))[0]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]


def _keys(dimension: space.Dimension) -> Iterator[str]:
    yield dimension.key
    for inner in dimension.choices.values():
        for nested in inner:
            yield from _keys(nested)
