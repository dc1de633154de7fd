"""export-features: the columns are what the trained ranker sees, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.adaptor import AdaptorOutput, LearnAdaptor
from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.publish import publish
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import load_adaptor
from learn_rank.ranker.outputs.export_features import write_learn_columns
from learn_rank.ranker.outputs.options import LearnColumnsOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.trained import trained_options
from learn_rank.ranker.training.train import RankerOptions, train
from learn_rank.schema import LEARN_COLUMNS, FeatureSet
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store


def write(log, directory: Path | None, out: Path, source: Path | None = None, **options: Any) -> dict[str, Any]:
    source = source or log.prepared / "interactions"
    return write_learn_columns(source, log.prepared, log.stores, directory, out, LearnColumnsOptions(**options))


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def test_the_columns_are_what_the_ranker_sees_while_it_predicts(
    log, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = write(log, directory, tmp_path)
    assert facts["num_rows"] == sum(len(log.table(split)) for split in ("train", "validation", "test"))
    table = pq.read_table(tmp_path / "test.parquet")
    assert table.select(log.table("test").column_names).equals(log.table("test"))
    seen, forward = [], LearnAdaptor.forward

    def watch(*arguments: Any) -> AdaptorOutput:
        seen.append(forward(*arguments))
        return seen[-1]

    monkeypatch.setattr(LearnAdaptor, "forward", watch)
    predict(log.prepared, log.stores, directory, "test", batch_rows=100)
    assert len(seen) > 5
    columns = np.concatenate([vectors_of(table, name) for name in LEARN_COLUMNS], axis=1)
    np.testing.assert_allclose(columns, torch.cat([output.features() for output in seen]).numpy(), atol=1e-6)


def test_layouts_hold_the_same_numbers(log, directory: Path, tmp_path: Path) -> None:
    source = log.prepared / "interactions" / "test.parquet"
    for layout in ("fixed_list", "list", "string"):
        write(log, directory, tmp_path / layout, source, layout=layout, columns=["user_id"], separator=";")
    fixed, lists, texts = (pq.read_table(tmp_path / name / "test.parquet") for name in ("fixed_list", "list", "string"))
    assert fixed.column_names == ["user_id", *LEARN_COLUMNS]
    assert pa.types.is_fixed_size_list(fixed.schema.field("learn_user").type)
    assert lists.schema.field("learn_user").type == pa.list_(pa.float32())
    for name in LEARN_COLUMNS:
        np.testing.assert_array_equal(vectors_of(lists, name), vectors_of(fixed, name))
        parsed = [[float(number) for number in text.split(";")] for text in texts.column(name).to_pylist()]
        np.testing.assert_allclose(parsed, vectors_of(fixed, name), rtol=1e-6)


def test_frozen_values_are_the_stores_with_zeros_where_there_is_none(log, tmp_path: Path) -> None:
    source = log.prepared / "interactions" / "test.parquet"
    facts = write(log, None, tmp_path, source, values="frozen", fusion_dim=3, layout="list")
    table = pq.read_table(tmp_path / "test.parquet")
    own = log.table("test")
    vectors, mask = FrozenStore(log.stores / "item").lookup(own.column("item_id"))
    np.testing.assert_array_equal(vectors_of(table, "learn_item"), vectors.numpy())
    assert facts["rows_without_item"] == int((~mask).sum())
    assert (vectors_of(table, "learn_fusion") == np.zeros((len(own), 3))).all()
    lengths = np.linalg.norm(vectors_of(table, "learn_user"), axis=1)
    assert (lengths == 0).sum() == facts["rows_without_user"]


def test_half_precision_halves_the_columns(log, directory: Path, tmp_path: Path) -> None:
    source = log.prepared / "interactions" / "test.parquet"
    write(log, directory, tmp_path, source, dtype="float16")
    assert pq.read_table(tmp_path / "test.parquet").schema.field("learn_item").type.value_type == pa.float16()


def test_a_users_log_of_other_names_and_times_gets_the_vectors_of_its_times(
    log, directory: Path, tmp_path: Path
) -> None:
    table = log.table("test")
    own = pa.table(
        {
            "shown_at": as_times(table.column("timestamp")),
            "sku": table.column("item_id"),
            "uid": table.column("user_id"),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(own.slice(0, 300), tmp_path / "in" / "a.parquet")
    pq.write_table(own.slice(300), tmp_path / "in" / "b.parquet")
    names = {"user_id": "uid", "item_id": "sku", "timestamp": "shown_at"}
    write(log, directory, tmp_path / "out", tmp_path / "in", **names)
    write(log, directory, tmp_path / "own", log.prepared / "interactions" / "test.parquet")
    written = pq.read_table(tmp_path / "out")
    assert written.column_names == ["shown_at", "sku", "uid", *LEARN_COLUMNS]
    expected = pq.read_table(tmp_path / "own" / "test.parquet")
    for name in LEARN_COLUMNS:
        np.testing.assert_array_equal(vectors_of(written, name), vectors_of(expected, name))


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_integer_times_are_seconds_unless_it_is_said_and_another_unit_is_refused(tmp_path: Path, unit: str) -> None:
    now, scale = 1_700_000_000, {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    for name, times in (("user", np.array([now - 10, now + 10]) * 1000), ("item", None)):
        with publish(tmp_path / "export" / name, Manifest("store", {}, {})) as (work, facts):
            vectors = np.array([[1.0], [2.0]]) if times is not None else np.array([[3.0]])
            facts.update(write_store(work, pa.array([7, 7] if times is not None else [5]), vectors, as_of=times))
    (tmp_path / "prepare").mkdir()
    FeatureSet((), (), ("click",), "click", "click", "click", has_value=False, num_folds=0).write(
        tmp_path / "prepare" / "features.json"
    )
    for name, value in (("user", 7), ("item", 5)):
        counts = pa.table({f"{name}_id": [value], "num_interactions": [1]})
        pq.write_table(counts, tmp_path / "prepare" / f"{name}_counts.parquet")
    times = np.array([now - 20, now, now + 20]) * scale
    log = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": [7] * 3, "item_id": [5] * 3, "timestamp": times}), log)

    def write_unit(name: str, **options: str) -> list[float]:
        chosen = LearnColumnsOptions(values="frozen", **options)
        write_learn_columns(log, tmp_path / "prepare", tmp_path / "export", None, tmp_path / name, chosen)
        return vectors_of(pq.read_table(tmp_path / name / "log.parquet"), "learn_user")[:, 0].tolist()

    assert write_unit("said", timestamp_unit=unit) == [0, 1, 2]
    if unit == "s":
        assert write_unit("default") == [0, 1, 2]
    else:
        with pytest.raises(InputError, match=f"column 'timestamp', row 0 is .*: set timestamp_unit to {unit}"):
            write_unit("default")


def as_times(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    return milliseconds.cast(pa.timestamp("ms"))


def test_rows_without_a_vector_take_the_learned_one_and_are_counted(log, directory: Path, tmp_path: Path) -> None:
    table = log.table("test").slice(0, 50)
    place = table.schema.get_field_index("user_id")
    pq.write_table(table.set_column(place, "user_id", pa.array([10**6] * 50)), tmp_path / "new.parquet")
    facts = write(log, directory, tmp_path / "out", tmp_path / "new.parquet")
    assert facts == {"num_rows": 50, "rows_without_user": 50, "rows_without_item": facts["rows_without_item"]}
    options, _ = trained_options(directory)
    inputs = open_inputs(log.prepared, log.stores, options)
    assert inputs.frozen is not None
    missing = load_adaptor(directory, options, inputs.frozen).user_missing.detach().numpy()
    user = vectors_of(pq.read_table(tmp_path / "out" / "new.parquet"), "learn_user")
    np.testing.assert_array_equal(user, np.tile(missing, (50, 1)))


def test_files_that_are_there_are_kept_and_counted(log, directory: Path, tmp_path: Path) -> None:
    whole = write(log, directory, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    (tmp_path / "test.parquet").unlink()
    assert write(log, directory, tmp_path) == whole
    changed = {path.name for path in tmp_path.glob("*.parquet") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"test.parquet"}


def test_a_file_without_rows_stays_one(log, directory: Path, tmp_path: Path) -> None:
    pq.write_table(log.table("test").slice(0, 0), tmp_path / "none.parquet")
    assert write(log, directory, tmp_path / "out", tmp_path / "none.parquet")["num_rows"] == 0
    assert pq.read_table(tmp_path / "out" / "none.parquet").column_names[-3:] == list(LEARN_COLUMNS)


def test_what_does_not_fit_is_said_before_anything_is_written(log, directory: Path, tmp_path: Path) -> None:
    table = log.table("test")
    cases = [
        (table.drop_columns(["item_id"]), {}, "no column 'item_id'"),
        (table, {"columns": ["price"]}, "no column 'price'"),
        (table.append_column("learn_user", table.column("user_id")), {}, "has a column 'learn_user' already"),
    ]
    for number, (wrong, options, message) in enumerate(cases):
        pq.write_table(wrong, tmp_path / f"{number}.parquet")
        with pytest.raises(InputError, match=message):
            write(log, directory, tmp_path / "out", tmp_path / f"{number}.parquet", **options)
    assert not (tmp_path / "out").exists()
    baseline = with_changes(
        RankerOptions(),
        {"backbone.hidden_dims": [8], "training.batch_size": 512, "training.epochs": 1, "adaptor.use_learn": False},
    )
    train(log.prepared, None, tmp_path / "baseline", baseline, validation_metric=lambda *_: 0.5)
    with pytest.raises(InputError, match="without LEARN"):
        write(log, tmp_path / "baseline", tmp_path / "out")
    with pytest.raises(InputError, match="expected one of fixed_list"):
        LearnColumnsOptions(layout="dense")
