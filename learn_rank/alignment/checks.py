"""Checks that the options of alignment share."""

from __future__ import annotations

from typing import Any

from learn_rank.errors import InputError


def check_choice(options: Any, name: str, choices: tuple[str, ...]) -> None:
    """InputError unless the option is one of the choices."""
    value = getattr(options, name)
    if value not in choices:
        *most, last = choices
        raise InputError(f"align.{name} is '{value}', expected {', '.join(most)} or {last}")


def check_positive(options: Any, *names: str) -> None:
    """InputError unless all of these options are 1 or more."""
    for name in names:
        if getattr(options, name) < 1:
            raise InputError(f"align.{name} is {getattr(options, name)}, must be 1 or more")


def check_rate(options: Any, *names: str) -> None:
    """InputError unless all of these options are at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"align.{name} is {getattr(options, name)}, must be at least 0 and below 1")
