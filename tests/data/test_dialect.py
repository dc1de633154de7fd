"""How a CSV file is written, said by its header and most of its first records."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from learn_rank.data.dialect import Dialect, read_dialect
from learn_rank.errors import InputError

ROWS = [f"{k},{k % 3},x y" for k in range(30)]


def dialect(path: Path, content: str | bytes) -> Dialect:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_dialect(path)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_separator_is_the_one_that_the_records_agree_on(tmp_path: Path, separator: str) -> None:
    lines = ["id" + separator + '"a, b; c"' + separator + "t", *(row.replace(",", separator) for row in ROWS)]
    lines[17] += separator + "one too many"
    detected = dialect(tmp_path / "log.csv", "\n".join(lines))
    assert (detected.columns, detected.separator, detected.quote) == (("id", "a, b; c", "t"), separator, '"')


def test_quotes_are_doubled_or_escaped_or_none(tmp_path: Path) -> None:
    assert dialect(tmp_path / "a.csv", 'id,t\n1,"say ""hi"", so"\n2,"two\nlines"\n').escape == '"'
    assert dialect(tmp_path / "b.csv", 'id,t\n1,"say \\"hi\\", so"\n2,x\n').escape == "\\"
    assert dialect(tmp_path / "c.tsv", 'id\tt\n1\t"Great" cats\n2\tx\n').quote == ""


def test_bytes_before_the_header_and_compression_do_not_matter(tmp_path: Path) -> None:
    plain = "\r\n".join(["id,b,t", *ROWS])
    assert dialect(tmp_path / "a.csv", b"\xef\xbb\xbf" + plain.encode()).columns == ("id", "b", "t")
    packed = dialect(tmp_path / "b.csv.gz", gzip.compress(plain.encode()))
    assert (packed.columns, packed.is_compressed) == (("id", "b", "t"), True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "a.csv: no header line"),
        ("a.csv", "id,t,id\n1,2,3\n", "a.csv: column 'id' is there twice"),
        ("a.csv.gz", b"no gzip", "a.csv.gz: cannot be read"),
    ],
)
def test_a_file_without_a_header_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        dialect(tmp_path / name, content)
