"""Did the treatment earn more online, and from whom? Conversion and revenue of an A/B test by user and item segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from learn_rank.data.source import connect, folder_in
from learn_rank.errors import InputError
from learn_rank.evaluation.experiment.exposures import Rows, Source, Sums, open_exposures
from learn_rank.evaluation.experiment.lift import RatioSums, ratio_lift
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.evaluation.report.verdict import lift_key
from learn_rank.evaluation.report.wording import p_text, segment_text
from learn_rank.evaluation.statistics import FEW_USERS, holm
from learn_rank.inputs import InputFiles, find_inputs
from learn_rank.schema import ITEM_ID, USER_ID

VALUE_METRICS = ("per_exposure", "per_user", "per_enrolled_user")
SCHEMA_VERSION = 1
MISMATCH_P_VALUE = 0.001  # the usual bar of a sample ratio check: a false alarm discards an experiment
METHOD = (
    "Randomised by user: every variance is taken over users. A metric is a ratio of sums over users (delta method); "
    "the interval of a lift is made on log(treatment / control) and taken back, so it is not symmetric and never below "
    "-100 %. Holm's adjustment is made per metric, over the segments of users and items, and over the cells apart."
)


def evaluate_experiment(
    exposures: Path | pa.Table,
    *,
    variant: str,
    control: str,
    treatment: str,
    labels: Sequence[str],
    value: str = "",
    user_id: str = USER_ID,
    item_id: str = ITEM_ID,
    user_segments: Source = None,
    item_segments: Source = None,
    segment_options: SegmentOptions | None = None,
    confidence: float = 0.95,
    expected_share: float = 0.5,
    memory_limit: str = "2GiB",
    scratch: Path,
) -> dict[str, Any]:
    """The content of an experiment report: overall, per user segment, per item segment and per cell of the two.

    exposures: Parquet or CSV (file or folder) or a table, one row per item shown: ids, the variant (compared as
    text), labels of 0 and 1, revenue (value) of 0 or more. Segments: a file or table for `open_segments`, or the name
    of a column of the exposures; without item_segments item_id is not read. expected_share: part of the users that the
    treatment was to get. Per label: conversions per exposure. With value: revenue per exposure; per user, who was
    exposed in the slice; per enrolled user, who was exposed anywhere in the experiment (in a user slice, within it).
    The treatment decides what is shown, so only the last compares item slices as they were randomised.

    One pass over the exposures, plus one over the item column and one per segment column; DuckDB spills into a folder
    made in scratch. InputError with column and row (or user): a null, a label that is not 0 or 1, a value that is
    negative or not finite, a user in both variants, a user or item in two segments, a variant that never occurs;
    and a memory_limit that is too small.
    """
    labels = [labels] if isinstance(labels, str) else list(labels)
    _check_options(labels, value, control, treatment, confidence, expected_share)
    where = str(exposures) if isinstance(exposures, Path) else "exposures"
    named = [segments for segments in (user_segments, item_segments) if isinstance(segments, str)]
    item_columns = [] if item_segments is None else [item_id]
    needed = list(dict.fromkeys([user_id, *item_columns, variant, *labels, *([value] if value else []), *named]))
    files = find_inputs(exposures, may_be_pattern=True) if isinstance(exposures, Path) else exposures
    reads = files.paths if isinstance(files, InputFiles) else []
    with (
        folder_in(scratch) as folder,
        connect(folder / "duckdb", memory_limit=memory_limit, reads=reads) as engine,
    ):
        types, place = open_exposures(engine, files, needed, where, numbers=[*labels, value])
        rows = Rows(engine.connection, where, types, variant, control, treatment, labels, value, place)
        users = rows.load_segments(user_segments, "user", user_id, segment_options or SegmentOptions())
        items = rows.load_segments(item_segments, "item", item_id, segment_options or SegmentOptions())
        rows.sum_up(user_id, item_id, users, items)
        sums = rows.moments()
        item_shares = rows.item_shares(items)
        matches = rows.matches(users, items)
        for found_ids in matches:
            found_ids.require_any(partial(rows.ids_of_both, found_ids.entity))
        excluded = rows.excluded()
    found = _Slices(sums, labels, value, confidence)
    overall = found.measure(None, None)
    num_users = sum(overall["num_users"].values())
    segments = [
        {
            "entity": "user",
            "segment": name,
            "share": sum(found.num_users(code, None).values()) / num_users,
            **found.measure(code, None),
        }
        for code, name in enumerate(users.names)
    ]
    segments += [
        {"entity": "item", "segment": name, "share": item_shares[code], **found.measure(None, code)}
        for code, name in enumerate(items.names)
    ]
    cells = [
        {"user_segment": user_name, "item_segment": item_name, **found.measure(user_code, item_code)}
        for user_code, user_name in enumerate(users.names)
        for item_code, item_name in enumerate(items.names)
    ]
    for family in (segments, cells):
        _adjust(family, labels, value)
    sample_ratio = _sample_ratio(overall["num_users"], expected_share)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "experiment",
        "variant": variant,
        "control": control,
        "treatment": treatment,
        "labels": labels,
        "value": value or None,
        "confidence": confidence,
        "notes": [text for found_ids in matches for text in found_ids.notes]
        + _notes(sample_ratio, excluded, overall, segments, cells, labels, value),
        "method": METHOD,
        "overall": overall,
        "segments": segments,
        "cells": cells,
        "segment_rules": {"user": users.rule, "item": items.rule},
        "sample_ratio": sample_ratio,
        "excluded": excluded,
    }


class _Slices(NamedTuple):
    """Turns sums into the numbers of the report."""

    sums: dict[tuple[str, int | None, int | None], Sums]
    labels: list[str]
    value: str
    confidence: float

    def num_users(self, user_code: int | None, item_code: int | None) -> dict[str, int]:
        return {role: self._of(role, user_code, item_code).num_users for role in ("control", "treatment")}

    def measure(self, user_code: int | None, item_code: int | None) -> dict[str, Any]:
        """Counts, conversion per label and revenue of a slice; None: all users, all items."""
        pair = {role: self._of(role, user_code, item_code) for role in ("control", "treatment")}
        found: dict[str, Any] = {
            "num_rows": {role: int(sums.x) for role, sums in pair.items()},
            "num_users": {role: sums.num_users for role, sums in pair.items()},
            "labels": {},
            "value": None,
        }
        for measure, label in enumerate(self.labels):
            found["labels"][label] = self._lift({r: s.per_exposure(measure) for r, s in pair.items()}, pair, measure)
        if self.value:
            last = len(self.labels)
            enrolled = self.num_users(user_code, None)
            ratios = {
                "per_exposure": {role: sums.per_exposure(last) for role, sums in pair.items()},
                "per_user": {role: sums.per_user(last, sums.num_users) for role, sums in pair.items()},
                "per_enrolled_user": {role: sums.per_user(last, enrolled[role]) for role, sums in pair.items()},
            }
            found["value"] = {name: self._lift(ratio, pair, last) for name, ratio in ratios.items()}
            totals = {role: self._of(role, None, None).measures[last][0] for role in pair}
            found["value"]["share"] = {
                role: sums.measures[last][0] / totals[role] if totals[role] else None for role, sums in pair.items()
            }
        return found

    def _of(self, role: str, user_code: int | None, item_code: int | None) -> Sums:
        num_measures = len(self.labels) + bool(self.value)
        return self.sums.get((role, user_code, item_code), Sums(0, 0.0, 0.0, ((0.0, 0.0, 0.0, 0),) * num_measures))

    def _lift(self, ratios: dict[str, RatioSums], pair: dict[str, Sums], measure: int) -> dict[str, Any]:
        lift = ratio_lift(ratios["control"], ratios["treatment"], self.confidence)
        return {
            "control": lift.control,
            "treatment": lift.treatment,
            "delta": lift.delta,
            "lift_pct": None if lift.lift is None else 100 * lift.lift,
            lift_key(self.confidence): None if lift.low is None else [100 * lift.low, 100 * (lift.high or 0)],
            "p_value": lift.p_value,
            "num_users_above_zero": {role: sums.measures[measure][3] for role, sums in pair.items()},
        }


def _check_options(
    labels: list[str], value: str, control: str, treatment: str, confidence: float, expected_share: float
) -> None:
    if not labels and not value:
        raise InputError("experiment: neither a label nor a value column is named; nothing to compare")
    if len(set(labels)) < len(labels):
        raise InputError(f"experiment: label columns must differ, got {', '.join(labels)}")
    if control == treatment or not control or not treatment:
        raise InputError(f"experiment: control is '{control}' and treatment '{treatment}', expected two names")
    if not 0.5 <= confidence < 1:
        raise InputError(f"experiment: confidence is {confidence}, expected 0.5 to below 1, such as 0.95")
    if not 0 < expected_share < 1:
        raise InputError(f"experiment: expected_share is {expected_share}, expected above 0 and below 1, such as 0.5")


def _adjust(family: list[dict[str, Any]], labels: list[str], value: str) -> None:
    """Adds p_value_holm to every metric: a metric is tested once per slice of the family."""
    if not family:
        return
    metrics = [[found["labels"][label] for found in family] for label in labels]
    metrics += [[found["value"][name] for found in family] for name in VALUE_METRICS if value]
    for tests in metrics:
        for test, adjusted in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
            test["p_value_holm"] = adjusted


def _sample_ratio(num_users: dict[str, int], expected_share: float) -> dict[str, Any]:
    """Chi-square test, one degree of freedom, of the number of users per variant against the planned split."""
    total = sum(num_users.values())
    expected = total * expected_share
    chi_square = (num_users["treatment"] - expected) ** 2 * (1 / expected + 1 / (total - expected))
    return {"users": num_users, "expected_share": expected_share, "p_value": math.erfc(math.sqrt(chi_square / 2))}


def _notes(
    sample_ratio: dict[str, Any],
    excluded: dict[str, Any],
    overall: dict[str, Any],
    segments: list[dict[str, Any]],
    cells: list[dict[str, Any]],
    labels: list[str],
    value: str,
) -> list[str]:
    notes = []
    if sample_ratio["p_value"] < MISMATCH_P_VALUE:
        users = sample_ratio["users"]
        notes.append(
            f"Sample ratio mismatch: {users['control']:,} users in control and {users['treatment']:,} in treatment, "
            f"where treatment was to get {100 * sample_ratio['expected_share']:g} % (p "
            f"{p_text(sample_ratio['p_value'])}). Find the cause first: no number below can be trusted until then."
        )
    if excluded["num_users_in_other_variants_too"]:
        notes.append(
            f"{excluded['num_users_in_other_variants_too']:,} users were in another variant too; only their rows of "
            "control or treatment are counted."
        )
    few = ["overall"] if _is_rough(overall, labels, value) else []
    few += [f"{s['entity']}s {segment_text(s['segment'])}" for s in segments if _is_rough(s, labels, value)]
    num_cells = sum(_is_rough(cell, labels, value) for cell in cells)
    few += [f"{num_cells} cell{'s' if num_cells > 1 else ''} of the two"] if num_cells else []
    if few:
        notes.append(
            f"Rough intervals, for fewer than {FEW_USERS} users of a variant brought a conversion or revenue: "
            f"{', '.join(few)}."
        )
    return notes


def _is_rough(found: dict[str, Any], labels: list[str], value: str) -> bool:
    metrics = [found["labels"][label] for label in labels] + ([found["value"]["per_user"]] if value else [])
    return any(
        metric["p_value"] is not None and min(metric["num_users_above_zero"].values()) < FEW_USERS for metric in metrics
    )
