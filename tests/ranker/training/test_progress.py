"""Progress: when a run ends, which epoch is best, and that JSON keeps it whole."""

from __future__ import annotations

import json
from dataclasses import asdict

from learn_rank.ranker.training.progress import Progress


def after(*validation: float) -> Progress:
    progress = Progress()
    for value in validation:
        progress.add_step(10, 0.7, 0.3)
        progress.finish_epoch(value)
    return progress


def test_training_ends_after_patience_epochs_without_a_better_metric() -> None:
    assert not after().is_finished(epochs=9, patience=1)
    assert not after(0.5, 0.6).is_finished(epochs=9, patience=1)
    assert after(0.5, 0.6, 0.6).is_finished(epochs=9, patience=1)
    assert not after(0.5, 0.6, 0.6).is_finished(epochs=9, patience=2)
    assert after(0.5, 0.6, 0.7).is_finished(epochs=3, patience=2)


def test_the_first_of_equal_epochs_is_best() -> None:
    assert after(0.5, 0.6, 0.6).best_epoch == 2
    assert after().best_epoch == 0


def test_epoch_record_is_the_mean_over_rows() -> None:
    progress = Progress()
    progress.add_step(30, 1.0, 0.5)
    progress.add_step(10, 2.0, 0.1)
    assert progress.finish_epoch(0.6) == {"loss": 1.25, "cvr_loss": 0.4, "validation": 0.6}
    assert (progress.epoch, progress.step, progress.global_step, progress.rows) == (1, 0, 2, 0)


def test_json_keeps_every_bit() -> None:
    progress = after(0.1 + 0.2)
    progress.add_step(7, 1 / 3, 2 / 7)
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress


def test_of_a_loss_the_lowest_epoch_is_best() -> None:
    progress = Progress(lower_is_better=True)
    for value in (0.6, 0.5, 0.55):
        progress.add_step(10, 0.7, 0.3)
        progress.finish_epoch(value, {"auc": 0.7})
    assert progress.best_epoch == 2
    assert not progress.is_finished(epochs=9, patience=2)
    assert progress.is_finished(epochs=9, patience=1)
    assert progress.history[0] == {"loss": 0.7, "cvr_loss": 0.3, "validation": 0.6, "validation_auc": 0.7}


def test_the_loss_has_diverged_when_its_moving_mean_is_beyond_the_limit_and_not_for_one_bad_batch() -> None:
    progress = Progress()
    for _ in range(20):
        progress.add_step(10, 0.5, 0.0)
    assert progress.first_loss == progress.recent_loss == 0.5
    progress.add_step(10, 50.0, 0.0)
    assert not progress.has_diverged(10.0)
    for _ in range(2):
        progress.add_step(10, 50.0, 0.0)
    assert progress.first_loss == 0.5
    assert progress.has_diverged(10.0)
    assert not progress.has_diverged(100.0)
    assert not progress.has_diverged(0.0)


def test_a_loss_that_is_high_from_the_first_step_has_nowhere_to_rise_from() -> None:
    progress = Progress()
    for _ in range(40):
        progress.add_step(10, 1e6, 0.0)
    assert not progress.has_diverged(2.0)


def test_a_further_metric_named_loss_is_not_taken_for_the_training_loss() -> None:
    progress = Progress()
    progress.add_step(10, 0.7, 0.0)
    record = progress.finish_epoch(0.6, {"loss": 0.5})
    assert (record["loss"], record["validation"], record["validation_loss"]) == (0.7, 0.6, 0.5)
