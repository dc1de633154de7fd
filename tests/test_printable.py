"""Names come from data: what a terminal obeys is written out."""

from __future__ import annotations

import unicodedata

import pytest

from learn_rank.printable import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", r"a\x1b[31mred\x1b[0m"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x9b2J", r"\x9b2J"),  # one byte that starts a sequence, like ESC [
        ("a\u202eb", r"a\u202eb"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("file\udce9", r"file\udce9"),  # what Python makes of a file name that is no UTF-8
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_or_nobody_sees_is_written_out(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_names_of_any_script_stay_as_they_are() -> None:
    persian, family = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f467"
    for name in ("baseline", "désolé", "日本語", persian, family, "a b_c-d.e", "№ 5 ≥ 4"):
        assert printable(name) == name


def test_no_control_is_left() -> None:
    every = printable("".join(map(chr, [*range(0x3000), *range(0xD800, 0xE000)])))
    assert not [c for c in every if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    every.encode()  # what is left can be written to a file
