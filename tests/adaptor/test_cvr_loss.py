"""cvr_loss: a mean over the rows that count."""

from __future__ import annotations

import math

import torch

from learn_rank.adaptor import LearnAdaptor, cvr_loss


def test_loss_worked_by_hand() -> None:
    # sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4
    logit = torch.tensor([0.0, math.log(3)])
    expected = (math.log(2) - math.log(1 / 4)) / 2
    assert math.isclose(cvr_loss(logit, torch.tensor([1, 0])).item(), expected, rel_tol=1e-6)


def test_rows_of_weight_zero_do_not_count_even_if_not_a_number() -> None:
    logit = torch.tensor([0.0, float("nan"), 1.0], requires_grad=True)
    label = torch.tensor([1.0, 0.0, 0.0])
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss = cvr_loss(logit, label, weight)
    torch.testing.assert_close(loss, cvr_loss(logit[[0, 2]], label[[0, 2]]))
    (gradient,) = torch.autograd.grad(loss, logit)
    assert gradient.isfinite().all()
    assert gradient[1] == 0


def test_loss_is_zero_with_a_graph_when_no_row_counts() -> None:
    logit = torch.randn(3, requires_grad=True)
    loss = cvr_loss(logit, torch.ones(3), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logit.grad, torch.zeros(3))


def test_shares_of_the_total_weight_add_up_to_the_whole_loss() -> None:
    logit, label = torch.randn(10), torch.tensor([0.0, 1.0] * 5)
    weight = (torch.arange(10) % 3 > 0).float()
    parts = [cvr_loss(logit[s], label[s], weight[s], total_weight=weight.sum()) for s in (slice(0, 3), slice(3, 10))]
    torch.testing.assert_close(torch.stack(parts).sum(), cvr_loss(logit, label, weight))


def test_an_output_knows_its_loss_whatever_column_the_labels_come_in() -> None:
    output = LearnAdaptor(4, 4)(torch.randn(6, 4), torch.randn(6, 4))
    label, weight = torch.tensor([1, 0, 0, 1, 0, 1]), torch.tensor([True, True, False, True, False, True])
    expected = cvr_loss(output.cvr_logit, label, weight)
    assert torch.equal(output.cvr_loss(label.unsqueeze(1).float(), weight.unsqueeze(1)), expected)
    assert torch.equal(output.cvr_loss(label), cvr_loss(output.cvr_logit, label))
