"""Names that become columns and files."""

from __future__ import annotations

import pytest

from learn_rank.errors import InputError, cut
from learn_rank.names import require_plain, require_plain_and_distinct


@pytest.mark.parametrize("name", ["a", "user_id", "v1.2", "top-10 genres", "ключ", "年齢", "_x", "2024"])
def test_letters_and_digits_of_any_script_are_plain(name: str) -> None:
    require_plain(name, "sparse")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "a\n",
        "a\0",
        ".a",
        "a.",
        "a ",
        "a'b",
        'a"b',
        "-a",
        "🦆",
        "x" * 101,
        "é" * 51,
        "a;b",
        "a*",
    ],
)
def test_what_a_file_cannot_be_called_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"sparse: the name .* must be letters, digits") as error:
        require_plain(name, "sparse")
    assert "\n" not in str(error.value)


def test_names_that_differ_in_case_only_are_refused() -> None:
    require_plain_and_distinct(["a", "b"], "dense")
    with pytest.raises(InputError, match="dense: the names 'Price' and 'price' differ only in case"):
        require_plain_and_distinct(["Price", "price"], "dense")


def test_a_long_text_is_cut() -> None:
    assert cut("a\nb") == "a b"
    assert cut("x" * 3_000_000) == "x" * 200 + "... (3,000,000 characters)"
