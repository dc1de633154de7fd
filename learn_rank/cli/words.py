"""What a word of the command line means: everything after its first `=`, read by the option's type.

A path or a name is that text, as typed. Where several may be given, [a,b] is a list: split at commas outside quotes,
and only a whole element can be quoted. {name: value} is a mapping, as in a recipe. No text is guessed to be of another
type, and nothing in it is replaced.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from learn_rank.cli.recipe_file import parse_mapping
from learn_rank.errors import InputError

T = typing.TypeVar("T")
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONES = ("", "null", "none")  # of an option that is no text
_EXPECTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_QUOTES = "'\""


class Option(NamedTuple):
    """A key's place in a config, and what it takes."""

    path: tuple[str, ...]
    kind: Any


def locate(schema: type, key: str) -> Option | None:
    """The option of a dotted key, entries of maps included; None if there is none."""
    path: list[str] = []
    kind: Any = schema
    rest, is_entry = key, False  # of a map
    while rest:
        kind = _bare(kind)
        if dataclasses.is_dataclass(kind):
            name, _, rest = rest.partition(".")
            kind = _kinds(typing.cast(type, kind)).get(name)
        elif entries := _entries(kind):
            has_keys = dataclasses.is_dataclass(entries) or _entries(entries) is not None
            name, _, rest = rest.partition(".") if has_keys else (rest, "", "")
            kind, is_entry = entries, True
        else:
            return None
        if kind is None or not name:
            return None
        path.append(name)
    is_section = dataclasses.is_dataclass(_bare(kind)) and not is_entry
    return None if is_section or key.endswith(".") else Option(tuple(path), kind)


def read_word(text: str, kind: Any, *, key: str) -> Any:
    """The value of one word's text; InputError with the key for what the option cannot be."""
    bare = _bare(kind)
    if bare is not kind and text.lower() in (("",) if bare is str else _NONES):
        return None
    choices = typing.get_args(bare) if isinstance(bare, types.UnionType) else (bare,)
    origins = [typing.get_origin(choice) or choice for choice in choices]
    if list in origins:
        if text.startswith("[") and text.endswith("]"):
            return convert(split_list(text, where=key), bare, key=key)
        if str not in origins:
            return convert([text] if text else [], bare, key=key)
    if (dict in origins or dataclasses.is_dataclass(bare)) and (str not in origins or text.startswith("{")):
        if not (text.startswith("{") and text.endswith("}")):
            raise InputError(f"{key} is '{text}', expected {{name: value}}")
        return convert(parse_mapping(text, where=key), bare, key=key)
    return convert(text, bare, key=key)


def convert(value: Any, kind: Any, *, key: str = "", where: str = "") -> Any:
    """A value of a recipe, made of text, by its type; a dataclass stays a mapping, see `build`.

    InputError with where (such as a file) and key: a name that there is not, text that is not of that type.
    """
    said = f"{where}: {key}" if where else key
    bare = _bare(kind)
    if bare is not kind and (value is None or value == ""):
        return None
    if value is None:
        raise InputError(
            f"{said} is null, expected {_expected(bare)}; a name is put in quotes, what is not set left out"
        )
    if isinstance(bare, types.UnionType):
        fitting = [choice for choice in typing.get_args(bare) if isinstance(value, typing.get_origin(choice) or choice)]
        if not fitting:
            raise _mismatch(value, bare, said)
        return convert(value, fitting[0], key=key, where=where)
    if dataclasses.is_dataclass(bare):
        _require(value, Mapping, bare, said)
        kinds = _kinds(typing.cast(type, bare))
        for name in value:
            if name not in kinds:
                prefix = f"{key}." if key and where else ""
                hint = nearest(name, list(kinds), prefix=prefix)
                raise InputError(f"{where or key}: no key '{prefix}{name}'{hint}")
        keys = {name: f"{key}.{name}" if key else name for name in value}
        return {name: convert(inner, kinds[name], key=keys[name], where=where) for name, inner in value.items()}
    if typing.get_origin(bare) is dict:
        _require(value, Mapping, bare, said)
        entries = typing.get_args(bare)[1]
        return {name: convert(entry, entries, key=f"{key}.{name}", where=where) for name, entry in value.items()}
    if typing.get_origin(bare) is list:
        _require(value, list | str, bare, said)
        elements = [value] if isinstance(value, str) else value
        return [convert(element, typing.get_args(bare)[0], key=key, where=where) for element in elements]
    _require(value, str, bare, said)
    if bare is str:
        return value
    try:
        return _TRUTHS[value.lower()] if bare is bool else _number(value, bare)
    except (KeyError, ValueError):
        raise InputError(f"{said} is '{value}', expected {_expected(bare)}")


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of converted values, checked by its own __post_init__; what is not given has its default."""
    kinds = _kinds(kind)
    return kind(**{name: _built(kinds[name], value) for name, value in values.items()})


def put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a value in nested mappings, where what may be a name or a mapping becomes one: of its `column`."""
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if isinstance(inner, str):
            inner = values[name] = {"column": inner}
        values = inner
    values[path[-1]] = value


def split_list(text: str, *, where: str) -> list[str]:
    """The elements of "[a, b]"; one in quotes may hold commas, brackets and spaces, and a quote after a backslash.

    >>> split_list('["v1,2", b, a[0], model=2]', where="treatment")
    ['v1,2', 'b', 'a[0]', 'model=2']
    """
    inside = text[1:-1]
    if not inside.strip():
        return []
    elements, at = [], 0
    while True:
        at += len(inside[at:]) - len(inside[at:].lstrip())
        if inside[at : at + 1] in tuple(_QUOTES):
            element, at = _quoted(inside, at, where)
            rest = inside[at:].lstrip()
            if rest and not rest.startswith(","):
                raise InputError(f"{where} is '{text}': after the quoted '{element}' a comma must follow")
            at = len(inside) - len(rest)
        else:
            end = inside.find(",", at)
            end = len(inside) if end < 0 else end
            element, at = inside[at:end].rstrip(), end
            if not element:
                raise InputError(f"{where} is '{text}', of which an element is empty; leave out a comma")
        elements.append(element)
        if at >= len(inside):
            return elements
        at += 1


def keys_of(schema: type) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, help) of every option of a config dataclass."""
    hints = typing.get_type_hints(schema)
    for one in dataclasses.fields(schema):
        kind = _bare(hints[one.name])
        if dataclasses.is_dataclass(kind):
            for key, default, text in keys_of(typing.cast(type, kind)):
                yield f"{one.name}.{key}", default, text
            continue
        default = one.default if one.default is not dataclasses.MISSING else one.default_factory()  # type: ignore[operator]
        yield one.name, str(default), one.metadata.get("help", "")


def nearest(key: str, valid: Sequence[str], *, prefix: str = "") -> str:
    """What to add to an error about an unknown key: the valid one it may have meant."""
    near = get_close_matches(key, valid, n=1, cutoff=0.5) or [
        name for name in valid if name.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    return f"; did you mean '{prefix}{near[0]}'?" if near else "; see --help"


def _kinds(schema: type) -> dict[str, Any]:
    """Field -> its type, where OmegaConf cannot be told which of two: a name or several, a column or its settings."""
    hints = typing.get_type_hints(schema)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(schema)}
    replaced = {Any: str | list[str], dict[str, Any]: dict[str, str | dict[str, str]]}
    return {name: next((new for old, new in replaced.items() if kind == old), kind) for name, kind in kinds.items()}


def _bare(kind: Any) -> Any:
    """A type without its None."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union) and type(None) in typing.get_args(kind):
        (kind,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
    return kind


def _entries(kind: Any) -> Any:
    """The type of a map's values, also of what is a map or else a name; None for what is no map."""
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((typing.get_args(choice)[1] for choice in choices if typing.get_origin(choice) is dict), None)


def _built(kind: Any, value: Any) -> Any:
    bare = _bare(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(bare):
        return build(typing.cast(Any, bare), value)
    if typing.get_origin(bare) is dict:
        return {name: _built(typing.get_args(bare)[1], entry) for name, entry in value.items()}
    return value


def _number(text: str, kind: type) -> float:
    value = int(text) if kind is int else float(text)
    if not math.isfinite(value) or (kind is int and not -(1 << 63) <= value < 1 << 63):
        raise ValueError
    return value


def _require(value: Any, shape: Any, kind: Any, said: str) -> None:
    if not isinstance(value, shape):
        raise _mismatch(value, kind, said)


def _mismatch(value: Any, kind: Any, said: str) -> InputError:
    given = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"'{value}'"
    return InputError(f"{said} is {given}, expected {_expected(kind)}")


def _expected(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_expected(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return "a list such as [a,b]"
    return _EXPECTED.get(kind, "a mapping such as {name: value}")


def _quoted(text: str, at: int, where: str) -> tuple[str, int]:
    """The quoted text that begins at a position, and the position after it."""
    quote, end, element = text[at], at + 1, ""
    while end < len(text) and text[end] != quote:
        if text[end] == "\\" and text[end + 1 : end + 2] in (quote, "\\"):
            end += 1
        element += text[end]
        end += 1
    if end >= len(text):
        raise InputError(f"{where} is '[{text}]': the quote before '{text[at + 1 : at + 20]}' is not closed")
    return element, end + 1
