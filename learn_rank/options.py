"""Checks shared by the options of several parts. The config reader needs it, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from learn_rank.errors import InputError

T = TypeVar("T")
_SEEDS = 1 << 32  # scikit-learn accepts no others
_IS_OPERATIONAL, _IS_LATER = "is_operational", "is_later"


def option(default: Any, text: str, *, is_operational: bool = False, is_later: bool = False) -> Any:
    """A field of an options dataclass, with the sentence or two that --help prints.

    is_operational: it does not decide the result, and may differ when a run is resumed. is_later: at its default it is
    not recorded, so that results from before there was such an option stay what is asked for.
    """
    metadata = {"help": text, _IS_OPERATIONAL: is_operational, _IS_LATER: is_later}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: Callable[[], T], text: str) -> T:
    """A field that holds a dataclass of options, with the heading that --help prints above them."""
    return field(default_factory=kind, metadata={"help": text})


def flat(options: object) -> dict[str, Any]:
    """Dotted name -> value of all options of a dataclass and of the groups in it.

    >>> from learn_rank.ranker.options import RankerOptions
    >>> flat(RankerOptions())["training.batch_size"]
    4096
    """
    return flat_record(asdict(cast(Any, options)))


def with_changes(options: T, values: Mapping[str, Any]) -> T:
    """The same options but for some, given by dotted name; checked as new ones are.

    >>> from learn_rank.ranker.options import RankerOptions
    >>> with_changes(RankerOptions(), {"training.epochs": 3, "seed": 1}).training.epochs
    3
    """
    parts: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(name, {})[rest] = value
        else:
            parts[name] = value
    parts |= {name: with_changes(getattr(options, name), part) for name, part in inner.items()}
    return cast(T, replace(cast(Any, options), **parts))


def deciding(options: object) -> dict[str, Any]:
    """Name -> value of the options that decide a result. A group is a mapping of its own.

    Left out are the operational ones, and those marked is_later that have their defaults.
    """
    values: dict[str, Any] = {}
    for part in fields(cast(Any, options)):
        value = getattr(options, part.name)
        if is_dataclass(value):
            value = deciding(value)
            if not value:
                continue
        is_unknown_before = part.metadata.get(_IS_LATER) and value == part.default
        if not (part.metadata.get(_IS_OPERATIONAL) or is_unknown_before):
            values[part.name] = value
    return values


def flat_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of what `deciding` recorded.

    >>> flat_record({"seed": 1, "training": {"epochs": 3}})
    {'seed': 1, 'training.epochs': 3}
    """
    values: dict[str, Any] = {}
    for name, value in record.items():
        inner = flat_record(value) if isinstance(value, Mapping) else None
        values |= {name: value} if inner is None else {f"{name}.{rest}": part for rest, part in inner.items()}
    return values


def from_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """The options that `deciding` recorded; those that it left out have their defaults.

    InputError: a name that there is not.
    """
    parts = {part.name: part for part in fields(cast(Any, kind))}
    unknown = [name for name in record if name not in parts]
    if unknown:
        raise InputError(f"no option '{unknown[0]}'")
    values = {}
    for name, value in record.items():
        inner = parts[name].default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise InputError(f"option '{name}' is '{value}', expected a group of options")
            value = from_record(inner, value)
        values[name] = value
    return kind(**values)


def check_seed(name: str, seed: int) -> None:
    """InputError unless every library accepts the seed.

    >>> check_seed("align.seed", 7)
    """
    if not 0 <= seed < _SEEDS:
        raise InputError(f"{name} is {seed}, expected 0 to {_SEEDS - 1}")


@dataclass(frozen=True)
class Check:
    """Checks of options, whose names in messages begin with the prefix. Each raises an InputError."""

    options: object
    prefix: str

    def is_one_of(self, name: str, choices: tuple[str, ...]) -> None:
        """The option is one of these texts."""
        value = getattr(self.options, name)
        if value not in choices:
            raise InputError(f"{self.prefix}{name} is '{value}', expected one of {', '.join(choices)}")

    def at_least(self, least: int, *names: str) -> None:
        """Every one of these options is `least` or more, and a number."""
        for name, value in self._values(names):
            if not value >= least:
                raise InputError(f"{name} is {value}, expected at least {least}")

    def above_zero(self, *names: str) -> None:
        """Every one of these options is more than 0, and a number."""
        for name, value in self._values(names):
            if not value > 0:
                raise InputError(f"{name} is {value}, expected more than 0")

    def below_one(self, *names: str) -> None:
        """Every one of these options is a share: 0 or more, and less than 1."""
        for name, value in self._values(names):
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}, expected at least 0 and less than 1")

    def _values(self, names: tuple[str, ...]) -> list[tuple[str, Any]]:
        return [(self.prefix + name, getattr(self.options, name)) for name in names]
