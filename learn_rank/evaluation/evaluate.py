"""Did the treatment rank better than the baseline, and for whom? The report of one predictions file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.artifact import file_fingerprint
from learn_rank.errors import InputError
from learn_rank.evaluation.calibration import calibrate
from learn_rank.evaluation.kernel import pooled_auc, score_codes, user_wins
from learn_rank.evaluation.predictions import ScoredRows, check_labels, check_scores, read_rows
from learn_rank.evaluation.segments import SEGMENTS, Segmentation, SegmentOptions, assign_segments
from learn_rank.evaluation.statistics import (
    FEW_USERS,
    WEIGHTS,
    Comparison,
    compare_means,
    compare_pooled_auc,
    interval_key,
    user_weights,
)

SCHEMA_VERSION = 1

Rows = npt.NDArray[np.bool_]


@dataclass
class EvaluateOptions:
    """What is compared with what."""

    label: str = field(default="label", metadata={"help": "label column, 0 or 1"})
    baseline: str = field(default="baseline", metadata={"help": "score column of the ranker to beat"})
    treatment: str = field(default="", metadata={"help": "score column of the ranker under test; empty: one alone"})
    control: str = field(default="", metadata={"help": "score column of the arm with shuffled vectors; empty: none"})
    weight: str = field(default="impressions", metadata={"help": "WUAUC weight of a user: impressions or clicks"})
    confidence: float = field(default=0.95, metadata={"help": "of the intervals"})
    reliability_bins: int = field(default=20, metadata={"help": "equal-mass bins of the reliability curve and ECE"})
    segments: SegmentOptions = field(default_factory=SegmentOptions)

    def __post_init__(self) -> None:
        if not self.label or not self.baseline:
            raise InputError("evaluate: label and baseline must name columns of the predictions")
        if len(set(self.arms)) < len(self.arms):
            raise InputError(f"evaluate: baseline, treatment and control must differ, got {', '.join(self.arms)}")
        if self.control and not self.treatment:
            raise InputError(f"evaluate: control '{self.control}' stands beside a treatment; name the treatment")
        if self.weight not in WEIGHTS:
            raise InputError(f"evaluate.weight is '{self.weight}', expected one of {', '.join(WEIGHTS)}")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"evaluate.confidence is {self.confidence}, expected 0.5 to below 1, such as 0.95")
        if self.reliability_bins < 2:
            raise InputError(f"evaluate.reliability_bins is {self.reliability_bins}, expected at least 2")

    @property
    def arms(self) -> list[str]:
        return [arm for arm in (self.baseline, self.treatment, self.control) if arm]


def evaluate(
    predictions: pa.Table | Path,
    *,
    user_counts: pa.Table | Path,
    item_counts: pa.Table | Path,
    options: EvaluateOptions,
    facts: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The content of report.json: values per ranker, paired differences with intervals, overall and by segment.

    predictions holds user_id, item_id, the label and one score per arm; the counts hold the interactions of the
    training window. Intervals are at options.confidence under the key `interval_key`; a metric that cannot be computed
    (empty segment, one class) is null, never 0 or 0.5. facts goes into the report as it is; its list `notes`, if
    any, is shown at the top. InputError: what read_rows and assign_segments refuse.
    """
    rows = read_rows(predictions, label=options.label, arms=options.arms)
    segmentations = {
        "user": assign_segments(rows.user_ids, user_counts, entity="user", options=options.segments),
        "item": assign_segments(rows.item_ids, item_counts, entity="item", options=options.segments),
    }
    facts = dict(facts or {})
    given = facts.pop("notes", [])
    notes = [str(note) for note in given] if isinstance(given, (list, tuple)) else [str(given)]
    overall = _measure(rows, np.ones(len(rows.labels), np.bool_), options)
    slices = [(where, _measure(rows, mask, options)) for where, mask in _slices(rows, segmentations)]
    segments = [{**where, **measured[options.treatment]} for where, measured in slices]
    control = None
    if options.control:
        control = {
            "arm": options.control,
            "overall": overall[options.control],
            "segments": [{**where, **measured[options.control]} for where, measured in slices],
        }
    calibrated = calibrate(
        rows,
        baseline=options.baseline,
        treatment=options.treatment,
        num_bins=options.reliability_bins,
        confidence=options.confidence,
    )
    notes += calibrated.notes + _few_user_note(segments)
    return {
        "schema_version": SCHEMA_VERSION,
        "label": options.label,
        "baseline": options.baseline,
        "treatment": options.treatment or None,
        "weight": options.weight,
        "confidence": options.confidence,
        "notes": notes,
        "overall": {**overall[options.treatment], **calibrated.overall},
        "segments": segments,
        "segment_rules": {entity: _rule(found, entity, options.segments) for entity, found in segmentations.items()},
        "control": control,
        "calibration": calibrated.section,
        "excluded": _excluded(rows),
        "facts": facts,
        "inputs": {
            name: file_fingerprint(source) if isinstance(source, Path) else "in memory"
            for name, source in (
                ("predictions", predictions),
                ("user_counts", user_counts),
                ("item_counts", item_counts),
            )
        },
        "options": asdict(options),
    }


def user_auc(
    user_ids: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], scores: npt.NDArray[np.floating]
) -> float:
    """UAUC of [B] rows: the plain mean of AUC over users with both classes, ties one half.

    InputError: a NaN score, a label other than 0 or 1, no user with both classes.

    >>> user_auc(np.array([7, 7, 7, 8]), np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.9, 0.1]))
    0.25
    """
    codes = pa.array(user_ids).dictionary_encode()
    users = codes.indices.to_numpy().astype(np.int64)
    checked = check_labels(labels, "user_auc: labels")
    ranks = score_codes(check_scores(scores, "user_auc: scores"))
    auc = user_wins(users, checked, ranks, num_users=len(codes.dictionary)).auc()
    if len(auc) == 0:
        raise InputError(f"user_auc: none of {len(codes.dictionary)} users has both a positive and a negative row")
    return float(auc.mean())


def _slices(rows: ScoredRows, segmentations: dict[str, Segmentation]) -> list[tuple[dict[str, Any], Rows]]:
    """({entity, segment, share of the entities}, [B] rows of the slice) for every segment, empty ones too."""
    slices = []
    for entity, of_row in (("user", rows.users), ("item", rows.items)):
        codes = segmentations[entity].codes
        for code, segment in enumerate(SEGMENTS):
            share = float(np.mean(codes == code))
            slices.append(({"entity": entity, "segment": segment, "share": share}, codes[of_row] == code))
    return slices


def _measure(rows: ScoredRows, mask: Rows, options: EvaluateOptions) -> dict[str, dict[str, Any]]:
    """Counts and ranking metrics of the masked rows: by the arm that the baseline is compared with, '' if it is alone.

    The slice is cut first: classes, weights and who is scored come from its rows alone.
    """
    users, labels, num_users = rows.users[mask], rows.labels[mask], len(rows.user_ids)
    codes = {arm: rows.codes[arm][mask] for arm in options.arms}
    wins = {arm: user_wins(users, labels, codes[arm], num_users=num_users) for arm in options.arms}
    pooled = {arm: pooled_auc(users, labels, codes[arm], num_users=num_users) for arm in options.arms}
    baseline = wins[options.baseline]
    auc, weights = baseline.auc(), user_weights(baseline, options.weight)
    counts = {
        "num_rows": len(users),
        "num_users": int(np.count_nonzero(baseline.num_positives + baseline.num_negatives)),
        "num_users_scored": len(auc),
    }
    measured = {}
    for other in options.arms[1:] or [""]:
        other_auc = wins[other].auc() if other else None
        comparisons = {
            "uauc": compare_means(np.ones(len(auc)), auc, other_auc, options.confidence),
            "wuauc": compare_means(weights, auc, other_auc, options.confidence),
            "auc": compare_pooled_auc(pooled[options.baseline], pooled.get(other), options.confidence),
        }
        metrics = {name: _in_points(comparison, options.confidence) for name, comparison in comparisons.items()}
        measured[other] = {**counts, **metrics}
    return measured


def _in_points(comparison: Comparison, confidence: float) -> dict[str, Any]:
    """A ranking metric of report.json; differences in percentage points (pp), 100 times the raw ones."""
    low, high = comparison.low, comparison.high
    return {
        "baseline": comparison.baseline,
        "treatment": comparison.treatment,
        "delta_pp": None if comparison.delta is None else 100 * comparison.delta,
        interval_key(confidence): None if low is None or high is None else [100 * low, 100 * high],
        "p_value": comparison.p_value,
    }


def _excluded(rows: ScoredRows) -> dict[str, int]:
    """Users without both classes have no AUC; UAUC and WUAUC leave them and their rows out."""
    num_rows = np.bincount(rows.users)
    num_positives = np.bincount(rows.users[rows.labels], minlength=len(num_rows))
    only_negatives, only_positives = num_positives == 0, num_positives == num_rows
    return {
        "num_users_one_class": int(np.count_nonzero(only_negatives | only_positives)),
        "num_rows_one_class": int(num_rows[only_negatives | only_positives].sum()),
        "num_users_only_negatives": int(np.count_nonzero(only_negatives)),
        "num_users_only_positives": int(np.count_nonzero(only_positives)),
    }


def _rule(found: Segmentation, entity: str, options: SegmentOptions) -> dict[str, Any]:
    return {
        "cold_start_max": found.cold_start_max,
        "long_tail_max": found.long_tail_max,
        "proportions": list(options.proportions(entity)) or None,
        "num_without_history": found.num_without_history,
    }


def _few_user_note(segments: list[dict[str, Any]]) -> list[str]:
    few = [
        f"{found['entity']}s {found['segment'].replace('_', '-')} ({found['num_users_scored']})"
        for found in segments
        if 0 < found["num_users_scored"] < FEW_USERS
    ]
    return [f"Few users with both classes, so rough intervals: {', '.join(few)}."] if few else []
