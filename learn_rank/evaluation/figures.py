"""Two pictures of a report, as inline SVG: the lift by segment, and the reliability curve."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from learn_rank.evaluation.statistics import FEW_USERS, RANKING_METRICS, interval_key
from learn_rank.evaluation.verdict import SEGMENT_NAMES, outcome

COLORS = {"up": "#0b7a53", "down": "#b3261e", "unclear": "#57606a", "none": "#57606a"}
_CONTROL, _GRID, _TEXT = "#a8b0b9", "#e3e7ec", "#24292f"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "learn-rank",  # the same report gives the same bytes
}


def forest_svg(report: dict[str, Any]) -> str:
    """Delta and interval of UAUC, WUAUC and AUC, overall and by segment; the control in grey below each.

    Filled and coloured: the interval excludes zero. Hollow: it holds zero. An arrow: it goes on beyond the axis.
    """
    key = interval_key(report["confidence"])
    rows = [("Overall", report["overall"]), *((_name(found), found) for found in report["segments"])]
    control = report["control"]
    control_rows = [control["overall"], *control["segments"]] if control else []
    low, high = _axis(report, control_rows, key)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 0.8 + 0.5 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(RANKING_METRICS), sharex=True, sharey=True)
        for panel, name in zip(panels, RANKING_METRICS, strict=True):
            panel.set_title(f"{name.upper()}, pp", loc="left", fontsize=10, fontweight="bold")
            panel.grid(axis="x", color=_GRID, linewidth=0.8)
            panel.axhline(0.5, color=_GRID, linewidth=0.8)
            panel.axhline(3.5, color=_GRID, linewidth=0.8)
            panel.axvline(0, color=_TEXT, linewidth=1)
            for position, (_, found) in enumerate(rows):
                _mark(panel, found[name], position - (0.12 if control else 0), key, limits=(low, high))
            for position, found in enumerate(control_rows):
                _mark(panel, found[name], position + 0.24, key, limits=(low, high), is_control=True)
            panel.set_xlim(low, high)
            panel.set_ylim(len(rows) - 0.4, -0.6)
            panel.tick_params(length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(range(len(rows)), [label for label, _ in rows])
        return _svg(figure, "forest")


def reliability_svg(report: dict[str, Any]) -> str:
    """Observed rate over mean prediction per equal-mass bin; on the diagonal the probabilities mean what they say."""
    curves = report["calibration"]["reliability"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 4.2), layout="constrained")
        panel = figure.subplots()
        top = 1.05 * max(max(curve["mean_predicted"] + curve["observed_rate"]) for curve in curves.values())
        panel.plot([0, top], [0, top], color=_CONTROL, linewidth=1, linestyle="--", label="perfect")
        for role, color, marker in (("baseline", "#8250df", "s"), ("treatment", "#0969da", "o")):
            if role in curves:
                panel.plot(
                    curves[role]["mean_predicted"],
                    curves[role]["observed_rate"],
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=1.4,
                    label=_literal(report[role]),
                )
        panel.set_xlim(0, top)
        panel.set_ylim(0, top)
        panel.set_xlabel("mean predicted probability")
        panel.set_ylabel(_literal(f"observed rate of {report['label']}"))
        panel.grid(color=_GRID, linewidth=0.8)
        panel.tick_params(length=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper left")
        return _svg(figure, "reliability")


def _name(found: dict[str, Any]) -> str:
    return f"{found['entity'].capitalize()}s: {SEGMENT_NAMES[found['segment']]}"


def _axis(report: dict[str, Any], control_rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Limits that hold zero and the intervals of slices with enough users, of all slices if none has."""
    slices = [report["overall"], *report["segments"], *control_rows]
    steady = [found for found in slices if found["num_users_scored"] >= FEW_USERS] or slices
    metrics = [found[name] for found in steady for name in RANKING_METRICS]
    ends = [0.0, *(end for metric in metrics for end in metric[key] or [metric["delta_pp"] or 0.0])]
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _mark(
    panel: Any,
    metric: dict[str, Any],
    height: float,
    key: str,
    *,
    limits: tuple[float, float],
    is_control: bool = False,
) -> None:
    """One estimate with its interval; nothing if there is no estimate."""
    delta = metric["delta_pp"]
    if delta is None:
        if not is_control:
            panel.text(0, height, "  no user to score", va="center", fontsize=7.5, color=COLORS["none"])
        return
    side = outcome(metric, key)
    color = _CONTROL if is_control else COLORS[side]
    low, high = metric[key] or (delta, delta)
    panel.plot(
        [max(low, limits[0]), min(high, limits[1])], [height, height], color=color, linewidth=1.4 + (not is_control)
    )
    for is_cut, edge, arrow in ((low < limits[0], limits[0], "<"), (high > limits[1], limits[1], ">")):
        if is_cut:
            panel.plot(edge, height, marker=arrow, color=color, markersize=6, clip_on=False)
    is_hollow = side not in ("up", "down")
    panel.plot(
        delta,
        height,
        marker="s" if is_control else "o",
        markersize=4 if is_control else 7,
        color=color,
        markerfacecolor="white" if is_hollow else color,
        markeredgewidth=1.6,
    )
    if not is_control:
        place = min(max(delta, limits[0]), limits[1])
        align = "left" if place == limits[0] else "right" if place == limits[1] else "center"
        halo = [withStroke(linewidth=2.5, foreground="white")]  # readable across the zero line
        text = f"{delta:+.2f}"
        panel.text(place, height - 0.17, text, ha=align, va="bottom", fontsize=7.5, color=color, path_effects=halo)


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads $...$ as mathematics


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element without prolog, metadata or namespace addresses: HTML needs none of them.

    Ids get the figure's name in front: two figures of one page must not share them.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text[text.index("<svg") :])
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
