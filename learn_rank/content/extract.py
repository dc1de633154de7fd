"""All items of a prepared log -> content store (CEX)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.content.encoder import EncoderOptions, encode_hf, encode_tfidf_svd
from learn_rank.content.text import compose_texts
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.schema import ITEM_ID
from learn_rank.store.writer import write_store


def extract(prepared: Path, directory: Path, options: EncoderOptions) -> dict[str, Any]:
    """Writes the content store of all items with text into `directory` and returns the facts for its manifest.

    Equal texts are encoded once. An item without text gets no row: it is counted, and later takes a missing vector.
    `directory` may hold the unfinished work of an earlier run with the same options.
    """
    items = read_table(prepared / "items.parquet")
    texts = compose_texts(items, options.text) if items.num_columns > 1 else [""] * items.num_rows
    has_text = np.array([bool(text) for text in texts])
    if not has_text.any():
        raise InputError(f"{prepared / 'items.parquet'}: no item has text; set items.text in the dataset recipe")
    distinct, inverse = np.unique(np.array(texts, object)[has_text], return_inverse=True)
    if options.kind == "hf":
        vectors = encode_hf(list(distinct), options, directory / "parts")
    else:
        trained_on = read_table(prepared / "item_counts.parquet", [ITEM_ID])[ITEM_ID]
        is_trained = np.asarray(pc.is_in(items[ITEM_ID], value_set=trained_on.combine_chunks()))[has_text]
        if not is_trained.any():
            raise InputError(f"{prepared / 'items.parquet'}: no item of the training window has text")
        fit_on = np.zeros(len(distinct), bool)
        fit_on[inverse[is_trained]] = True
        vectors = encode_tfidf_svd(list(distinct), fit_on, options)
    if not np.isfinite(vectors).all():
        first = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"encoder '{options.model}': NaN or infinity for the text {distinct[first][:60]!r}")
    ids = items[ITEM_ID].combine_chunks().filter(pa.array(has_text))
    facts = write_store(directory, ids, vectors[inverse])
    shutil.rmtree(directory / "parts", ignore_errors=True)
    return {**facts, "items_without_text": int((~has_text).sum()), "distinct_texts": len(distinct)}
