"""A host library is imported where it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from learn_rank.errors import InputError


def host_module(name: str, *, install: str) -> Any:
    """A module of a host; InputError with what to install where it, or something it imports, is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"no module '{error.name}': {install}") from None
