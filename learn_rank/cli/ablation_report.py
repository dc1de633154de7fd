"""What is each part of LEARN worth? Variants over seeds, beside the paper's figures: report.json of an ablation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from learn_rank.cli.config import AblateOptions
from learn_rank.cli.variants import REFERENCE, Variant

_METRICS = ("ndcg@10", "recall@10", "mrr")  # the first one says which variants are told apart
_INDUSTRY_METRICS = ("hit_rate@50", "recall@50", "hit_rate@100", "recall@100")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """One variant with one seed: the facts of its manifest, its metrics.json, UAUC of its ranker and the baseline's."""

    variant: str
    seed: int
    folder: str
    fingerprint: str
    facts: dict[str, Any]
    metrics: dict[str, Any]
    uauc: dict[str, Any] | None


def summarise(
    variants: Sequence[Variant], runs: Sequence[Run], options: AblateOptions, *, dataset: str
) -> dict[str, Any]:
    """report.json: means and standard deviations over the seeds, differences to `learn`, the paper's figures.

    A difference is within the spread of the seeds if the 95 % t interval of the paired differences (same seed) holds
    zero; null for one seed.
    """
    metrics = _INDUSTRY_METRICS if options.paper == "industry" else _METRICS
    runs_of = {variant.name: [run for run in runs if run.variant == variant.name] for variant in variants}
    scores = {
        name: {metric: [_score(run, metric) for run in own] for metric in metrics} for name, own in runs_of.items()
    }
    figures = {variant.name: variant.recipe.paper.get(options.paper, {}) for variant in variants}
    first = metrics[0]
    pairs = [
        [a.name, b.name]
        for a, b in combinations(variants, 2)
        if _is_within_spread(scores[a.name][first], scores[b.name][first])
    ]
    return {
        "schema_version": 1,
        "dataset": dataset,
        "reference": REFERENCE,
        "paper": options.paper or None,
        "seeds": list(options.seeds),
        "metrics": list(metrics),
        "num_users": runs[0].metrics["test"]["num_users"],
        "variants": [_summary(variant, runs_of[variant.name], scores, figures) for variant in variants],
        "pairs_within_spread": pairs if len(options.seeds) > 1 else None,
    }


def _summary(
    variant: Variant,
    runs: Sequence[Run],
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    figures: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """A variant's part of report.json. scores: of every variant, by metric and seed; figures: the paper's."""
    own, reference = scores[variant.name], scores[REFERENCE]
    own_figures, reference_figures = figures[variant.name], figures[REFERENCE]
    is_reference = variant.name == REFERENCE
    metrics = {
        metric: {
            **_mean(own[metric]),
            "values": own[metric],
            "difference_percent": _percent(_mean(own[metric])["mean"], _mean(reference[metric])["mean"]),
            "is_within_spread": None if is_reference else _is_within_spread(own[metric], reference[metric]),
            "paper": own_figures.get(metric),
            "paper_difference_percent": _percent(own_figures.get(metric), reference_figures.get(metric)),
        }
        for metric in own
    }
    return {
        "name": variant.name,
        "title": variant.title,
        "tables": list(variant.recipe.tables),
        "changes": variant.changes,
        "metrics": metrics,
        "parameters": runs[0].facts["parameters"],
        "paper_parameters": own_figures.get("parameters"),
        "seconds": statistics.fmean(run.facts["seconds"] for run in runs),
        "selected_by": runs[0].facts["selected_by"],
        "validation": _mean([run.facts["validation_metric"] for run in runs]),
        "downstream": _lift(runs),
        "runs": [asdict(run) for run in runs],
    }


def _score(run: Run, metric: str) -> float | None:
    value: float | None = run.metrics["test"].get(metric)
    return value


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }


def _percent(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else 100 * (value / reference - 1)


def _is_within_spread(values: Sequence[float | None], others: Sequence[float | None]) -> bool | None:
    """[seeds] each, in one order of seeds."""
    pairs = [(a, b) for a, b in zip(values, others, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    differences = [a - b for a, b in pairs]
    half = _t_quantile(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return abs(statistics.fmean(differences)) <= half


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def _lift(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Means over the seeds; None where there is no ranker, or nobody whose UAUC is defined."""
    lifts = [run.uauc for run in runs if run.uauc is not None]
    if not lifts or any(lift["delta_pp"] is None for lift in lifts):
        return None
    low, high = (statistics.fmean(lift["interval_pp"][bound] for lift in lifts) for bound in (0, 1))
    deltas = [lift["delta_pp"] for lift in lifts]
    return {
        **{name: statistics.fmean(lift[name] for lift in lifts) for name in ("baseline", "treatment", "delta_pp")},
        "interval_pp": [low, high],
        "confidence": lifts[0]["confidence"],
        "std_pp": statistics.stdev(deltas) if len(deltas) > 1 else None,
    }
