"""Check the command line before anything heavy is imported."""

import argparse
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml  # type: ignore[import-untyped]
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab import lock
from cnnlab.config import space
from cnnlab.config.checks import CLOSED, get, mistakes_at, mistakes_in, plain, unknown
from cnnlab.config.help import help_text
from cnnlab.config.resume import check_origin, differences, expand, find, find_sweep
from cnnlab.config.there import check_data, unimportable
from cnnlab.config.tree import CONF, ROOT, Key, groups, options
from cnnlab.config.words import nearest, refusal, shown
from cnnlab.errors import ConfigError, UnsafeError
from cnnlab.files import flatten
from cnnlab.record import Record, check_links
from cnnlab.record import find as find_state

MOST_VALUES = 1000  # of one sweep are checked
SWEEPERS = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra_plugins.cnnlab.Sweeper")
# Where each trial is a process with a command line of its own, so that the processes it starts get that one.
REMOTE = ("hydra_plugins.cnnlab.Slurm", "hydra_plugins.cnnlab.Ray")
ALONE = ("hydra_plugins.cnnlab.Local", *REMOTE)


# No folder, no record, no log: what only looks leaves nothing behind. Where the run would stand is told by the key that
# is for sweeps.
NOTHING_WRITTEN = (
    "hydra.run.dir=.", "hydra.output_subdir=null", f"hydra.job_logging.handlers.file.filename='{os.devnull}'",
)  # fmt: skip


def preflight(argv: Sequence[str], *, looking: bool = False) -> list[str]:
    """Check the command line of train.py, and return the one to go on with.

    With `resume=` it is the run's own command line, changed by what is given now, in the run's folder. With
    `--help` the help is printed and Python exits: Hydra's own takes too long to make.

    Args:
        argv: The arguments, without the program's name.
        looking: Whether the classes and the data that it names must be there.

    Raises:
        ConfigError: Something is wrong; the message has one line for each mistake.
        DataError: The data is not there.
    """
    flags, words = _flags(argv)
    if flags.help:
        print(help_text())
        raise SystemExit(0)
    if flags.experimental_rerun:
        raise UnsafeError("--experimental-rerun loads a pickle, which runs code. Give resume=FOLDER instead.")
    if flags.hydra_help or flags.shell_completion:
        return list(argv)
    overrides, mistakes = _parsed(flags.overrides)
    multirun = flags.multirun or any(_sets(override, "hydra.mode", "MULTIRUN") for override in overrides)
    if not multirun and any(_sets(override, "search") and override.value() for override in overrides):
        multirun, words = True, [*words, "--multirun"]
    folder = _folder_to_resume(overrides, multirun)
    given = [override for override in overrides if not _sets(override, "resume")]
    if folder and multirun:
        check_links(folder)
        path = QuotedString(str(folder), Quote.single).with_quotes()
        overrides = [override for override in given if override.key_or_group != "hydra.sweep.dir"]
        overrides += _parsed([f"resume={path}", f"hydra.sweep.dir={path}"])[0]
    elif folder:
        lock.check_free(folder)
        check_links(folder)
        overrides = _parsed(expand(folder, [str(override.input_line) for override in given]))[0]
    else:
        overrides = [_beginning(override) for override in overrides]
        if not multirun:
            _check_new(overrides)
    command = _Command(flags, overrides, multirun)
    mistakes += command.mistakes()
    if not folder and command.config.get("resume") is not None:
        mistakes.append("resume is for the command line only: a config can't name the run that goes on")
    if folder and not multirun and not mistakes:
        vouched = _Command(flags, [*(other for other in overrides if command.is_choice(other)), *given], multirun)
        vouched.mistakes()
        check_origin(command.config, vouched.config)
        if changed := differences(folder, command.config):
            mistakes = [f"resume={folder}: a run goes on with the config that it began with", *changed]
    checking = command.config.get("check") is True
    if checking and (multirun or folder):
        mistakes.append("check=true looks at one run that has not begun: leave out -m and resume")
    # What comes from a folder was judged above: until then nothing that it names is imported.
    if looking and not mistakes:
        mistakes = command.missing()
    if mistakes:
        raise refusal(*mistakes)
    if checking:
        place = QuotedString(command.run_dir, Quote.single).with_quotes()
        words = [*words, f"hydra.sweep.dir={place}", *NOTHING_WRITTEN]
    return [*(str(override.input_line) for override in overrides), *words]


def composed(lines: Sequence[str], folder: Path | None = None) -> DictConfig:
    """Return the config that train.py would compose from overrides, without its `hydra` part.

    Args:
        lines: The overrides of one run.
        folder: Stands for the run's wherever the config refers to that.

    Raises:
        ConfigError: Something is wrong; the message has one line for each mistake.
    """
    flags, words = _flags(lines)
    if words:
        raise refusal(f"{words[0]}: a setting is written KEY=VALUE")
    overrides, mistakes = _parsed(flags.overrides)
    if any(_sets(override, "resume") for override in overrides):
        mistakes.append("resume is for train.py: here give the settings themselves")
    command = _Command(flags, overrides, multirun=False)
    mistakes += command.mistakes()
    if mistakes:
        raise refusal(*mistakes)
    return OmegaConf.create(command.config if folder is None else _placed(command.config, str(folder)))


def _placed(content: Any, folder: str) -> Any:
    if isinstance(content, dict):
        return {key: _placed(value, folder) for key, value in content.items()}
    return content.replace("${hydra:runtime.output_dir}", folder) if isinstance(content, str) else content


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read Hydra's flags, which may stand anywhere, and return with them the words that are no overrides."""

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


def _parsed(lines: Sequence[str]) -> tuple[list[Override], list[str]]:
    overrides, mistakes = [], []
    for line in lines:
        try:
            overrides.append(_override(line))
        except Exception as error:  # not only Hydra's own: strings of chance break assertions and limits
            mistakes.append(_unreadable(line, error))
    return overrides, mistakes


def _override(line: str) -> Override:
    """Parse an override; one like data.path=a=ü.npz, which Hydra refuses, is taken for a text in quotes."""
    key, equals, value = line.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise ValueError("not a key and a value")
    if sum(map(line.count, "[{(")) > 500:
        raise ValueError("nested so deep that the parser takes minutes")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(line)
    except Exception:
        if re.search(r"[][{}'\"]|\$\{|^\w+\(", value):
            raise
        return parser.parse_override(f"{key}={QuotedString(value, Quote.single).with_quotes()}")


def _unreadable(line: str, error: Exception) -> str:
    key, equals, _ = line.partition("=")
    if not key or not equals:
        meant = next((f"; did you mean {group}={line}?" for group in groups() if line in options(group)), "")
        return f"{shown(line)}: a setting is written KEY=VALUE{meant}"
    if called := re.search(r"while evaluating '.*?': ([^\n]*)", str(error)):
        return f"{shown(line)}: {shown(called[1])}"
    return f"{shown(line)} can't be read; a value with special characters needs quotes: \"{shown(key)}='...'\""


def _sets(override: Override, key: str, value: object = None) -> bool:
    return override.key_or_group == key and (value is None or override.value() == value)


def _beginning(override: Override) -> Override:
    """Return `init_from=` with the file that it means now: `last` is another one as soon as a run has ended."""
    named = override.value()
    if not _sets(override, "init_from") or override.is_sweep_override() or not isinstance(named, str):
        return override
    if "${" in named or not named:
        return override
    path = QuotedString(str(find_state(named).checkpoint.absolute()), Quote.single).with_quotes()
    return _override(f"init_from={path}")


def _check_new(overrides: list[Override]) -> None:
    """Check that a run which is to begin has a folder of its own."""
    for override in overrides:
        if _sets(override, "hydra.run.dir") and isinstance(named := override.value(), str) and "${" not in named:
            lock.check_free(Path(named))
            record = Record(Path(named))
            if lock.is_primary() and (
                record.last.is_file() or record.previous.is_file() or record.status == "completed"
            ):
                raise refusal(
                    f"hydra.run.dir={shown(named)} holds a run already: go on with it by resume={shown(named)}, or "
                    "choose another folder"
                )


def _folder_to_resume(overrides: list[Override], multirun: bool) -> Path | None:
    named = [override.value() for override in overrides if _sets(override, "resume") and not override.is_delete()]
    if not named or named[-1] is None:
        return None
    if not isinstance(named[-1], str) or not named[-1]:
        raise refusal(f"resume must be a run's folder, or `last`, got {shown(named[-1])}")
    return find_sweep(named[-1]) if multirun else find(named[-1])


class _Command:
    """The overrides of one command line, and the configs that they make."""

    def __init__(self, flags: argparse.Namespace, overrides: list[Override], multirun: bool) -> None:
        version.setbase("1.3")
        JobRuntime.instance().set("name", "train")
        self.config: dict[str, Any] = {}
        self.run_dir = "."
        self._overrides = overrides
        self._multirun = multirun
        self._only_shown = bool(flags.cfg or flags.info)  # and so may be unfinished
        self._main = flags.config_name or "train"
        self._alone = self._remote = False
        self._values_given: list[Override] = []  # one for each value
        self._spoilt: set[str] = set()  # sections whose option is wrong: their keys can't be judged
        paths = [str(override.input_line) for override in overrides if _sets(override, "hydra.searchpath")]
        try:
            self._loader = _loader(flags)
            with warnings.catch_warnings(action="error", category=UserWarning):  # a search path that isn't there
                self._files = self._loader._parse_overrides_and_create_caching_repo(self._main, paths)[1]
        except Exception as error:
            raise refusal(_short(error)) from error

    def mistakes(self) -> list[str]:
        """List what is wrong, a line each, and set `config`: that of the run, or of a sweep's first trial."""
        found: list[str] = []
        swept = [values for override in self._overrides if (values := self._values(override, found))]
        self._values_given = [value for values in swept for value in values]
        first = [values[0] for values in swept]
        composed, wrong = self._composed(first)
        found += wrong
        if composed is None:
            return found
        self.config = plain(composed)
        searching = bool(self.config.get("search"))
        sweeper = get(_whole(composed), "hydra", "sweeper", "_target_")
        found += [
            f"{shown(override.input_line)}: an interval is for a search; here give values, A,B,C"
            for override in self._overrides
            if override.is_interval_sweep() and sweeper in SWEEPERS and not searching
        ]
        if searching and not found:
            found += self._in_space(first)
        for index, values in enumerate(swept):
            for other in values[1:]:
                if self.is_choice(other):  # one composition for each option, not for each combination
                    _, wrong = self._composed([*first[:index], other, *first[index + 1 :]])
                    note = f" (with {other.input_line})"
                else:
                    key = tuple(other.key_or_group.split("."))
                    wrong = self._judged(_with(self.config, key, other.value()), key)
                    note = ""
                found += [line + note for line in wrong if line not in found and line + note not in found]
        return found

    def missing(self) -> list[str]:
        """List the classes that are not there, a line each; those on another machine are for that to find.

        Raises:
            DataError: A data file that was named is not there.
        """
        if self._only_shown or self._remote:
            return []
        given = [value for value in self._values_given if not self.is_choice(value)]
        paths = [value.value() for value in given if _sets(value, "data.path")]
        parts = [self.config]
        if self._multirun:
            parts += [{value.key_or_group: value.value()} for value in given]
        else:  # what one run sets twice, as one that goes on does, has its last value
            paths = paths[-1:]
        check_data(paths, self.config)
        return list(dict.fromkeys(line for part in parts for line in unimportable(part)))

    def _in_space(self, first: list[Override]) -> list[str]:
        """List what is wrong with a search's space: its form, its keys, the ends of its ranges, its choices."""
        try:
            dimensions = space.parse(get(self.config, "search", "space") or {})
        except ConfigError as error:
            return str(error).splitlines()
        found: list[str] = []

        def walk(within: list[Override], dimensions: Sequence[space.Dimension]) -> None:
            for dimension in dimensions:
                for line, inner in zip(dimension.ends(), [*dimension.choices.values()] or [(), ()], strict=True):
                    overrides, wrong = _parsed([line])
                    if not wrong and any(self.is_choice(override) for override in overrides):
                        wrong = [text for override in overrides for text in self._wrong_options(override)]
                    if not wrong:
                        wrong = self._composed([*within, *overrides])[1]
                    found.extend(f"search.space: {text}" for text in wrong)
                    if not wrong:
                        walk([*within, *overrides], inner)

        walk(first, dimensions)
        return list(dict.fromkeys(found))

    def _values(self, override: Override, found: list[str]) -> list[Override]:
        """Return an override for each value that can be judged; what is wrong goes to `found`."""
        values = self._swept(override, found) if override.is_sweep_override() else [override]
        if not self.is_choice(override):
            return values
        good = []
        for value in values:
            wrong = list(self._wrong_options(value))
            found += wrong
            good += [] if wrong else [value]
        if not good:
            group = override.key_or_group
            self._spoilt |= set(groups()) - set(CLOSED) if group == "experiment" else {group}
        return good

    def _swept(self, override: Override, found: list[str]) -> list[Override]:
        line = shown(override.input_line)
        most = MOST_VALUES if self._multirun else 1
        if not self._multirun:
            found.append(f"{line}: several values need -m; a list is [a,b], a text with commas stands in 'quotes'")
        if override.is_hydra_override():
            found.append(f"{line}: Hydra's own settings can't be swept")
            return []
        override.config_loader = self._loader
        try:
            if isinstance(sweep := override.value(), IntervalSweep):
                start, end = cast(float, sweep.start), cast(float, sweep.end)
                texts = iter([str(start), str(end if isinstance(end, int) else math.nextafter(end, start))])
            else:
                texts = override.sweep_string_iterator()
            parser = OverridesParser.create()
            key = override.get_key_element()
            values = [parser.parse_override(f"{key}={text}") for text in islice(texts, most)]
        except Exception as error:
            values = []
            found.append(f"{line}: {_short(error)}")
        else:
            if not values:
                found.append(f"{line}: there is nothing to sweep over")
        return values

    def is_choice(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        key = override.key_or_group
        return key != "" and not isinstance(override.value(), Mapping) and self._files.group_exists(key)

    def _wrong_options(self, override: Override) -> Iterator[str]:
        group, value = override.key_or_group, override.value()
        known = self._files.get_group_options(group)
        if override.is_delete():
            if group in groups() and group != "experiment":
                meant = f"; did you mean {group}=none?" if "none" in known else ""
                yield f"~{group}: {group} is missing, and a run needs it{meant}"
            return
        if override.is_add() and group in groups() and override.package is None:
            yield f"{shown(override.input_line)}: {group} exists already: leave out the plus"
            return
        if isinstance(value, list) and not groups().get(group, True):
            yield f"{group}={shown(value)}: {group} takes one option"
            return
        for option in value if isinstance(value, list) else [value]:
            # A path that leads out of the tree is no option, whatever Hydra would make of it.
            if not isinstance(option, str) or not re.fullmatch(r"[\w-]+(/[\w-]+)*(\.yaml)?", option):
                near = "none" if option is None and "none" in known else None
            elif self._files.config_exists(f"{group}/{option}"):
                continue
            else:
                near = nearest(option, known)
            yield f"{group}={shown(option)}: no such option; " + (
                f"did you mean {group}={near}? ({', '.join(known)})" if near else f"choose from {', '.join(known)}"
            )

    def _composed(self, overrides: list[Override]) -> tuple[DictConfig | None, list[str]]:
        """Compose a config as Hydra will, but one override at a time, so that each mistake is found."""
        early = [override for override in overrides if self.is_choice(override) or _sets(override, "hydra.searchpath")]
        lines = [str(override.input_line) for override in early]
        try:
            config = self._loader.load_configuration(self._main, lines, RunMode.RUN)
        except Exception as error:
            return None, [_short(error)]
        mistakes = [line for override in overrides if override not in early for line in _applied(override, config)]
        whole = _whole(config)
        self.run_dir = str(whole["hydra"]["run"]["dir"])
        launcher = get(whole, "hydra", "launcher", "_target_")
        self._alone, self._remote = launcher in ALONE, self._multirun and launcher in REMOTE
        return config, self._without_spoilt(mistakes) + self._judged(plain(config))

    def _judged(self, config: dict[str, Any], key: Key | None = None) -> list[str]:
        if self._only_shown:
            return []
        found = mistakes_at(config, key) if key else mistakes_in(config)
        return self._without_spoilt([*found, *(_several_devices(config) if self._multirun and not self._alone else ())])

    def _without_spoilt(self, lines: list[str]) -> list[str]:
        return [line for line in lines if line.split(".")[0] not in self._spoilt]


def _loader(flags: argparse.Namespace) -> ConfigLoaderImpl:
    """Search for configs where Hydra's main will."""
    path = flags.config_path or CONF
    search_path = create_config_search_path(str(path) if "://" in str(path) else str(ROOT / path))
    if flags.config_dir:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise refusal(f"--config-dir={shown(flags.config_dir)} is no folder")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(search_path)


def _applied(override: Override, config: DictConfig) -> Iterator[str]:
    """Apply an override as Hydra does, and say so where that goes wrong."""
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], config)
    except Exception as error:
        key, value = override.key_or_group, override.value()
        of_hydra = re.match(r"hydra\b", key) is not None
        whole = _whole(config) if of_hydra else plain(config)
        known = {name for name, _ in flatten(whole, sections=True)}
        asked = [name for name, _ in flatten({key: value}, sections=True)]
        if override.is_add() and key in known:
            yield f"{key} exists already: leave out the plus"
        elif override.is_delete() and key in known:
            yield f"~{key} is null: there is nothing to delete"
        elif missing := [] if override.is_add() or override.is_force_add() else [k for k in asked if k not in known]:
            yield unknown(missing[0], whole)
        else:
            yield f"{shown(override.input_line)}: {_short(error)}"


def _whole(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


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
    devices, nodes, strategy = (get(config, "trainer", name) for name in ("devices", "num_nodes", "strategy"))
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part] if "," in devices else devices
    single = nodes in (1, None) and (
        devices in (1, "1", "auto", None) or (isinstance(devices, list) and len(devices) == 1)
    )
    # These fork or spawn the other processes. The rest run the whole command line again, -m included, so that
    # each process would go through the sweep on its own.
    if not single and not re.match(r"ddp_(spawn|fork|notebook)", str(strategy)):
        yield (
            "trainer.devices must be 1 in a sweep: other processes would run other trials; hydra/launcher=local gives "
            "each trial a process of its own, which may start others"
        )


def _short(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name} is no YAML: {error.problem} in line {mark.line + 1}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:197]}..."
