"""Checks shared by the options of several parts. The config reader needs it, so it imports nothing heavy."""

from __future__ import annotations

from learn_rank.errors import InputError

_SEEDS = 1 << 32  # scikit-learn accepts no others


def check_seed(name: str, seed: int) -> None:
    """InputError unless every library accepts the seed.

    >>> check_seed("align.seed", 7)
    """
    if not 0 <= seed < _SEEDS:
        raise InputError(f"{name} is {seed}, expected 0 to {_SEEDS - 1}")
