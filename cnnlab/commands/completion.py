"""`cnnlab completion`: what the Tab key proposes, in bash, zsh and fish."""

import importlib
import inspect
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from cnnlab.commands import COMMANDS

app = typer.Typer(add_completion=False)

SCRIPTS = {
    # bash takes `=` for the end of a word, so the part before it is cut off what is proposed.
    "bash": r"""_cnnlab() {
    local line="${COMP_LINE:0:COMP_POINT}" current
    local words=($line)
    [[ "$line" == *" " ]] && words+=("")
    current="${words[-1]}"
    local IFS=$'\n'
    COMPREPLY=($(cnnlab completion words -- "${words[@]:1}" 2>/dev/null))
    [[ "$current" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
    [[ "${COMPREPLY[0]}" == *[=/.] ]] && compopt -o nospace
}
complete -o bashdefault -o default -F _cnnlab cnnlab
""",
    "zsh": r"""_cnnlab() {
    local -a proposals
    proposals=("${(@f)$(cnnlab completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- $proposals || _files
}
compdef _cnnlab cnnlab
""",
    "fish": """function __cnnlab
    cnnlab completion words -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c cnnlab -a '(__cnnlab)'
""",
}
INSTALLING = {
    "bash": 'eval "$(cnnlab completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(cnnlab completion zsh)" in ~/.zshrc, after compinit',
    "fish": "cnnlab completion fish | source in ~/.config/fish/config.fish",
}
COMPOSING = ("train", "check", "benchmark")
OF_RUNS = ("evaluate", "predict", "export", "compare", "report", "filters", "activations", "model", "dashboard")


# An option in the words is one to be completed.
@app.command(context_settings={"ignore_unknown_options": True})
def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish", "words"],
        typer.Argument(help="Print the shell's script; or, for the scripts, what may follow the WORDS."),
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="WORDS", help="The command line so far.")] = None,
) -> None:
    """Print the script that lets the Tab key complete `cnnlab`; nothing is installed.

    The script's first line says where to put it.
    """
    if shell == "words":
        print("\n".join(propose(words or [""])))
    else:
        print(f"# To have it in every shell: {INSTALLING[shell]}.\n{SCRIPTS[shell]}", end="")


def propose(words: list[str]) -> list[str]:
    """Return what may stand in the place of the last word, which may be empty, after the others."""
    *before, current = words
    if not before:
        return _starting_with(current, ["train", *COMMANDS, "--version", "--help"])
    verb, *rest = before
    if verb not in ("train", *COMMANDS):
        return []
    proposals: list[str] = []
    if verb != "train":
        command: Any = typer.main.get_command(importlib.import_module(f"cnnlab.commands.{verb}").app)
        verbs = dict(getattr(command, "commands", {}))
        if verbs and not rest:
            return _starting_with(current, verbs)
        if verbs:
            verb = rest[0]
            command = verbs.get(verb)
        if rest and (choices := _choices(command, rest[-1])):
            return _starting_with(current, choices)
        if current.startswith("-"):
            return _starting_with(current, [name for parameter in command.params for name in parameter.opts])
    if verb in OF_RUNS and "=" not in current:
        proposals += _list_runs()
    if verb in COMPOSING or verb in ("data", "augment", "schedule", "model"):
        proposals += _list_settings(current)
    return _starting_with(current, proposals)


def _starting_with(beginning: str, proposals: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(proposals) if text.startswith(beginning)]


def _choices(command: Any, option: str) -> list[str]:
    """Return the values that an option takes, if it is one that lists them."""
    if command is None or not option.startswith("--"):
        return []
    hints = get_type_hints(inspect.unwrap(command.callback))
    names = [parameter.name for parameter in command.params if option in parameter.opts]
    kinds = [kind for name in names for kind in (hints[name], *get_args(hints[name]))]
    return [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]


def _list_runs() -> list[str]:
    """Return `last`, `best`, and the folders of runs, the newest first."""
    from cnnlab.record import RUNS, runs

    records = sorted(runs(RUNS), key=lambda record: record.touched, reverse=True)
    return ["last", "best", *(str(record.folder) for record in records)]


def _list_settings(current: str) -> list[str]:
    """Return groups with their options, and the keys of the options that are taken by default."""
    from cnnlab.config import tree
    from cnnlab.files import flatten

    group, equals, _ = current.partition("=")
    if equals:
        return [f"{group}={option}" for option in tree.options(group)]
    groups = [f"{name}=" for name in tree.groups()]
    if "." not in current:
        sections = {f"{key.partition('.')[0]}." for key, _ in flatten(tree.main_file()) if "." in key}
        return [*groups, *(f"{name}." for name in tree.groups()), *sorted(sections)]
    keys = [key for key, _ in flatten(tree.main_file())]
    for name in tree.groups():
        keys += [f"{name}.{key}" for option in tree.chosen(name) for key, _ in flatten(tree.content(name, option))]
    return [f"{key}=" for key in keys if not key.endswith(("_target_", "defaults"))]
