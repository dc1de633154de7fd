from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from learn_rank.evaluation.calibration import (
    copc,
    expected_calibration_error,
    normalized_entropy,
    reliability_curve,
    row_log_losses,
)


def test_log_loss_agrees_with_scikit_learn_and_clips_certainties():
    rng = np.random.default_rng(0)
    labels, p = rng.random(500) < 0.3, rng.random(500)
    assert row_log_losses(labels, p).mean() == pytest.approx(log_loss(labels, p), rel=1e-12)
    certain = row_log_losses(np.array([True, False]), np.array([0.0, 1.0], np.float32))
    assert certain == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_always_predicting_the_base_rate_has_a_normalized_entropy_of_one():
    labels = np.array([1, 0, 0, 0], bool)
    assert normalized_entropy(float(row_log_losses(labels, np.full(4, 0.25)).mean()), 0.25) == pytest.approx(1)
    assert normalized_entropy(0.1, 1.0) is None


def test_copc_is_clicks_over_predicted_clicks():
    assert copc(np.array([1, 1, 0, 0], bool), np.array([0.4, 0.4, 0.1, 0.1])) == pytest.approx(2.0)
    assert copc(np.array([True]), np.array([0.0])) is None


def test_reliability_and_ece_by_hand():
    curve = reliability_curve(np.array([0, 1, 1, 1], bool), np.array([0.1, 0.3, 0.6, 0.8]), 2)
    assert curve.num_rows.tolist() == [2, 2]
    assert curve.mean_predicted == pytest.approx([0.2, 0.7])
    assert curve.observed_rate == pytest.approx([0.5, 1.0])
    assert expected_calibration_error(curve) == pytest.approx(0.3)


def test_equal_predictions_share_a_bin_so_order_does_not_matter():
    labels, p = np.array([1, 0, 1, 0, 1, 1], bool), np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.9])
    curve = reliability_curve(labels, p, 3)
    assert curve.num_rows.tolist() == [5, 1]
    backwards = reliability_curve(labels[::-1], p[::-1], 3)
    assert backwards.observed_rate == pytest.approx(curve.observed_rate)
