"""What an option names: one of the package's own, or `module:Name` of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

from learn_rank.errors import InputError

T = TypeVar("T")


def look_up(name: str, table: Mapping[str, T], *, option: str) -> T:
    """The entry of that name, or what `module:Name` names once the module is imported.

    InputError: neither, or a module that cannot be imported. `option` is what the user set.

    >>> look_up("square", {"square": abs}, option="shape")
    <built-in function abs>
    >>> look_up("math:sqrt", {"square": abs}, option="shape")
    <built-in function sqrt>
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        *most, last = table
        known = f"{', '.join(most)} or {last}" if most else last
        raise InputError(f"{option} is '{name}', expected {known}, or module:Name of your own")
    try:
        entry: T = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} is '{name}': {error}; expected module:Name that Python can import from here")
    return entry
