"""Texts -> vectors in parts on disk, each under a name that says what it holds: a killed run goes on after its last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from torch.distributed import ProcessGroup

from learn_rank.arrays import Float32Array, Int64Array, UInt64Array
from learn_rank.content.catalogue import Block, Catalogue
from learn_rank.content.encoder import OPTION, EncoderOptions, vector_key
from learn_rank.content.huggingface import TextEncoder, Tokens
from learn_rank.distributed import Process, sum_over_ranks
from learn_rank.durable import write_file
from learn_rank.errors import InputError
from learn_rank.prefetch import prefetch
from learn_rank.progress import note, progress_bar
from learn_rank.store.encoding import encode, flags

_PART_TEXTS = 1024  # what a kill costs each rank at most
_SHOWN_CHARS = 60
_QUIET_SECONDS = 2.0


class Part(NamedTuple):
    """Of K texts: vectors [K, D] float32, and whether each [K] was cut."""

    vectors: Float32Array
    is_cut: npt.NDArray[np.bool_]


class SavedPart(NamedTuple):
    """A file that holds the `Part` of the texts with these numbers [K]."""

    path: Path
    numbers: Int64Array


def encode_parts(
    catalogue: Catalogue,
    numbers: Int64Array,
    directory: Path,
    options: EncoderOptions,
    process: Process,
    group: ProcessGroup,
) -> list[SavedPart]:
    """Encodes the [T] texts and returns their parts, when those of all ranks are there.

    Texts come in blocks, and of a block the longest come first: a batch holds texts of like length, and memory that is
    too small shows at once. Every rank cuts the same parts and encodes each world_size-th of them, so that a part is
    the same however many ranks there are. A part that is there is left alone; if all are, no model is loaded.
    group: over which ranks wait for each other. InputError: no model; a vector that is not finite.
    """
    key = vector_key(options)
    encoder = cache(lambda: TextEncoder(options, process.device))
    saved: list[SavedPart] = []

    def own_parts() -> Iterator[tuple[SavedPart, Tokens | None]]:
        for index, (part_numbers, texts) in enumerate(_cut(catalogue, numbers)):
            part = SavedPart(_path(directory, key, catalogue.hashes[part_numbers]), part_numbers)
            saved.append(part)
            if index % process.world_size == process.rank:
                yield part, None if part.path.is_file() else encoder().tokenize(texts.to_pylist())

    start, done = time.monotonic(), torch.zeros(2, dtype=torch.int64)  # texts and tokens
    own_texts = -(-len(numbers) // process.world_size)
    with progress_bar(total=own_texts, description="extract", unit="text", is_shown=process.is_main) as bar:

        def count(num_texts: int, num_tokens: int) -> None:
            done.add_(torch.tensor([num_texts, num_tokens]))
            bar.set_postfix_str(f"{int(done[1]) / (time.monotonic() - start):,.0f} tokens/s", refresh=False)
            bar.update(num_texts)

        for part, tokens in prefetch(own_parts(), 2):  # tokenised while the model computes
            if tokens is None:
                bar.update(len(part.numbers))
                continue
            if not done[0]:
                start = time.monotonic()  # the model is loaded
            vectors = encoder().encode(tokens.ids, count)
            _require_finite(vectors, part.numbers, catalogue, options)
            _save(part.path, Part(vectors, tokens.is_cut))
    num_texts, num_tokens = sum_over_ranks(done, group).tolist()
    seconds = time.monotonic() - start
    if process.is_main and seconds > _QUIET_SECONDS:
        rates = f"{num_texts / seconds:,.1f} texts/s, {num_tokens / seconds:,.0f} tokens/s"
        note(f"extract: {num_texts:,} texts of {num_tokens:,} tokens in {seconds:,.0f} s: {rates}")
    return saved


def load_part(path: Path) -> Part:
    """What was saved there."""
    with np.load(path) as arrays:
        return Part(arrays["vectors"], arrays["is_cut"])


def _cut(catalogue: Catalogue, numbers: Int64Array) -> Iterator[Block]:
    """The [T] texts, part by part."""
    for block in catalogue.blocks(numbers):
        order = np.argsort(-pc.utf8_length(block.texts).to_numpy(), kind="stable")
        for start in range(0, len(order), _PART_TEXTS):
            chosen = order[start : start + _PART_TEXTS]
            yield Block(block.numbers[chosen], block.texts.take(pa.array(chosen)))


def _path(directory: Path, key: str, hashes: UInt64Array) -> Path:
    """A part of other texts, in another order, or of another encoder has another name."""
    digest = xxhash.xxh3_128(key.encode())
    digest.update(hashes.data)
    return directory / f"{digest.hexdigest()}.npz"


def _save(path: Path, part: Part) -> None:
    """Writes a part that outlives the process and a crash of the machine, or leaves nothing under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # to a path savez would add a suffix
            np.savez(stream, vectors=part.vectors, is_cut=part.is_cut)

    write_file(path, write)


def _require_finite(vectors: Float32Array, numbers: Int64Array, catalogue: Catalogue, options: EncoderOptions) -> None:
    """InputError for what the store, float16, cannot hold: here, and not when all else is encoded."""
    bad = np.flatnonzero(flags(encode(vectors, "float16").values).is_not_finite)
    if len(bad):
        number = numbers[bad[:1]]
        item = catalogue.item_ids[int(catalogue.first_rows[number[0]])].as_py()
        text = next(catalogue.blocks(number)).texts[0].as_py()
        raise InputError(
            f"{OPTION} '{options.model}': NaN, infinity or a number beyond float16 for item {item!r} with the text "
            f"{text[:_SHOWN_CHARS]!r}; change the text, the model or encoder.dtype"
        )
