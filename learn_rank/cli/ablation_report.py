"""What is each part of LEARN worth? Variants over seeds, beside the paper's figures, as JSON, Markdown and text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from learn_rank.cli.config import AblateOptions
from learn_rank.cli.variants import REFERENCE, Variant
from learn_rank.evaluation.report.marks import plain, table_text
from learn_rank.evaluation.report.terminal import aligned, wrapped

_METRICS = ("ndcg@10", "recall@10", "mrr")  # the first one says which variants are told apart
_INDUSTRY_METRICS = ("hit_rate@50", "recall@50", "hit_rate@100", "recall@100")
_MISSING = "-"
_CONFIDENCE = 0.95


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
    names = _INDUSTRY_METRICS if options.paper == "industry" else _METRICS
    of = {variant.name: [run for run in runs if run.variant == variant.name] for variant in variants}
    scores = {name: {metric: [_score(run, metric) for run in of[name]] for metric in names} for name in of}
    figures = {variant.name: variant.recipe.paper.get(options.paper, {}) for variant in variants}
    rows = []
    for variant in variants:
        metrics = {
            metric: {
                **_mean(scores[variant.name][metric]),
                "values": scores[variant.name][metric],
                "difference_percent": _percent(
                    _mean(scores[variant.name][metric])["mean"], _mean(scores[REFERENCE][metric])["mean"]
                ),
                "is_within_spread": None
                if variant.name == REFERENCE
                else _is_within_spread(scores[variant.name][metric], scores[REFERENCE][metric]),
                "paper": figures[variant.name].get(metric),
                "paper_difference_percent": _percent(figures[variant.name].get(metric), figures[REFERENCE].get(metric)),
            }
            for metric in names
        }
        rows.append(
            {
                "name": variant.name,
                "title": variant.title,
                "tables": list(variant.recipe.tables),
                "changes": variant.changes,
                "metrics": metrics,
                "parameters": of[variant.name][0].facts["parameters"],
                "paper_parameters": figures[variant.name].get("parameters"),
                "seconds": statistics.fmean(run.facts["seconds"] for run in of[variant.name]),
                "selected_by": of[variant.name][0].facts["selected_by"],
                "validation": _mean([run.facts["validation_metric"] for run in of[variant.name]]),
                "downstream": _lift(of[variant.name]),
                "runs": [asdict(run) for run in of[variant.name]],
            }
        )
    first = names[0]
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
        "metrics": list(names),
        "num_users": runs[0].metrics["test"]["num_users"],
        "variants": rows,
        "pairs_within_spread": pairs if len(options.seeds) > 1 else None,
    }


def text(report: dict[str, Any]) -> str:
    """For a terminal: a table for every two or three metrics, what training took, the ranker's lift, notes."""
    metrics, step = report["metrics"], 2 if report["paper"] else 3
    parts = [wrapped(_opening(report))]
    for start in range(0, len(metrics), step):
        parts.append("\n".join(aligned(_retrieval(report, metrics[start : start + step]))))
    parts.append("\n".join(aligned(_training(report))))
    if any(variant["downstream"] for variant in report["variants"]):
        parts.append("\n".join(aligned(_downstream(report))))
    return "\n\n".join([*parts, *map(wrapped, _notes(report))])


def markdown(report: dict[str, Any]) -> str:
    """report.md: the same, and what each variant changes."""
    parts = [
        f"# Ablation: {plain(report['dataset'])}",
        plain(_opening(report)),
        _markdown(_retrieval(report, report["metrics"])),
    ]
    parts += ["\n".join(f"- {plain(note)}" for note in _notes(report))]
    if any(variant["downstream"] for variant in report["variants"]):
        parts += ["## In the ranker", _markdown(_downstream(report))]
    parts += ["## Training", _markdown(_training(report)), "## Variants", _markdown(_legend(report))]
    return "\n\n".join(parts) + "\n"


def _retrieval(report: dict[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    header, is_beside = ["variant"], report["paper"] is not None
    for metric in metrics:
        has_figures = is_beside and any(
            variant["metrics"][metric]["paper"] is not None for variant in report["variants"]
        )
        header += [metric, "%", *(["paper", "%"] if has_figures else [])]
    lines = [header]
    for variant in report["variants"]:
        line = [variant["name"]]
        for metric in metrics:
            score = variant["metrics"][metric]
            is_reference = variant["name"] == REFERENCE
            mark = "~" if score["is_within_spread"] else " "
            line += [_level(score), "" if is_reference else _signed(score["difference_percent"]) + mark]
            if is_beside and any(each["metrics"][metric]["paper"] is not None for each in report["variants"]):
                figure = score["paper"]
                line.append(_MISSING if figure is None else f"{figure:.4f}")
                line.append("" if is_reference or figure is None else _signed(score["paper_difference_percent"]))
        lines.append(line)
    return lines


def _training(report: dict[str, Any]) -> list[list[str]]:
    has_figures = any(variant["paper_parameters"] for variant in report["variants"])
    lines = [["variant", "parameters", *["paper"] * has_figures, "seconds", "best epoch", "chosen by", "validation"]]
    for variant in report["variants"]:
        facts = [run["facts"] for run in variant["runs"]]
        best, epochs = (statistics.fmean(each[name] for each in facts) for name in ("best_epoch", "epochs"))
        line = [
            variant["name"],
            _count(variant["parameters"]),
            *[_count(variant["paper_parameters"])] * has_figures,
            f"{variant['seconds']:,.1f}",
            f"{round(best + 1, 1):g} of {round(epochs, 1):g}" if epochs else _MISSING,
            variant["selected_by"],
            _level(variant["validation"]),
        ]
        lines.append(line)
    return lines


def _downstream(report: dict[str, Any]) -> list[list[str]]:
    confidence = next(variant["downstream"]["confidence"] for variant in report["variants"] if variant["downstream"])
    lines = [
        ["variant", "baseline UAUC", "with vectors", "lift, pp", f"{100 * confidence:g} % interval", "sd of seeds"]
    ]
    for variant in report["variants"]:
        lift = variant["downstream"]
        if lift is None:
            lines.append([variant["name"], *[_MISSING] * 5])
            continue
        low, high = lift["interval_pp"]
        line = [
            variant["name"],
            f"{lift['baseline']:.4f}",
            f"{lift['treatment']:.4f}",
            f"{lift['delta_pp']:+.2f}",
            f"[{low:+.2f}, {high:+.2f}]",
            _MISSING if lift["std_pp"] is None else f"±{lift['std_pp']:.2f}",
        ]
        lines.append(line)
    return lines


def _legend(report: dict[str, Any]) -> list[list[str]]:
    lines = [["variant", "the paper's row", "options"]]
    for variant in report["variants"]:
        tables = ", ".join(map(str, variant["tables"]))
        row = f"{variant['title']} (Table{'s' * (len(variant['tables']) > 1)} {tables})" if tables else _MISSING
        changes = " ".join(f"{key}={value}" for key, value in variant["changes"].items() if value not in ("", []))
        lines.append([variant["name"], row, changes or "the run's own"])
    return lines


def _opening(report: dict[str, Any]) -> str:
    seeds = report["seeds"]
    over = f"mean of {len(seeds)} seeds ± their standard deviation" if len(seeds) > 1 else f"seed {seeds[0]}"
    return (
        f"{report['dataset']}: next item of {report['num_users']:,} test users among all items; {over}; "
        f"%: difference to {REFERENCE}."
    )


def _notes(report: dict[str, Any]) -> list[str]:
    seeds, first, pairs = len(report["seeds"]), report["metrics"][0], report["pairs_within_spread"]
    if pairs is None:
        notes = ["One seed: how much of a difference is chance is not known; ablate.seeds=[0,1,2] tells."]
    else:
        notes = [
            f"~: the difference to {REFERENCE} is within the spread of the {seeds} seeds: the {100 * _CONFIDENCE:g} % "
            "interval (t) of the differences, seed by seed, holds zero."
        ]
        others = "; ".join(f"{a} and {b}" for a, b in pairs if REFERENCE not in (a, b))
        if others:
            notes.append(f"Of the others, within the spread of the seeds in {first}: {others}.")
    if report["paper"]:
        notes.append(
            f"paper: LEARN (arXiv 2405.03988) on its {report['paper']} data; levels of other data do not compare, "
            "differences may."
        )
    if any(variant["downstream"] for variant in report["variants"]):
        notes.append(
            "Lift: UAUC of the ranker with the variant's vectors over the baseline of the same seed; the interval is "
            "the mean of the seeds' intervals, which are over users."
        )
    return notes


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

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))


def _lift(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Means over the seeds; None where there is no ranker, or nobody whose UAUC is defined."""
    measured = [run.uauc for run in runs if run.uauc is not None]
    if not measured or any(uauc["delta_pp"] is None for uauc in measured):
        return None
    low, high = (statistics.fmean(uauc["interval_pp"][bound] for uauc in measured) for bound in (0, 1))
    lifts = [uauc["delta_pp"] for uauc in measured]
    return {
        **{name: statistics.fmean(uauc[name] for uauc in measured) for name in ("baseline", "treatment", "delta_pp")},
        "interval_pp": [low, high],
        "confidence": measured[0]["confidence"],
        "std_pp": statistics.stdev(lifts) if len(lifts) > 1 else None,
    }


def _level(score: dict[str, float | None]) -> str:
    if score["mean"] is None:
        return _MISSING
    return f"{score['mean']:.4f}" + ("" if score["std"] is None else f" ±{score['std']:.4f}")


def _signed(percent: float | None) -> str:
    return _MISSING if percent is None else f"{percent:+.1f}"


def _count(number: float | None) -> str:
    """89M: as the paper writes parameters."""
    if number is None:
        return _MISSING
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _markdown(lines: list[list[str]]) -> str:
    return table_text(lines[0], ([cell.strip() for cell in line] for line in lines[1:]))
