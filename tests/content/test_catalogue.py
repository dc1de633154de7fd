from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.content import catalogue
from learn_rank.content.catalogue import Catalogue, read_catalogue
from learn_rank.content.text import TextOptions

PLAIN = TextOptions(template="{value}")
TITLES = ["ant", None, "ant", "bowl", "cup", " ", "bowl", "ant"]


def read(folder: Path) -> Catalogue:
    return read_catalogue(folder / "items.parquet", PLAIN)


def texts_by_number(known: Catalogue) -> dict[int, str]:
    blocks = list(known.blocks(np.arange(known.num_texts)))
    numbers = np.concatenate([block.numbers for block in blocks])
    return dict(zip(numbers.tolist(), [text for block in blocks for text in block.texts.to_pylist()], strict=True))


# Known answers


def test_each_text_is_there_once_and_knows_its_items(catalogue_of: Callable[..., Path]) -> None:
    known = read(catalogue_of(TITLES))
    texts = texts_by_number(known)
    assert sorted(texts.values()) == ["ant", "bowl", "cup"]
    assert [texts[number] if number >= 0 else None for number in known.text_of] == [
        "ant",
        None,
        "ant",
        "bowl",
        "cup",
        None,
        "bowl",
        "ant",
    ]
    assert {texts[number]: row for number, row in enumerate(known.first_rows)} == {
        "ant": 0,
        "bowl": 3,
        "cup": 4,
    }
    rows, which = known.rows_of(np.array([number for number, text in texts.items() if text != "cup"]))
    assert sorted(zip((TITLES[row] for row in rows), which.tolist(), strict=True)) == [
        ("ant", 0),
        ("ant", 0),
        ("ant", 0),
        ("bowl", 1),
        ("bowl", 1),
    ]
    assert sorted(rows.tolist()) == [0, 2, 3, 6, 7]


def test_asked_for_texts_come_in_the_order_of_the_file_and_no_others(catalogue_of: Callable[..., Path]) -> None:
    known = read(catalogue_of([f"text {i}" for i in range(50)]))
    wanted = known.text_of[[40, 3, 17]]
    (block,) = known.blocks(wanted)
    assert block.texts.to_pylist() == ["text 3", "text 17", "text 40"]
    assert block.numbers.tolist() == known.text_of[[3, 17, 40]].tolist()


# Laws


def test_batches_and_blocks_change_nothing(catalogue_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = catalogue_of([f"text {i % 37}" if i % 5 else None for i in range(200)])
    whole = read(folder)
    expected = texts_by_number(whole)
    monkeypatch.setattr(catalogue, "_BATCH_ROWS", 7)
    monkeypatch.setattr(catalogue, "BLOCK_TEXTS", 10)
    parts = read(folder)
    assert parts.digest == whole.digest
    assert len(list(parts.blocks(np.arange(parts.num_texts)))) > 2
    assert texts_by_number(parts) == expected
    assert len(expected) == 37


def test_the_digest_follows_texts_and_who_has_them(catalogue_of: Callable[..., Path]) -> None:
    digests = [
        read(catalogue_of(titles, name=str(i))).digest
        for i, titles in enumerate(
            [["a", "b", "b"], ["a", "a", "b"], ["a", "b", None], ["a", "b", "c"], ["a", "b", "b"]]
        )
    ]
    assert digests[0] == digests[4]
    assert len(set(digests)) == 4


def test_string_ids_are_kept(tmp_path: Path) -> None:
    ids = pa.array(["x", "ÿ", "N3"], pa.string())
    pq.write_table(pa.table({"item_id": ids, "title": ["a", "b", "a"]}), tmp_path / "items.parquet")
    assert read(tmp_path).item_ids.to_pylist() == ["x", "ÿ", "N3"]
