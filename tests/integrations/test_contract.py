"""One contract for LEARN in every host: what the host was it stays, what LEARN adds is trained, once, and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from learn_rank.adaptor import LearnFeatures
from learn_rank.adaptor.attached import Attached
from learn_rank.artifact import Manifest
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store
from tests.integrations.hosts import ITEM_IDS, USER_IDS, HostCase, Log, make_log, new_features, vectors

TRAIN, TEST = make_log(1, 2000), make_log(2, 1000)
SUITES = ("torch", "fuxictr", "deepctr_torch", "torchrec", "recbole")


def _cases() -> list[Any]:
    cases: list[Any] = []
    for name in SUITES:
        try:
            cases += [
                pytest.param(case, id=case.name) for case in import_module(f"tests.integrations.cases_{name}").cases()
            ]
        except ModuleNotFoundError as error:
            reason = f"{error.name} is not installed"
            cases.append(pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason)))
    return cases


pytestmark = pytest.mark.parametrize("case", _cases(), scope="module")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """User vectors by int64 ids above 2^24, item vectors by strings; user 3 and item 5 have none."""
    folder = tmp_path_factory.mktemp("stores")
    users, items = vectors()
    keep_users, keep_items = np.arange(len(users)) != 3, np.arange(len(items)) != 5
    for name, ids, rows, keep in (
        ("user", pa.array(USER_IDS), users, keep_users),
        ("item", pa.array(ITEM_IDS), items, keep_items),
    ):
        with publish(folder / name, Manifest("store", {}, {})) as (work, facts):
            facts.update(write_store(work, ids.filter(pa.array(keep)), rows[keep]))
    return folder / "user", folder / "item"


@pytest.fixture(scope="module")
def features(stores: tuple[Path, Path]) -> Callable[[HostCase], LearnFeatures]:
    def make(case: HostCase) -> LearnFeatures:
        users, items = stores
        return new_features(FrozenStore(users), FrozenStore(items), by_index=case.takes_indices)

    return make


Features = Callable[[HostCase], LearnFeatures]


class Alone(NamedTuple):
    """Probabilities of TEST by a host without LEARN: as it is built, after one epoch, and after all of the case's."""

    untrained: Any
    once: Any
    whole: Any


class Learned(NamedTuple):
    """A host trained with LEARN for all of the case's epochs, its probabilities of TEST, and what was there before."""

    host: Any
    attached: Attached
    predictions: Any
    weights_before: dict[str, torch.Tensor]
    vectors_before: list[bytes]


@pytest.fixture(scope="module")
def alone(case: HostCase) -> Alone:
    host, once = case.build(), case.build()
    untrained = case.predict(host, TEST)
    for one, epochs in ((host, case.epochs), (once, 1)):
        torch.manual_seed(0)
        case.fit(one, TRAIN, epochs)
    return Alone(untrained, case.predict(once, TEST), case.predict(host, TEST))


@pytest.fixture(scope="module")
def learned(case: HostCase, features: Features) -> Learned:
    host, learn = case.build(), features(case)
    vectors = [store_bytes(store) for store in (learn.user_store, learn.item_store)]
    attached = case.attach(host, learn)
    weights = {name: weight.detach().clone() for name, weight in attached.named_parameters()}
    torch.manual_seed(0)
    case.fit(host, TRAIN, case.epochs)
    return Learned(host, attached, case.predict(host, TEST), weights, vectors)


def test_attached_and_untrained_a_host_predicts_what_it_did(case: HostCase, features: Features, alone: Alone) -> None:
    host = case.build()
    attached = case.attach(host, features(case))
    np.testing.assert_allclose(case.predict(host, TEST), alone.untrained, rtol=0, atol=1e-7)
    assert attached.output is not None  # LEARN was there, and did nothing yet


def test_attached_to_a_trained_host_it_starts_from_what_the_host_had_learned(
    case: HostCase, features: Features
) -> None:
    host = case.build()
    case.fit(host, TRAIN, 1)
    before = case.predict(host, TEST)
    case.attach(host, features(case))
    np.testing.assert_allclose(case.predict(host, TEST), before, rtol=0, atol=1e-7)
    case.fit(host, TRAIN, 1)
    assert np.abs(case.predict(host, TEST) - before).max() > 1e-3


def test_switched_off_a_host_trains_and_predicts_as_it_would_alone(
    case: HostCase, features: Features, alone: Alone
) -> None:
    host = case.build()
    case.attach(host, features(case)).is_on = False
    torch.manual_seed(0)
    case.fit(host, TRAIN, 1)
    np.testing.assert_array_equal(case.predict(host, TEST), alone.once)


def test_the_hosts_optimizer_trains_every_new_weight_once_and_no_vector(case: HostCase, learned: Learned) -> None:
    host, attached, before = learned.host, learned.attached, learned.weights_before
    held = [
        id(weight)
        for optimizer in case.optimizers(host)
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    for name, weight in attached.named_parameters():
        assert held.count(id(weight)) == 1, name
        assert not torch.equal(weight, before[name]), name
    learn = attached.features
    assert [store_bytes(store) for store in (learn.user_store, learn.item_store)] == learned.vectors_before
    widest = max(weight.numel() for weight in before.values())
    assert sum(weight.numel() for weight in attached.state_dict().values()) < 30 * widest  # no table among them


def test_the_cvr_loss_alone_reaches_the_fusion_module_and_not_the_vectors(case: HostCase, features: Features) -> None:
    host = case.build()
    attached = case.attach(host, features(case))
    case.module(host).train()
    case.forward(host, TRAIN[:64])
    attached.cvr_loss(torch.from_numpy(TRAIN.label[:64])).backward()
    adaptor = attached.features.adaptor
    assert isinstance(adaptor, torch.nn.Module)
    for name, weight in adaptor.named_parameters():
        if name.startswith(("fusion", "cvr")):
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name


def test_weights_go_through_a_state_dict_without_any_vector(
    case: HostCase, features: Features, learned: Learned
) -> None:
    other = case.build()
    own = set(case.module(other).state_dict())
    state = copy.deepcopy(case.module(learned.host).state_dict())
    assert {name for name in state if name not in own} == {name for name in state if name.startswith("learn.")}
    assert own <= set(state)
    case.attach(other, features(case))
    case.module(other).load_state_dict(state)
    np.testing.assert_array_equal(case.predict(other, TEST), learned.predictions)


def test_saved_and_loaded_the_hosts_own_way_it_predicts_the_same(
    case: HostCase, features: Features, learned: Learned, tmp_path: Path
) -> None:
    case.save(learned.host, tmp_path / "saved")
    fresh = case.build()
    case.attach(fresh, features(case))
    loaded = case.load(fresh, tmp_path / "saved")
    np.testing.assert_array_equal(case.predict(loaded, TEST), learned.predictions)
    assert saved_bytes(tmp_path / "saved") < 2_000_000


def test_detached_the_host_is_what_it_was(case: HostCase, features: Features, alone: Alone) -> None:
    host, other = case.build(), case.build()
    case.attach(host, features(case)).detach()
    module = case.module(host)
    assert set(module.state_dict()) == set(case.module(other).state_dict())
    assert vars(module).keys() == vars(case.module(other)).keys()
    assert not any(part._forward_hooks for part in module.modules())
    torch.manual_seed(0)
    case.fit(host, TRAIN, 1)
    np.testing.assert_array_equal(case.predict(host, TEST), alone.once)
    case.attach(host, features(case))  # and in again


def test_with_learn_a_host_ranks_pairs_better_that_it_has_not_seen(alone: Alone, learned: Learned) -> None:
    areas = [roc_auc_score(TEST.label, predictions) for predictions in (alone.whole, learned.predictions)]
    assert areas[1] > areas[0] + 0.03, areas


def test_predictions_of_both_are_evaluated(case: HostCase, alone: Alone, learned: Learned) -> None:
    table = pa.table(
        {
            "user_id": TEST.user_ids,
            "item_id": TEST.item_ids,
            "label": TEST.label.astype(np.int8),
            "alone": alone.untrained,
            "learn": learned.predictions,
        }
    )
    report = evaluate(table, options=EvaluateOptions(label="label", baseline="alone", treatment="learn"))
    assert report.overall.uauc.treatment == pytest.approx(by_user(TEST, learned.predictions), abs=1e-9)


def by_user(log: Log, scores: Any) -> float:
    areas = []
    for user in np.unique(log.user_index):
        rows = log.user_index == user
        if 0 < log.label[rows].mean() < 1:
            areas.append(roc_auc_score(log.label[rows], scores[rows]))
    return float(np.mean(areas))


def store_bytes(store: Any) -> bytes:
    """What a store gives for all of its ids."""
    store = getattr(store, "store", store)
    assert isinstance(store, FrozenStore)
    return bytes(store.all_vectors().numpy().tobytes())


def saved_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    files += list(path.parent.glob(f"{path.name}.*"))
    assert files
    return sum(file.stat().st_size for file in files)
