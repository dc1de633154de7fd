"""Makes text from data safe to print: it must not move the cursor or reverse the direction of a line."""

from __future__ import annotations

import re

# controls (C0, C1), invisible characters (soft hyphen, zero-width space, byte order mark, tags), changes of writing
# direction, line and paragraph separators, lone surrogates; joiners (U+200C, U+200D) are part of words
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str, *, keeps: str = "") -> str:
    r"""The text with control and invisible characters, except those in `keeps`, written as escapes.

    >>> printable("treatment\x1b[31m")
    'treatment\\x1b[31m'
    """
    return _OBEYED.sub(
        lambda match: match[0] if match[0] in keeps else match[0].encode("unicode_escape").decode("ascii"), text
    )
