"""Did the treatment rank better than the baseline, and for whom? The report of one set of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.user_metrics import UAUC, WUAUC
from learn_rank.evaluation.input.entity_segments import EntitySegments, Segments
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.predictions import Predictions
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.evaluation.report.build import make_report
from learn_rank.evaluation.report.report import Report
from learn_rank.evaluation.statistics import compare_means
from learn_rank.inputs import PARQUET, InputFiles, find_inputs


def evaluate(
    predictions: Predictions,
    *,
    user_segments: Segments = None,
    item_segments: Segments = None,
    options: EvaluateOptions,
    facts: Mapping[str, object] | None = None,
    is_own_log: bool = False,
) -> Report:
    """The report: values per ranker, paired differences with intervals, overall and by segment.

    predictions: a Parquet file, a folder of them, a table (pyarrow, pandas, polars) or a mapping of numpy arrays, with
    the user id, the labels and one score per arm; rows in any order, more than fit in memory. user_segments,
    item_segments: a Parquet file or Table with (user_id | item_id) and `segment`, or `num_interactions` in the training
    window (cut by options.segments); or the name of a column of the predictions.

    Intervals are at options.confidence. A metric that cannot be computed (empty segment, one class) is None, never 0 or
    0.5. Segments that list none of 20 or more ids are an InputError; if they list almost none, a note says so. With
    is_own_log, which means that the segments were counted in the log of the predictions, all ids may be new. facts goes
    into the report as it is; its list `notes`, if any, is shown at the top.

    InputError, naming file, column and row, for what cannot be evaluated.
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
    mean = compare_means(state.moments[0, WUAUC if is_weighted else UAUC, 0, 0], 0, options.confidence).baseline
    if mean is None:
        raise InputError(
            f"user_auc: none of {state.users_per_segment.sum()} users has both a positive and a negative row"
        )
    return mean


def segment_rules(users: EntitySegments, items: EntitySegments, state: State) -> dict[str, Any]:
    """How each entity was cut and how many ids the files did not hold."""
    return {
        "user": {**users.rule, "num_without_history": state.unlisted_users},
        "item": {**items.rule, "num_without_history": state.unlisted_items},
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
