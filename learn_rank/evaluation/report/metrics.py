"""The table of metrics: how each is called, computed, adjusted and shown. Every page, table and verdict reads it.

To add a metric by segment: write its formula, a function of `SliceSums`, and add its line here. If no sum holds what it
needs, add a position to `row_sums` in engine/user_metrics.py first, and fill it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from learn_rank.evaluation.calibration import calibration_error, click_over_predicted, log_loss, normalized_entropy
from learn_rank.evaluation.engine.user_metrics import CLIP, FIRST_VALUE, POSITIVES, ROWS, UAUC, USERS, WUAUC
from learn_rank.evaluation.slice_sums import SliceSums
from learn_rank.evaluation.statistics import Estimate, compare_auc, compare_means

# which sums a metric needs: of a user's own ranking, of all pairs of rows, of probabilities, of their bins
Needs = Literal["users", "pairs", "probabilities", "bins"]


@dataclass(frozen=True)
class MetricSpec:
    """One line of the table."""

    key: str  # in report.json, and the attribute of a Slice
    title: str
    meaning: str  # for the page's glossary; {weight} stands for what users are weighted by
    compute: Callable[[SliceSums], Estimate]
    needs: Needs
    shown: Literal["ranking", "calibration"]  # the table where every slice has it; ranking metrics are cards too
    better: Literal["higher", "lower", "near 1"]
    unit: Literal["pp", ""] = ""  # of differences: percentage points, or the metric's own unit
    family: str = ""  # p-values of one family are adjusted together, over all segments and again over all cells
    has_interval: bool = True
    is_overall_only: bool = False
    bootstrap: int | None = None  # position of its sums among those that the bootstrap resamples


def user_means(metric: int) -> Callable[[SliceSums], Estimate]:
    """A weighted mean over users; metric: the position of its sums in `SliceSums.moments`."""
    return lambda sums: compare_means(sums.moments[metric], sums.arm, sums.confidence)


def pair_auc(sums: SliceSums) -> Estimate:
    """AUC over all pairs of rows, whoever their user is."""
    return compare_auc(
        [int(sums.wins2[m]) for m in sums.arms],
        sums.centred,
        positives=int(sums.counts[POSITIVES]),
        negatives=int(sums.counts[ROWS] - sums.counts[POSITIVES]),
        num_users=int(sums.counts[USERS]),
        confidence=sums.confidence,
    )


METRICS = (
    MetricSpec(
        key="uauc",
        title="UAUC",
        meaning="The AUC of each user's own ranking (the share of positive-negative pairs in the right order, "
        "ties one half), averaged over users with both classes.",
        compute=user_means(UAUC),
        needs="users",
        shown="ranking",
        better="higher",
        unit="pp",
        family="ranking",
        bootstrap=UAUC,
    ),
    MetricSpec(
        key="wuauc",
        title="WUAUC",
        meaning="The same, each user weighted by their {weight} in the slice.",
        compute=user_means(WUAUC),
        needs="users",
        shown="ranking",
        better="higher",
        unit="pp",
        family="ranking",
        bootstrap=WUAUC,
    ),
    MetricSpec(
        key="auc",
        title="AUC",
        meaning="The share over all pairs of rows, whoever their user is.",
        compute=pair_auc,
        needs="pairs",
        shown="ranking",
        better="higher",
        unit="pp",
        family="ranking",
    ),
    MetricSpec(
        key="log_loss",
        title="Log loss",
        meaning=f"Mean of -ln p(label), probabilities clipped at {CLIP}.",
        compute=log_loss,
        needs="probabilities",
        shown="calibration",
        better="lower",
        family="log_loss",
    ),
    MetricSpec(
        key="normalized_entropy",
        title="Normalised entropy",
        meaning="Log loss over that of always predicting the slice's base rate; below 1 beats it. The interval counts "
        "the base rate as estimated from the same users.",
        compute=normalized_entropy,
        needs="probabilities",
        shown="calibration",
        better="lower",
        family="normalized_entropy",
    ),
    MetricSpec(
        key="copc",
        title="COPC",
        meaning="Sum of labels over sum of predictions: above 1, too little is predicted.",
        compute=click_over_predicted,
        needs="probabilities",
        shown="calibration",
        better="near 1",
        has_interval=False,
    ),
    MetricSpec(
        key="ece",
        title="ECE",
        meaning="Mean gap between prediction and observed rate over the bins.",
        compute=calibration_error,
        needs="bins",
        shown="calibration",
        better="lower",
        has_interval=False,
        is_overall_only=True,
    ),
)
BY_KEY = {spec.key: spec for spec in METRICS}
RANKING = tuple(spec for spec in METRICS if spec.shown == "ranking")
CALIBRATION = tuple(spec for spec in METRICS if spec.shown == "calibration")
FAMILIES = tuple(dict.fromkeys(spec.family for spec in METRICS if spec.family))


def in_sentence(title: str) -> str:
    """A title within a sentence: 'log loss'; abbreviations stay."""
    return title if title.isupper() else f"{title[0].lower()}{title[1:]}"


def captured_value(position: int, k: int) -> MetricSpec:
    """Revenue in a user's top k: one line per k that the options name, in that position among them."""
    return MetricSpec(
        key="value",
        title=f"top {k}",
        meaning="",
        compute=user_means(FIRST_VALUE + position),
        needs="users",
        shown="ranking",
        better="higher",
        unit="pp",
        family="value",
        bootstrap=FIRST_VALUE + position,
    )
