"""An ablation's report.json as Markdown and as text for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from learn_rank.cli.ablation_report import CONFIDENCE
from learn_rank.cli.variants import REFERENCE
from learn_rank.evaluation.report.marks import plain, table_text
from learn_rank.evaluation.report.terminal import aligned, wrapped

_MISSING = "-"


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
    variants = report["variants"]
    with_figures = {
        metric
        for metric in metrics
        if report["paper"] is not None and any(variant["metrics"][metric]["paper"] is not None for variant in variants)
    }
    header = ["variant"]
    for metric in metrics:
        header += [metric, "%", *(["paper", "%"] if metric in with_figures else [])]
    lines = [header]
    for variant in variants:
        line, is_reference = [variant["name"]], variant["name"] == REFERENCE
        for metric in metrics:
            level = variant["metrics"][metric]
            mark = "~" if level["is_within_spread"] else " "
            line += [_level(level), "" if is_reference else _signed(level["difference_percent"]) + mark]
            if metric in with_figures:
                figure = level["paper"]
                line.append(_MISSING if figure is None else f"{figure:.4f}")
                line.append("" if is_reference or figure is None else _signed(level["paper_difference_percent"]))
        lines.append(line)
    return lines


def _training(report: dict[str, Any]) -> list[list[str]]:
    has_figures = any(variant["paper_parameters"] for variant in report["variants"])
    lines = [["variant", "parameters", *["paper"] * has_figures, "seconds", "best epoch", "chosen by", "validation"]]
    for variant in report["variants"]:
        facts = [run["facts"] for run in variant["runs"]]
        best, epochs = (statistics.fmean(of_run[name] for of_run in facts) for name in ("best_epoch", "epochs"))
        line = [variant["name"], _count(variant["parameters"])]
        if has_figures:
            line.append(_count(variant["paper_parameters"]))
        line.append(f"{variant['seconds']:,.1f}")
        line.append(f"{round(best + 1, 1):g} of {round(epochs, 1):g}" if epochs else _MISSING)
        lines.append([*line, variant["selected_by"], _level(variant["validation"])])
    return lines


def _downstream(report: dict[str, Any]) -> list[list[str]]:
    lifts = {variant["name"]: variant["downstream"] for variant in report["variants"]}
    confidence = next(lift["confidence"] for lift in lifts.values() if lift)
    lines = [
        ["variant", "baseline UAUC", "with vectors", "lift, pp", f"{100 * confidence:g} % interval", "sd of seeds"]
    ]
    for name, lift in lifts.items():
        if lift is None:
            lines.append([name, *[_MISSING] * 5])
            continue
        low, high = lift["interval_pp"]
        spread = _MISSING if lift["std_pp"] is None else f"±{lift['std_pp']:.2f}"
        levels = [f"{lift['baseline']:.4f}", f"{lift['treatment']:.4f}", f"{lift['delta_pp']:+.2f}"]
        lines.append([name, *levels, f"[{low:+.2f}, {high:+.2f}]", spread])
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
            f"~: the difference to {REFERENCE} is within the spread of the {seeds} seeds: the {100 * CONFIDENCE:g} % "
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


def _level(values: dict[str, float | None]) -> str:
    if values["mean"] is None:
        return _MISSING
    return f"{values['mean']:.4f}" + ("" if values["std"] is None else f" ±{values['std']:.4f}")


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
