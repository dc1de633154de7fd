"""Tasks: what is predicted, the losses that teach it, and the heads that share a row's embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.backbones.features import Features, SequenceEmbeddings, Widths
from learn_rank.ranker.backbones.options import BACKBONES
from learn_rank.ranker.data.batch import RankerBatch
from learn_rank.ranker.model import RankerOutput, build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tasks import MixtureOfExperts, build_heads, product_logit, task_logits, task_losses, tasks_of
from learn_rank.schema import FeatureSet, Task

WIDTHS = Widths(dense=2, sparse=(4, 4), sequences=(4,))
HISTORY = SequenceEmbeddings(torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool), torch.randn(5, 4))
ROWS = Features(torch.randn(5, 2), torch.randn(5, 8), sequences=(HISTORY,))
LOG2 = float(np.log(2))


def batch(clicks: list[float], conversions: list[float]) -> RankerBatch:
    nothing = KeyedJaggedTensor(keys=[], values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(0))
    return RankerBatch(
        sparse=nothing,
        dense=torch.zeros(len(clicks), 0),
        ranking_label=torch.tensor(clicks, dtype=torch.float32),
        cvr_label=torch.tensor(conversions, dtype=torch.float32),
        cvr_weight=torch.ones(len(clicks)),
        user_row=None,
        item_row=None,
    )


# What is predicted


def test_tasks_are_named_by_the_labels_of_the_log(features: FeatureSet) -> None:
    click, sale = Task("click", "click"), Task("purchase_given_click", "purchase", given="click")
    both = Task("click_and_purchase", "click_and_purchase")
    assert tasks_of(features, RankerOptions()) == (click,)
    assert tasks_of(features, with_changes(RankerOptions(), {"task.name": "conversion"})) == (sale,)
    for task in ("esmm", "mmoe"):
        assert tasks_of(features, with_changes(RankerOptions(), {"task.name": task})) == (click, sale, both)


def test_a_log_with_one_label_has_no_second_task(features: FeatureSet) -> None:
    single = replace(features, cvr_label="click")
    assert tasks_of(single, RankerOptions()) == (Task("click", "click"),)
    for task in ("conversion", "esmm", "mmoe"):
        with pytest.raises(
            InputError, match=f"task.name={task} needs a second label, but cvr_label is .* 'click'; set"
        ):
            build_ranker(single, with_changes(RankerOptions(), {"task.name": task}), None)


def test_a_label_with_the_name_that_a_task_makes_is_refused(features: FeatureSet) -> None:
    taken = replace(features, labels=(*features.labels, "click_and_purchase"))
    with pytest.raises(
        InputError, match=r"label 'click_and_purchase': ranker.task.name=esmm makes a label of this name"
    ):
        tasks_of(taken, with_changes(RankerOptions(), {"task.name": "esmm"}))


# The product of two probabilities


def test_the_product_of_two_halves_is_a_quarter() -> None:
    assert product_logit(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(np.log(0.25 / 0.75), rel=1e-6)


def test_the_product_is_that_of_the_probabilities() -> None:
    first, second = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    expected = torch.sigmoid(first) * torch.sigmoid(second)
    torch.testing.assert_close(torch.sigmoid(product_logit(first, second)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (60.0, 60.0, 60 - LOG2),  # both probabilities round to 1
        (-60.0, -60.0, -120.0),
        (60.0, -60.0, -60.0),
        (-500.0, -500.0, -1000.0),
        (500.0, 500.0, 500 - LOG2),
    ],
)
def test_certain_probabilities_keep_their_logit_and_finite_gradients(
    first: float, second: float, expected: float
) -> None:
    logits = torch.tensor([[first], [second]], requires_grad=True)
    product = product_logit(logits[0], logits[1])
    assert product.item() == pytest.approx(expected, rel=1e-6)
    for label in (0.0, 1.0):
        loss = nn.functional.binary_cross_entropy_with_logits(product, torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().max() <= 1.001


def test_one_head_is_one_task_and_two_heads_are_three() -> None:
    heads = torch.randn(2, 7)
    assert torch.equal(task_logits(heads[0]), heads[:1])
    logits = task_logits(heads)
    assert torch.equal(logits[:2], heads)
    torch.testing.assert_close(logits[2].sigmoid(), heads[0].sigmoid() * heads[1].sigmoid())


# Losses


@pytest.mark.parametrize(
    ("click", "conversion", "expected"),
    [
        (1.0, 1.0, LOG2 + 2 * LOG2),
        (1.0, 0.0, LOG2 - np.log(0.75)),
        (0.0, 0.0, LOG2 - np.log(0.75)),
        (0.0, 1.0, LOG2 - np.log(0.75)),  # without a click there is no conversion
    ],
)
def test_esmm_learns_click_and_product_from_every_row(click: float, conversion: float, expected: float) -> None:
    losses = task_losses(task_logits(torch.zeros(2, 1)), batch([click], [conversion]), "esmm")
    assert [loss.item() for loss in losses] == pytest.approx([LOG2, expected - LOG2])


def test_conversion_and_mmoe_learn_conversions_from_clicked_rows_alone() -> None:
    heads = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 5.0, 9.0]], requires_grad=True)
    rows = batch([1, 1, 0, 0], [1, 0, 0, 1])
    softplus = float(np.log1p(np.exp(-1.0)))  # of a label that is missed by a logit of 1
    click, conversion = task_losses(task_logits(heads), rows, "mmoe")
    assert click.item() == pytest.approx(LOG2)
    assert conversion.item() == pytest.approx(softplus)
    (gradient,) = torch.autograd.grad(conversion, heads)
    assert gradient[1, :2].abs().min() > 0
    assert not gradient[0].any()
    assert not gradient[1, 2:].any()
    (alone,) = task_losses(task_logits(heads[1]), rows, "conversion")
    assert alone.item() == pytest.approx(softplus)


def test_a_batch_without_a_click_teaches_no_conversion_and_stays_finite() -> None:
    heads = torch.randn(2, 3, requires_grad=True)
    loss = task_losses(task_logits(heads), batch([0, 0, 0], [0, 0, 1]), "mmoe")[1]
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, heads)
    assert not gradient.any()


def test_task_weights_weigh_the_losses_and_the_adaptors_loss_is_beside_them() -> None:
    logits, rows = task_logits(torch.randn(2, 6)), batch([1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1])
    cvr_logit = torch.randn(6)
    click, product = task_losses(logits, rows, "esmm")
    adaptor = nn.functional.binary_cross_entropy_with_logits(cvr_logit, rows.cvr_label)
    loss = ranker_loss(RankerOutput(logits, cvr_logit), rows, cvr_loss_weight=0.5, task="esmm", task_weights=[1.0, 3.0])
    assert loss.tasks.tolist() == [click, product]
    torch.testing.assert_close(loss.ranking, click + 3 * product)
    torch.testing.assert_close(loss.total, click + 3 * product + 0.5 * adaptor)


@pytest.mark.parametrize("task", ["click", "conversion", "esmm", "mmoe"])
def test_losses_of_parts_of_a_batch_add_up_with_the_divisors_of_the_whole(task: str) -> None:
    clicks, conversions = [1.0, 1, 1, 0, 0, 0, 1], [1.0, 0, 1, 0, 0, 1, 0]
    logits = torch.randn(1 if task in ("click", "conversion") else 3, 7)
    whole = task_losses(logits, batch(clicks, conversions), task)
    divisors = {"total_rows": torch.tensor(7.0), "total_clicks": torch.tensor(4.0)}
    parts = [
        task_losses(logits[:, part], batch(clicks[part], conversions[part]), task, **divisors)
        for part in (slice(0, 2), slice(2, 7))
    ]
    for number, loss in enumerate(whole):
        torch.testing.assert_close(parts[0][number] + parts[1][number], loss)


# Heads


@pytest.mark.parametrize("backbone", BACKBONES)
def test_esmm_has_two_backbones_of_the_chosen_kind_on_the_same_embeddings(backbone: str) -> None:
    towers = build_heads(
        WIDTHS,
        with_changes(RankerOptions(), {"task.name": "esmm", "backbone.name": backbone, "backbone.hidden_dims": [8]}),
    ).eval()
    logits = towers(ROWS)
    assert logits.shape == (2, 5)
    assert type(towers.click) is type(towers.conversion)
    assert torch.equal(logits[0], towers.click(ROWS))
    assert torch.equal(logits[1], towers.conversion(ROWS))
    assert not torch.equal(logits[0], logits[1])


def test_one_expert_is_a_plain_network_with_a_tower_per_task() -> None:
    heads = MixtureOfExperts(
        WIDTHS, with_changes(RankerOptions(), {"backbone.hidden_dims": [6, 3], "task.num_experts": 1})
    )
    shared = heads.experts[0](ROWS.concatenated())
    assert shared.shape == (5, 6)
    for number, logit in enumerate(heads(ROWS)):
        torch.testing.assert_close(logit, heads.towers[number](shared).squeeze(1))


def test_each_tasks_gate_mixes_the_experts() -> None:
    heads = MixtureOfExperts(
        WIDTHS, with_changes(RankerOptions(), {"backbone.hidden_dims": [6], "task.num_experts": 3})
    )
    x = ROWS.concatenated()
    nn.init.zeros_(heads.gates[0].weight)
    with torch.no_grad():
        heads.gates[0].bias.copy_(torch.tensor([0.5, 0.25, 0.25]).log())
    outputs = [expert(x) for expert in heads.experts]
    mixed = 0.5 * outputs[0] + 0.25 * outputs[1] + 0.25 * outputs[2]
    torch.testing.assert_close(heads(ROWS)[0], heads.towers[0](mixed).squeeze(1))
    shares = torch.softmax(heads.gates[1](x), dim=1)
    by_hand = sum(shares[:, [number]] * output for number, output in enumerate(outputs))
    torch.testing.assert_close(heads(ROWS)[1], heads.towers[1](by_hand).squeeze(1))


def test_learn_features_reach_every_head() -> None:
    widths = replace(WIDTHS, learn=3)
    for task in ("esmm", "mmoe"):
        heads = build_heads(widths, with_changes(RankerOptions(), {"task.name": task, "backbone.hidden_dims": [8]}))
        learn = torch.randn(5, 3, requires_grad=True)
        for logit in heads(ROWS._replace(learn=learn)):
            (gradient,) = torch.autograd.grad(logit.sum(), learn, retain_graph=True)
            assert gradient.any()
