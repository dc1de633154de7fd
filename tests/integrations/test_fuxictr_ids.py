"""Ids of FuxiCTR's batches: as they are, as indices of its vocabularies, through its own loaders; and their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store

pytest.importorskip("fuxictr", reason="fuxictr is not installed")

import polars as pl
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.tokenizer import Tokenizer
from fuxictr.pytorch.dataloaders import RankDataLoader

from learn_rank.integrations.fuxictr import attach, vocabulary_ids
from tests.integrations.cases_fuxictr import build, enter, whole_batch
from tests.integrations.fuxictr_models import DeepFM
from tests.integrations.hosts import DIM, ITEM_IDS, USER_IDS, Log, make_log, vectors

TRAIN, TEST = make_log(1, 600), make_log(2, 300)


def test_ids_arrive_as_they_are_however_the_loader_holds_them() -> None:
    model, batch = build(), whole_batch(TEST)
    learn = enter(model)
    seen: list[Any] = []
    learn.features.register_forward_pre_hook(lambda module, args: seen.append(args))
    model.forward(batch)
    model.forward({name: column.double() for name, column in batch.items()})  # the npz loader: one float64 array
    assert len(seen) == 2
    for users, items in seen:
        assert users.dtype == items.dtype == torch.int64
        np.testing.assert_array_equal(users, TEST.user_index)
        np.testing.assert_array_equal(items, TEST.item_index)


def test_ids_that_a_float_cannot_hold_are_refused() -> None:
    model, batch = build(), whole_batch(TEST)
    enter(model)
    largest = {torch.float64: 2.0**53, torch.float32: 2.0**24}
    for dtype, limit in largest.items():
        model.forward({**batch, "user_row": torch.full((300,), limit - 1, dtype=dtype)})
        for value in (limit, -limit, float("nan")):
            with pytest.raises(InputError, match=r"column 'user_row' holds .* load it as int64"):
                model.forward({**batch, "user_row": torch.full((300,), value, dtype=dtype)})


def test_a_column_that_the_batch_or_the_feature_map_lacks_is_named() -> None:
    model, batch = build(), whole_batch(TEST)
    with pytest.raises(InputError, match="'user_number' is not there, expected one of type meta or categorical"):
        enter(model, user="user_number")
    with pytest.raises(InputError, match="column 'price' is numeric"):
        enter(model, item="price")
    with pytest.raises(InputError, match=r"column 'user_id' is categorical, expected one of type meta$"):
        enter(model, before="user_id")
    with pytest.raises(InputError, match="no column 'buy'; its labels are label"):
        enter(model, cvr_label="buy")
    assert not hasattr(model, "learn")
    enter(model)
    del batch["item_row"]
    with pytest.raises(InputError, match="the batch has no column 'item_row', only user_id, item_id"):
        model.forward(batch)


def test_snapshots_are_those_made_before_the_row(tmp_path: Path) -> None:
    users, items = vectors()
    made = 1_700_000_000_000
    store = write(tmp_path / "users", USER_IDS, users, as_of=np.full(len(users), made))
    adaptor = LearnAdaptor(DIM, DIM)
    with torch.no_grad():
        adaptor.user_missing.fill_(7.0)
    features = LearnFeatures(store.indexed_by(USER_IDS), VectorTable(torch.from_numpy(items)), adaptor)
    model, batch = build(), whole_batch(TEST)
    model.feature_map.features["time"] = {"type": "meta"}
    learn = attach(model, features, user="user_row", item="item_row", before="time").eval()
    times = torch.where(torch.arange(300) % 2 == 0, made, made + 1)
    model.forward({**batch, "time": times})
    assert learn.output is not None
    np.testing.assert_array_equal((learn.output.user == 7.0).all(1), times == made)
    for wrong in (times // 1000, torch.arange(300)):  # seconds; the index of a time, where remap was left on
        with pytest.raises(InputError, match=r"'time' holds times up to .*, expected unix milliseconds"):
            model.forward({**batch, "time": wrong})


# vocabularies


def test_a_vocabulary_in_json_gives_ids_by_index(tmp_path: Path) -> None:
    vocabulary = {
        "user_id": {"__PAD__": 0, "1099511627776": 1, "1099511627778": 2, "__OOV__": 3},
        "item_id": {"__PAD__": 0, "hat": 2, "cap": 1, "__OOV__": 5},
        "own_index": {"0": 0, "1": 1, "__PAD__": 0, "__OOV__": 2},
    }
    (tmp_path / "feature_vocab.json").write_text(json.dumps(vocabulary))
    file, made = tmp_path / "feature_vocab.json", FeatureMap("log", str(tmp_path))
    for where in (file, str(file), tmp_path, made):
        assert vocabulary_ids(where, "user_id", "int64") == [None, 1 << 40, (1 << 40) + 2, None]
    assert vocabulary_ids(file, "user_id", "string") == [None, "1099511627776", "1099511627778", None]
    assert vocabulary_ids(file, "item_id", "string") == [None, "cap", "hat", None, None, None]
    assert vocabulary_ids(file, "own_index", "int64") == [None, 1, None]  # 0 is the padding, whatever else it is
    with pytest.raises(InputError, match="item_id: its vocabulary holds 'hat', the store's ids are int64"):
        vocabulary_ids(file, "item_id", "int64")
    with pytest.raises(InputError, match="no vocabulary for column 'shop', only for user_id, item_id"):
        vocabulary_ids(file, "shop", "int64")
    with pytest.raises(InputError, match=r"feature_vocab\.json: not there"):
        vocabulary_ids(tmp_path / "other" / "feature_vocab.json", "user_id", "int64")


def test_the_vocabulary_of_a_shared_embedding_is_that_of_both_columns(tmp_path: Path) -> None:
    items, wishes = Tokenizer(), Tokenizer()
    items.build_vocab({"hat": 3, "cap": 2})
    wishes.build_vocab({"cap": 1, "shoe": 1})
    wishes.merge_vocab(items)
    (tmp_path / "feature_vocab.json").write_text(json.dumps({"item_id": items.vocab}))
    ids = vocabulary_ids(tmp_path, "item_id", "string")
    assert [ids[index] for index in items.encode_category(["hat", "cap", "shoe", "sock"])] == [
        "hat",
        "cap",
        "shoe",
        None,
    ]


def test_vectors_reach_the_rows_they_belong_to_through_fuxictrs_own_data_path(tmp_path: Path) -> None:
    users, items = vectors()
    user_store = write(tmp_path / "users", USER_IDS, users)
    item_store = write(tmp_path / "items", ITEM_IDS, items)
    logs = {"train": TRAIN[TRAIN.item_index < 40], "valid": TEST, "test": TEST}  # items 40 .. 49 are new
    processor = prepare(tmp_path, logs)
    train, valid, test = RankDataLoader(
        processor.feature_map,
        batch_size=100,
        shuffle=False,
        num_workers=0,
        **{f"{split}_data": str(tmp_path / "log" / f"{split}.npz") for split in logs},
    )
    lookups = {
        "user_id": user_store.indexed_by(vocabulary_ids(processor, "user_id", user_store.key_type)),
        "user_raw": user_store,
        "item_id": item_store.indexed_by(vocabulary_ids(tmp_path / "log", "item_id", item_store.key_type)),
        "item_meta": item_store.indexed_by(vocabulary_ids(processor, "item_meta", item_store.key_type)),
    }
    for loader, log in ((train, logs["train"]), (test, TEST)):
        columns = {name: torch.cat([batch[name] for batch in loader]).long() for name in lookups}
        looked_up = {name: lookups[name].lookup(column) for name, column in columns.items()}
        is_known = log.item_index < 40
        np.testing.assert_array_equal(looked_up["item_id"].mask, is_known)  # to the vocabulary a new item is none
        np.testing.assert_allclose(looked_up["item_id"].vectors[is_known], items[log.item_index[is_known]], atol=1e-3)
        np.testing.assert_allclose(looked_up["item_meta"].vectors, items[log.item_index], atol=1e-3)
        for name in ("user_id", "user_raw"):
            np.testing.assert_allclose(looked_up[name].vectors, users[log.user_index], atol=1e-3)
    model = DeepFM(
        processor.feature_map,
        learning_rate=1e-2,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=str(tmp_path),
        verbose=0,
    )
    features = LearnFeatures(lookups["user_id"], lookups["item_meta"], LearnAdaptor(DIM, DIM))
    learn = attach(model, features, user="user_id", item="item_meta")
    model.fit(train, epochs=1, validation_data=valid)
    assert learn.entries[0].weight.abs().max() > 0
    assert len(model.predict(test)) == len(TEST)
    with pytest.raises(InputError, match="a meta column's is in the FeatureProcessor alone"):
        vocabulary_ids(tmp_path / "log", "item_meta", "string")


def write(folder: Path, ids: Any, rows: Any, **options: Any) -> FrozenStore:
    with publish(folder, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(ids), rows, **options))
    return FrozenStore(folder)


def prepare(folder: Path, logs: dict[str, Log]) -> Any:
    """The splits through a FeatureProcessor, into FuxiCTR's npz files."""
    columns = [
        {"name": "user_id", "active": True, "dtype": "int", "type": "categorical"},
        {"name": "item_id", "active": True, "dtype": "str", "type": "categorical"},
        {
            "name": "user_raw",
            "active": True,
            "dtype": "int",
            "type": "meta",
            "remap": False,
            "preprocess": "copy_from(user_id)",
        },
        {"name": "item_meta", "active": True, "dtype": "str", "type": "meta", "preprocess": "copy_from(item_id)"},
    ]
    label = {"name": "label", "dtype": "float"}
    processor = FeatureProcessor(feature_cols=columns, label_col=label, dataset_id="log", data_root=str(folder))
    frames = {
        split: processor.preprocess(
            pl.LazyFrame({"user_id": log.user_ids, "item_id": log.item_ids, "label": log.label})
        )
        for split, log in logs.items()
    }
    processor.fit(frames["train"], meta_ddf=pl.concat([frame.select("item_meta") for frame in frames.values()]))
    for split, frame in frames.items():
        np.savez(folder / "log" / f"{split}.npz", **processor.transform(frame.collect().to_dict(as_series=False)))
    return processor
