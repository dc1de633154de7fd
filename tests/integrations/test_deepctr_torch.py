"""LEARN in DeepCTR-Torch: where it enters, the loss of fit, callbacks, and the head that learns least."""

from __future__ import annotations

import copy
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

pytest.importorskip("deepctr_torch", reason="deepctr-torch is not installed")

from deepctr_torch import models
from deepctr_torch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, cvr_loss
from learn_rank.errors import InputError
from learn_rank.integrations.deepctr_torch import attach, entry_layers
from tests.integrations.cases_deepctr_torch import (
    INDEXED,
    MODELS,
    RAW,
    Stores,
    build,
    columns_of,
    labels_of,
    new_stores,
)
from tests.integrations.hosts import NUM_ITEMS, NUM_USERS, make_log, new_features

LOG, TEST = make_log(1, 600), make_log(2, 300)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return new_stores(tmp_path_factory.mktemp("stores"))


class TestEntryLayers:
    @pytest.mark.parametrize("name", MODELS)
    def test_learn_enters_where_the_features_do(self, name: str, stores: Stores) -> None:
        model = build(name)
        learn = attach(model, new_features(*stores, by_index=True), **INDEXED)
        assert list(learn.layers) == MODELS[name][2]

    @pytest.mark.parametrize("name", [name for name in MODELS if "-" in name])
    def test_variants_predict_as_before_and_then_learn_from_the_vectors(self, name: str, stores: Stores) -> None:
        model = build(name)
        alone = model.predict(columns_of(TEST))
        learn = attach(model, new_features(*stores, by_index=True), **INDEXED)
        np.testing.assert_allclose(model.predict(columns_of(TEST)), alone, rtol=0, atol=1e-7)
        model.fit(columns_of(LOG), LOG.label, batch_size=60, verbose=0)
        trained = model.predict(columns_of(TEST))
        learn.is_on = False
        assert np.abs(model.predict(columns_of(TEST)) - trained).max() > 1e-3

    def test_experts_and_towers_of_more_tasks_and_levels_are_told_apart(self) -> None:
        features = [SparseFeat("user", 4, 4), SparseFeat("item", 4, 4)]
        tasks = {"task_types": ("binary",) * 3, "task_names": ("a", "b", "c")}
        ple = models.PLE(features, num_levels=3, **tasks)
        assert len(entry_layers(ple)) == 2 * (3 + 1)  # experts and gates: of each task, and shared
        assert all(name.split(".")[1] == "0" for name in entry_layers(ple))
        bottom = models.SharedBottom(features, **tasks)
        assert entry_layers(bottom) == ["bottom_dnn.linears.0"]

    def test_attention_over_a_history_is_left_alone(self) -> None:
        item = SparseFeat("item", 10, 4)
        history = VarLenSparseFeat(SparseFeat("hist_item", 10, 4, embedding_name="item"), 3, length_name="length")
        din = models.DIN([SparseFeat("user", 10, 4), item, history], ["item"])
        assert entry_layers(din) == ["dnn.linears.0"]


class TestLoss:
    @pytest.mark.parametrize(("cvr_task", "clicked_task"), [(-1, None), (0, None), (1, 0)])
    @pytest.mark.parametrize("is_listed", [True, False])
    def test_the_loss_of_fit_is_the_hosts_and_half_the_cvr_loss_of_each_row(
        self, cvr_task: int, clicked_task: int | None, is_listed: bool, stores: Stores
    ) -> None:
        totals = []
        for attaches in (False, True):
            model, features = build("MMOE"), new_features(*stores, by_index=True)
            if not is_listed:
                model.compile("adam", F.binary_cross_entropy)
            if attaches:
                attach(model, features, **INDEXED, cvr_task=cvr_task, clicked_task=clicked_task)
            y = labels_of(model, LOG)
            history = model.fit(columns_of(LOG), y, batch_size=len(LOG), epochs=1, shuffle=False, verbose=0)
            totals.append(history.history["loss"][0])
        features = new_features(*stores, by_index=True)  # as it was before the only step
        output = features(torch.from_numpy(LOG.user_index), torch.from_numpy(LOG.item_index))
        labels = torch.from_numpy(y)
        clicked = None if clicked_task is None else labels[:, clicked_task]
        expected = 0.5 * cvr_loss(output.cvr_logit, labels[:, cvr_task], clicked).item()
        assert totals[1] - totals[0] == pytest.approx(expected, rel=1e-4)

    def test_compiled_before_or_after_it_trains_the_same(self, stores: Stores) -> None:
        predictions = []
        for compiles in ("before", "after", "by name", "again"):
            model = build("ESMM")
            if compiles == "after":
                del model.optim, model.loss_func
            if compiles == "by name":
                model.compile("adam", ["binary_crossentropy"] * 2)
            learn = attach(model, new_features(*stores, by_index=True), **INDEXED)
            if compiles != "before":
                optimizer = torch.optim.Adam([it for name, it in model.named_parameters() if "learn." not in name])
                model.compile("adam" if compiles == "by name" else optimizer, ["binary_crossentropy"] * 2)
            else:
                for group in model.optim.param_groups:
                    group["lr"] = 1e-3
            held = [id(weight) for group in model.optim.param_groups for weight in group["params"]]
            assert sorted(held) == sorted(map(id, model.parameters()))
            torch.manual_seed(0)
            model.fit(columns_of(LOG), labels_of(model, LOG), verbose=0)
            assert learn.entries[0].weight.abs().sum() > 0
            predictions.append(model.predict(columns_of(TEST)))
        for other in predictions[1:]:
            np.testing.assert_array_equal(other, predictions[0])

    def test_validation_changes_nothing_in_what_is_trained(self, stores: Stores) -> None:
        predictions = []
        for options in ({}, {"validation_data": (columns_of(TEST), TEST.label)}):
            model = build("DeepFM")
            attach(model, new_features(*stores, by_index=True), **INDEXED)
            model.fit(
                columns_of(LOG), LOG.label, epochs=3, verbose=0, shuffle=False, **options
            )  # shuffling draws again
            predictions.append(model.predict(columns_of(TEST)))
        np.testing.assert_array_equal(*predictions)

    def test_without_a_cvr_loss_the_loss_is_the_hosts(self, stores: Stores) -> None:
        model = build("DeepFM")
        attach(model, new_features(*stores, by_index=True), **INDEXED, cvr_weight=0)
        assert model.loss_func is F.binary_cross_entropy

    def test_regularisation_is_of_the_hosts_weights_as_before(self, stores: Stores) -> None:
        model, alone = (build("DCN", l2_reg_dnn=0.1) for _ in range(2))
        kept = [list(weights) for weights, _, _ in model.regularization_weight]
        attach(model, new_features(*stores, by_index=True), **INDEXED)
        model.fit(columns_of(LOG), LOG.label, verbose=0)
        assert [weights for weights, _, _ in model.regularization_weight] == kept
        weights = {id(weight) for weight in model.learn.parameters()}
        named = [it[1] if isinstance(it, tuple) else it for group in kept for it in group]
        assert not weights & set(map(id, named))
        alone.load_state_dict({name: it for name, it in model.state_dict().items() if "learn." not in name})
        assert torch.equal(model.get_regularization_loss(), alone.get_regularization_loss())


class TestSaving:
    def test_a_whole_model_of_a_checkpoint_predicts_and_trains_on(self, stores: Stores, tmp_path: Path) -> None:
        model = build("DeepFM")
        attach(model, new_features(*stores, by_index=False), **RAW)
        checkpoint = ModelCheckpoint(str(tmp_path / "whole-{epoch}.pt"))
        torch.manual_seed(0)
        model.fit(columns_of(LOG), LOG.label, epochs=1, verbose=0, callbacks=[checkpoint])
        loaded = torch.load(tmp_path / "whole-1.pt", weights_only=False)
        np.testing.assert_array_equal(loaded.predict(columns_of(TEST)), model.predict(columns_of(TEST)))
        for host in (loaded, model):  # with the state of its optimizer, and one CVR loss
            torch.manual_seed(1)
            host.fit(columns_of(LOG), LOG.label, verbose=0)
        np.testing.assert_array_equal(loaded.predict(columns_of(TEST)), model.predict(columns_of(TEST)))
        loaded.learn.detach()
        assert loaded.loss_func is F.binary_cross_entropy
        assert vars(loaded).keys() == {*vars(build("DeepFM")), "stop_training"}  # which fit sets

    def test_early_stopping_brings_the_best_weights_back(self, stores: Stores) -> None:
        class Keep(Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                states.append(copy.deepcopy(self.model.state_dict()))

        states: list[Any] = []
        model = build("DeepFM")
        model.metrics = {"logloss": model._log_loss}
        attach(model, new_features(*stores, by_index=False), **RAW)
        stopping = EarlyStopping("val_logloss", patience=1, restore_best_weights=True)
        held_out = columns_of(TEST), 1 - TEST.label  # it gets worse with every epoch
        with redirect_stdout(io.StringIO()):
            model.fit(
                columns_of(LOG), LOG.label, epochs=9, verbose=2, validation_data=held_out, callbacks=[Keep(), stopping]
            )
        assert len(states) < 9
        best = states[-1 - stopping.patience]
        assert all(torch.equal(weight, best[name]) for name, weight in model.state_dict().items())

    def test_detached_it_is_compiled_as_before(self, stores: Stores) -> None:
        model = build("SharedBottom")
        own, losses, groups = list(model.parameters()), model.loss_func, len(model.optim.param_groups)
        learn = attach(model, new_features(*stores, by_index=False), **RAW)
        model.fit(columns_of(LOG), labels_of(model, LOG), verbose=0)
        learn.detach()
        assert model.loss_func is losses
        assert len(model.optim.param_groups) == groups
        assert [id(it) for group in model.optim.param_groups for it in group["params"]] == list(map(id, own))
        assert set(model.optim.state) <= set(own)


class TestSecondHead:
    """Two labels, 64-d vectors whose product is the first one, and few rows for each id."""

    def test_it_gains_where_its_label_holds_what_the_vectors_say(self) -> None:
        alone, learned = (heads("ESMM", is_shared=True, learns=learns) for learns in (False, True))
        assert learned.second > alone.second + 0.03
        assert learned.first > alone.first + 0.1

    def test_a_label_without_it_is_learned_by_heart_unless_learns_weights_are_slow(self) -> None:
        alone, learned = (heads("SharedBottom", is_shared=False, learns=learns) for learns in (False, True))
        slowed = heads("SharedBottom", is_shared=False, rate=0.1)
        assert learned.second_trained > alone.second_trained + 0.03
        assert learned.second < alone.second - 0.02
        assert slowed.second > alone.second - 0.01
        assert slowed.first > alone.first + 0.02


class TestWrongInput:
    def attach(self, stores: Stores, name: str = "DeepFM", by_index: bool = False, **options: Any) -> Any:
        model = build(name)
        attach(model, new_features(*stores, by_index=by_index), **(INDEXED if by_index else RAW), **options)
        return model

    def test_several_gpus_are_refused(self, stores: Stores) -> None:
        model = build("DeepFM")
        model.gpus = ["cpu", "cpu:1"]
        with pytest.raises(
            InputError, match=r"DataParallel, which LEARN does not support; build the model with device"
        ):
            attach(model, new_features(*stores, by_index=True), **INDEXED)

    def test_another_model_and_other_features_are_refused(self, stores: Stores) -> None:
        features = new_features(*stores, by_index=True)
        with pytest.raises(InputError, match="is a Linear, expected a BaseModel of DeepCTR-Torch"):
            attach(torch.nn.Linear(2, 1), features, **INDEXED)
        with pytest.raises(InputError, match="is a LearnAdaptor, expected LearnFeatures"):
            attach(build("DeepFM"), features.adaptor, **INDEXED)

    def test_a_cvr_loss_needs_a_binary_task_that_is_there(self, stores: Stores) -> None:
        with pytest.raises(InputError, match="cvr_task is 2, expected a binary task of ESMM"):
            self.attach(stores, "ESMM", cvr_task=2)
        with pytest.raises(
            InputError, match="cvr_task is -1, expected a binary task of DeepFM, whose tasks are regression"
        ):
            model = build("DeepFM", task="regression")
            attach(model, new_features(*stores, by_index=True), **INDEXED)
        assert not hasattr(model, "learn")

    def test_where_deepctr_torch_is_not_installed_the_error_says_how(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "deepctr_torch.models.basemodel", None)
        with pytest.raises(InputError, match="pip install deepctr-torch"):
            attach(torch.nn.Linear(2, 1), None, **INDEXED)  # type: ignore[arg-type]


class Heads(NamedTuple):
    """AUC of both tasks on pairs not seen, and of the second on its own training rows."""

    first: float
    second: float
    second_trained: float


def heads(name: str, *, is_shared: bool, learns: bool = True, rate: float = 1.0) -> Heads:
    """What 8 epochs of 1500 rows teach a model alone or with LEARN, whose weights learn at `rate` times the model's.

    The second label is a coin for each row, weighted by effects of user and item; if is_shared, where the first is 1.
    """
    generator, train, test = np.random.default_rng(0), slice(0, 1500), slice(1500, 4500)
    users, items = (generator.normal(size=(num, 64)).astype(np.float32) for num in (NUM_USERS, NUM_ITEMS))
    user, item = generator.integers(NUM_USERS, size=4500), generator.integers(NUM_ITEMS, size=4500)
    first = (users[user] * items[item]).sum(1) > 0
    effect = generator.normal(size=NUM_USERS)[user] + generator.normal(size=NUM_ITEMS)[item]
    second = generator.random(4500) < 1 / (1 + np.exp(-2 * effect))
    y = np.stack([first, second & first if is_shared else second], axis=1).astype(np.float32)
    model = MODELS[name][0]([SparseFeat("user", NUM_USERS, 8), SparseFeat("item", NUM_ITEMS, 8)], init_std=0.05)
    model.compile("adam", ["binary_crossentropy"] * 2)
    torch.manual_seed(0)
    if learns:
        tables = (VectorTable(torch.from_numpy(rows)) for rows in (users, items))
        attach(model, LearnFeatures(*tables, LearnAdaptor(64, 64)), **INDEXED)
        if rate != 1:
            model.learn.join(model.optim, lr=rate * model.optim.param_groups[0]["lr"])
    model.fit({"user": user[train], "item": item[train]}, y[train], 64, 8, verbose=0)
    predicted = model.predict({"user": user, "item": item}, 4500)
    return Heads(
        *(roc_auc_score(y[rows, head], predicted[rows, head]) for rows, head in ((test, 0), (test, 1), (train, 1)))
    )
