"""Did the treatment rank better than the baseline, and for whom? The report of one set of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.segment_coverage import segment_coverage
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.user_metrics import UAUC, WUAUC
from learn_rank.evaluation.input.entity_segments import EntitySegments, Segments
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.predictions import Predictions
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.evaluation.report.results import Results, few_user_note
from learn_rank.evaluation.statistics import compare_means
from learn_rank.inputs import PARQUET, InputFiles, find_inputs

SCHEMA_VERSION = 2
_BLOCK = (
    "label", "treatment", "overall", "segments", "cells", "control", "calibration", "distribution", "excluded",
)  # fmt: skip


def evaluate(
    predictions: Predictions,
    *,
    user_segments: Segments = None,
    item_segments: Segments = None,
    options: EvaluateOptions,
    facts: Mapping[str, object] | None = None,
    is_own_log: bool = False,
) -> dict[str, Any]:
    """The content of report.json: values per ranker, paired differences with intervals, overall and by segment.

    predictions: a Parquet file, a folder of them, a table (pyarrow, pandas, polars) or a mapping of numpy arrays, with
    the user id, the labels and one score per arm; rows in any order, more than fit in memory. user_segments,
    item_segments: a Parquet file or Table with (user_id | item_id) and `segment`, or `num_interactions` in the training
    window (cut by options.segments); or the name of a column of the predictions.

    Intervals are at options.confidence under the key `interval_key`; a metric that cannot be computed (empty segment,
    one class) is null, never 0 or 0.5. Segments that list none of 20 or more ids are an InputError, almost none a note;
    not with is_own_log: they were counted in the log of the predictions, so that all may be new. facts goes into the
    report as it is; its list `notes`, if any, is shown at the top. InputError, naming file, column and row, for what
    cannot be evaluated.
    """
    inputs = open_inputs(
        predictions,
        user_segments=user_segments,
        item_segments=item_segments,
        options=options,
        is_own_log=is_own_log,
    )
    state, run_facts = run(inputs)
    return make_report(
        state,
        options,
        rules=segment_rules(inputs.users, inputs.items, state),
        sources=fingerprints(predictions, inputs.users.origin, inputs.items.origin),
        facts=facts,
        engine=run_facts,
        is_own_log=is_own_log,
    )


def make_report(
    state: State,
    options: EvaluateOptions,
    *,
    rules: dict[str, Any],
    sources: dict[str, Any],
    facts: Mapping[str, object] | None = None,
    engine: Mapping[str, object] | None = None,
    is_own_log: bool = False,
) -> dict[str, Any]:
    """The report of a finished state. The first label and treatment stand at the top, the others under `further`."""
    results = Results(state, options)
    facts = dict(facts or {})
    given = facts.pop("notes", [])
    notes = [" ".join(str(note).split()) for note in (given if isinstance(given, (list, tuple)) else [given])]
    arms = state.layout.arms
    treatments = [arms.index(name) for name in options.treatments] or [0]
    blocks = [_block(results, t, arm) for t in range(len(state.layout.tasks)) for arm in treatments]
    if options.control:
        for t in range(len(state.layout.tasks)):
            control = {"arm": options.control, **results.comparison(t, arms.index(options.control))}
            for block in blocks[t * len(treatments) : (t + 1) * len(treatments)]:
                block["control"] = control
    first = blocks[0]
    notes += [] if is_own_log else [text for coverage in segment_coverage(state) for text in coverage.notes]
    notes += results.notes() + few_user_note(first["segments"])
    return {
        "schema_version": SCHEMA_VERSION,
        "label": first.pop("label"),
        "baseline": options.baseline,
        "treatment": first.pop("treatment"),
        "weight": options.weight,
        "confidence": options.confidence,
        "auc": options.auc,
        "value": options.value or None,
        "notes": notes,
        **first,
        "further": blocks[1:],
        "segment_rules": rules,
        "facts": facts,
        "engine": dict(engine or {}),
        "inputs": sources,
        "options": asdict(options),
    }


def add_comparison(report: dict[str, Any], other: dict[str, Any]) -> None:
    """Puts the top of another report, of the same arms by other scores, among a report's further comparisons."""
    block = {name: other[name] for name in _BLOCK} | {"treatment": report["treatment"]}
    if other["control"]:
        block["control"] = other["control"] | {"arm": report["control"]["arm"]}
    report["further"].append(block)


def user_auc(
    user_ids: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    scores: npt.NDArray[np.floating],
    *,
    is_weighted: bool = False,
) -> float:
    """UAUC of [B] rows: the plain mean of AUC over users with both classes, ties one half.

    is_weighted: WUAUC instead, where a user counts as often as it has rows. InputError: a NaN score, a label other than
    0 or 1, no user with both classes.

    >>> user_auc(np.array([7, 7, 7, 8]), np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.9, 0.1]))
    0.25
    """
    options = EvaluateOptions(
        label="label", baseline="score", user_id="user", auc="off", calibration=False, bootstrap_samples=0, threads=1
    )
    arrays = {"user": user_ids, "label": labels, "score": scores}
    inputs = open_inputs(arrays, user_segments=None, item_segments=None, options=options)
    state, _ = run(inputs)
    found = compare_means(state.moments[0, WUAUC if is_weighted else UAUC, 0, 0], 0, options.confidence).baseline
    if found is None:
        raise InputError(
            f"user_auc: none of {state.users_per_segment.sum()} users has both a positive and a negative row"
        )
    return found


def segment_rules(users: EntitySegments, items: EntitySegments, state: State) -> dict[str, Any]:
    """How each entity was cut and how many ids the files did not hold."""
    return {
        "user": {**users.rule, "num_without_history": state.unlisted_users},
        "item": {**items.rule, "num_without_history": state.unlisted_items},
    }


def _block(results: Results, t: int, arm: int) -> dict[str, Any]:
    return {
        "label": results.layout.tasks[t].name,
        "treatment": results.layout.arms[arm] if arm else None,
        **results.comparison(t, arm),
        "control": None,
        "calibration": results.calibration(t, arm),
        "distribution": results.distribution(t, arm),
        "excluded": results.excluded(t),
    }


def fingerprints(predictions: Predictions, user_segments: Segments, item_segments: Segments) -> dict[str, Any]:
    """What identifies each source: a hash of the file, the column's name (of segments), or that it was in memory."""
    path = Path(predictions) if isinstance(predictions, str) else predictions
    files = find_inputs(path, may_be_pattern=True) if isinstance(path, Path) else path
    named = {"predictions": files, "user_segments": user_segments, "item_segments": item_segments}
    return {name: _fingerprint(source) for name, source in named.items()}


def _fingerprint(source: Any) -> str | None:
    if source is None:
        return None
    if isinstance(source, str):
        return f"column {source}"
    if isinstance(source, Path):
        source = find_inputs(source, kinds=(PARQUET,))
    return source.fingerprint if isinstance(source, InputFiles) else "in memory"
