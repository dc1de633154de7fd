"""LEARN in TorchRec's DLRMs: ids from a KeyedJaggedTensor, the loss of DLRMTrain, and one rank equals two."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchrec", reason="torchrec is not installed")

from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, attach, cvr_loss
from learn_rank.errors import InputError
from learn_rank.integrations import torchrec_dlrm
from learn_rank.integrations.torchrec_dlrm import JaggedIds
from tests.integrations.cases_torchrec import batch_of, dlrm, tables
from tests.integrations.dlrm_on_ranks import TEST, learn_features
from tests.integrations.hosts import DIM, ITEM_IDS, USER_IDS, make_log
from tests.ranks import run_ranks

SCRIPT = Path(__file__).parent / "dlrm_on_ranks.py"
LOG = make_log(3, 50)
PROJECTION = partial(
    DLRM_Projection, interaction_branch1_layer_sizes=[24, 16], interaction_branch2_layer_sizes=[24, 16]
)


class ById:
    """A store of int64 ids or strings, all of them known: the vector of an id says which id was asked for."""

    dim = DIM

    def __init__(self, ids: list) -> None:
        self.rows = {one: row for row, one in enumerate(ids)}

    def lookup(self, ids, before=None) -> tuple[torch.Tensor, torch.Tensor]:
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        rows = torch.tensor([self.rows.get(number, -1) for number in ids])
        return rows.float().unsqueeze(1).expand(-1, DIM), rows >= 0


def by_id() -> LearnFeatures:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32)
    return LearnFeatures(ById(USER_IDS.tolist()), ById(ITEM_IDS), adaptor)


@pytest.mark.parametrize("make", [DLRM, partial(DLRM_DCN, dcn_num_layers=1, dcn_low_rank_dim=4), PROJECTION])
def test_learn_enters_beside_the_dense_features_and_above_the_interactions(make) -> None:
    model = dlrm(make)
    learn = torchrec_dlrm.attach(model, learn_features(), user="user", item="item")
    assert learn.layers == ("dense_arch.model._mlp.0._linear", "over_arch.model.0._mlp.0._linear")
    assert [tuple(entry.weight.shape) for entry in learn.entries] == [(16, 3 * DIM), (32, 3 * DIM)]


def test_ids_above_2_to_24_and_strings_come_as_keywords() -> None:
    model = dlrm(DLRM)
    learn = torchrec_dlrm.attach(model, by_id())
    batch = batch_of(LOG)
    model(batch.dense_features, batch.sparse_features, user_ids=torch.from_numpy(LOG.user_ids), item_ids=LOG.item_ids)
    expected = by_id().adaptor(
        torch.from_numpy(LOG.user_index).float().unsqueeze(1).expand(-1, DIM),
        torch.from_numpy(LOG.item_index).float().unsqueeze(1).expand(-1, DIM),
    )
    assert torch.equal(learn.output.features(), expected.features())
    with pytest.raises(InputError, match="without item_ids"):
        model(batch.dense_features, batch.sparse_features, user_ids=LOG.user_ids)


def test_ids_may_lie_under_keys_that_no_table_reads() -> None:
    model = dlrm(DLRM)
    learn = torchrec_dlrm.attach(model, by_id(), user="user_id", item="user_id")
    batch = batch_of(LOG)
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "item", "user_id"],
        values=torch.cat([batch.sparse_features.values(), torch.from_numpy(LOG.user_ids)]),
        lengths=torch.ones(3 * len(LOG), dtype=torch.int32),
    )
    learn.is_on = False
    alone = model(batch.dense_features, batch.sparse_features)
    learn.is_on = True
    assert torch.allclose(model(batch.dense_features, sparse), alone)
    assert learn.output is not None


def test_a_row_without_an_id_has_no_vector() -> None:
    sparse = KeyedJaggedTensor(
        ["user", "item"], torch.tensor([7, 9, 1, 2, 3]), lengths=torch.tensor([1, 0, 1, 1, 1, 1])
    )
    user, item = JaggedIds("user", "item")(torch.zeros(3, 2), sparse_features=sparse)
    assert (user.tolist(), item.tolist()) == ([7, -1, 9], [1, 2, 3])
    assert len(JaggedIds("user", "item", before="item")(sparse)) == 3


def test_a_row_with_two_ids_is_refused_and_a_key_that_is_not_there() -> None:
    sparse = KeyedJaggedTensor(["user", "item"], torch.tensor([7, 8, 1, 2]), lengths=torch.tensor([0, 2, 1, 1]))
    with pytest.raises(InputError, match="key 'user' holds 2 values in row 1"):
        JaggedIds("user", "item")(sparse)
    with pytest.raises(InputError, match="no key 'uid' in the KeyedJaggedTensor; its keys are user, item"):
        JaggedIds("uid", "item")(sparse)
    with pytest.raises(InputError, match="without a KeyedJaggedTensor"):
        JaggedIds("user", "item")(torch.zeros(2, 3))


def test_a_model_of_your_own_takes_its_ids_the_same_way() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = EmbeddingBagCollection(tables=tables())
            self.top = torch.nn.Linear(16, 1)

        def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
            return self.top(self.tables(sparse).values())

    model, sparse = Own(), batch_of(LOG).sparse_features
    learn = attach(model, learn_features(), inputs=JaggedIds("user", "item"))
    model(sparse)
    assert learn.output is not None


@pytest.mark.parametrize("weighted", [False, True])
def test_dlrm_train_gives_its_loss_and_the_cvr_loss_in_one(weighted: bool) -> None:
    torch.manual_seed(0)
    train = DLRMTrain(dlrm(DLRM))
    clicks, conversions = torch.from_numpy(LOG.click), torch.from_numpy(LOG.label)
    options = {"cvr_label": (lambda batch: (conversions, clicks))} if weighted else {}
    learn = torchrec_dlrm.attach(train, learn_features(), user="user", item="item", cvr_weight=0.3, **options)
    batch = batch_of(LOG)
    loss, (detached, logits, labels) = train(batch)
    ranking = F.binary_cross_entropy_with_logits(logits, batch.labels)
    cvr = cvr_loss(learn.output.cvr_logit, conversions, clicks if weighted else None)
    assert loss.item() == pytest.approx(ranking.item() + 0.3 * cvr.item(), rel=1e-6)
    assert torch.equal(detached, loss.detach())
    assert not detached.requires_grad
    assert torch.equal(labels, batch.labels)
    learn.is_on = False
    assert train(batch)[0].item() == pytest.approx(ranking.item(), rel=1e-6)
    learn.detach()
    assert "forward" not in vars(train)
    assert "forward" not in vars(train.model)


def test_a_graph_that_was_traced_from_the_model_does_not_drop_learn_silently() -> None:
    model = dlrm(DLRM)
    torchrec_dlrm.attach(model, learn_features(), user="user", item="item")
    batch = batch_of(LOG)
    with pytest.raises(InputError, match="in a graph traced from the host"):
        torch.fx.symbolic_trace(model)(batch.dense_features, batch.sparse_features)


def test_an_optimizer_that_cannot_grow_says_so() -> None:
    train = DLRMTrain(dlrm(DLRM))
    early = KeyedOptimizerWrapper(dict(train.named_parameters()), lambda weights: torch.optim.SGD(weights, lr=0.1))
    learn = torchrec_dlrm.attach(train, learn_features(), user="user", item="item")
    with pytest.raises(InputError, match="KeyedOptimizerWrapper takes no further weights; make it after attach"):
        learn.join(early)
    late = KeyedOptimizerWrapper(dict(train.named_parameters()), lambda weights: torch.optim.SGD(weights, lr=0.1))
    learn.join(late)


def test_what_is_no_dlrm_and_what_gives_no_ids_is_refused() -> None:
    with pytest.raises(InputError, match="the model is a Linear, expected a DLRM"):
        torchrec_dlrm.attach(torch.nn.Linear(2, 2), learn_features(), user="user", item="item")
    with pytest.raises(InputError, match="a DLRMTrain passes on a KeyedJaggedTensor"):
        torchrec_dlrm.attach(DLRMTrain(dlrm(DLRM)), learn_features())
    with pytest.raises(InputError, match="name the keys of both"):
        torchrec_dlrm.attach(dlrm(DLRM), learn_features(), user="user")


def test_without_torchrec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dlrm(DLRM)
    monkeypatch.setitem(sys.modules, "torchrec.models.dlrm", None)
    with pytest.raises(InputError, match=r"no module 'torchrec.models.dlrm': pip install"):
        torchrec_dlrm.attach(model, learn_features(), user="user", item="item")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What dlrm_on_ranks.py leaves behind on two ranks, and then on one."""
    root = tmp_path_factory.mktemp("ranks")
    for num_ranks in (2, 1):
        run_ranks(SCRIPT, root, num_ranks=num_ranks)
    return root


def predictions(root: Path, name: str) -> np.ndarray:
    """Logits of TEST, its rows taken from the ranks in turn."""
    parts = [np.load(root / f"{name}.{rank}.npy") for rank in range(int(name[5]))]
    return np.stack(parts, axis=1).reshape(-1)


def weights(root: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(root / f"{name}.{rank}.pt")


@pytest.mark.parametrize("name", ["ranks2", "ranks2-pipelined", "ranks1-pipelined"])
def test_two_ranks_predict_what_one_does_on_the_joined_batch_and_so_do_pipelines(runs: Path, name: str) -> None:
    one = predictions(runs, "ranks1")
    assert len(one) == len(TEST)
    assert one.std() > 0.1  # it has learned something
    np.testing.assert_allclose(predictions(runs, name), one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_train_the_weights_of_one(runs: Path, rank: int) -> None:
    one, two = weights(runs, "ranks1", 0), weights(runs, "ranks2", rank)
    compared = [name for name in two if "embedding_bags" not in name]
    assert len([name for name in compared if ".learn." in name]) == 18
    for name in compared:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    shards = {name.rsplit(".", 1)[0]: rows for name, rows in one.items() if name not in compared}
    for name in two.keys() - set(compared):
        table, first_row = name.rsplit(".", 1)
        expected = shards[table][int(first_row) : int(first_row) + len(two[name])]
        torch.testing.assert_close(two[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ranks1-loaded-ranks1", "ranks1-loaded-ranks2", "ranks2-loaded-ranks2"])
def test_checkpoints_bring_learn_back_on_any_number_of_ranks(runs: Path, name: str) -> None:
    saved = predictions(runs, name.rsplit("-", 1)[1])
    np.testing.assert_allclose(predictions(runs, name), saved, rtol=0, atol=1e-5)


def test_checkpoints_hold_no_vector(runs: Path) -> None:
    state = weights(runs, "ranks1", 0)
    learned = sum(weight.numel() for name, weight in state.items() if ".learn." in name)
    assert learned == sum(weight.numel() for weight in learn_features().state_dict().values()) + (16 + 32) * 3 * DIM


def test_ranks_that_would_drift_apart_are_refused(runs: Path) -> None:
    for rank in range(2):
        wrapped, sharded, apart = (runs / f"ranks2.{rank}.txt").read_text().splitlines()
        assert "attach first, then DistributedModelParallel(model)" in wrapped
        assert "attach first, then DistributedModelParallel(model)" in sharded
        assert "2 ranks would normalise by their own rows each; make the adaptor with synchronise=True" in apart
