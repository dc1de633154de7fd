"""Frozen vectors on disk: written once, memory-mapped, looked up by id, never trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learn_rank.store.guard import assert_frozen as assert_frozen
    from learn_rank.store.reader import FrozenStore as FrozenStore

_HOMES = {"FrozenStore": "reader", "assert_frozen": "guard"}


def __getattr__(name: str) -> Any:
    """FrozenStore and assert_frozen, which need torch; building a store does not."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
