"""One rank equals two: the same parts, the same store; and two go on where one was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from tests.content.conftest import LETTERS
from tests.ranks import run_ranks

pytest.importorskip("transformers")

from learn_rank.store.reader import FrozenStore

# The command's own stage, run by run; a run whose name ends in ! is stopped when all its parts are there.
_RANK = """
import json, sys
from pathlib import Path
import torch
from learn_rank.cli import stages
from learn_rank.cli.config import RunConfig
from learn_rank.content import catalogue, encode, extract
from learn_rank.content.encoders import find_encoder
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.text import TextOptions
from learn_rank.distributed import process_group

root, kind, model, names = Path(sys.argv[1]), *sys.argv[2:4], sys.argv[4:]
torch.set_num_threads(1)
encode._FILE_TEXTS, catalogue.BLOCK_TEXTS, catalogue._BATCH_ROWS = 8, 40, 16
options = EncoderOptions(kind=kind, model=model, dim=8, text=TextOptions(template="{value}"))
encoder = find_encoder(kind)
tokenize, encoded, write = encoder.tokenize, [], extract.write_batches
encoder.tokenize = lambda self, texts: encoded.extend(texts) or tokenize(self, texts)

with process_group() as process:
    for name in names:
        encoded.clear()
        extract.write_batches = None if name.endswith("!") else write
        try:
            stages.extract(RunConfig(run_dir=str(root / name.rstrip("!")), encoder=options))
        except TypeError:
            assert name.endswith("!")
        (root / f"{name}-{process.rank}.json").write_text(json.dumps(encoded))
"""
NUM_TEXTS = 100


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    titles = [f"{'tent ' * (i % 7)}{LETTERS[i % 25] * 2} {LETTERS[i // 25] * 2}" for i in range(NUM_TEXTS)]
    for name in ("one", "two", "one_then_two", "one_fitted", "two_fitted"):
        with publish(root / name / "prepare", Manifest("prepare", {}, {})) as (work, _):
            items = pa.table({"item_id": range(NUM_TEXTS + 3), "title": [*titles, None, *titles[:2]]})
            pq.write_table(items, work / "items.parquet")
            counts = pa.table({"item_id": range(NUM_TEXTS), "num_interactions": [1] * NUM_TEXTS})
            pq.write_table(counts, work / "item_counts.parquet")
    run_ranks(_RANK, root, "hf", tiny_llama, "one", "one_then_two!", num_ranks=1)
    saved = sorted((root / "one_then_two" / ".extract.partial" / "parts").iterdir())
    assert len(saved) == 13  # of blocks of 48, 48 and 4 texts
    for path in saved[::2]:
        path.unlink()
    run_ranks(_RANK, root, "hf", tiny_llama, "two", "one_then_two")
    return root


def encoded(runs: Path, name: str, rank: int) -> list[str]:
    return json.loads((runs / f"{name}-{rank}.json").read_text())


def test_two_ranks_share_the_texts_and_publish_the_store_of_one(runs: Path) -> None:
    by_one, two = (FrozenStore(runs / name / "extract", stage="extract") for name in ("one", "two"))
    assert two.fingerprint == by_one.fingerprint
    assert two.manifest.facts == by_one.manifest.facts
    assert by_one.num_rows == NUM_TEXTS + 2
    shares = [encoded(runs, "two", rank) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(encoded(runs, "one", 0))
    assert abs(len(shares[0]) - len(shares[1])) <= 12
    assert not (runs / "two" / "extract" / "parts").exists()


def test_two_ranks_go_on_where_one_was_stopped(runs: Path) -> None:
    by_one, both = (FrozenStore(runs / name / "extract", stage="extract") for name in ("one", "one_then_two"))
    assert both.fingerprint == by_one.fingerprint
    again = [*encoded(runs, "one_then_two", 0), *encoded(runs, "one_then_two", 1)]
    assert 6 * 8 + 4 <= len(again) == len(set(again)) <= 7 * 8


def test_two_ranks_share_a_fitted_encoder_which_one_of_them_fits(runs: Path) -> None:
    run_ranks(_RANK, runs, "tfidf_svd", "", "one_fitted", num_ranks=1)
    run_ranks(_RANK, runs, "tfidf_svd", "", "two_fitted")
    by_one, two = (FrozenStore(runs / name / "extract", stage="extract") for name in ("one_fitted", "two_fitted"))
    assert two.fingerprint == by_one.fingerprint
    assert two.manifest.facts == by_one.manifest.facts
    shares = [encoded(runs, "two_fitted", rank) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(encoded(runs, "one_fitted", 0))
    assert min(map(len, shares)) > 0
