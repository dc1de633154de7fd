from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from learn_rank.alignment.item_inputs import ItemInput, ItemInputs
from learn_rank.alignment.towers import MeanContent, Tower
from learn_rank.alignment.training_data import TrainingData
from learn_rank.alignment.transformer import CausalTransformer
from learn_rank.distributed import Process
from learn_rank.store.reader import FrozenStore

INPUTS = ["content", "id", "content_and_id"]
KINDS = [{"inputs": inputs} for inputs in INPUTS] + [{"item_tower": "c"}, {"objective": "none"}]
Made = Callable[..., tuple[Any, ItemInputs]]


def inputs_of(item_inputs: ItemInputs, rows: torch.Tensor) -> ItemInput:
    return item_inputs.take(rows, torch.device("cpu"))


# Known answers


def test_without_alignment_a_user_is_the_mean_content_and_an_item_its_content(made: Made, content: FrozenStore) -> None:
    tower, item_inputs = made({"objective": "none"})
    assert isinstance(tower, MeanContent)
    rows = torch.tensor([[0, 25, 3, -1], [7, -1, -1, -1]])
    users = tower(inputs_of(item_inputs, rows))
    vectors = content.all_vectors()
    assert torch.allclose(users[0, 2], F.normalize(vectors[[0, 25, 3]].mean(0), dim=0), atol=1e-6)
    assert torch.allclose(users[1, 0], F.normalize(vectors[7], dim=0), atol=1e-6)
    items = tower.embed_items(inputs_of(item_inputs, torch.arange(40)))
    assert torch.allclose(items, F.normalize(vectors, dim=1), atol=1e-6)
    assert (tower.output_dim, list(tower.parameters())) == (6, [])


def test_item_tower_c_compares_users_with_the_content_itself(made: Made, content: FrozenStore) -> None:
    tower, item_inputs = made({"item_tower": "c"})
    items = tower.embed_items(inputs_of(item_inputs, torch.arange(40)))
    centred = content.all_vectors() - content.all_vectors()[:30].mean(0)
    assert torch.allclose(items, F.normalize(centred, dim=1), atol=1e-5)
    assert not items.requires_grad
    assert tower.output_dim == 6
    assert tower(inputs_of(item_inputs, torch.tensor([[1, 2, 3]]))).shape == (1, 3, 6)


def test_content_is_centred_and_divided_by_one_scale_of_the_trained_items(
    made: Made, content: FrozenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learn_rank.alignment.input_layers._ROWS", 7)
    tower, _ = made({})
    seen = content.all_vectors()[:30].double()
    assert torch.allclose(tower.content.mean.double(), seen.mean(0), atol=1e-6)
    scale = (seen - seen.mean(0)).square().mean().sqrt()
    assert torch.allclose(tower.content.scale.double(), scale, atol=1e-6)


def test_whitened_content_of_the_trained_items_has_equal_variance_in_every_direction(
    made: Made, content: FrozenStore
) -> None:
    tower, _ = made({"whitens": True})
    seen = (content.all_vectors()[:30] - tower.content.mean) @ tower.content.scale
    covariance = seen.T @ seen / 30
    assert torch.allclose(covariance, torch.eye(6), atol=0.05)


def test_an_untrained_tower_matches_users_with_the_items_they_like(made: Made) -> None:
    """The mean start: of the two groups of items in `content`, a history of one is nearer to its own."""
    tower, item_inputs = made({}, noise=0.0)
    rows = torch.from_numpy(item_inputs.rows_of(pa.array(np.arange(100, 140))))
    users = tower(inputs_of(item_inputs, torch.stack([rows[1:5], rows[21:25]])))[:, -1]
    scores = users @ tower.embed_items(inputs_of(item_inputs, rows)).T
    assert scores[0, :20].min() > scores[0, 20:].max()
    assert scores[1, 20:].min() > scores[1, :20].max()


# Laws


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_embeddings_are_float32_of_unit_length_and_the_stated_width(made: Made, changes: dict[str, Any]) -> None:
    tower, item_inputs = made(changes)
    rows = torch.arange(20).view(2, 10)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            users, items = tower(inputs_of(item_inputs, rows)), tower.embed_items(inputs_of(item_inputs, rows[0]))
        assert (users.shape, items.shape) == ((2, 10, tower.output_dim), (10, tower.output_dim))
        for embedded in (users, items):
            assert embedded.dtype == torch.float32
            assert torch.allclose(embedded.norm(dim=-1), torch.ones(embedded.shape[:-1]), atol=1e-5)
    content_is_output = changes.get("item_tower") == "c" or changes.get("objective") == "none"
    assert tower.output_dim == (6 if content_is_output else 64)


@pytest.mark.parametrize("changes", [{"embedding_dim": 24}, {"embedding_dim": 128}, {"use_positions": True}], ids=str)
def test_the_item_tower_is_the_user_tower_over_one_item(made: Made, changes: dict[str, Any]) -> None:
    for inputs in INPUTS:
        tower, item_inputs = made({"inputs": inputs, **changes})
        rows = torch.arange(30)
        alone = tower.embed_items(inputs_of(item_inputs, rows))
        assert torch.allclose(alone, tower(inputs_of(item_inputs, rows.unsqueeze(1))).squeeze(1), atol=1e-5)
        assert alone.shape == (30, changes.get("embedding_dim", 64))


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_no_position_sees_the_future_or_padding(made: Made, changes: dict[str, Any]) -> None:
    tower, item_inputs = made(changes)
    rows = torch.tensor([[1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]])
    other = torch.tensor([[1, 2, 3, 4, 25, -1], [11, 12, 13, 14, 27, 28]])
    before, after = tower(inputs_of(item_inputs, rows)), tower(inputs_of(item_inputs, other))
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4] - after[:, 4]).abs().amax(1).min() > 1e-3
    assert torch.allclose(tower(inputs_of(item_inputs, rows[:, :4])), before[:, :4], atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"use_positions": True, "inputs": "content_and_id"}], ids=str)
def test_sequences_of_different_length_are_embedded_as_each_alone(made: Made, changes: dict[str, Any]) -> None:
    tower, item_inputs = made(changes)
    tables = np.array([[3, 1, 4, 1], [5, -1, -1, -1]]), np.array([[9, 2], [6, -1], [5, 3]])
    data = TrainingData(None, item_inputs, Process(0, 1, 1, torch.device("cpu")))  # type: ignore[arg-type]
    states = tower(*data.sequences(*tables))
    rows = [row[row >= 0] for table in tables for row in table]
    alone = torch.cat([tower(inputs_of(item_inputs, torch.from_numpy(row[None])))[0] for row in rows])
    assert torch.allclose(states, alone, atol=1e-5)


def test_whitened_content_is_projected_in_training_as_it_is_after(made: Made) -> None:
    tower, _ = made({"whitens": True, "dropout": 0.0})
    content, upstream = torch.randn(50, 6), torch.randn(50, 16)
    results = []
    for is_training in (False, True):
        tower.train(is_training).zero_grad()
        projected = tower.content(content)
        (projected * upstream).sum().backward()
        results.append((projected.detach(), tower.content.projection.weight.grad, tower.content.projection.bias.grad))
    for value, other in zip(*results, strict=True):
        assert torch.allclose(value, other, atol=1e-3)


def test_items_without_an_id_are_alike_under_ids_and_go_by_content_with_both(made: Made) -> None:
    ids, item_inputs = made({"inputs": "id"})
    new = ids.embed_items(inputs_of(item_inputs, torch.from_numpy(item_inputs.rows_of(pa.array([130, 139])))))
    assert torch.equal(new[0], new[1])
    both, item_inputs = made({"inputs": "content_and_id"})
    new = both.embed_items(inputs_of(item_inputs, torch.from_numpy(item_inputs.rows_of(pa.array([130, 139])))))
    assert (new[0] - new[1]).abs().max() > 1e-3


def test_the_row_of_no_id_stays_zero_in_training(made: Made) -> None:
    tower, item_inputs = made({"inputs": "content_and_id", "id_dropout": 0.5})
    optimizer = torch.optim.AdamW(tower.parameters(), 0.1)
    tower.train()
    before = tower.ids.table.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        tower(inputs_of(item_inputs, torch.arange(40).view(4, 10)))[..., 0].sum().backward()
        optimizer.step()
    assert not tower.ids.table.weight[0].any()
    assert (tower.ids.table.weight[1:] != before[1:]).all()


def test_id_dropout_hides_that_share_of_ids_in_training_only(made: Made) -> None:
    tower, _ = made({"inputs": "content_and_id", "id_dropout": 0.25})
    ids = torch.randint(1, 31, (4000,))
    no_id = tower.ids(torch.tensor([0]))
    assert (tower.ids(ids) != no_id).any(1).all()
    tower.train()
    is_hidden = (tower.ids(ids) == no_id).all(1)
    assert float(is_hidden.float().mean()) == pytest.approx(0.25, abs=0.03)
    alone, _ = made({"inputs": "id", "id_dropout": 0.25})  # nothing would be left to learn from
    alone.train()
    assert (alone.ids(ids) != alone.ids(torch.tensor([0]))).any(1).all()


def test_input_dropout_drops_that_share_of_content_in_training_only(made: Made) -> None:
    tower, _ = made({"input_dropout": 0.25, "whitens": True})
    plain, _ = made({"whitens": True})
    content = torch.randn(4000, 6)
    assert torch.equal(tower.content(content), plain.content(content))
    seen = []
    tower.content.projection.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    tower.train()
    tower.content(content)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("inputs", INPUTS)
def test_towers_compile_to_one_graph_for_any_length_and_one_for_items(made: Made, inputs: str) -> None:
    tower, item_inputs = made({"inputs": inputs, "use_positions": True, "dropout": 0.0, "id_dropout": 0.5})
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain = copy.deepcopy(tower)
    torch.compiler.reset()
    tower.compile(backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 3), (4, 7), (5, 10)):
        items = inputs_of(item_inputs, torch.randint(0, 40, shape))
        assert torch.allclose(tower(items), plain(items), atol=1e-6)
    assert len(graphs) == 1
    for size in (3, 30):
        items = inputs_of(item_inputs, torch.arange(size))
        assert torch.allclose(tower.embed_items(items), plain.embed_items(items), atol=1e-6)
    assert len(graphs) == 2
    tower.train()
    tower(inputs_of(item_inputs, torch.randint(0, 40, (4, 10)))).sum().backward()
    assert all(weight.grad is not None for weight in tower.parameters())


def test_a_tower_needs_no_item_inputs() -> None:
    tower = Tower(CausalTransformer(8, num_layers=1, num_heads=2), content_dim=5, embedding_dim=4).eval()
    assert tower(ItemInput(torch.randn(2, 3, 5), None)).shape == (2, 3, 4)
