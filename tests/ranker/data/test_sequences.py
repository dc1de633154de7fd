"""Behaviour sequences and tables of several widths: looked up, trained, split over ranks, saved, and learnt from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank import checkpoint
from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.lookup import look_up
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.tables.trainable import build_tables, pad_rows
from learn_rank.ranker.training.train import train
from learn_rank.schema import FeatureSet, SequenceFeature, SparseFeature, interactions_schema
from tests.ranks import run_ranks

NUM_USERS, NUM_ITEMS, NUM_KINDS = 60, 40, 5
KINDS = ("table_wise", "row_wise", "data_parallel")
FEATURES = FeatureSet(
    sparse=(
        SparseFeature("user_id", NUM_USERS + 1),
        SparseFeature("item_id", NUM_ITEMS + 1),
        SparseFeature("genres", 5, is_list=True, embedding_dim=12),
        SparseFeature("kind", NUM_KINDS + 1, embedding_dim=4),
    ),
    dense=("age",),
    labels=("click", "purchase"),
    ranking_label="click",
    cvr_label="purchase",
    history_label="click",
    has_value=False,
    num_folds=0,
    sequences=(
        SequenceFeature("likes", "item_id", max_length=6),
        SequenceFeature("kinds", "kind", max_length=4),
        SequenceFeature("seen", "item_id", max_length=3),
    ),
)
OPTIONS = with_changes(
    RankerOptions(),
    {
        "backbone.name": "din",
        "adaptor.use_learn": False,
        "backbone.hidden_dims": [16],
        "tables.embedding_dim": 8,
        "training.batch_size": 500,
        "training.epochs": 3,
        "training.patience": 3,
        "training.learning_rate": 5e-3,
        "training.unknown_share": 0.0,
    },
)


def auc(_: object, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def interactions(num_rows: int, seed: int) -> pa.Table:
    """A click is likely exactly if the item is among the likes: users and items alone tell nothing."""
    rng = np.random.default_rng(seed)
    item = rng.integers(NUM_ITEMS, size=num_rows)
    likes = [rng.choice(NUM_ITEMS, size=rng.integers(7), replace=False).tolist() for _ in range(num_rows)]
    for row in range(0, num_rows, 2):
        if likes[row]:
            likes[row][0] = int(item[row])
    is_liked = np.array([one in past for one, past in zip(item, likes, strict=True)])
    click = (rng.random(num_rows) < np.where(is_liked, 0.9, 0.1)).astype(np.int8)
    columns = {
        "user_id": rng.integers(NUM_USERS, size=num_rows),
        "item_id": item,
        "timestamp": np.arange(num_rows),
        "fold": np.full(num_rows, -1, np.int8),
        "click": click,
        "purchase": click * (rng.random(num_rows) < 0.5).astype(np.int8),
        "sparse.user_id": rng.integers(NUM_USERS, size=num_rows),
        "sparse.item_id": item,
        "sparse.genres": [list(range(number % 4)) for number in item],
        "sparse.kind": item % NUM_KINDS,
        "sequence.likes": likes,
        "sequence.kinds": [rng.integers(NUM_KINDS + 1, size=rng.integers(5)).tolist() for _ in range(num_rows)],
        "sequence.seen": [rng.integers(NUM_ITEMS, size=rng.integers(4)).tolist() for _ in range(num_rows)],
        "dense.age": rng.normal(size=num_rows).astype(np.float32),
    }
    return pa.table(columns, schema=interactions_schema(FEATURES, pa.int64(), pa.int64()))


@pytest.fixture(scope="module")
def past(log, tmp_path_factory: pytest.TempPathFactory):
    """A prepared log with sequences."""
    root = tmp_path_factory.mktemp("past")
    written = type(log)(root / "prepare", root / "export")
    written.prepared.mkdir()
    FEATURES.write(written.prepared / "features.json")
    for seed, (split, num_rows) in enumerate({"train": 4000, "validation": 1000, "test": 1001}.items()):
        written.write(split, interactions(num_rows, seed))
    return written


def reader(past, features: FeatureSet = FEATURES, batch_rows: int = 1000) -> BatchReader:
    return BatchReader(past.prepared / "interactions/train.parquet", features, batch_rows=batch_rows)


def rows_of(ranker: ShardedRanker, name: str) -> torch.Tensor:
    ((_, rows),) = local_shards(ranker.model.state_dict()[ranker.weights[name]])
    return rows


def sums_of(ranker: ShardedRanker, name: str) -> torch.Tensor:
    state = ranker.optimizer.state_dict()["state"][f"tables.{ranker.weights[name]}"]
    ((_, rows),) = local_shards(state[f"{name}.momentum1"])
    return rows


def sharded(options: RankerOptions, process: Process, features: FeatureSet = FEATURES) -> ShardedRanker:
    return shard(build_ranker(features, options, None), options, features.sparse, process)


def trained(past, options: RankerOptions, process: Process) -> ShardedRanker:
    """A ranker after four steps."""
    ranker = sharded(options, process)
    for batch in reader(past).in_order():
        ranker.zero_grad()
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        ranker.step()
    return ranker


# Known answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_padding", [0, 3])
def test_embeddings_are_the_rows_of_the_tables(past, kind: str, num_padding: int) -> None:
    num_rows = 40
    with process_group() as process:
        ranker = sharded(with_changes(OPTIONS, {"tables.sharding": kind}), process)
        batch = next(reader(past, batch_rows=num_rows).in_order())
        with torch.no_grad():
            embedded = look_up(ranker.model.module.tables, pad_rows(batch.sparse, num_rows + num_padding), num_rows)
        tables = {feature.name: rows_of(ranker, feature.name) for feature in FEATURES.sparse}
    assert [table.shape[1] for table in tables.values()] == [8, 8, 12, 4]
    columns = past.table("train").slice(0, num_rows).to_pydict()
    expected = []
    for feature in FEATURES.sparse:
        table, values = tables[feature.name], columns[f"sparse.{feature.name}"]
        empty = torch.zeros(table.shape[1])
        expected.append(
            [table[rows].mean(0) if rows else empty for rows in values] if feature.is_list else table[values]
        )
    pooled = torch.cat([torch.stack(list(part)) for part in expected], 1)
    torch.testing.assert_close(embedded.pooled, pooled)
    assert len(embedded.sequences) == 3
    for feature, sequence in zip(FEATURES.sequences, embedded.sequences, strict=True):
        table, rows = tables[feature.of], columns[f"sequence.{feature.name}"]
        longest = max(map(len, rows))
        assert sequence.values.shape == (num_rows, longest, table.shape[1])
        assert sequence.mask.tolist() == [[place < len(row) for place in range(longest)] for row in rows]
        for embedded, row in zip(sequence.values, rows, strict=True):
            assert torch.equal(embedded[: len(row)], table[row])
            assert not embedded[len(row) :].any()
        assert torch.equal(sequence.target, table[columns[f"sparse.{feature.of}"]])


def test_empty_sequences_are_zeros(past) -> None:
    features = replace(FEATURES, sequences=FEATURES.sequences[:1])
    with process_group() as process:
        ranker = sharded(OPTIONS, process, features)
        keys = ["user_id", "item_id", "genres", "kind", "sequence.likes"]
        sparse = KeyedJaggedTensor(keys, torch.arange(6) % 3, lengths=torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 0, 0]))
        (sequence,) = look_up(ranker.model.module.tables, sparse, 2).sequences
        assert not sequence.mask.any()
        assert not sequence.values.any()
        logit = ranker.model(sparse, torch.zeros(2, 1)).logit
        logit.sum().backward()
        assert logit.isfinite().all()
        assert sums_of(ranker, "item_id").nonzero().flatten().tolist() == [0, 2]  # items 2 and 0 of the two rows


def test_every_value_of_a_sequence_is_trained(past) -> None:
    """Adagrad has counted a gradient for exactly the items of the batch: its own and those of the sequences."""
    with process_group() as process:
        ranker = sharded(OPTIONS, process)
        batch = next(reader(past, batch_rows=4).in_order())
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        keys = {"item_id": ["item_id", "sequence.likes", "sequence.seen"], "kind": ["kind", "sequence.kinds"]}
        for name, its_keys in keys.items():
            values = torch.cat([batch.sparse[key].values() for key in its_keys])
            assert sums_of(ranker, name).nonzero().flatten().tolist() == values.unique().tolist()


def test_a_signal_that_only_the_sequence_holds_is_learnt(past, tmp_path: Path) -> None:
    labels = past.table("test")["click"].to_numpy()
    areas = {}
    for backbone in ("din", "dcnv2"):
        options = with_changes(
            OPTIONS,
            {"backbone.name": backbone, "training.epochs": 8, "training.patience": 8, "tables.learning_rate": 0.3},
        )
        train(past.prepared, None, tmp_path / backbone, options, validation_metric=auc)
        areas[backbone] = auc(None, labels, predict(past.prepared, None, tmp_path / backbone, "test"))
    assert areas["din"] > 0.8
    assert areas["dcnv2"] < 0.6  # reads no sequences unless told to


def test_two_towers_in_bfloat16_learn_it_from_the_tables_they_share(past, tmp_path: Path) -> None:
    options = with_changes(
        OPTIONS,
        {
            "task.name": "esmm",
            "training.bf16": True,
            "training.epochs": 8,
            "training.patience": 8,
            "tables.learning_rate": 0.3,
        },
    )
    assert train(past.prepared, None, tmp_path, options, validation_metric=auc)["validation"] > 0.8


# Laws


def test_sequences_leave_the_initial_tables_as_they_are(past) -> None:
    with process_group() as process:
        with_them = sharded(OPTIONS, process)
        without = sharded(OPTIONS, process, replace(FEATURES, sequences=()))
        for feature in FEATURES.sparse:
            assert torch.equal(rows_of(with_them, feature.name), rows_of(without, feature.name))
        assert without.weights["item_id"] == "tables.embedding_bags.item_id.weight"


@pytest.mark.parametrize("kind", ["row_wise", "data_parallel"])
def test_tables_of_sequences_train_alike_however_they_are_sharded(past, kind: str) -> None:
    with process_group() as process:
        whole, other = (
            trained(past, with_changes(OPTIONS, {"tables.sharding": name}), process) for name in ("table_wise", kind)
        )
        for feature in FEATURES.sparse:
            for rows in (rows_of, sums_of):
                torch.testing.assert_close(rows(other, feature.name), rows(whole, feature.name), atol=1e-5, rtol=1e-3)
        assert not [name for name in other.dense_optimizer.params if name.startswith("tables.")]


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rates_of_the_tables_of_sequences_are_scaled(past, kind: str) -> None:
    with process_group() as process:
        ranker = sharded(with_changes(OPTIONS, {"tables.sharding": kind}), process)
        before = {name: rows_of(ranker, name).clone() for name in ranker.weights}
        batch = next(reader(past).in_order())
        ranker.scale_learning_rates(0.0)
        ranker.zero_grad()
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        ranker.step()
        assert set(before) == {"user_id", "item_id", "genres", "kind"}
        for name, rows in before.items():
            assert torch.equal(rows_of(ranker, name), rows)
            assert sums_of(ranker, name).any()


@pytest.mark.parametrize("saved", KINDS)
@pytest.mark.parametrize("loaded", KINDS)
def test_a_checkpoint_with_sequences_loads_however_they_are_sharded(
    past, tmp_path: Path, saved: str, loaded: str
) -> None:
    def state_of(ranker: ShardedRanker) -> dict[str, object]:
        return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}

    with process_group() as process:
        first = trained(past, with_changes(OPTIONS, {"tables.sharding": saved}), process)
        checkpoint.save(tmp_path, state_of(first), {}, is_best=False)
        second = sharded(with_changes(OPTIONS, {"tables.sharding": loaded, "seed": 1}), process)
        second.dense_optimizer.init_state()
        state = state_of(second)
        checkpoint.load(tmp_path, state)
        second.model.load_state_dict(state["model"])
        second.optimizer.load_state_dict(state["optimizer"])
        for feature in FEATURES.sparse:
            for rows in (rows_of, sums_of):
                assert torch.equal(rows(second, feature.name), rows(first, feature.name))
            assert sums_of(second, feature.name).any()


_RANK = """
import json, sys
from pathlib import Path
import numpy as np
from sklearn.metrics import roc_auc_score
from learn_rank.options import from_record
from learn_rank.distributed import process_group
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train
prepared, root, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
metric = lambda users, labels, scores: float(roc_auc_score(labels, scores))
with process_group() as process:
    for name, options in runs.items():
        facts = train(prepared, None, root / name, from_record(RankerOptions, options), validation_metric=metric)
        scores = predict(prepared, None, root / name, "test")
        if process.is_main:
            (root / f"{name}.json").write_text(json.dumps(facts))
            np.save(root / f"{name}.npy", scores)
"""


def test_two_ranks_equal_one_with_sequences(past, tmp_path: Path) -> None:
    options = with_changes(OPTIONS, {"training.batch_size": 4000, "tables.row_wise_rows": 10**9})
    runs = {
        "auto": with_changes(
            options, {"tables.row_wise_rows": 40}
        ),  # users and items split by rows, genres and kind whole
        "data_parallel": with_changes(options, {"tables.sharding": "data_parallel"}),  # but for items and kind
    }
    one = train(past.prepared, None, tmp_path / "one", options, validation_metric=auc)
    run_ranks(_RANK, past.prepared, tmp_path, json.dumps({name: asdict(run) for name, run in runs.items()}))
    on_one = predict(past.prepared, None, tmp_path / "one", "test")
    for name in runs:
        other = json.loads((tmp_path / f"{name}.json").read_text())
        for mine, theirs in zip(one["history"], other["history"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), on_one, atol=1e-3)
        moved = predict(past.prepared, None, tmp_path / name, "test")  # saved by two ranks, loaded by one
        np.testing.assert_allclose(moved, np.load(tmp_path / f"{name}.npy"), atol=1e-5)


@pytest.mark.parametrize("backbone", ["din", "dcnv2"])  # one reads the sequences of the log, one does not
def test_a_ranker_of_a_log_with_sequences_goes_on_from_an_earlier_one(past, tmp_path: Path, backbone: str) -> None:
    (tmp_path / "prepare").symlink_to(past.prepared)
    options = with_changes(OPTIONS, {"backbone.name": backbone, "training.epochs": 1})
    train(past.prepared, None, tmp_path / "train/base", options, validation_metric=auc)
    still = with_changes(
        options,
        {
            "training.init_from": str(tmp_path / "train/base"),
            "training.learning_rate": 1e-12,
            "tables.learning_rate": 1e-12,
            "seed": 1,
        },
    )
    train(past.prepared, None, tmp_path / "on", still, validation_metric=auc)
    scores = (predict(past.prepared, None, tmp_path / name, "test") for name in ("train/base", "on"))
    np.testing.assert_allclose(*scores, atol=1e-6)


# Bad input


def test_what_reads_sequences_needs_some(log) -> None:
    message = (
        r"ranker.backbone.name=din reads behaviour sequences, but there are none; .*`sequence: \{history: \{of: item_id"
    )
    with pytest.raises(InputError, match=rf"features\.json: {message}.*, then run `learn-rank prepare` again"):
        open_inputs(log.prepared, None, OPTIONS)
    with pytest.raises(InputError, match="use_sequences=true reads behaviour sequences"):
        open_inputs(
            log.prepared, None, with_changes(OPTIONS, {"backbone.name": "dcnv2", "backbone.use_sequences": True})
        )


def test_only_a_ranker_that_reads_sequences_sees_them(past) -> None:
    seen = {
        name: len(open_inputs(past.prepared, None, with_changes(OPTIONS, options)).features.sequences)
        for name, options in {
            "din": {},
            "dcnv2": {"backbone.name": "dcnv2"},
            "dcnv2 with their means": {"backbone.name": "dcnv2", "backbone.use_sequences": True},
        }.items()
    }
    assert seen == {"din": 3, "dcnv2": 0, "dcnv2 with their means": 3}


def test_a_table_width_that_no_kernel_takes_is_refused() -> None:
    sparse = (replace(FEATURES.sparse[0], embedding_dim=6),)
    with pytest.raises(InputError, match="embedding_dim of 'user_id' is 6, expected a multiple of 4"):
        build_tables(replace(FEATURES, sparse=sparse, sequences=()), 8)


def test_the_dcn_of_tables_of_several_widths_trains_without_sequences(past, tmp_path: Path) -> None:
    options = with_changes(OPTIONS, {"backbone.name": "dcnv2", "training.epochs": 1})
    facts = train(past.prepared, None, tmp_path, options, validation_metric=auc)
    assert facts["num_table_parameters"] == 8 * (61 + 41) + 12 * 5 + 4 * 6
