"""Constructors read from source, so that their arguments are known before anything is imported.

Importing torch takes seconds, and importing a class runs whatever its author wrote; reading the text does neither.
"""

import ast
import collections.abc
import importlib.util
import os
import pathlib
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

from cnnlab import bounds

REQUIRED = object()
"""The default of a parameter that has none."""
COMPUTED = object()
"""The default of a parameter where the source gives no plain value."""

MOST_STEPS = 20  # from a name to what it stands for
WITHOUT_CONSTRUCTOR = ("object", "ABC", "Protocol", "Generic")
LARGE = ("torch", "numpy", "jaxtyping")  # packages whose types no config can give, and that take long to parse
BUILTINS = {kind.__name__: kind for kind in (int, float, bool, str, list, dict, tuple, set)}
TYPE_MODULES = {
    "typing": typing,
    "typing_extensions": typing,
    "collections.abc": collections.abc,
    "pathlib": pathlib,
    "cnnlab.bounds": bounds,
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a constructor.

    Attributes:
        default: A plain value, `REQUIRED` or `COMPUTED`.
    """

    default: Any
    _annotation: ast.expr | None
    _module: "_Module"

    @property
    def annotation(self) -> Any:
        """Its type; `Any` where it has none, or one that only an import could tell."""
        return _type(self._annotation, self._module)


class Signature(NamedTuple):
    """What a class or function is called with.

    Attributes:
        parameters: By name, without `self`.
        is_open: Whether it takes other names too.
    """

    parameters: Mapping[str, Parameter]
    is_open: bool


class _Module(NamedTuple):
    name: str
    path: Path
    # What each name was last bound by: a definition, or an import, of which the dotted name is kept.
    names: Mapping[str, ast.stmt | str]
    stars: tuple[str, ...]  # modules of which all names are taken


class _Definition(NamedTuple):
    module: _Module
    node: ast.stmt


def signature(target: str) -> Signature | None:
    """Return what a class or function is called with; None where its source does not say."""
    definition = _locate(target)
    return _signature(definition) if definition else None


def class_attribute(target: str, name: str) -> Any:
    """Return the plain value that a class, or else the nearest of its bases, gives to an attribute, or None."""
    definition = _locate(target)
    for step in _with_bases(definition) if definition else ():
        for statement in step.node.body if isinstance(step.node, ast.ClassDef) else ():
            match statement:
                case ast.Assign(value=ast.Constant(value=value)) | ast.AnnAssign(value=ast.Constant(value=value)):
                    if name in dict(_bindings(statement, step.module)):
                        return value
    return None


def _signature(definition: _Definition, depth: int = 0) -> Signature | None:
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _parameters(node, definition.module, skip=0)
    if not isinstance(node, ast.ClassDef) or depth > MOST_STEPS:
        return None
    bases = [_last_name(base) for base in node.bases]
    if "NamedTuple" in bases or any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list):
        return _fields(node, definition.module)
    constructors = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if constructors:
        return _parameters(constructors[-1], definition.module, skip=1)
    for expression, name in zip(node.bases, bases, strict=True):
        if name not in WITHOUT_CONSTRUCTOR:
            base = _resolve(expression, definition.module)
            return _signature(base, depth + 1) if base else None
    return Signature({}, False)


def _parameters(function: ast.FunctionDef, module: _Module, skip: int) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return Signature(
        {argument.arg: Parameter(_default(default), argument.annotation, module) for argument, default in pairs},
        arguments.kwarg is not None,
    )


def _fields(node: ast.ClassDef, module: _Module) -> Signature:
    fields = [
        part for part in node.body
        if isinstance(part, ast.AnnAssign) and not (part.value and "init=False" in ast.unparse(part.value))
    ]  # fmt: skip
    return Signature(
        {
            field.target.id: Parameter(_default(field.value), field.annotation, module)
            for field in fields
            if isinstance(field.target, ast.Name)
        },
        len(node.bases) > 0 and "NamedTuple" not in map(_last_name, node.bases),
    )


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return COMPUTED


def _with_bases(definition: _Definition, depth: int = 0) -> Iterator[_Definition]:
    yield definition
    if isinstance(definition.node, ast.ClassDef) and depth < MOST_STEPS:
        for expression in definition.node.bases:
            if _last_name(expression) not in WITHOUT_CONSTRUCTOR and (base := _resolve(expression, definition.module)):
                yield from _with_bases(base, depth + 1)


def _locate(dotted: str, depth: int = 0) -> _Definition | None:
    """Return the statement that defines what a dotted name leads to."""
    place, *rest = dotted.split(".")
    while len(rest) > 1 and _path(f"{place}.{rest[0]}"):  # a package's own file need not be read for its modules
        place = f"{place}.{rest.pop(0)}"
    module = _module(place) if len(rest) == 1 else None
    return _name_in(module, rest[0], depth) if module else None


def _name_in(module: _Module, name: str, depth: int) -> _Definition | None:
    """Return the statement that defines a name of a module, imports followed."""
    if depth > MOST_STEPS:
        return None
    match module.names.get(name):
        case str(dotted):
            return _locate(dotted, depth + 1)
        case ast.Assign(value=ast.Name() | ast.Attribute() as value) as statement:
            return _resolve(value, module, depth + 1) or _Definition(module, statement)
        case None:
            for star in module.stars:
                if definition := _locate(f"{star}.{name}", depth + 1):
                    return definition
            return None
        case statement:
            return _Definition(module, statement)


def _resolve(expression: ast.expr, module: _Module, depth: int = 0) -> _Definition | None:
    """Return the statement that defines what an expression in a module names."""
    match expression:
        case ast.Subscript(value=value):
            return _resolve(value, module, depth)
        case ast.Name(id=name):
            return _name_in(module, name, depth)
        case ast.Attribute():
            first, *rest = ast.unparse(expression).split(".")
            imported = module.names.get(first)
            return _locate(".".join([imported, *rest]), depth + 1) if isinstance(imported, str) else None
    return None


def _source_of(statement: ast.ImportFrom, module: _Module) -> str:
    """Return the absolute name of the module that an import statement takes names from."""
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    is_package = module.path.name == "__init__.py"
    parts = parts[: len(parts) - statement.level + is_package]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def _module(name: str) -> _Module | None:
    """Parse the module with a name; None where its source can't be found or read."""
    path = _path(name)
    try:
        return _parsed(name, path, path.stat().st_mtime_ns) if path else None
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


_paths: dict[tuple[str, ...], Path] = {}
"""Where modules were found, by name, working folder and search path."""


def _path(name: str) -> Path | None:
    key = (name, os.getcwd(), *sys.path)  # noqa: PTH109 - called thousands of times
    if key not in _paths and (path := _find(name)):
        _paths[key] = path
    return _paths.get(key)


def _find(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name) if "." not in name else None  # the first part alone imports nothing
        if "." in name:
            parent = _path(name.rpartition(".")[0])
            if parent is None or parent.name != "__init__.py":
                return None
            spec = PathFinder.find_spec(name, [str(parent.parent)])
    except (ImportError, ValueError, OSError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _parsed(name: str, path: Path, changed: int) -> _Module:
    tree = ast.parse(path.read_bytes())
    names: dict[str, ast.stmt | str] = {}
    stars = []
    module = _Module(name, path, names, ())
    for statement in _statements(tree.body):
        _forget_code(statement)
        for name_bound, origin in _bindings(statement, module):
            if name_bound == "*":
                stars.append(str(origin).removesuffix(".*"))
            else:
                names[name_bound] = origin
    return module._replace(stars=tuple(stars))


def _forget_code(statement: ast.stmt) -> None:
    """Take out of a definition what it does: trees of torch's modules would take Python a fifth of a second to free."""
    if isinstance(statement, ast.FunctionDef):
        statement.body.clear()
    elif isinstance(statement, ast.ClassDef):
        statement.body = [
            part for part in statement.body
            if isinstance(part, ast.Assign | ast.AnnAssign) or getattr(part, "name", "") == "__init__"
        ]  # fmt: skip
        for part in statement.body:
            _forget_code(part)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those in its `if` and `try` blocks among them."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = statement.handlers if isinstance(statement, ast.Try) else []
            yield from _statements([*(part for handler in handlers for part in handler.body), *statement.orelse])
            yield from _statements(statement.body)  # what a name usually stands for is bound last
        else:
            yield statement


def _bindings(statement: ast.stmt, module: _Module) -> Iterator[tuple[str, ast.stmt | str]]:
    """Yield the names that a statement binds, each with the statement, or with the dotted name that it imports."""
    match statement:
        case ast.Import(names=aliases):
            for alias in aliases:
                first = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        case ast.ImportFrom(names=aliases):
            for alias in aliases:
                yield alias.asname or alias.name, f"{_source_of(statement, module)}.{alias.name}"
        case (
            ast.ClassDef(name=name)
            | ast.FunctionDef(name=name)
            | ast.Assign(targets=[ast.Name(id=name)])
            | ast.AnnAssign(target=ast.Name(id=name))
        ):
            yield name, statement


def _last_name(expression: ast.expr) -> str:
    match expression:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value) | ast.Call(func=value):
            return _last_name(value)
    return ""


def _type(node: ast.expr | None, module: _Module, depth: int = 0) -> Any:
    """Evaluate an annotation to a type of `typing`'s; what only an import could tell is `Any`."""
    if depth > MOST_STEPS:
        return Any
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.Constant(value=str(text)):
            try:
                return _type(ast.parse(text, mode="eval").body, module, depth + 1)
            except SyntaxError:
                return Any
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(left, module, depth + 1), _type(right, module, depth + 1)]  # noqa: UP007 - of values
        case ast.Name() | ast.Attribute():
            return _named_type(node, module, depth)
        case ast.Subscript(value=value, slice=inner):
            return _generic(_named_type(value, module, depth), inner, module, depth)
    return Any


def _named_type(node: ast.expr, module: _Module, depth: int) -> Any:
    name = _last_name(node)
    if isinstance(node, ast.Name) and name not in module.names:
        return BUILTINS.get(name, Any)
    dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else module.names[name]
    origin, _, name = dotted.rpartition(".") if isinstance(dotted, str) else ("", "", name)
    if origin in TYPE_MODULES:
        return getattr(TYPE_MODULES[origin], name, Any)
    if origin.split(".")[0] in LARGE and module.name.split(".")[0] != origin.split(".")[0]:
        return Any
    definition = _resolve(node, module)
    if definition and isinstance(definition.node, ast.Assign | ast.AnnAssign):
        return _type(definition.node.value, definition.module, depth + 1)
    return Any


def _generic(base: Any, inner: ast.expr, module: _Module, depth: int) -> Any:
    parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if base is typing.Literal:
        values = tuple(part.value for part in parts if isinstance(part, ast.Constant))
        return typing.Literal[values] if len(values) == len(parts) else Any
    if base is Annotated:
        limits = [limit for part in parts[1:] if (limit := _bounds(part))]
        kind = _type(parts[0], module, depth + 1)
        return Annotated[kind, limits[0]] if limits else kind
    arguments = tuple(
        ... if isinstance(part, ast.Constant) and part.value is ... else _type(part, module, depth + 1)
        for part in parts
    )
    try:
        return base[arguments if len(arguments) > 1 else arguments[0]]
    except TypeError:
        return Any


def _bounds(node: ast.expr) -> bounds.Bounds | None:
    if not isinstance(node, ast.Call) or _last_name(node) != "Bounds":
        return None
    values = {keyword.arg: _default(keyword.value) for keyword in node.keywords if keyword.arg}
    if node.args or not all(isinstance(value, int | float) for value in values.values()):
        return None
    return bounds.Bounds(**values) if set(values) <= {"low", "high", "above", "below"} else None
