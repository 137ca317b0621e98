"""A JSON schema of the config, from the rules that check it: editors complete and check yaml files by it."""

import re
from collections.abc import Mapping
from typing import Any

from cnnlab.config.checks import CLOSED, rule_of
from cnnlab.config.tree import OPTIONAL, content, find_file, groups, main_file, options
from cnnlab.files import holds

REFERENCE = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""A value that is taken from another key, or that is still to be given."""


def make_schema(group: str | None = None) -> dict[str, Any]:
    """Return the schema of a whole config, as recipes and `project.yaml` change it, or of the options of a group.

    Args:
        group: The group.
    """
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if group:
        return head | {"title": f"an option of {group}"} | _with_defaults(_group(group, flat=True))
    properties: dict[str, Any] = {}
    for name, value in main_file().items():
        if name != "defaults":
            properties[name] = _section((name,), [value], _comments("train")) | _description(name, _comments("train"))
    for name in groups():
        if name not in OPTIONAL:
            properties[name] = _group(name)
    whole = {"type": "object", "properties": properties | {"hydra": {"type": "object"}}, "additionalProperties": False}
    return head | {"title": "a run of cnnlab"} | _with_defaults(whole)


def _with_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    defaults = {"type": "array", "description": "the options that this file begins with, _self_ for its own values"}
    return schema | {"properties": schema["properties"] | {"defaults": defaults}}


def _group(group: str, *, flat: bool = False) -> dict[str, Any]:
    comments: dict[str, str] = {}
    for option in options(group):
        comments |= _comments(f"{group}/{option}")
    values = [content(group, option) for option in options(group)]
    schema = _section((group,), values, comments)
    if not groups()[group] and not flat:
        schema["description"] = f"options: {', '.join(options(group))}"
    return schema


def _section(key: tuple[str, ...], values: list[Any], comments: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema of what stands at a key in any of the values."""
    sections = [value for value in values if isinstance(value, Mapping)]
    if not sections or any(not isinstance(value, Mapping) and value is not None for value in values):
        return _leaf(key)
    names = list(dict.fromkeys(str(name) for section in sections for name in section))
    properties = {}
    for name in names:
        inner = [section[name] for section in sections if name in section]
        properties[name] = _section((*key, name), inner, comments) | _description(name, comments)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if key[0] in CLOSED and len(key) == 1 and key[0] != "data":
        schema["additionalProperties"] = False
    return schema if len(key) == 1 else {"anyOf": [schema, {"type": "null"}, REFERENCE]}


def _leaf(key: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of a value, by the rules of all classes whose option has the key."""
    if key[-1] == "_target_":
        return {"type": "string"}
    schemas: list[Mapping[str, Any]] = []
    for option in options(key[0]) if key[0] in groups() else [None]:
        config = main_file() | ({key[0]: content(key[0], option)} if option else {})
        if option and not holds(config, *key):
            continue
        rule = rule_of(key, config)
        if not rule.schema:
            return {}
        schemas += [rule.schema] if rule.schema not in schemas else []
    return {"anyOf": [*schemas, REFERENCE]}


def _description(name: str, comments: Mapping[str, str]) -> dict[str, str]:
    return {"description": comments[name]} if name in comments else {}


def _comments(name: str) -> dict[str, str]:
    """Return the sentences beside the keys of a file."""
    return dict(re.findall(r"^[^\S\n]*(\w+):.*?[^\S\n]# (.+)$", _text_of(name), flags=re.MULTILINE))


def first_sentence(group: str, option: str) -> str:
    """Return what an option's file says of itself: its first line of comment that is no header of Hydra's."""
    match = re.search(r"^(?:\w+:[^\S\n]*)?# (?!@package)(.+)$", _text_of(f"{group}/{option}"), flags=re.MULTILINE)
    return match[1] if match else ""


def _text_of(name: str) -> str:
    return find_file(name).read_text(encoding="utf-8", errors="replace")
