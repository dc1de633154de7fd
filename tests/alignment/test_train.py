from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.alignment import train as module
from learn_rank.alignment.evaluate import Metric
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.log import Log
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.train import train
from learn_rank.alignment.trained import WEIGHTS, load_tower
from learn_rank.distributed import Process
from learn_rank.errors import InputError
from learn_rank.evaluation import user_auc
from learn_rank.options import deciding
from learn_rank.store.reader import FrozenStore
from tests.hostile import Runs
from tests.ranks import run_ranks

SMALL: dict[str, Any] = {
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "max_history": 8,
    "max_targets": 4,
    "batch_size": 16,
    "learning_rate": 3e-3,
}
ALONE = Process(0, 1, 1, torch.device("cpu"))


def auc(users: Any, labels: Any, scores: Any) -> float:
    return user_auc(users, labels, scores)


def run(
    prepared: Path, content: FrozenStore | None, folder: Path, options: AlignOptions, *, uauc: Metric = auc, **more: Any
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return train(Log(prepared, content), folder, options, process=ALONE, uauc=uauc, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder / WEIGHTS)["weights"]
    return saved


def assert_same_weights(first: Path, second: Path) -> None:
    weights_a, weights_b = weights(first), weights(second)
    assert weights_a
    assert weights_a.keys() == weights_b.keys()
    assert all(torch.equal(weights_a[name], weights_b[name]) for name in weights_a)


# Known answers


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "catalogue", "targets": "next"},
        {"objective": "catalogue", "targets": "later", "bf16": True},
        {"objective": "catalogue", "targets": "later", "keeps_order": False, "max_catalogue": 30},
        {"objective": "in_batch", "targets": "next", "ema": 0.9},
        {"objective": "in_batch", "corrects_popularity": False, "input_dropout": 0.2},
        {"objective": "in_batch", "own_negatives": 3},
        {"item_tower": "a", "use_positions": True, "learns_temperature": True},
        {"item_tower": "b", "first_stage": "random", "second_stage": "random"},
        {"item_tower": "c", "epochs": 15},
        {"item_tower": "c", "objective": "catalogue"},
        {"inputs": "id", "id_dim": 16, "epochs": 15, "patience": 15, "learning_rate": 1e-2},
        {"inputs": "content_and_id", "id_dim": 8, "embedding_dim": 24},
    ],
)
def test_taste_for_one_group_of_items_is_learnt(
    planted: Path, content: FrozenStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = AlignOptions(**{**SMALL, "epochs": 8, **changes})
    facts = run(planted, None if options.inputs == "id" else content, tmp_path / "align", options)
    assert facts["validation_metric"] > 0.95
    assert (facts["users"], facts["interactions"], facts["selected_by"]) == (60, 720, "uauc")
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text())
    # a user likes 20 of 40 items, 12 (later 15) of which are seen: the liked ones left are the best ten
    assert metrics["validation"]["recall@10"] > 0.8
    assert metrics["test"]["mrr"] > 0.4
    assert metrics["test"]["num_targets"] == 180
    assert list((tmp_path / "align" / "tensorboard").glob("events*"))


def test_bfloat16_is_used_where_the_machine_computes_it_faster(
    planted: Path,
    content: FrozenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = {}
    for name, wanted, is_fast in (("float32", False, True), ("slow", True, False), ("fast", True, True)):
        monkeypatch.setattr(module, "has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        facts = run(planted, content, tmp_path / name, AlignOptions(**SMALL, epochs=1, bf16=wanted))
        used[name] = (facts["bf16"], "bfloat16 slower than float32" in capsys.readouterr().err)
    assert used == {"float32": (False, False), "slow": (False, True), "fast": (True, False)}
    assert_same_weights(tmp_path / "float32", tmp_path / "slow")
    fast, slow = weights(tmp_path / "fast"), weights(tmp_path / "slow")
    assert any(not torch.equal(fast[name], slow[name]) for name in slow)


def test_without_alignment_nothing_is_trained_and_content_ranks(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    facts = run(planted, content, tmp_path / "align", AlignOptions(objective="none"))
    assert (facts["epochs"], facts["parameters"]) == (0, 0)
    assert facts["validation_metric"] > 0.95


def test_fine_tuning_starts_from_the_other_run_and_no_epochs_only_measure_it(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    first = run(planted, content, tmp_path / "first", AlignOptions(**SMALL, epochs=4))
    zero_shot = AlignOptions(**SMALL, epochs=0, init_from="first")
    again = run(planted, content, tmp_path / "again", zero_shot, init_from=tmp_path / "first")
    assert again["validation_metric"] == pytest.approx(first["validation_metric"])
    assert_same_weights(tmp_path / "first", tmp_path / "again")
    tuned = run(
        planted,
        content,
        tmp_path / "tuned",
        AlignOptions(**SMALL, epochs=1, init_from="first"),
        init_from=tmp_path / "first",
    )
    assert tuned["validation_metric"] > 0.95


def test_other_logs_are_learned_from_too(planted: Path, content: FrozenStore, prepare: Any, tmp_path: Path) -> None:
    rows = [(1, 100, 0, -1, 1), (1, 125, 1, -1, 1), (1, 110, 2, -1, 1)]
    small = prepare(tmp_path / "small", {"train": rows, "validation": rows[:1], "test": rows[:1]})
    facts = train(
        Log(small, content),
        tmp_path,
        AlignOptions(**SMALL, epochs=8),
        process=ALONE,
        uauc=auc,
        others=[Log(planted, content)],
    )
    assert (facts["users"], facts["interactions"]) == (61, 723)
    zero_shot = AlignOptions(**SMALL, epochs=0, init_from="both")
    there = run(planted, content, tmp_path / "there", zero_shot, init_from=tmp_path)
    assert there["validation_metric"] > 0.95


# Laws


@pytest.mark.parametrize(
    "changes", [{}, {"objective": "catalogue"}, {"objective": "in_batch", "ema": 0.9}, {"learns_temperature": True}]
)
def test_a_run_stopped_after_any_epoch_ends_with_the_same_weights(
    planted: Path, content: FrozenStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = AlignOptions(epochs=3, **{**SMALL, **changes})
    run(planted, content, tmp_path / "whole", options)
    calls = 0

    def stop_in_second_epoch(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return auc(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run(planted, content, tmp_path / "stopped", options, uauc=stop_in_second_epoch)
    run(planted, content, tmp_path / "stopped", options)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_stopped_between_two_steps_ends_with_the_same_weights(
    planted: Path, content: FrozenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AlignOptions(epochs=2, ema=0.9, **SMALL)
    run(planted, content, tmp_path / "whole", options)
    monkeypatch.setattr(options, "checkpoint_seconds", -1)  # after every step
    step, calls = module._step, 0

    def stop_at_seventh(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(module, "_step", stop_at_seventh)
    with pytest.raises(KeyboardInterrupt):
        run(planted, content, tmp_path / "stopped", options)
    monkeypatch.setattr(module, "_step", step)
    done = []
    monkeypatch.setattr(module, "_step", lambda *arguments: done.append(arguments) or step(*arguments))
    run(planted, content, tmp_path / "stopped", options)
    assert len(done) == 2 * 4 - 6  # four steps an epoch; six were saved
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_killed_before_its_folder_is_published_trains_nothing_again(
    planted: Path, content: FrozenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AlignOptions(epochs=2, **SMALL)
    facts = run(planted, content, tmp_path / "align", options)
    monkeypatch.setattr(module, "_step", lambda *_: pytest.fail("a step"))
    assert run(planted, content, tmp_path / "align", options) == facts


def test_progress_that_is_damaged_or_runs_something_is_refused(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    options = AlignOptions(epochs=1, **SMALL)
    run(planted, content, tmp_path / "align", options)
    state, marker = tmp_path / "align" / "state.pt", tmp_path / "ran"
    saved = torch.load(state, weights_only=True)
    for changed in ({**saved, "more": Runs(marker)}, {"progress": {"strange": 1}}, {**saved, "tower": {}}, {}):
        torch.save(changed, state)
        with pytest.raises(InputError, match=r"state\.pt: .*; delete it, and training starts anew"):
            run(planted, content, tmp_path / "align", options)
    assert not marker.exists()


def test_validation_and_test_interactions_do_not_reach_the_weights(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    options = AlignOptions(epochs=2, **SMALL)
    run(planted, content, tmp_path / "one", options, uauc=lambda *_: None)
    for split in ("validation", "test"):
        later = planted / "interactions" / f"{split}.parquet"
        pq.write_table(pq.read_table(later).slice(0, 4), later)
    run(planted, content, tmp_path / "two", options, uauc=lambda *_: None)
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_training_stops_when_validation_no_longer_improves(planted: Path, content: FrozenStore, tmp_path: Path) -> None:
    metrics = iter([0.6, 0.7, 0.5, 0.5, 0.9, 0.9, 0.9])  # the last three are measured at the end
    options = AlignOptions(epochs=6, patience=2, **SMALL)
    facts = run(planted, content, tmp_path / "align", options, uauc=lambda *_: next(metrics))
    assert (facts["best_epoch"], facts["epochs"], facts["validation_metric"]) == (1, 4, 0.7)
    json.dumps(facts)


def test_a_validation_window_of_strangers_leaves_the_last_epoch(
    prepare: Any, content: FrozenStore, tmp_path: Path
) -> None:
    rows = [(user, 100 + user + n, n, -1, 1) for user in range(8) for n in range(3)]
    late = [(99, 100, 50, -1, 1)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": late, "test": late})
    facts = run(folder, content, tmp_path / "align", AlignOptions(epochs=2, **SMALL))
    assert (facts["best_epoch"], facts["epochs"], facts["validation_metric"]) == (1, 2, None)
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text())
    assert metrics["validation"]["users_without_history"] == 1
    assert metrics["test"]["num_users"] == 1  # known by then


_RANK = """
import json, sys
from pathlib import Path
from learn_rank.alignment.log import Log
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.train import train
from learn_rank.distributed import process_group
from learn_rank.store.reader import FrozenStore
prepared, content, folder, options = sys.argv[1:]
with process_group() as process:
    for name, changes in json.loads(options).items():
        work = Path(folder) / name
        work.mkdir(exist_ok=True)
        log = Log(Path(prepared), FrozenStore(Path(content), stage="extract"))
        facts = train(log, work, AlignOptions(**changes), process=process, uauc=lambda *_: None)
"""


def test_two_ranks_share_a_batch_and_learn_what_one_does(planted: Path, content: FrozenStore, tmp_path: Path) -> None:
    # no dropout, which each rank draws for itself; 60 users in steps of 15: unequal shares
    small = {**SMALL, "dropout": 0.0, "epochs": 2, "batch_size": 15, "select_by": "ndcg@10"}
    variants = {"all_action": AlignOptions(**small)}
    variants |= {name: AlignOptions(objective=name, **small) for name in ("catalogue", "in_batch")}
    for name, options in variants.items():
        run(planted, content, tmp_path / f"{name}-one", options)
    (tmp_path / "two").mkdir()
    changes = json.dumps({name: asdict(options) for name, options in variants.items()})
    run_ranks(_RANK, planted, content.directory, tmp_path / "two", changes)
    item_inputs = ItemInputs([content])
    rows = torch.arange(40)
    for name, options in variants.items():
        # what the towers say, not their weights: the keys' bias has no gradient but rounding, which Adam makes steps
        for inputs in (item_inputs.take(rows, ALONE.device), item_inputs.take(rows.view(5, 8), ALONE.device)):
            with torch.no_grad():
                by_one = load_tower(tmp_path / f"{name}-one", item_inputs, options)(inputs)
                by_two = load_tower(tmp_path / "two" / name, item_inputs, options)(inputs)
            assert torch.allclose(by_one, by_two, atol=1e-4), (name, (by_one - by_two).abs().max())
        metrics = [
            json.loads((folder / "metrics.json").read_text())
            for folder in (tmp_path / f"{name}-one", tmp_path / "two" / name)
        ]
        assert metrics[1]["test"]["num_users"] == 60
        assert metrics[1]["test"]["ndcg@10"] == pytest.approx(metrics[0]["test"]["ndcg@10"], abs=0.02)


def test_options_at_the_defaults_of_earlier_runs_are_recorded_as_those_runs_did() -> None:
    recorded = deciding(AlignOptions())
    assert not {"ema", "input_dropout", "own_negatives"} & recorded.keys()
    assert AlignOptions(**recorded) == AlignOptions()
    changed = AlignOptions(ema=0.9, input_dropout=0.1)
    assert AlignOptions(**deciding(changed)) == changed


# Bad input


def test_a_log_without_histories_is_refused(prepare: Any, content: FrozenStore, tmp_path: Path) -> None:
    rows = [(1, 100, 0, -1, 1), (2, 101, 0, -1, 1), (2, 102, 1, -1, 0)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": rows, "test": rows})
    with pytest.raises(InputError, match="no user has two positive interactions"):
        run(folder, content, tmp_path / "align", AlignOptions())


def test_interactions_with_unknown_items_are_counted(prepare: Any, content: FrozenStore, tmp_path: Path) -> None:
    rows = [(user, 100 + user + n, n, -1, 1) for user in range(8) for n in range(3)] + [(0, 999, 5, -1, 1)]
    later = [(0, 999, 50, -1, 1), (1, 110, 51, -1, 1)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": later, "test": later})
    facts = run(folder, content, tmp_path / "align", AlignOptions(epochs=1, **SMALL))
    assert facts["interactions_without_vector"] == 1
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text())
    assert metrics["validation"]["targets_without_vector"] == 1
    assert metrics["validation"]["num_users"] == 2  # the unknown item is a miss, not left out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "bpr"}, "objective is 'bpr', expected all_action, catalogue, in_batch or none"),
        ({"width": 10, "num_heads": 4}, "not a multiple"),
        ({"temperature": 0.0}, "above 0"),
        ({"ema": 1.0}, "ema is 1.0, expected at least 0 and less than 1"),
        ({"input_dropout": -0.1}, "input_dropout is -0.1, expected at least 0"),
        ({"targets": "all"}, "targets is 'all'"),
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 0}, "only with"),
        ({"inputs": "id", "item_tower": "c"}, "needs content"),
        ({"target_start": "May"}, "ISO time"),
        ({"inputs": "id", "init_from": "x"}, "ids mean nothing to other logs"),
        ({"recency_alpha": 1.0}, "Eq. 1"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlignOptions(**changes)
