"""Typed access to the fields of a JSON document: what is missing or of another kind is an InputError with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from learn_rank.errors import InputError, cut
from learn_rank.evaluation.statistics import Interval


@dataclass(frozen=True)
class Fields:
    """One object of a document. place: its path in the document, for messages, such as 'overall.uauc'."""

    values: dict[str, Any]
    file: str
    place: str = ""

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The object that a JSON file holds."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({cut(str(error), 80)})")
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds {_kind(content)}, expected an object")
        return cls(content, str(path))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def refuse(self, name: str, expected: str) -> NoReturn:
        """InputError that names the field, what it holds, and what was expected."""
        came = f"is {_kind(self.values[name])}" if name in self.values else "is missing"
        raise InputError(f"{self.file}: '{self._path(name)}' {came}, expected {expected}")

    def text(self, name: str) -> str:
        value = self.values.get(name)
        return value if isinstance(value, str) else self.refuse(name, "text")

    def text_or_none(self, name: str) -> str | None:
        return None if self.values.get(name, "") is None else self.text(name)

    def count(self, name: str) -> int:
        """A whole number that is not negative."""
        value = self.values.get(name)
        return value if type(value) is int and value >= 0 else self.refuse(name, "a count")

    def integer_or_none(self, name: str) -> int | None:
        """A whole number of any sign; absent counts as null."""
        value = self.values.get(name)
        return value if value is None or type(value) is int else self.refuse(name, "a whole number or null")

    def number(self, name: str) -> float:
        value = self.values.get(name)
        return value if _is_number(value) else self.refuse(name, "a number")

    def number_or_none(self, name: str) -> float | None:
        """A number or null; absent counts as null."""
        return None if self.values.get(name) is None else self.number(name)

    def interval(self, name: str) -> Interval | None:
        """[low, high] or null; absent counts as null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
            self.refuse(name, "[low, high] or null")
        return Interval(*value)

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.values.get(name)
        if not (isinstance(value, list) and all(map(_is_number, value))):
            self.refuse(name, "a list of numbers")
        return tuple(value)

    def counts(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        if not (isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)):
            self.refuse(name, "a list of counts")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            self.refuse(name, "a list of texts")
        return tuple(value)

    def child(self, name: str) -> Fields:
        """The object under that name."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return Fields(value, self.file, self._path(name))

    def child_or_none(self, name: str) -> Fields | None:
        return None if self.values.get(name, "") is None else self.child(name)

    def children(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        value = self.values.get(name)
        if not (isinstance(value, list) and all(isinstance(child, dict) for child in value)):
            self.refuse(name, "a list of objects")
        for position, child in enumerate(value):
            yield Fields(child, self.file, f"{self._path(name)}[{position}]")

    def _path(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return cut(json.dumps(value), 60)
