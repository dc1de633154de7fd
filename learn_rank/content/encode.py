"""Texts -> vectors in files of some hundred texts each: a killed run continues after its last file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from learn_rank.arrays import BoolArray, Float32Array, Int64Array, UInt64Array
from learn_rank.content.catalogue import Block, Catalogue
from learn_rank.content.encoders import Encoder, Fitted, Tokens
from learn_rank.durable import write_file
from learn_rank.errors import InputError
from learn_rank.prefetch import prefetch
from learn_rank.progress import note, progress_bar
from learn_rank.ranks import Ranks
from learn_rank.store.encoding import encode, flags

_FILE_TEXTS = 1024  # what a kill costs each rank at most
_SHOWN_CHARS = 60
_QUIET_SECONDS = 2.0


class Encoded(NamedTuple):
    """Of K texts: vectors [K, D] float32, and whether each [K] was cut."""

    vectors: Float32Array
    is_cut: BoolArray


class EncodedFile(NamedTuple):
    """A file that holds the `Encoded` of the texts with these numbers [K]."""

    path: Path
    numbers: Int64Array


def encode_texts(
    catalogue: Catalogue,
    numbers: Int64Array,
    directory: Path,
    make_encoder: Callable[[], Encoder],
    *,
    key: str,
    ranks: Ranks,
) -> list[EncodedFile]:
    """Encodes the [T] texts and returns their files, when those of all ranks are there.

    Texts come in blocks, and of a block the longest come first: a batch holds texts of like length, and memory that is
    too small shows at once. Every rank makes the same list of files and encodes each num_ranks-th of them, so that a
    file is the same however many ranks there are. A file that is there is left alone; if all are, no encoder is made.
    key: of the vectors. InputError: no model; a vector that the store cannot hold.
    """
    encoder = cache(make_encoder)
    files: list[EncodedFile] = []

    def own_files() -> Iterator[tuple[EncodedFile, Tokens | None]]:
        for index, (file_numbers, texts) in enumerate(_split(catalogue, numbers)):
            file = EncodedFile(_path(directory, key, catalogue.hashes[file_numbers]), file_numbers)
            files.append(file)
            if index % ranks.num_ranks == ranks.rank:
                yield file, None if file.path.is_file() else encoder().tokenize(texts.to_pylist())

    start, done_texts, done_tokens = time.monotonic(), 0, 0
    own_texts = -(-len(numbers) // ranks.num_ranks)
    with progress_bar(total=own_texts, description="extract", unit="text", is_shown=ranks.is_main) as bar:

        def count(num_texts: int, num_tokens: int) -> None:
            nonlocal done_texts, done_tokens
            done_texts, done_tokens = done_texts + num_texts, done_tokens + num_tokens
            if done_tokens:
                bar.set_postfix_str(f"{done_tokens / (time.monotonic() - start):,.0f} tokens/s", refresh=False)
            bar.update(num_texts)

        for file, tokens in prefetch(own_files(), 2):  # tokenised while the model computes
            if tokens is None:
                bar.update(len(file.numbers))
                continue
            if not done_texts:
                start = time.monotonic()  # the model is loaded
            texts_before = done_texts
            vectors = encoder().encode(tokens.ids, count)
            count(len(file.numbers) - (done_texts - texts_before), 0)  # what the encoder did not tell
            _require_finite(vectors, file.numbers, catalogue)
            save_arrays(file.path, {"vectors": vectors, "is_cut": tokens.is_cut})
    num_texts, num_tokens = ranks.totals([done_texts, done_tokens])
    seconds = time.monotonic() - start
    if ranks.is_main and seconds > _QUIET_SECONDS:
        of_tokens, rate = "", f"{num_texts / seconds:,.1f} texts/s"
        if num_tokens:
            of_tokens, rate = f" of {num_tokens:,} tokens", f"{rate}, {num_tokens / seconds:,.0f} tokens/s"
        note(f"extract: {num_texts:,} texts{of_tokens} in {seconds:,.0f} s: {rate}")
    return files


def load_encoded(path: Path) -> Encoded:
    """What `encode_texts` saved there."""
    arrays = load_arrays(path)
    return Encoded(arrays["vectors"], arrays["is_cut"])


def save_arrays(path: Path, arrays: Fitted) -> None:
    """Writes arrays that outlive the process and a crash of the machine, or leaves nothing under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # to a path savez would add a suffix
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    write_file(path, write)


def load_arrays(path: Path) -> Fitted:
    """What `save_arrays` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)


def _split(catalogue: Catalogue, numbers: Int64Array) -> Iterator[Block]:
    """The [T] texts, file by file."""
    for block in catalogue.blocks(numbers):
        order = np.argsort(-pc.utf8_length(block.texts).to_numpy(), kind="stable")
        for start in range(0, len(order), _FILE_TEXTS):
            chosen = order[start : start + _FILE_TEXTS]
            yield Block(block.numbers[chosen], block.texts.take(pa.array(chosen)))


def _path(directory: Path, key: str, hashes: UInt64Array) -> Path:
    """A file of other texts, in another order, or of another encoder has another name."""
    digest = xxhash.xxh3_128(key.encode())
    digest.update(hashes.data)
    return directory / f"{digest.hexdigest()}.npz"


def _require_finite(vectors: Float32Array, numbers: Int64Array, catalogue: Catalogue) -> None:
    """InputError for what the store, float16, cannot hold: here, and not when all else is encoded."""
    bad = np.flatnonzero(flags(encode(vectors, "float16").values).is_not_finite)
    if len(bad):
        number = numbers[bad[:1]]
        item = catalogue.item_ids[int(catalogue.first_rows[number[0]])].as_py()
        text = next(catalogue.blocks(number)).texts[0].as_py()
        raise InputError(
            f"encoder: NaN, infinity or a number beyond float16 for item {item!r} with the text "
            f"{text[:_SHOWN_CHARS]!r}; change the text, the encoder's model or encoder.dtype"
        )
