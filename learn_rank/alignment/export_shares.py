"""An export's blocks of vectors, made by one process or shared among ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from learn_rank.ranks import Ranks
from learn_rank.store.writer import VectorBatch

T = TypeVar("T")
_PARTS = "parts"


def on_shares(
    blocks: Callable[[], Iterable[T]],
    make: Callable[[T], VectorBatch],
    directory: Path,
    write: Callable[[Callable[[], Iterator[VectorBatch]]], dict[str, Any]],
    ranks: Ranks,
) -> dict[str, Any]:
    """What `write` returns, given a function that iterates over the batches of all blocks in order.

    Every rank makes each num_ranks-th block and leaves it in `directory`, which all ranks see; rank 0 writes the store.
    A block's vectors do not depend on who makes it, so the store is the same to the bit. One process alone makes blocks
    as they are written, and leaves nothing.
    """
    if ranks.num_ranks == 1:
        return write(lambda: map(make, blocks()))
    parts = directory / _PARTS
    ranks.on_main(lambda: parts.mkdir(exist_ok=True))
    for number, block in enumerate(blocks()):
        if number % ranks.num_ranks == ranks.rank:
            _save(parts / f"{number}.arrow", make(block))
    ranks.totals([0])  # all parts are there

    def saved() -> Iterator[VectorBatch]:
        for number, _ in enumerate(blocks()):
            yield _load(parts / f"{number}.arrow")

    def finish() -> dict[str, Any]:
        facts = write(saved)
        shutil.rmtree(parts)
        return facts

    return ranks.on_main(finish)


def _save(path: Path, batch: VectorBatch) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), batch.vectors.shape[1])
    columns = {"id": batch.ids, "vector": vectors}
    if batch.as_of is not None:
        columns["as_of"] = pa.array(batch.as_of)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def _load(path: Path) -> VectorBatch:
    with pa.OSFile(str(path), "rb") as stream:
        table = pa.ipc.open_file(stream).read_all().combine_chunks()
    column = table["vector"].combine_chunks()
    vectors = np.asarray(column.flatten(), np.float32).reshape(len(column), column.type.list_size)
    as_of = table["as_of"].to_numpy() if "as_of" in table.column_names else None
    return VectorBatch(table["id"].combine_chunks(), vectors, as_of)
