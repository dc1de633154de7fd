"""predict: one probability per row, in file order, whatever the batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.outputs.predict import predict, write_predictions
from learn_rank.ranker.training.train import RankerOptions, train


def test_every_row_has_one_probability_whatever_the_batch_size(log, directory: Path) -> None:
    whole = predict(log.prepared, log.stores, directory, "test", batch_rows=10_000)
    assert whole.shape == (1001,)
    assert whole.dtype == np.float32
    assert ((whole > 0) & (whole < 1)).all()
    for batch_rows in (1000, 77):
        np.testing.assert_allclose(
            predict(log.prepared, log.stores, directory, "test", batch_rows=batch_rows), whole, atol=1e-6
        )


def test_probabilities_stay_with_their_rows(log, directory: Path, tmp_path: Path) -> None:
    table = log.table("test")
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = type(log)(tmp_path, log.stores)
    shuffled.write("test", table.take(pa.array(order)))
    (tmp_path / "features.json").write_text((log.prepared / "features.json").read_text())
    plain, moved = (predict(place, log.stores, directory, "test") for place in (log.prepared, tmp_path))
    np.testing.assert_allclose(moved, plain[order], atol=1e-6)


def test_users_and_items_without_a_vector_are_scored(log, directory: Path, tmp_path: Path) -> None:
    table = log.table("test").slice(0, 50)
    for name in ("user_id", "item_id"):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array([10**6] * 50))
    unknown = type(log)(tmp_path, log.stores)
    unknown.write("test", table)
    (tmp_path / "features.json").write_text((log.prepared / "features.json").read_text())
    assert np.isfinite(predict(tmp_path, log.stores, directory, "test")).all()


def test_predictions_of_all_arms_stand_beside_ids_and_labels(log, directory: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline"
    options = with_changes(
        RankerOptions(),
        {"backbone.hidden_dims": [8], "training.batch_size": 512, "training.epochs": 1, "adaptor.use_learn": False},
    )
    train(log.prepared, None, baseline, options, validation_metric=lambda *_: 0.5)
    facts = write_predictions(log.prepared, log.stores, {"baseline": baseline, "learn": directory}, tmp_path)
    assert facts["num_rows"] == {"validation": 1001, "test": 1001}
    assert facts["tasks"] == [{"name": "click", "label": "click", "given": ""}]
    written = pq.read_table(tmp_path / "test.parquet")
    assert written.column_names == ["user_id", "item_id", "timestamp", "click", "purchase", "baseline", "learn"]
    ids = written.column_names[:5]
    assert written.select(ids).to_pydict() == log.table("test").select(ids).to_pydict()
    assert np.array_equal(written["learn"].to_numpy(), predict(log.prepared, log.stores, directory, "test"))
    assert not np.array_equal(written["learn"].to_numpy(), written["baseline"].to_numpy())


def test_a_folder_without_checkpoint_is_refused(log, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished checkpoint; run `learn-rank train` first"):
        predict(log.prepared, log.stores, tmp_path, "test")
