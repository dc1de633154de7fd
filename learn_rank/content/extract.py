"""All items of a prepared log -> content store (CEX)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.arrays import Int64Array
from learn_rank.content.catalogue import Catalogue, read_catalogue
from learn_rank.content.encoder import HF, EncoderOptions, vector_key
from learn_rank.content.tfidf import fit_tfidf_svd
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.schema import ITEM_ID
from learn_rank.store.keys import key_type
from learn_rank.store.writer import VectorBatch, write_batches

_CHUNK_ROWS = 1 << 14
_WAIT_SECONDS = 7 * 86400  # ranks finish their shares at different times, and rank 0 writes the store alone


class Chunk(NamedTuple):
    """K texts of a catalogue: numbers [K] and vectors [K, D]."""

    numbers: Int64Array
    vectors: npt.NDArray[np.float32]


def extract(
    prepared: Path, directory: Path, options: EncoderOptions, *, previous: Path | None = None
) -> dict[str, Any]:
    """Writes the content store of all items with text into `directory` and returns the facts for its manifest.

    Equal texts are encoded once. An item without text gets no row: it is counted, and later takes a missing vector.

    hf: `directory` may hold the work of a killed run, which is gone on with. A text whose vector is in the store at
    `previous`, made by the same model and options, is not encoded again. Under torchrun the ranks share the texts and
    the first one writes the store. tfidf_svd is fitted on the items of the training window, so that any change of them
    moves every vector: it is made as a whole each time, on one process.
    """
    catalogue = read_catalogue(prepared / "items.parquet", options.text)
    if not catalogue.num_texts:
        raise InputError(f"{catalogue.path}: no item has text; set items.text in the dataset recipe")
    if options.kind == HF:
        return _extract_hf(catalogue, directory, options, previous)
    return _extract_tfidf_svd(catalogue, prepared / "item_counts.parquet", directory, options)


def _extract_tfidf_svd(
    catalogue: Catalogue, item_counts: Path, directory: Path, options: EncoderOptions
) -> dict[str, Any]:
    trained_on = read_table(item_counts, [ITEM_ID])[ITEM_ID].combine_chunks().cast(catalogue.item_ids.type)
    is_trained = pc.is_in(catalogue.item_ids, value_set=trained_on).to_numpy(zero_copy_only=False)
    trained = np.unique(catalogue.text_of[is_trained & (catalogue.text_of >= 0)])
    if not len(trained):
        raise InputError(f"{catalogue.path}: no item of the training window has text")
    encoder = fit_tfidf_svd((text for block in catalogue.blocks(trained) for text in block.texts.to_pylist()), options)
    everything = np.arange(catalogue.num_texts)

    def chunks() -> Iterator[Chunk]:
        for numbers, texts in catalogue.blocks(everything):
            yield Chunk(numbers, encoder.encode(texts.to_pylist()))

    return {**_write(catalogue, directory, chunks, options.dim), **_counts(catalogue, everything), "texts_cut": 0}


def _extract_hf(
    catalogue: Catalogue, directory: Path, options: EncoderOptions, previous: Path | None
) -> dict[str, Any]:
    from learn_rank.content.parts import encode_parts, load_part
    from learn_rank.content.record import encoded_texts, finished_facts, write_record
    from learn_rank.distributed import new_group, on_main, process_group

    key, parts = vector_key(options), directory / "parts"
    known = encoded_texts(previous, key) if previous is not None else None
    positions = known.positions_of(catalogue.hashes) if known else np.full(catalogue.num_texts, -1)
    fresh, reused = np.flatnonzero(positions < 0), np.flatnonzero(positions >= 0)
    is_cut = np.zeros(catalogue.num_texts, bool)

    def finish() -> dict[str, Any]:
        def chunks() -> Iterator[Chunk]:
            for path, numbers in saved:
                part = load_part(path)
                is_cut[numbers] = part.is_cut
                yield Chunk(numbers, part.vectors)
            if known is not None:
                is_cut[reused] = known.is_cut[positions[reused]]
                for start in range(0, len(reused), _CHUNK_ROWS):
                    numbers = reused[start : start + _CHUNK_ROWS]
                    yield Chunk(numbers, known.vectors(positions[numbers]))

        dim = known.store.dim if known else load_part(saved[0].path).vectors.shape[1]
        facts = _write(catalogue, directory, chunks, dim)
        facts |= {**_counts(catalogue, fresh), "texts_cut": int(is_cut.sum()), "model": options.model}
        write_record(directory, catalogue, is_cut, key, facts)
        return facts

    with process_group() as process:
        if options.device_map and process.world_size > 1:
            raise InputError("encoder.device_map spreads one model over all devices; run it without torchrun")
        group = new_group(timeout_seconds=_WAIT_SECONDS)
        facts = on_main(lambda: finished_facts(directory, catalogue, key), group)
        if facts is None:
            saved = encode_parts(catalogue, fresh, parts, options, process, group)
            facts = on_main(finish, group)
        on_main(lambda: shutil.rmtree(parts, ignore_errors=True), group)
        return facts


def _write(catalogue: Catalogue, directory: Path, chunks: Callable[[], Iterator[Chunk]], dim: int) -> dict[str, Any]:
    """The vectors of all texts, which come in any order, as the store of the items that have them."""

    def batches() -> Iterator[VectorBatch]:
        for numbers, vectors in chunks():
            rows, which = catalogue.rows_of(numbers)
            for start in range(0, len(rows), _CHUNK_ROWS):  # millions of items may share one text
                chosen = slice(start, start + _CHUNK_ROWS)
                yield VectorBatch(catalogue.item_ids.take(pa.array(rows[chosen])), vectors[which[chosen]])

    return write_batches(
        directory,
        batches,
        key_type=key_type(catalogue.item_ids),
        dim=dim,
        has_as_of=False,
        expected_rows=int(catalogue.num_items_of.sum()),
    )


def _counts(catalogue: Catalogue, encoded: Int64Array) -> dict[str, int]:
    """Facts about the items, of which those with the `encoded` texts were not taken from an earlier store."""
    num_with_text, num_encoded = int(catalogue.num_items_of.sum()), int(catalogue.num_items_of[encoded].sum())
    return {
        "items_encoded": num_encoded,
        "items_reused": num_with_text - num_encoded,
        "items_without_text": len(catalogue.text_of) - num_with_text,
        "distinct_texts": catalogue.num_texts,
    }
