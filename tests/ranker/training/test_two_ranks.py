"""One rank equals two: the same losses, the same probabilities, checkpoints that move between them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learn_rank import checkpoint
from learn_rank.options import with_changes
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train
from tests.ranks import run_ranks

# one step per epoch over all rows, so that the two ranks' batches together are the one rank's batch;
# users and items split by rows, genres on one rank; the CVR loss over clicks, which are not equally many per rank;
# nothing drawn at random per row, since ranks draw for themselves
OPTIONS = with_changes(
    RankerOptions(),
    {
        "training.batch_size": 4000,
        "backbone.hidden_dims": [32, 16],
        "training.epochs": 8,
        "training.patience": 8,
        "training.learning_rate": 5e-3,
        "tables.row_wise_rows": 40,
        "adaptor.cvr_space": "clicks",
        "adaptor.vector_dropout": 0.0,
        "training.unknown_share": 0.0,
        "training.positive_weight": 1.5,
        "training.gradient_clip": 0.05,
    },
)
_RANK = """
import json, sys
from pathlib import Path
import numpy as np
from sklearn.metrics import roc_auc_score
from learn_rank.options import from_record, with_changes
from learn_rank.distributed import process_group
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train
prepared, stores, root, options = sys.argv[1:]
prepared, stores, root = Path(prepared), Path(stores), Path(root)
options = from_record(RankerOptions, json.loads(options))
metric = lambda users, labels, scores: float(roc_auc_score(labels, scores))
metrics = iter([metric, metric])  # no third one
with process_group() as process:
    try:
        train(prepared, stores, root / "one_two_one", options, validation_metric=lambda *rows: next(metrics)(*rows))
    except (StopIteration, RuntimeError) as error:
        assert "StopIteration" in repr(error)
    for name in ("two", "one_then_two"):
        facts = train(prepared, stores, root / name, options, validation_metric=metric)
        scores = predict(prepared, stores, root / name, "test")
        if process.is_main:
            (root / f"{name}.json").write_text(json.dumps(facts))
            np.save(root / f"{name}.npy", scores)
    # batches of which each rank leaves out what it draws
    fewer = {"training.negative_share": 0.3, "training.batch_size": 500, "training.schedule": "linear"}
    sampled = with_changes(options, fewer | {"training.epochs": 2})
    train(prepared, stores, root / "sampled", sampled, validation_metric=metric)
"""


def auc(user_ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


@pytest.fixture(scope="module")
def runs(log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trained on one rank, on two, on one for three epochs and then on two, and for two epochs of these on two."""
    root = tmp_path_factory.mktemp("ranks")
    calls = []

    def stopping(*arguments: np.ndarray) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return auc(*arguments)

    one = train(log.prepared, log.stores, root / "one", OPTIONS, validation_metric=auc)
    with pytest.raises(KeyboardInterrupt):
        train(log.prepared, log.stores, root / "one_then_two", OPTIONS, validation_metric=stopping)
    shutil.copytree(root / "one_then_two", root / "one_two_one")
    run_ranks(_RANK, log.prepared, log.stores, root, json.dumps(asdict(OPTIONS)))
    meta = checkpoint.read_meta(root / "one_two_one")
    assert meta is not None
    assert (meta["progress"]["epoch"], meta["world_size"]) == (5, 2)
    facts = train(log.prepared, log.stores, root / "one_two_one", OPTIONS, validation_metric=auc)
    (root / "one_two_one.json").write_text(json.dumps(facts))
    np.save(root / "one_two_one.npy", predict(log.prepared, log.stores, root / "one_two_one", "test"))
    return root, one


@pytest.mark.parametrize("name", ["two", "one_then_two", "one_two_one"])
def test_losses_on_two_ranks_equal_those_on_one(runs: tuple[Path, dict[str, Any]], name: str) -> None:
    root, one = runs
    other = json.loads((root / f"{name}.json").read_text())
    assert len(other["history"]) == 8
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["cvr_loss"] == pytest.approx(theirs["cvr_loss"], rel=1e-4)
        assert mine["validation"] == pytest.approx(theirs["validation"], abs=1e-3)


@pytest.mark.parametrize("name", ["two", "one_then_two", "one_two_one"])
def test_a_checkpoint_of_two_ranks_predicts_the_same_on_one(log, runs: tuple[Path, dict[str, Any]], name: str) -> None:
    root, _ = runs
    on_one = predict(log.prepared, log.stores, root / name, "test")
    np.testing.assert_allclose(on_one, np.load(root / f"{name}.npy"), atol=1e-5)
    trained_on_one = predict(log.prepared, log.stores, root / "one", "test")
    np.testing.assert_allclose(on_one, trained_on_one, atol=1e-3)


def test_ranks_that_leave_out_negatives_of_their_own_learn_the_probabilities_of_the_log(
    log, runs: tuple[Path, dict[str, Any]]
) -> None:
    meta = checkpoint.read_meta(runs[0] / "sampled")
    assert meta is not None
    clicked = log.table("train")["click"].to_numpy().mean()
    assert meta["progress"]["global_step"] == 12
    scores = predict(log.prepared, log.stores, runs[0] / "sampled", "validation")
    assert float(np.mean(scores)) == pytest.approx(clicked, abs=0.08)
