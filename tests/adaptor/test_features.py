"""LearnFeatures: ids in, features out, inside any module; and VectorTable."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store
from tests.ranks import run_ranks

USER_IDS = (1 << 40) + np.arange(20)
ITEM_IDS = [f"item-{number}" for number in range(10)]
USERS, ITEMS = np.array([3, 19, 0, 3]), np.array([9, 0, 4, 4])


@pytest.fixture
def stores(tmp_path: Path) -> tuple[FrozenStore, FrozenStore]:
    """Users by int64, width 6; items by string, width 4."""
    generator = np.random.default_rng(0)
    for name, ids, dim in (("user", USER_IDS, 6), ("item", ITEM_IDS, 4)):
        with publish(tmp_path / name, Manifest("store", {}, {})) as (work, facts):
            facts.update(write_store(work, pa.array(ids), generator.normal(size=(len(ids), dim))))
    return FrozenStore(tmp_path / "user"), FrozenStore(tmp_path / "item")


def make_features(user_store: Any, item_store: Any) -> LearnFeatures:
    torch.manual_seed(0)
    return LearnFeatures(user_store, item_store, LearnAdaptor(6, 4, fusion_dim=5, hidden_dim=8))


def as_asked(users: np.ndarray = USERS, items: np.ndarray = ITEMS) -> tuple[np.ndarray, list[str]]:
    return USER_IDS[users], [ITEM_IDS[item] for item in items]


class Host(nn.Module):
    """A ranker that carries ids."""

    def __init__(self, features: LearnFeatures) -> None:
        super().__init__()
        self.learn = features
        self.out = nn.Sequential(nn.Linear(features.feature_dim + 2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, dense: torch.Tensor, user_ids: Any, item_ids: Any) -> torch.Tensor:
        learned = self.learn(user_ids, item_ids).features()
        logit: torch.Tensor = self.out(torch.cat([dense.relu(), learned], 1))
        return logit.squeeze(1)


# Known answers


def test_ids_become_what_the_adaptor_makes_of_their_vectors(stores: tuple[FrozenStore, FrozenStore]) -> None:
    features = make_features(*stores)
    user_ids, item_ids = as_asked()
    user_ids[1], item_ids[2] = 5, "never stored"
    (user, user_mask), (item, item_mask) = stores[0].lookup(user_ids), stores[1].lookup(item_ids)
    assert user_mask.tolist() == [True, False, True, True]
    assert item_mask.tolist() == [True, True, False, True]
    expected = copy.deepcopy(features.adaptor)(user, item, user_mask, item_mask)
    output = features(user_ids, item_ids)
    assert output.features().shape == (4, features.feature_dim) == (4, 15)
    for actual, known in zip(output, expected, strict=True):
        assert torch.equal(actual, known)
    assert torch.equal(output.user[1], features.adaptor.user_missing)


def test_a_vector_table_is_looked_up_by_row_number() -> None:
    table = VectorTable(torch.arange(6.0).reshape(3, 2).half(), mask=torch.tensor([1, 1, 0]))
    rows = [2, 0, 1, -1, 3]
    for asked in (rows, np.array(rows), torch.tensor(rows, dtype=torch.int32), torch.tensor(rows).unsqueeze(1)):
        vectors, mask = table.lookup(asked)
        assert mask.tolist() == [False, True, True, False, False]
        assert vectors[mask].tolist() == [[0, 1], [2, 3]]
    assert not VectorTable(torch.zeros(0, 2)).lookup([0, 1])[1].any()
    assert table.lookup([])[0].shape == (0, 2)


def test_each_row_sees_the_newest_snapshot_before_its_time(tmp_path: Path) -> None:
    with publish(tmp_path / "user", Manifest("store", {}, {})) as (work, facts):
        ids, as_of = pa.array([7, 7, 8]), np.array([10, 20, 10])
        facts.update(write_store(work, ids, np.array([[1.0], [2.0], [3.0]]), as_of=as_of))
    adaptor = LearnAdaptor(1, 1, normalization="none")
    nn.init.constant_(adaptor.user_missing, -1.0)
    for timed in (FrozenStore(tmp_path / "user"), FrozenStore(tmp_path / "user").indexed_by(list(range(9)))):
        features = LearnFeatures(timed, VectorTable(torch.ones(1, 1)), adaptor)
        output = features([7, 7, 7, 8], [0, 0, 0, 0], before=torch.tensor([10, 11, 21, 99]))
        assert output.user.squeeze(1).tolist() == [-1, 1, 2, 3]
        with pytest.raises(InputError, match="holds snapshots by time; pass `before`"):
            features([7], [0])


# Laws


@pytest.mark.parametrize(
    ("as_users", "as_items"),
    [(np.asarray, list), (torch.from_numpy, tuple), (pa.array, pa.array), (list, lambda ids: np.array(ids, object))],
)
def test_ids_may_be_held_in_any_way(stores: tuple[FrozenStore, FrozenStore], as_users: Any, as_items: Any) -> None:
    features = make_features(*stores).eval()
    user_ids, item_ids = as_asked()
    expected = features(pa.array(user_ids), pa.array(item_ids)).features()
    assert torch.equal(features(as_users(user_ids), as_items(item_ids)).features(), expected)


def test_positions_in_a_vocabulary_and_rows_of_a_table_give_what_ids_give(
    stores: tuple[FrozenStore, FrozenStore],
) -> None:
    expected = make_features(*stores)(*as_asked()).features()
    indexed = make_features(stores[0].indexed_by(USER_IDS), stores[1].indexed_by(ITEM_IDS))
    tables = make_features(
        *(VectorTable(store.lookup(ids).vectors) for store, ids in zip(stores, (USER_IDS, ITEM_IDS), strict=True))
    )
    for features in (indexed, tables):
        assert torch.equal(features(torch.from_numpy(USERS), torch.from_numpy(ITEMS)).features(), expected)


def test_the_adaptor_is_all_there_is_to_train_and_save(stores: tuple[FrozenStore, FrozenStore]) -> None:
    features = make_features(stores[0], VectorTable(nn.Parameter(torch.randn(10, 4))))
    assert {name.split(".")[0] for name in features.state_dict()} == {"adaptor"}
    assert {id(weight) for weight in features.parameters()} == {id(weight) for weight in features.adaptor.parameters()}


def test_training_a_host_moves_the_adaptor_and_no_vector(stores: tuple[FrozenStore, FrozenStore]) -> None:
    class Counting(VectorTable):
        def lookup(self, ids: Any, before: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
            assert not torch.is_grad_enabled()
            return super().lookup(ids, before)

    held = nn.Parameter(torch.randn(10, 4))
    before = held.detach().clone()
    host = Host(make_features(stores[0], Counting(held)))
    optimizer = torch.optim.Adam(host.parameters(), 0.05)
    start = copy.deepcopy(host.learn.adaptor.state_dict())
    label = torch.tensor([1.0, 0, 1, 0])
    for _ in range(30):
        optimizer.zero_grad()
        logit = host(torch.zeros(4, 2), USER_IDS[USERS], torch.from_numpy(ITEMS))
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert held.grad is None
    assert torch.equal(held, before)
    assert not torch.equal(host.learn.adaptor.get_parameter("fusion.0.weight"), start["fusion.0.weight"])


@pytest.mark.parametrize("is_training", [True, False])
def test_a_compiled_host_equals_the_plain_one(stores: tuple[FrozenStore, FrozenStore], is_training: bool) -> None:
    torch._dynamo.reset()
    plain = Host(make_features(*stores)).train(is_training)
    mine = copy.deepcopy(plain)
    compiled = torch.compile(mine, backend="aot_eager")
    generator = np.random.default_rng(0)
    for num_rows in (4, 7, 9, 5):
        user_ids, item_ids = as_asked(generator.integers(20, size=num_rows), generator.integers(10, size=num_rows))
        dense = torch.randn(num_rows, 2)
        plain.zero_grad()
        mine.zero_grad()
        actual = compiled(dense, torch.from_numpy(user_ids), item_ids)
        expected = plain(dense, torch.from_numpy(user_ids), item_ids)
        torch.testing.assert_close(actual, expected)
        actual.square().sum().backward()
        expected.square().sum().backward()
        for weight, other in zip(mine.parameters(), plain.parameters(), strict=True):
            unused = torch.zeros_like(other)  # by this loss: None in one, zeros in the other
            torch.testing.assert_close(*(unused if given is None else given for given in (weight.grad, other.grad)))
    torch.testing.assert_close(mine.state_dict(), plain.state_dict())


def test_compiled_code_does_not_grow_with_new_ids_and_batch_sizes(stores: tuple[FrozenStore, FrozenStore]) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled, counts = torch.compile(Host(make_features(*stores)).eval(), backend=backend), []
    for num_rows in range(3, 15):
        user_ids, item_ids = as_asked(np.arange(num_rows), np.arange(num_rows) % 10)
        compiled(torch.zeros(num_rows, 2), torch.from_numpy(user_ids), np.array(item_ids))
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts[-1] == counts[2]


def test_copies_of_a_host_look_up_the_same_vectors(stores: tuple[FrozenStore, FrozenStore]) -> None:
    host = Host(make_features(stores[0], stores[1].indexed_by(ITEM_IDS))).eval()
    saved = io.BytesIO()
    torch.save(host, saved)
    saved.seek(0)
    arguments = torch.randn(4, 2), USER_IDS[USERS], torch.from_numpy(ITEMS)
    for again in (
        copy.deepcopy(host),
        pickle.loads(pickle.dumps(host)),
        torch.load(saved, weights_only=False),
        torch.optim.swa_utils.AveragedModel(host),
    ):
        assert torch.equal(again(*arguments), host(*arguments))


def test_weights_saved_with_one_store_load_beside_another(stores: tuple[FrozenStore, FrozenStore]) -> None:
    trained = make_features(*stores)
    trained(*as_asked())
    shuffled = FrozenStore(stores[0].directory, shuffle_seed=1)
    control = make_features(shuffled, stores[1])
    control.load_state_dict(trained.state_dict())
    user_ids, item_ids = as_asked()
    actual, same = control.eval()(user_ids, item_ids), trained.eval()(user_ids, item_ids)
    assert torch.equal(actual.item, same.item)
    assert not torch.equal(actual.user, same.user)


def test_vectors_come_to_the_adaptors_device_and_type() -> None:
    table = VectorTable(torch.randn(3, 4, dtype=torch.float64))
    half = LearnFeatures(table, table, LearnAdaptor(4, 4).to(torch.bfloat16))
    assert half([0, 1, 2], [2, 1, 0]).features().dtype == torch.bfloat16
    elsewhere = LearnFeatures(table, table, LearnAdaptor(4, 4).to("meta"))
    assert elsewhere([0, 1, 2], [2, 1, 0]).features().device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_ids_and_features_are_there_and_stores_are_not(stores: tuple[FrozenStore, FrozenStore]) -> None:
    host = Host(make_features(stores[0], stores[1].indexed_by(ITEM_IDS))).eval()
    dense, user_ids, items = torch.randn(4, 2), torch.from_numpy(USER_IDS[USERS]), torch.from_numpy(ITEMS)
    expected = host(dense, user_ids, items)
    actual = host.cuda()(dense.cuda(), user_ids.cuda(), items.cuda())
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-3)
    table = VectorTable(torch.randn(3, 4, device="cuda"))
    assert table.lookup(torch.tensor([0, 5]))[1].tolist() == [True, False]


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    run_ranks(Path(__file__).with_name("on_two_ranks.py"), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["equal-0", "equal-1"]


# Bad input


def test_stores_of_another_width_or_kind_are_refused() -> None:
    table = VectorTable(torch.randn(3, 4))
    with pytest.raises(InputError, match="item vectors have 4 dimensions, the adaptor 64; set item_dim"):
        LearnFeatures(table, table, LearnAdaptor(4, 64))
    with pytest.raises(InputError, match="user_store is a Embedding, expected a FrozenStore"):
        LearnFeatures(nn.Embedding(3, 4), table, LearnAdaptor(4, 4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="item_store is a str, expected a FrozenStore"):
        LearnFeatures(table, "runs/export/item", LearnAdaptor(4, 4))  # type: ignore[arg-type]


def test_row_numbers_and_times_that_cannot_be_meant_are_refused() -> None:
    table = VectorTable(torch.randn(3, 4))
    features = LearnFeatures(table, table, LearnAdaptor(4, 4))
    with pytest.raises(InputError, match=r"row numbers, expected integers; torch\.float32 came"):
        features(torch.tensor([0.0]), [0])
    with pytest.raises(InputError, match="row numbers; a list came"):
        features([0], ["a"])
    with pytest.raises(InputError, match="no store holds snapshots by time; leave it out"):
        features([0], [0], before=[5])
    with pytest.raises(InputError, match="2 user vectors for 1 item vectors"):
        features([0, 1], [0])
    with pytest.raises(InputError, match=r"vectors are torch.int64 of shape \(3,\), expected floats \[N, D\]"):
        VectorTable(torch.arange(3))
    with pytest.raises(InputError, match=r"mask has shape \(2,\), expected \[3\]"):
        VectorTable(torch.randn(3, 4), mask=torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_table_with_a_row_that_is_not_finite_is_refused(dtype: torch.dtype) -> None:
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    VectorTable(vectors)
    VectorTable(vectors[:0])
    for bad in ("nan", "inf", "-inf"):
        vectors[3, 2] = vectors[7, 0] = float(bad)
        with pytest.raises(
            InputError, match=rf"vectors: row 3 holds {bad}, expected finite numbers \(2 of 50 rows are not"
        ):
            VectorTable(vectors)
        VectorTable(vectors, (torch.arange(50) != 3) & (torch.arange(50) != 7))
        with pytest.raises(InputError, match=rf"row 7 holds {bad}"):
            VectorTable(vectors, torch.arange(50) != 3)


def test_a_store_of_ones_own_that_gives_nan_spoils_no_other_row() -> None:
    class Callable(VectorTable):
        def lookup(self, ids: Any, before: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
            vectors, mask = super().lookup(ids)
            return vectors.masked_fill((torch.as_tensor(ids) == 3).unsqueeze(1), float("nan")), mask

    table = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    features = LearnFeatures(Callable(table), VectorTable(table), LearnAdaptor(8, 8))
    for _ in range(2):
        assert features(torch.arange(16), torch.arange(16)).features().isfinite().all()
    features.eval()
    assert features(torch.arange(3), torch.arange(3)).features().isfinite().all()
