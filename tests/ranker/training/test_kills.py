"""SIGKILL at any moment of training or saving: the run goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from learn_rank import checkpoint
from learn_rank.options import with_changes
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train
from tests.ranks import run_alone, run_ranks

# dropout, hidden values and a schedule: what is random or follows the steps has to be the same again
OPTIONS = with_changes(
    RankerOptions(),
    {
        "backbone.hidden_dims": [32, 16],
        "training.batch_size": 132,
        "training.epochs": 3,
        "training.patience": 3,
        "training.learning_rate": 5e-3,
        "backbone.dropout": 0.1,
        "training.schedule": "cosine",
        "training.warmup_steps": 5,
        "checkpoint.steps": 2,
    },
)


def auc(user_ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def assert_equal_runs(log, one: Path, other: Path) -> None:
    for pointer in (checkpoint.LATEST, checkpoint.BEST):
        first, second = (log.saved_tensors(directory, OPTIONS, pointer) for directory in (one, other))
        assert first.keys() == second.keys()
        assert len(first) > 20
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
        metas = [checkpoint.read_meta(directory, pointer) for directory in (one, other)]
        assert metas[0] == metas[1]
    assert np.array_equal(*(predict(log.prepared, log.stores, directory, "test") for directory in (one, other)))


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption, saved once per epoch."""
    directory = tmp_path_factory.mktemp("whole")
    train(log.prepared, log.stores, directory, with_changes(OPTIONS, {"checkpoint.steps": 0}), validation_metric=auc)
    return directory


# A child is forked per attempt: it dies at a random moment after its first save, every other
# one while a save is under way, and the next one goes on. The last one is left to end.
_ATTEMPTS = """
import json, os, random, sys
from pathlib import Path
from sklearn.metrics import roc_auc_score
from learn_rank.options import from_record
from learn_rank.ranker.training.train import RankerOptions, train
from tests.kills import die_when, renames_to

def status(directory, options, *death, **after):
    child = os.fork()
    if child == 0:
        try:
            if death:
                die_when(*death, **after)
            train(prepared, stores, directory, options,
                  validation_metric=lambda users, labels, scores: float(roc_auc_score(labels, scores)))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]

def begins_a_save(event, arguments):
    return event == "os.mkdir" and str(arguments[0]).endswith(".partial")

prepared, stores, jobs, seed = sys.argv[1:]
prepared, stores, moments = Path(prepared), Path(stores), random.Random(int(seed))
for directory, options in json.loads(jobs).items():
    directory, options = Path(directory), from_record(RankerOptions, options)
    for number in range(4):
        if number % 2 == 1:  # in the second save
            death, after = begins_a_save, {"times": 2, "work_seconds": moments.uniform(1e-6, 0.01)}
        else:
            death, after = renames_to("pointers.json"), {"work_seconds": moments.uniform(1e-6, 0.03)}
        assert os.WIFSIGNALED(status(directory, options, death, **after))
    assert status(directory, options) == 0
"""


@pytest.fixture(scope="module")
def killed(log, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were killed again and again, by where they were saved."""
    root = tmp_path_factory.mktemp("killed")
    options = {
        "background": with_changes(OPTIONS, {"checkpoint.in_background": True}),
        "foreground": with_changes(OPTIONS, {"checkpoint.in_background": False, "checkpoint.steps": 6}),
    }
    jobs = json.dumps({str(root / name): asdict(one) for name, one in options.items()})
    run_alone(_ATTEMPTS, log.prepared, log.stores, jobs, 0)
    return {name: root / name for name in options}


@pytest.mark.parametrize("where", ["background", "foreground"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_is_not(
    log, whole: Path, killed: dict[str, Path], where: str
) -> None:
    assert_equal_runs(log, killed[where], whole)


# Everything that several ranks have to stand, for the price of one start of them. Three: the sum of two numbers has the
# same bits in either order.
_RANKS = """
import json, os, sys
from pathlib import Path
import torch
from sklearn.metrics import roc_auc_score
from learn_rank.options import from_record
from learn_rank import checkpoint
from learn_rank.distributed import process_group
from learn_rank.ranker.training.train import RankerOptions, train
from tests.kills import die_when

prepared, stores, root, disk, options = sys.argv[1:]
prepared, stores, root = Path(prepared), Path(stores), Path(root)
options = from_record(RankerOptions, json.loads(options))
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]

def run(name):
    train(prepared, stores, root / name, options,
          validation_metric=lambda users, labels, scores: float(roc_auc_score(labels, scores)))

def saves_within_the_second_epoch(event, arguments):
    if event == "open" and "killed/.partial/__1_" in str(arguments[0]):
        meta = checkpoint.read_meta(root / "killed")
        return meta is not None and meta["progress"]["epoch"] == 1 and meta["progress"]["step"] >= 3

def save_on_full_disk(rank):
    state = {f"of_rank_{rank}": torch.ones(1 << 20 if rank == 1 else 3)}  # the file of rank 1 does not fit
    try:
        checkpoint.save(Path(disk) / "run", state, {}, is_best=True)
    except checkpoint.DiskFullError as error:
        return str(error)

with process_group() as process:
    run("whole")
    if disk:
        (root / f"disk-{process.rank}").write_text(str(save_on_full_disk(process.rank)))
    if process.rank == 1 and attempt == "0":
        die_when(saves_within_the_second_epoch)
    run("killed")
    (root / f"attempt-{attempt}-{process.rank}").touch()
"""


@pytest.fixture(scope="module")
def ranks(log, mount_disk: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    try:
        small_disk: Path | None = mount_disk(2)
    except pytest.skip.Exception:
        small_disk = None
    options = json.dumps(asdict(with_changes(OPTIONS, {"training.epochs": 2, "checkpoint.steps": 4})))
    run_ranks(_RANKS, log.prepared, log.stores, root, small_disk or "", options, num_ranks=3, max_restarts=2)
    return root


def test_a_run_of_three_ranks_of_which_one_is_killed_ends_by_itself_with_the_same_bits(log, ranks: Path) -> None:
    assert sorted(path.name for path in ranks.glob("attempt-*")) == [f"attempt-1-{rank}" for rank in range(3)]
    assert_equal_runs(log, ranks / "killed", ranks / "whole")


def test_on_a_full_disk_all_ranks_fail_alike(ranks: Path, mount_disk: Callable[[int], Path]) -> None:
    mount_disk(1)  # skips where it may not, as `ranks` went without
    said = {(ranks / f"disk-{rank}").read_text() for rank in range(3)}
    assert len(said) == 1
    assert "run: the disk is full and a checkpoint was not saved" in said.pop()
