"""Names that users give to features, labels, text fields and rankers: they become columns and file names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from learn_rank.errors import InputError, cut

_PLAIN = re.compile(r"\w(?:[\w .-]*[\w-])?")  # letters and digits of any script
_MAX_BYTES = 100


def require_plain(name: str, where: str) -> None:
    """InputError unless a name is letters, digits, _ and -, with dots and spaces inside, of at most 100 bytes.

    >>> require_plain("../../x", "sparse")
    Traceback (most recent call last):
    learn_rank.errors.InputError: sparse: the name '../../x' must be letters, digits, _ and -, ...
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or len(name.encode()) > _MAX_BYTES:
        raise InputError(
            f"{where}: the name {cut(str(name), 60)!r} must be letters, digits, _ and -, with dots and spaces inside "
            f"only, and at most {_MAX_BYTES} bytes; it becomes a column and a file name: rename it"
        )


def require_plain_and_distinct(names: Iterable[str], where: str) -> None:
    """`require_plain` for each, and InputError for two that differ in nothing but upper and lower case."""
    seen: dict[str, str] = {}
    for name in names:
        require_plain(name, where)
        if name.lower() in seen:
            raise InputError(f"{where}: the names '{seen[name.lower()]}' and '{name}' differ only in case; rename one")
        seen[name.lower()] = name
