"""Parts that several machines evaluated add up to the report of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.merge_states import merge_states
from learn_rank.evaluation.engine.state_folder import STAGE, save_state
from learn_rank.evaluation.evaluate import evaluate, make_report, segment_rules
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.publish import publish

OPTIONS = EvaluateOptions(label="click", baseline="baseline", treatment="learn", control="shuffled")


def save(generated: Any, folder: Path, part: Part | None, options: EvaluateOptions = OPTIONS, rows: Any = None) -> Path:
    """The state folder of one part."""
    inputs = open_inputs(
        generated.predictions if rows is None else rows,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=options,
        part=part,
    )
    with publish(folder, Manifest(STAGE, {}, {"part": str(part)})) as (work, _):
        state, _ = run(inputs, save_scores=work if options.auc == "exact" else None)
        rules = segment_rules(inputs.users, inputs.items, state)
        save_state(state, work, options=options, part=part, rules=rules, sources={})
    return folder


def same(actual: Any, wanted: Any, where: str = "") -> None:
    """Asserts equality to 1e-9, but for the interval of the pooled AUC and what follows from it."""
    if isinstance(actual, dict):
        assert actual.keys() == wanted.keys(), where
        for key in actual:
            if not (where.endswith("auc") and not where.endswith("uauc") and ("ci95" in key or "p_value" in key)):
                same(actual[key], wanted[key], f"{where}.{key}")
    elif isinstance(actual, list):
        assert len(actual) == len(wanted), where
        for position, (a, b) in enumerate(zip(actual, wanted, strict=True)):
            same(a, b, f"{where}[{position}]")
    elif isinstance(actual, float) and not where.endswith("p_value_holm"):
        assert wanted == pytest.approx(actual, rel=1e-9, abs=1e-12), where
    elif not where.endswith("p_value_holm"):
        assert actual == wanted, where


@pytest.mark.parametrize("auc", ["exact", "histogram", "off"])
def test_three_parts_make_the_report_of_one_run(generated: Any, tmp_path: Path, auc: str) -> None:
    options = replace(OPTIONS, auc=auc)
    folders = [save(generated, tmp_path / str(number), Part(number, 3), options) for number in range(3)]
    state, first, _ = merge_states(folders)
    rules = {"user": first.rules["user"] | {"num_without_history": state.unlisted_users}}
    rules["item"] = first.rules["item"] | {"num_without_history": state.unlisted_items}
    merged = make_report(state, first.options, rules=rules, sources={}).to_json()
    whole = evaluate(
        generated.predictions,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=options,
    ).to_json()
    for key in ("overall", "segments", "cells", "control", "calibration", "distribution", "excluded", "segment_rules"):
        same(whole[key], merged[key], key)


def test_the_interval_of_merged_auc_is_close_to_that_of_one_run(generated: Any, tmp_path: Path) -> None:
    folders = [save(generated, tmp_path / str(number), Part(number, 2)) for number in range(2)]
    state, first, _ = merge_states(folders)
    merged = make_report(state, first.options, rules=first.rules, sources={}).to_json()["overall"]["auc"]["ci95_pp"]
    whole = evaluate(generated.predictions, options=OPTIONS).to_json()["overall"]["auc"]["ci95_pp"]
    assert np.diff(merged) == pytest.approx(np.diff(whole), rel=0.02)


def test_files_of_disjoint_users_need_no_parts(generated: Any, tmp_path: Path) -> None:
    users = generated.predictions["user_id"].to_numpy()
    folders = []
    for number, mask in enumerate((users < 400, users >= 400)):
        rows = generated.predictions.filter(mask)
        folders.append(save(generated, tmp_path / str(number), None, rows=rows))
    state, _, _ = merge_states(folders)
    assert state.num_rows == generated.predictions.num_rows
    assert state.users_per_segment.sum() == 1200


def test_a_user_in_two_parts_is_refused(generated: Any, tmp_path: Path) -> None:
    folders = [save(generated, tmp_path / name, None) for name in "ab"]
    with pytest.raises(InputError, match="hold the same users"):
        merge_states(folders)


@pytest.mark.parametrize(("parts", "found"), [([0, 1], "0/3, 1/3"), ([0, 1, 1], "0/3, 1/3, 1/3")])
def test_a_missing_or_repeated_part_is_named(generated: Any, tmp_path: Path, parts: list[int], found: str) -> None:
    folders = [save(generated, tmp_path / f"{at}", Part(number, 3)) for at, number in enumerate(parts)]
    with pytest.raises(InputError, match=found):
        merge_states(folders)


def test_parts_of_other_options_are_refused(generated: Any, tmp_path: Path) -> None:
    folders = [
        save(generated, tmp_path / "0", Part(0, 2)),
        save(generated, tmp_path / "1", Part(1, 2), replace(OPTIONS, confidence=0.9)),
    ]
    with pytest.raises(InputError, match="confidence differ"):
        merge_states(folders)
    other = save(generated, tmp_path / "2", Part(1, 2), replace(OPTIONS, control=""))
    with pytest.raises(InputError, match="not the labels, arms"):
        merge_states([folders[0], other])


def test_a_folder_that_is_no_state_is_refused(generated: Any, tmp_path: Path) -> None:
    pq.write_table(generated.user_counts, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="not there or not finished"):
        merge_states([tmp_path])
    with pytest.raises(InputError, match="states is empty"):
        merge_states([])


def test_a_state_with_lost_scores_is_refused(generated: Any, tmp_path: Path) -> None:
    folder = save(generated, tmp_path / "0", Part(0, 1))
    whole = (folder / "scores.0").read_bytes()
    (folder / "scores.0").write_bytes(whole[:-400])
    with pytest.raises(InputError, match=r"scores.0: damaged, .* bytes where .* were written"):
        merge_states([folder])
