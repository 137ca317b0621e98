"""Check the command line before anything heavy is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from cnnlab import lock
from cnnlab.config import project, tree
from cnnlab.config.command import Command
from cnnlab.config.help import help_text
from cnnlab.config.lines import parse, parse_all, quote, sets, text_of
from cnnlab.config.loader import read_flags
from cnnlab.config.record import follow_budget
from cnnlab.config.resume import STATES, changes, check_origin, expand, find
from cnnlab.config.rules import names_run
from cnnlab.config.words import as_typed, refusal
from cnnlab.errors import UnsafeError
from cnnlab.files import look_up
from cnnlab.record import Record, check_links, find_run

LOCAL_LOGGERS = ("tensorboard", "csv", "none")
"""Those that a run's folder may choose."""


def preflight(argv: Sequence[str], *, verify_presence: bool = False, objects: Sequence[str] = ()) -> list[str]:
    """Check the command line of train.py, and return the one that Hydra is to get.

    With `resume=` it is the run's own command line, changed by the overrides beside it, in the run's folder. With
    `--help` the help is printed and Python exits: Hydra's own takes too long to make.

    Args:
        argv: The arguments, without the program's name.
        verify_presence: Whether the classes and the data that it names must be there.
        objects: What Python code gives in place of what the config names.

    Raises:
        ConfigError: Something is wrong; the message has one line for each mistake.
        DataError: The data is not there.
    """
    flags, words = read_flags(argv)
    project.use(flags)
    project.enter()
    _answer_help(flags)
    if "${" in str(Path.cwd()):
        raise refusal(f"the working folder {Path.cwd()} must not hold ${{, which Hydra would replace: rename it")
    if flags.hydra_help or flags.shell_completion:
        return list(argv)
    overrides, mistakes = parse_all(flags.overrides)
    multirun = _is_sweep(flags, overrides)
    if multirun and not flags.multirun:
        words = [*words, "--multirun"]
    folder = _folder_to_resume(overrides, multirun)
    if folder:
        _check_objects(folder, objects)
        overrides = _resumed(folder, overrides, multirun)
    else:
        overrides = [_with_current_state(override) for override in overrides]
        _check_new_folder(overrides, multirun)
    command = Command(flags, overrides, multirun)
    mistakes += command.mistakes()
    if not folder and command.config.get("resume") is not None:
        mistakes.append("resume is for the command line only: a config can't name the run to resume")
    if folder and not multirun and not mistakes:
        mistakes = _changes(folder, flags, overrides, command)
    # What comes from a folder was judged above: until then nothing that it names is imported.
    if verify_presence and not mistakes:
        mistakes = command.missing()
    if mistakes:
        raise refusal(*mistakes)
    return [*map(text_of, overrides), *words]


class Composed(NamedTuple):
    """A config that no run has begun with.

    Attributes:
        config: Without its `hydra` part.
        run_dir: Where the run would stand, references as they are.
    """

    config: DictConfig
    run_dir: str


def compose(lines: Sequence[str], folder: Path | None = None, *, verify_presence: bool = False) -> Composed:
    """Compose the config that train.py would, without Hydra's run.

    Args:
        lines: The overrides of one run.
        folder: Stands for the run's wherever the config refers to that; by default the reference stays.
        verify_presence: Whether the classes and the data that it names must be there.

    Raises:
        ConfigError: Something is wrong; the message has one line for each mistake.
        DataError: The data is not there.
    """
    flags, words = read_flags(lines)
    if flags.config_dir or flags.config_name:
        project.use(flags)
    project.enter()
    if words := [word for word in words if word not in (*project.FLAGS, flags.config_dir, flags.config_name)]:
        raise refusal(f"{words[0]}: only one run that has not begun can be looked at; a setting is written KEY=VALUE")
    overrides, mistakes = parse_all(flags.overrides)
    if any(sets(override, "resume") for override in overrides):
        mistakes.append("resume is for train.py: here only a run that has not begun can be looked at")
    command = Command(flags, overrides, multirun=False)
    mistakes += command.mistakes()
    if verify_presence and not mistakes:
        mistakes = command.missing()
    if mistakes:
        raise refusal(*mistakes)
    config = command.config if folder is None else _with_output_dir(command.config, str(folder))
    composed = OmegaConf.create(config)
    follow_budget(composed)
    return Composed(composed, command.run_dir)


def composed(lines: Sequence[str], folder: Path | None = None) -> DictConfig:
    """Return the config alone of what `compose` does."""
    return compose(lines, folder).config


def unjudged(lines: Sequence[str]) -> dict[str, Any]:
    """Return the config that some overrides make, as plain containers, references as they stand, whatever is wrong.

    Raises:
        ConfigError: An override cannot be read.
    """
    flags, _ = read_flags(lines)
    overrides, mistakes = parse_all(flags.overrides)
    if mistakes:
        raise refusal(*mistakes)
    return Command(flags, overrides, multirun=False).without(())


def _answer_help(flags: argparse.Namespace) -> None:
    if flags.help:
        print(help_text())
        raise SystemExit(0)
    if flags.experimental_rerun:
        raise UnsafeError("--experimental-rerun loads a pickle, which runs code. Give resume=FOLDER instead.")


def _is_sweep(flags: argparse.Namespace, overrides: Sequence[Override]) -> bool:
    return bool(
        flags.multirun
        or any(sets(override, "hydra.mode", "MULTIRUN") for override in overrides)
        or any(sets(override, "search") and override.value() for override in overrides)
    )


def _folder_to_resume(overrides: Sequence[Override], multirun: bool) -> Path | None:
    values = [override.value() for override in overrides if sets(override, "resume") and not override.is_delete()]
    if not values or values[-1] is None:
        return None
    if not isinstance(values[-1], str) or not values[-1]:
        raise refusal(f"resume must be a run's folder, or `last`, got {as_typed(values[-1])}")
    return find(values[-1], sweep=multirun)


def _check_objects(folder: Path, objects: Sequence[str]) -> None:
    """Check that a run gets the objects again that Python code gave it."""
    before = Record(folder).run.get("objects") or []
    if list(objects) != before:
        names = ", ".join(map(str, before)) or "none"
        raise refusal(f"resume={folder}: the run was given objects from Python ({names}): resume it with cnnlab.train")


def _resumed(folder: Path, overrides: Sequence[Override], multirun: bool) -> list[Override]:
    """Return the overrides that resume what stands in a folder."""
    typed = [override for override in overrides if not sets(override, "resume")]
    if multirun:
        check_links(folder)
        path = quote(folder)
        place = parse_all([f"resume={path}", f"hydra.sweep.dir={path}"])[0]
        return [*(override for override in typed if override.key_or_group != "hydra.sweep.dir"), *place]
    lock.check_free(folder)
    check_links(folder)
    lines = [text_of(override) for override in typed]
    if not any(sets(override, "data.path") for override in typed):
        lines += _data_from_there(folder)
    return parse_all(expand(folder, lines))[0]


def _data_from_there(folder: Path) -> list[str]:
    """Return the override of a run's data file whose path began in the folder that the run was started in."""
    record = Record(folder)
    path, start = look_up(record.config, "data", "path"), record.run.get("cwd")
    if not isinstance(path, str) or not isinstance(start, str) or "${" in path + start:
        return []
    moved = Path(start) / path
    return [f"data.path={quote(moved)}"] if moved.exists() and not Path(path).expanduser().exists() else []


def _with_current_state(override: Override) -> Override:
    """Return a setting that names a state with the file that it means now: `last` is soon another one."""
    name, key = override.value(), override.key_or_group
    if key == "budget" and (name in ("last", "best") or names_run(name)):
        return parse(f"budget={quote(find_run(str(name)).checkpoint.absolute().parent.parent)}")
    if key not in STATES or override.is_sweep_override() or not isinstance(name, str) or not name or "${" in name:
        return override
    return parse(f"{key}={quote(find_run(name).checkpoint.absolute())}")


def _check_new_folder(overrides: Sequence[Override], multirun: bool) -> None:
    """Check that a run which is to begin has a folder of its own."""
    for override in () if multirun else overrides:
        folder = override.value()
        if not sets(override, "hydra.run.dir") or not isinstance(folder, str) or "${" in folder:
            continue
        lock.check_free(Path(folder))
        if lock.is_primary() and Record(Path(folder)).has_state:
            raise refusal(
                f"hydra.run.dir={as_typed(folder)} holds a run already: resume it by resume={as_typed(folder)}, or "
                "choose another folder"
            )


def _changes(folder: Path, flags: argparse.Namespace, overrides: Sequence[Override], command: Command) -> list[str]:
    """Check what a run's folder asks for, and list the keys that differ from what the run began with.

    Raises:
        UnsafeError: The folder asks for something that only the person at the keyboard may.
    """
    typed = set(map(text_of, parse_all(flags.overrides)[0]))
    harmless = (*LOCAL_LOGGERS, *tree.own_options("logger"))
    for override in overrides:
        value = override.value()
        names = value if isinstance(value, list) else [value]
        is_typed = override.is_delete() or text_of(override) in typed
        if sets(override, "logger") and not is_typed and any(name not in harmless for name in names):
            raise UnsafeError(
                f"{as_typed(text_of(override))}, as the run's folder has it, sends what it sees to others, or is none "
                "of cnnlab's: if it is meant, give it again."
            )
    recorded = [other for other in overrides if not command.is_choice(other) and text_of(other) not in typed]
    check_origin(command.config, command.without(recorded))
    changed = changes(Record(folder).config, command.config)
    head = f"resume={folder}: a run keeps the config that it began with"
    return [f"{head}; init_from={folder} begins another with its weights", *changed] if changed else []


def _with_output_dir(content: Any, folder: str) -> Any:
    if isinstance(content, dict):
        return {key: _with_output_dir(value, folder) for key, value in content.items()}
    return content.replace("${hydra:runtime.output_dir}", folder) if isinstance(content, str) else content
