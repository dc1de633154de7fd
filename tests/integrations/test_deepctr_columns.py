"""Ids that float32 cannot hold reach LEARN through DeepCTR-Torch's X: in every form of x, in training and out."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

pytest.importorskip("deepctr_torch", reason="deepctr-torch is not installed")

from deepctr_torch import models
from deepctr_torch.callbacks import Callback
from deepctr_torch.inputs import SparseFeat

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.errors import InputError
from learn_rank.integrations.deepctr_columns import EXACT, Column
from learn_rank.integrations.deepctr_torch import attach, input_matrix
from tests.integrations.cases_deepctr_torch import (
    INDEXED,
    RAW,
    Stores,
    build,
    columns_of,
    labels_of,
    new_stores,
    write_folder,
)
from tests.integrations.hosts import DIM, ITEM_IDS, NUM_ITEMS, NUM_USERS, USER_IDS, make_log, new_features, vectors

LOG, TEST = make_log(1, 600), make_log(2, 300)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return new_stores(tmp_path_factory.mktemp("stores"))


def test_every_int64_survives_float32() -> None:
    ids = np.array([0, 1, EXACT - 1, EXACT, EXACT + 1, (1 << 40) + 1, -1, -(1 << 63), (1 << 63) - 1], np.int64)
    ids = np.concatenate([ids, np.random.default_rng(0).integers(-(1 << 63), (1 << 63) - 1, 1000)])
    column = Column("user_id", 2, True, None)
    parts = column.encode(ids, len(ids))
    assert parts.dtype == np.float32
    X = torch.cat([torch.randn(len(ids), 2), torch.from_numpy(parts), torch.randn(len(ids), 1)], dim=1)
    np.testing.assert_array_equal(column.decode(X).numpy(), ids)


@pytest.mark.parametrize("form", ["dict", "list", "series"])
@pytest.mark.parametrize("held_out", ["validation_data", "validation_split"])
def test_raw_ids_train_and_predict_what_positions_do(form: str, held_out: str, stores: Stores) -> None:
    predictions, logs = [], []
    for by_index in (True, False):
        model = build("DeepFM")
        model.metrics = {"auc": roc_auc_score}
        attach(model, new_features(*stores, by_index=by_index), **(INDEXED if by_index else RAW))
        x, y = as_form(columns_of(LOG), form, by_index), labels_of(model, LOG)
        asked = as_form(columns_of(TEST), form, by_index)
        kept = dict(enumerate(x)) if isinstance(x, list) else dict(x)
        validation = (as_form(columns_of(TEST), form, by_index), labels_of(model, TEST))
        options = {held_out: 0.2 if held_out == "validation_split" else validation}
        torch.manual_seed(0)
        with redirect_stdout(io.StringIO()):
            history = model.fit(x, y, batch_size=64, epochs=2, verbose=2, **options).history
        for name, column in enumerate(x) if isinstance(x, list) else x.items():
            if not by_index:
                assert column is kept[name]  # the caller's own columns stay as they were
        predictions.append(model.predict(asked, 64))
        logs.append({**history, **model.evaluate(as_form(columns_of(TEST), form, by_index), TEST.label)})
    np.testing.assert_array_equal(*predictions)
    assert logs[0] == logs[1]
    assert len(logs[0]["val_auc"]) == 2


def test_of_snapshots_a_row_sees_the_last_before_it(tmp_path: Path) -> None:
    users, items = vectors()
    start = 1_700_000_000_000
    store = write_folder(
        tmp_path / "user",
        pa.array(np.repeat(USER_IDS, 2)),
        np.concatenate([users, -users], axis=1).reshape(-1, DIM),  # first the vector, then its opposite
        as_of=np.tile([start, start + 1], NUM_USERS),
    )
    model = build("WDL")
    features = LearnFeatures(
        store, write_folder(tmp_path / "item", pa.array(ITEM_IDS), items), LearnAdaptor(DIM, DIM, normalization="none")
    )
    learn = attach(model, features, **RAW, before="time")
    times = start + np.arange(len(LOG)) % 3
    model.predict({**columns_of(LOG), "time": times}, batch_size=len(LOG))
    expected = np.where((times > start + 1)[:, None], -1.0, 1.0) * users[LOG.user_index]
    expected[times == start] = 0.0  # before any: the missing vector
    assert learn.output is not None
    np.testing.assert_allclose(learn.output.user.detach(), expected, atol=1e-3)


def test_a_vocabulary_above_2_to_24_stays_apart_for_learn_alone() -> None:
    seen: list[int] = []

    class Seen:
        dim = DIM

        def lookup(self, ids: torch.Tensor, before: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
            seen.extend(ids.tolist())
            return (ids % 2).float().unsqueeze(1).expand(-1, DIM), torch.ones(len(ids), dtype=torch.bool)

    model = models.PNN([SparseFeat("user", EXACT + 8, 1), SparseFeat("item", NUM_ITEMS, 1)], (4,))
    adaptor = LearnAdaptor(DIM, DIM, normalization="none")
    features = LearnFeatures(Seen(), VectorTable(torch.from_numpy(vectors()[1])), adaptor)
    with pytest.warns(UserWarning, match="'user' has 16777224 values"):
        learn = attach(model, features, **INDEXED)
    torch.nn.init.normal_(model.embedding_dict["user"].weight[EXACT : EXACT + 2])
    torch.nn.init.normal_(learn.entries[0].weight)
    neighbours = {"user": np.array([EXACT, EXACT + 1]), "item": np.array([1, 1])}
    for x in (neighbours, list(neighbours.values())):
        assert np.diff(model.predict(x), axis=0) != 0
        assert seen[-2:] == [EXACT, EXACT + 1]
    learn.is_on = False
    assert np.diff(model.predict(neighbours), axis=0) == 0  # for the model they are one user


def test_a_callback_may_predict_while_fit_runs(stores: Stores) -> None:
    class Predict(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            answers.append(self.model.predict(columns_of(TEST)))
            self.model.train()

    answers: list[Any] = []
    model = build("DeepFM")
    attach(model, new_features(*stores, by_index=False), **RAW)
    model.fit(columns_of(LOG), LOG.label, verbose=0, callbacks=[Predict()])
    np.testing.assert_array_equal(answers, [model.predict(columns_of(TEST))])


def test_a_loop_of_ones_own_makes_x_by_input_matrix(stores: Stores) -> None:
    model = build("DeepFM")
    learn = attach(model, new_features(*stores, by_index=False), **RAW)
    model.eval()
    X = input_matrix(model, columns_of(TEST))
    assert X.dtype == torch.float32
    np.testing.assert_array_equal(model(X).detach().numpy(), model.predict(columns_of(TEST), len(TEST)).astype("f4"))
    with pytest.raises(InputError, match="X has 3 columns, expected 9"):
        model(X[:, :3])
    learn.is_on = False
    model(X[:, :3])


def test_a_column_that_x_lacks_is_named(stores: Stores) -> None:
    model, x = attached(stores), columns_of(LOG)
    del x["item_id"]
    with pytest.raises(InputError, match="x has no column 'item_id', only user, item, price, user_id"):
        model.fit(x, LOG.label, verbose=0)
    with pytest.raises(InputError, match="list of 4 columns, expected 5: user, item, price, user_id, item_id"):
        model.predict(list(x.values()))
    with pytest.raises(InputError, match="'item_id' has 2 values for 600 rows"):
        model.predict({**x, "item_id": np.array(ITEM_IDS[:2])})


def test_codes_in_place_of_ids_are_refused_in_training(stores: Stores) -> None:
    model = attached(stores)
    with pytest.raises(InputError, match=r"no id of column 'user_id' is in .*need store.indexed_by"):
        model.fit({**columns_of(LOG), "user_id": LOG.user_index}, LOG.label, verbose=0)
    model.predict({**columns_of(LOG), "user_id": LOG.user_index})  # new users, as serving has them


def test_ids_that_were_floats_are_refused(stores: Stores) -> None:
    with pytest.raises(InputError, match="float64, expected int64"):
        attached(stores).predict({**columns_of(LOG), "user_id": LOG.user_ids.astype(float)})
    model = build("DeepFM")
    features = LearnFeatures(stores[0].indexed_by(USER_IDS), stores[1].indexed_by(ITEM_IDS), LearnAdaptor(DIM, DIM))
    attach(model, features, **RAW)
    with pytest.raises(InputError, match="'item_id' is <U7, expected int64: the positions that its store takes"):
        model.predict({**columns_of(LOG), "user_id": LOG.user_index})


def attached(stores: Stores) -> Any:
    model = build("DeepFM")
    attach(model, new_features(*stores, by_index=False), **RAW)
    return model


def as_form(x: dict[str, Any], form: str, by_index: bool) -> Any:
    if form == "list":  # the features, and behind them what LEARN reads
        return list(x.values())[: 3 if by_index else 5]
    return {name: pd.Series(column) for name, column in x.items()} if form == "series" else x
