"""LEARN in RecBole's context-aware models: which layers, whose ids, which loss, which times."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

pytest.importorskip("recbole", reason="recbole is not installed")

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, cvr_loss
from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.integrations import recbole
from learn_rank.integrations.recbole import entry_layers
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store
from tests.integrations.cases_recbole import MODELS, SECOND, Run, build, interaction
from tests.integrations.hosts import DIM, ITEM_IDS, NUM_ITEMS, NUM_USERS, USER_IDS, make_log, vectors

LOG = make_log(3, 64)
MLP = {"mlp_layers.mlp_layers.1": 32}
LINEAR = {"first_order_linear": 1}
LAYERS = {
    **dict.fromkeys(("FNN", "NFM", "DeepFM", "xDeepFM", "WideDeep", "DCN", "DCNV2", "PNN", "AutoInt"), MLP),
    **dict.fromkeys(("LR", "FM", "FFM", "FwFM", "AFM"), LINEAR),
    "DSSM": {"user_mlp_layers.mlp_layers.1": 32, "item_mlp_layers.mlp_layers.1": 32},
    "FiGNN": {"att_embedding": 8, "v_res_embedding": 8},
    "EulerNet": {"Euler_interaction_layers.0.im": 240},
}


def adaptor() -> LearnAdaptor:
    torch.manual_seed(0)
    return LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32)


def by_index() -> LearnFeatures:
    """Vectors by RecBole's indices: any will do."""
    tables = [torch.randn(1 + num, DIM, generator=torch.Generator().manual_seed(num)) for num in (NUM_USERS, NUM_ITEMS)]
    return LearnFeatures(*(VectorTable(table) for table in tables), adaptor())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenStore, FrozenStore]:
    """User vectors by int64 ids above 2^24, with snapshots a second apart; item vectors by strings."""
    folder = tmp_path_factory.mktemp("stores")
    users, items = vectors()
    snapshots = np.repeat(np.arange(NUM_USERS), 400)
    times = np.tile((SECOND + np.arange(-200, 200)) * 1000, NUM_USERS)
    with publish(folder / "user", Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(USER_IDS[snapshots]), users[snapshots], as_of=times))
    with publish(folder / "item", Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(ITEM_IDS), items))
    return FrozenStore(folder / "user"), FrozenStore(folder / "item")


def test_every_model_of_the_list_is_checked() -> None:
    assert set(LAYERS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_learn_enters_a_model_where_its_fields_do_and_both_losses_train_it(name: str) -> None:
    host = build(name)
    assert entry_layers(host.model) == LAYERS[name]
    batch = interaction(host.dataset, LOG)
    host.model.eval()
    alone = host.model.predict(batch)
    learn = recbole.attach(host.model, by_index(), host.dataset)
    torch.testing.assert_close(host.model.predict(batch), alone, rtol=0, atol=1e-6)
    host.model.train()
    host.model.calculate_loss(batch).backward()
    assert learn.layers == tuple(LAYERS[name])
    for entry in learn.entries:
        assert entry.weight.grad.abs().sum() > 0  # the ranking loss came through
    assert learn.features.adaptor.fusion[0].weight.grad.abs().sum() > 0  # the CVR loss did


def test_a_model_without_a_rule_asks_for_its_layers() -> None:
    class Own(torch.nn.Module):
        pass

    with pytest.raises(InputError, match="the model is a Own, expected one of RecBole's context-aware models"):
        recbole.attach(Own(), by_index(), None)
    host = build("LR")
    host.model.__class__ = type("MyRanker", (type(host.model),), {})
    with pytest.raises(InputError, match="MyRanker has no MLPLayers"):
        recbole.attach(host.model, by_index(), host.dataset)
    learn = recbole.attach(host.model, by_index(), host.dataset, layers={"first_order_linear": 1})
    assert learn.layers == ("first_order_linear",)


def test_stores_are_asked_for_the_ids_behind_recboles_indices(stores: tuple[FrozenStore, FrozenStore]) -> None:
    host = build("DeepFM")
    learn = recbole.attach(host.model, LearnFeatures(*stores, adaptor()), host.dataset, before="timestamp")
    users, items = vectors()
    batch = interaction(host.dataset, LOG)
    host.model.predict(batch)
    features = learn.features
    looked_up, mask = features.item_store.lookup(batch["item_id"])
    assert mask.all()
    np.testing.assert_allclose(looked_up.numpy(), items[LOG.item_index], atol=1e-3)
    later = np.full(len(LOG), (SECOND + 500) * 1000)
    looked_up, mask = features.user_store.lookup(batch["user_id"], later)
    assert mask.all()
    np.testing.assert_allclose(looked_up.numpy(), users[LOG.user_index], atol=1e-3)
    padding, mask = features.item_store.lookup([0, 1])
    assert mask.tolist() == [False, True]
    assert not padding[0].any()


def test_an_integer_store_and_tokens_that_are_none_do_not_go_together(
    stores: tuple[FrozenStore, FrozenStore],
) -> None:
    host = build("DeepFM")
    users, _ = stores
    with pytest.raises(InputError, match=r"field 'item_id': .* the ids of the store are int64"):
        recbole.attach(host.model, LearnFeatures(users, users, adaptor()), host.dataset)


def test_no_row_sees_a_snapshot_that_was_made_after_it() -> None:
    """RecBole's times are float32: 128 seconds apart in 2020."""
    seen: list[Any] = []

    class Times(VectorTable):
        has_as_of = True

        def lookup(self, ids: Any, before: Any = None) -> Any:
            seen.append(before)
            return super().lookup(ids)

    host = build("LR")
    table = Times(torch.randn(1 + NUM_USERS, DIM))
    recbole.attach(host.model, LearnFeatures(table, table, adaptor()), host.dataset, before="timestamp")
    true = SECOND + np.arange(0, 640, 10, dtype=np.int64)
    batch = interaction(host.dataset, LOG)
    batch.interaction["timestamp"] = torch.from_numpy(true).float()
    assert (batch["timestamp"].double().numpy() > true).any()  # rounded up
    host.model.predict(batch)
    milliseconds = seen[0].numpy()
    assert (milliseconds <= true * 1000).all()
    assert (milliseconds >= (true - 300) * 1000).all()


@pytest.mark.parametrize(("times", "unit"), [(0.5, "s"), (1_600_000_000_000.0, "s"), (1_600_000_000.0, "ms")])
def test_times_that_are_none_are_refused(times: float, unit: str) -> None:
    host = build("LR")
    recbole.attach(host.model, by_index(), host.dataset, before="timestamp", timestamp_unit=unit)
    batch = interaction(host.dataset, LOG)
    batch.interaction["timestamp"] = torch.full((len(LOG),), times)
    with pytest.raises(InputError, match=re.escape(f"field 'timestamp' holds {times:g}, no unix time")):
        host.model.predict(batch)
    with pytest.raises(InputError, match="timestamp_unit is 'us', expected one of s, ms"):
        recbole.attach(host.model, by_index(), host.dataset, timestamp_unit="us")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_models_and_the_cvr_loss(weighted: bool) -> None:
    host = build("DeepFM")
    batch = interaction(host.dataset, LOG)
    own = host.model.calculate_loss(batch).item()
    clicked = (lambda rows: (rows["label"], rows["click"])) if weighted else None
    learn = recbole.attach(host.model, by_index(), host.dataset, cvr_label=clicked, cvr_weight=0.3)
    loss = host.model.calculate_loss(batch).item()
    cvr = cvr_loss(learn.output.cvr_logit, batch["label"], batch["click"] if weighted else None).item()
    assert loss == pytest.approx(own + 0.3 * cvr, rel=1e-6)
    learn.is_on = False
    assert host.model.calculate_loss(batch).item() == own
    learn.detach()
    assert "calculate_loss" not in vars(host.model)


def test_a_loss_in_parts_gets_one_part_more() -> None:
    host = build("DeepFM")
    plain = host.model.calculate_loss
    host.model.calculate_loss = lambda batch: (plain(batch), plain(batch) * 0)
    recbole.attach(host.model, by_index(), host.dataset)
    assert len(host.model.calculate_loss(interaction(host.dataset, LOG))) == 3


def test_a_checkpoint_with_learn_is_not_taken_by_a_model_without(tmp_path: Path) -> None:
    host: Run = build("FM")
    recbole.attach(host.model, by_index(), host.dataset)
    state = host.model.state_dict()
    assert sum(weight.numel() for name, weight in state.items() if name.startswith("learn.")) < 10_000
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build("FM").model.load_state_dict(state)


def test_without_recbole_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    host = build("FM")
    monkeypatch.setitem(sys.modules, "recbole.model.abstract_recommender", None)
    with pytest.raises(InputError, match=r"no module 'recbole\.model.*': pip install recbole"):
        recbole.attach(host.model, by_index(), host.dataset)
