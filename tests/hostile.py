"""Pickles that run something: what weights and checkpoints of strangers may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Runs:
    """Unpickled whole, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)
