"""Names of the data in report.md are text: no links, pictures, tags, headings, nor other cells of a table."""

from __future__ import annotations

import re

import pytest

from learn_rank.evaluation.report.marks import Marked, code, plain, table_text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("[x](http://evil)", r"\[x\](http\://evil)"),
        ("![](a.png)", r"!\[\](a.png)"),
        ("see https://evil.example now", r"see https\://evil.example now"),
        ("www.evil.example", r"www\.evil.example"),
        ("mail bob@evil.example", "mail bob`@`evil.example"),
        ("@someone", "`@`someone"),
        ("<script>", r"\<script>"),
        ("&lt;b&#62;", r"\&lt;b\&#62;"),
        ("a|b", r"a\|b"),
        ("`rm`", r"\`rm\`"),
        ("**bold** _it_ ~~no~~ $x$", r"\*\*bold\*\* \_it\_ \~\~no\~\~ \$x\$"),
        ("# title", r"\# title"),
        ("> quote", r"\> quote"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        ("one\n\n# two", "one # two"),
        ("a\x1b[2Jb\u202e", r"a\\x1b\[2Jb\\u202e"),
    ],
)
def test_a_name_is_shown_as_it_is(name: str, text: str) -> None:
    assert plain(name) == text


@pytest.mark.parametrize(
    "name",
    [
        "baseline",
        "item_tower_c",
        "+1.62 (+1.43 to +1.80)",
        "-",
        "p < 0.001",
        "R&D",
        "ndcg@10",
        "learn.sale",
        "1.5 a",
        "a: b",
        "#1",
    ],
)
def test_usual_names_and_numbers_are_left_alone(name: str) -> None:
    assert plain(name) == (name if name != "#1" else r"\#1")


def test_only_what_is_markdown_already_stays_so() -> None:
    cells = [Marked("**+1.6**"), "**[x](http://evil)**"]
    assert table_text(["a", "b"], [cells]).split("\n")[2] == r"| **+1.6** | \*\*\[x\](http\://evil)\*\* |"


@pytest.mark.parametrize("name", ["a", "a`b", "``", "`", "x```y`", "[x](http://evil)", "two\nlines"])
def test_a_piece_of_code_ends_where_it_should(name: str) -> None:
    text = code(name)
    fence = re.match("`+", text).group()  # type: ignore[union-attr]
    inside = text[len(fence) : -len(fence)]
    assert text.endswith(fence)
    assert fence not in re.findall("`+", inside)
    assert inside.strip() == name.replace("\n", " ")
