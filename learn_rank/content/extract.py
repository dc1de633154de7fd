"""All items of a prepared log -> content store (CEX)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from learn_rank.arrays import Float32Array, Int64Array
from learn_rank.content.catalogue import Catalogue, read_catalogue
from learn_rank.content.encode import EncodedFile, encode_texts, load_arrays, load_encoded, save_arrays
from learn_rank.content.encoder import EncoderOptions, vector_key
from learn_rank.content.encoders import Encoder
from learn_rank.content.reuse import EncodedTexts, encoded_texts, finished_facts, write_texts
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.ranks import Ranks, join_ranks
from learn_rank.schema import ITEM_ID
from learn_rank.store.keys import key_type
from learn_rank.store.writer import VectorBatch, write_batches

_CHUNK_ROWS = 1 << 14
_WAIT_SECONDS = 7 * 86400  # ranks finish their shares at different times, and rank 0 writes the store alone


class Chunk(NamedTuple):
    """K texts of a catalogue: numbers [K] and vectors [K, D]."""

    numbers: Int64Array
    vectors: Float32Array


def extract(
    prepared: Path, directory: Path, options: EncoderOptions, *, previous: Path | None = None
) -> dict[str, Any]:
    """Writes the content store of all items with text into `directory` and returns the facts for its manifest.

    Equal texts are encoded once. An item without text gets no row: it is counted, and later takes a missing vector.

    `directory` may hold the work of a killed run, which is continued. A text whose vector is in the store at
    `previous`, made by the same encoder and options, is not encoded again; a fitted encoder is the same only if it
    learned from the same texts. Under torchrun the ranks share the texts, and the first one fits the encoder and
    writes the store. InputError: no item has text, or what the encoder refuses.
    """
    catalogue = read_catalogue(prepared / "items.parquet", options.text)
    if not catalogue.num_texts:
        raise InputError(f"{catalogue.path}: no item has text; set items.text in the dataset recipe")
    trained: Int64Array | None = None
    if options.is_fitted:
        trained = _texts_of_training(catalogue, prepared / "item_counts.parquet")
    key = vector_key(options, fitted_on="" if trained is None else _digest(catalogue, trained))
    known = encoded_texts(previous, key) if previous is not None else None
    positions = known.positions_of(catalogue.hashes) if known else np.full(catalogue.num_texts, -1)
    fresh, parts = np.flatnonzero(positions < 0), directory / "parts"
    with join_ranks(timeout_seconds=_WAIT_SECONDS) as ranks:
        facts = ranks.on_main(partial(finished_facts, directory, catalogue, key))
        if facts is None:
            make_encoder = partial(_encoder, options, None)
            if trained is not None and len(fresh):
                make_encoder = partial(_encoder, options, _fit(catalogue, trained, options, parts, key, ranks))
            files = encode_texts(catalogue, fresh, parts, make_encoder, key=key, ranks=ranks)
            facts = ranks.on_main(
                lambda: _write(catalogue, directory, files, known, positions, options=options, key=key)
            )
        ranks.on_main(lambda: shutil.rmtree(parts, ignore_errors=True))
        return facts


def _texts_of_training(catalogue: Catalogue, item_counts: Path) -> Int64Array:
    """Numbers of the texts of the training window's items, ascending."""
    trained_on = read_table(item_counts, [ITEM_ID])[ITEM_ID].combine_chunks().cast(catalogue.item_ids.type)
    is_trained = pc.is_in(catalogue.item_ids, value_set=trained_on).to_numpy(zero_copy_only=False)
    trained = np.unique(catalogue.text_of[is_trained & (catalogue.text_of >= 0)])
    if not len(trained):
        raise InputError(f"{catalogue.path}: no item of the training window has text")
    return trained


def _digest(catalogue: Catalogue, numbers: Int64Array) -> str:
    """Identifies the texts in the order in which an encoder learns from them."""
    in_file_order = numbers[np.argsort(catalogue.first_rows[numbers])]
    return xxhash.xxh3_128_hexdigest(catalogue.hashes[in_file_order].tobytes())


def _fit(
    catalogue: Catalogue, numbers: Int64Array, options: EncoderOptions, folder: Path, key: str, ranks: Ranks
) -> Path:
    """Where rank 0 has saved what the encoder learns from these texts."""
    path = folder / f"{key}.fitted.npz"

    def fit() -> None:
        if not path.is_file():
            texts = (text for block in catalogue.blocks(numbers) for text in block.texts.to_pylist())
            save_arrays(path, options.encoder.fit(texts, options))

    ranks.on_main(fit)
    return path


def _encoder(options: EncoderOptions, fitted: Path | None) -> Encoder:
    return options.encoder(options, {} if fitted is None else load_arrays(fitted))


def _write(
    catalogue: Catalogue,
    directory: Path,
    files: list[EncodedFile],
    known: EncodedTexts | None,
    positions: Int64Array,
    *,
    options: EncoderOptions,
    key: str,
) -> dict[str, Any]:
    """The store, and what it says of its texts: those in `files`, and those that `known` has at positions [T]."""
    is_cut = np.zeros(catalogue.num_texts, bool)
    reused = np.flatnonzero(positions >= 0)

    def chunks() -> Iterator[Chunk]:
        for path, numbers in files:
            encoded = load_encoded(path)
            is_cut[numbers] = encoded.is_cut
            yield Chunk(numbers, encoded.vectors)
        if known is not None:
            is_cut[reused] = known.is_cut[positions[reused]]
            for start in range(0, len(reused), _CHUNK_ROWS):
                numbers = reused[start : start + _CHUNK_ROWS]
                yield Chunk(numbers, known.vectors(positions[numbers]))

    dim = known.store.dim if known else load_encoded(files[0].path).vectors.shape[1]
    facts = _write_store(catalogue, directory, chunks, dim)
    facts |= {**_counts(catalogue, np.flatnonzero(positions < 0)), "texts_cut": int(is_cut.sum())}
    if models := [of.model for of in (options, *options.part_options()) if of.model]:
        facts["model"] = ", ".join(models)
    write_texts(directory, catalogue, is_cut, key, facts)
    return facts


def _write_store(
    catalogue: Catalogue, directory: Path, chunks: Callable[[], Iterator[Chunk]], dim: int
) -> dict[str, Any]:
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
