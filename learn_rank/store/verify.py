"""Checks every byte of a store and the order of its keys and snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from learn_rank.errors import InputError
from learn_rank.progress import progress_bar
from learn_rank.store.checksums import check_file
from learn_rank.store.files import AS_OF, KEYS, OFFSETS, StoreFacts

_BLOCK_KEYS = 1 << 22


def verify_store(version: Path) -> StoreFacts:
    """Reads all files of a version once. InputError naming a damaged file and the range of bytes."""
    facts = StoreFacts.read(version)
    with progress_bar(total=facts.num_bytes, description=f"verify {version.name}", unit="B") as bar:
        for name, recorded in facts.files.items():
            check_file(version / name, recorded, bar.update)
    _check_order(version, facts)
    return facts


def _check_order(version: Path, facts: StoreFacts) -> None:
    """Keys ascend, and so do the snapshots of each key; every lookup relies on that."""
    for keys in _blocks(version / KEYS, "u8", facts.num_ids):
        if (keys[1:] <= keys[:-1]).any():
            raise InputError(f"{version / KEYS}: keys do not ascend; build the store again")
    if not facts.has_as_of or not facts.num_rows:
        return
    offsets = np.memmap(version / OFFSETS, np.int64, "r")
    as_of = np.memmap(version / AS_OF, np.int64, "r")
    is_first = np.zeros(facts.num_rows, bool)
    is_first[offsets[:-1]] = True
    if not (is_first[1:] | (as_of[1:] > as_of[:-1])).all():
        raise InputError(f"{version / AS_OF}: snapshots of an id do not ascend; build the store again")


def _blocks(path: Path, kind: str, count: int) -> Iterator[np.ndarray]:
    """The values of a file in blocks, each of which shares one value with the next."""
    if not count:
        return
    values = np.memmap(path, kind, "r")
    for start in range(0, count, _BLOCK_KEYS):
        yield values[start : start + _BLOCK_KEYS + 1]
