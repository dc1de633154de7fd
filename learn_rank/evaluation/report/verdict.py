"""What may be claimed? Plain sentences from the numbers of a report.

Overall, the interval of UAUC decides. In segments and cells, many of which are looked at, it is the p-value after
Holm's adjustment: an interval that leaves out zero is not enough there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from learn_rank.evaluation.report.wording import Wording, listed, segment_text, share_text, slice_text
from learn_rank.evaluation.statistics import FEW_USERS, RANKING_METRICS, interval_key

CHECK_TOLERANCE = 0.25  # of the width of an interval against its bootstrap
_CHECK_SAMPLES = 200  # fewer bootstrap samples stray this far by chance
_LISTED_SEGMENTS = 4
_LOW_SHARE = 0.5


class Claim(NamedTuple):
    """A sentence and its outcome: 'up', 'down', 'unclear' (zero is not ruled out) or 'none' (nothing to judge by)."""

    outcome: str
    sentence: str


class Standing(NamedTuple):
    """The verdict in a few words. tone: 'up', 'doubt' (up, and the control does not clear it), or as of a claim."""

    tone: str
    label: str


def outcome(metric: dict[str, Any], key: str) -> str:
    """Which side of zero the interval lies on; a metric where less is better is for the caller to turn round."""
    bounds = metric.get(key)
    if bounds is None:
        return "none"
    low, high = bounds
    return "up" if low > 0 else "down" if high < 0 else "unclear"


def adjusted_outcome(metric: dict[str, Any], confidence: float, estimate: str = "delta_pp") -> str:
    """Which side of zero a metric of a segment or cell is on after Holm's adjustment; never a side without one."""
    if metric.get("p_value") is None:
        return "none"
    adjusted = metric.get("p_value_holm")
    if adjusted is None or adjusted >= round(1 - confidence, 12):  # 1 - 0.95 is a little above 0.05
        return "unclear"
    return "up" if metric[estimate] > 0 else "down"


def comparisons(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One report per label and treatment, the one at the top first."""
    return [report, *({**report, **block, "further": []} for block in report["further"])]


def standing(report: dict[str, Any]) -> Standing:
    """Verdict and control in one label."""
    if report["treatment"] is None:
        return Standing("none", "One ranker, nothing to compare")
    wording = Wording.of(report)
    side = outcome(report["overall"]["uauc"], wording.key)
    if side != "up":
        return Standing(side, {"down": "A loss", "unclear": "Unclear", "none": "Nothing to judge by"}[side])
    if report["control"] is None:
        return Standing("up", "A lift")
    return {
        "clean": Standing("up", "A lift, and the control has none"),
        "lifts": Standing("doubt", "A lift, but the control lifts too"),
        "wide": Standing("doubt", "A lift, but the control cannot confirm it"),
        "none": Standing("doubt", "A lift, but the control cannot confirm it"),
    }[_judge_control(report, wording)]


def claims(report: dict[str, Any], *, with_segments: bool = True) -> list[Claim]:
    """The verdict on the treatment first, then the control's, what speaks against it, and the lift by segment."""
    wording = Wording.of(report)
    if report["treatment"] is None:
        return [_alone(report, wording), *_coverage(report)]
    found = [_verdict(report, wording), *_control(report, wording), *_dissent(report, wording), *_coverage(report)]
    if with_segments:
        found += [claim for entity in ("user", "item") for claim in _by_segment(report, wording, entity)]
    return found


def check_notes(report: dict[str, Any]) -> list[str]:
    """A note where the bootstrap and the closed form disagree on how wide an interval is."""
    if report["options"].get("bootstrap_samples", 0) < _CHECK_SAMPLES:
        return []
    key = Wording.of(report).key
    apart = []
    for found in [report["overall"], *report["segments"]]:
        if found["num_users_scored"] < FEW_USERS:
            continue  # has a note of its own
        tests = [(name.upper(), found[name]) for name in RANKING_METRICS if name in found]
        tests += [(f"top {metric['k']}", metric) for metric in found.get("value", [])]
        for name, metric in tests:
            closed, drawn = metric.get(key), metric.get(f"bootstrap_{key}")
            if closed and drawn and closed[1] > closed[0]:
                ratio = (drawn[1] - drawn[0]) / (closed[1] - closed[0])
                if abs(ratio - 1) > CHECK_TOLERANCE:
                    apart.append(f"{slice_text(found)} {name} ({ratio:.2f} times as wide)")
    if not apart:
        return []
    return [
        f"The bootstrap, a check, does not confirm the width of these intervals: {listed(apart)}. A few users may "
        "decide them; believe the wider of the two, which report.json holds."
    ]


def num_tests(family: list[dict[str, Any]]) -> int:
    """How many p-values of a family of slices Holm's adjustment went over."""
    return sum(found.get(name, {}).get("p_value") is not None for found in family for name in RANKING_METRICS)


def experiment_metrics(report: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Titles and places of what an online experiment randomised: its labels, and revenue per enrolled user."""
    metrics = [(label, ("labels", label)) for label in report["labels"]]
    return metrics + [(f"{report['value']} per enrolled user", ("value", "per_enrolled_user"))] * bool(report["value"])


def experiment_claims(report: dict[str, Any]) -> list[Claim]:
    """One per metric that an online experiment randomised."""
    found = []
    for title, (kind, name) in experiment_metrics(report):
        metric = report["overall"][kind][name]
        side = outcome(metric, lift_key(report["confidence"]))
        if side == "none":
            found.append(Claim(side, f"No lift of {title} can be claimed: there is no interval."))
            continue
        low, high = metric[lift_key(report["confidence"])]
        said = f"{100 * report['confidence']:g} % interval {low:+.2f} to {high:+.2f}"
        lift, arm, control = f"{metric['lift_pct']:+.2f} %", report["treatment"], report["control"]
        sentence = {
            "up": f"{arm} lifts {title} by {lift} over {control} ({said}).",
            "down": f"{arm} lowers {title}: {lift} against {control} ({said}).",
            "unclear": f"No lift of {title} can be claimed: the interval holds zero ({lift}, {said}).",
        }[side]
        found.append(Claim(side, sentence))
    return found


def experiment_standing(report: dict[str, Any], *, is_mismatch: bool) -> Standing:
    """All metrics of an online experiment in one label. is_mismatch: the variants got unplanned shares of the users."""
    sides = [claim.outcome for claim in experiment_claims(report)]
    if is_mismatch:
        return Standing("doubt", "Sample ratio mismatch: nothing below can be trusted yet")
    if "down" in sides:
        return Standing("doubt", "Mixed: a lift and a loss") if "up" in sides else Standing("down", "A loss")
    if set(sides) == {"up"}:
        return Standing("up", "A lift")
    if "up" in sides:
        return Standing("unclear", f"A lift of {sides.count('up')} of {len(sides)} metrics")
    return Standing("unclear", "Unclear")


def lift_key(confidence: float) -> str:
    """Key of a lift's interval in percent: ci95_pct at 0.95."""
    return interval_key(confidence).replace("_pp", "_pct")


def _alone(report: dict[str, Any], wording: Wording) -> Claim:
    metric, num_users = report["overall"]["uauc"], report["overall"]["num_users_scored"]
    if metric["baseline"] is None:
        return Claim("none", f"{report['baseline']} has no UAUC: no user has both classes.")
    bounds = metric.get(wording.level_key)
    said = f" ({wording.percent} interval {wording.level(bounds[0])} to {wording.level(bounds[1])})" if bounds else ""
    return Claim(
        "none",
        f"{report['baseline']} has a UAUC of {wording.level(metric['baseline'])}{said} over {num_users:,} users.",
    )


def _verdict(report: dict[str, Any], wording: Wording) -> Claim:
    metric, num_users = report["overall"]["uauc"], report["overall"]["num_users_scored"]
    side = outcome(metric, wording.key)
    arm, baseline = report["treatment"], report["baseline"]
    if side == "none":
        return Claim(side, f"No lift can be claimed: {num_users} users with both classes give no interval for UAUC.")
    delta, bounds = f"{wording.points(metric['delta_pp'])} pp", wording.with_bounds(metric)
    if side == "up":
        return Claim(side, f"{arm} lifts UAUC by {delta} over {baseline} ({bounds}).")
    if side == "down":
        return Claim(side, f"{arm} lowers UAUC: {delta} against {baseline} ({bounds}).")
    return Claim(side, f"No lift can be claimed: the interval of UAUC holds zero ({delta}, {bounds}).")


def _judge_control(report: dict[str, Any], wording: Wording) -> str:
    """'lifts', 'wide' (holds zero and the treatment's lift), 'clean', or 'none' without an interval."""
    metric = report["control"]["overall"]["uauc"]
    side = outcome(metric, wording.key)
    if side in ("none", "up"):
        return "lifts" if side == "up" else "none"
    lift = report["overall"]["uauc"]["delta_pp"]
    return "wide" if side == "unclear" and lift is not None and 0 < lift <= metric[wording.key][1] else "clean"


def _control(report: dict[str, Any], wording: Wording) -> list[Claim]:
    if report["control"] is None:
        if outcome(report["overall"]["uauc"], wording.key) != "up":
            return []
        return [Claim("none", "No control arm: a leak or added capacity is not ruled out as the cause.")]
    metric = report["control"]["overall"]["uauc"]
    judged = _judge_control(report, wording)
    if judged == "none":
        return [Claim("none", "The shuffled control has no interval.")]
    start = f"The shuffled control shows {wording.points(metric['delta_pp'])} pp ({wording.with_bounds(metric)})"
    lift = report["overall"]["uauc"]["delta_pp"]
    end = {
        "lifts": "part of any lift comes without meaning; look for a leak or for added capacity.",
        "wide": f"it holds zero, but is too wide to rule out the treatment's {wording.points(lift or 0.0)} pp.",
        "clean": "no lift without meaning.",
    }[judged]
    return [Claim(outcome(metric, wording.key), f"{start}: {end}")]


def _dissent(report: dict[str, Any], wording: Wording) -> list[Claim]:
    """Metrics that move against UAUC."""
    overall = report["overall"]
    side = outcome(overall["uauc"], wording.key)
    found = []
    for name in RANKING_METRICS[1:]:
        other = outcome(overall[name], wording.key) if name in overall else "none"
        if {side, other} == {"up", "down"} or (other == "down" and side == "unclear"):
            verb = "falls" if other == "down" else "rises"
            found.append(Claim(other, f"{name.upper()} {verb}: {wording.difference(overall[name])} pp."))
    log_loss = overall.get("log_loss", {})
    bounds = log_loss.get(wording.plain_key)
    if bounds and bounds[0] > 0:
        said = f"{log_loss['delta']:+.5f} ({wording.percent} interval {bounds[0]:+.5f} to {bounds[1]:+.5f})"
        found.append(Claim("down", f"Its probabilities are worse: log loss {said}."))
    return found


def _coverage(report: dict[str, Any]) -> list[Claim]:
    """A caution where UAUC leaves out most users."""
    scored, num_users = report["overall"]["num_users_scored"], report["overall"]["num_users"]
    if not scored or scored >= _LOW_SHARE * num_users:
        return []
    return [Claim("none", f"UAUC and WUAUC speak of the {share_text(scored / num_users)} of users with both classes.")]


def _by_segment(report: dict[str, Any], wording: Wording, entity: str) -> list[Claim]:
    segments = [found for found in report["segments"] if found["entity"] == entity]
    if all(found["uauc"]["delta_pp"] is None for found in segments):
        return []
    if len(segments) <= _LISTED_SEGMENTS:
        parts = [_segment_part(found, wording) for found in segments]
        return [Claim("none", f"UAUC by {entity} segment: {', '.join(parts)}.")]
    by_side: dict[str, list[dict[str, Any]]] = {"up": [], "down": [], "unclear": [], "none": []}
    for found in segments:
        by_side[adjusted_outcome(found["uauc"], wording.confidence)].append(found)
    up, down = (sorted(by_side[side], key=lambda found: -abs(found["uauc"]["delta_pp"])) for side in ("up", "down"))
    said = f"up in {len(up)} of {len(segments)}" + (f" (most: {_segment_part(up[0], wording)})" if up else "")
    said += f", down in {listed([_segment_part(found, wording) for found in down])}" if down else ", down in none"
    said += f", unclear in {len(by_side['unclear'])}" + (
        f", no interval in {len(by_side['none'])}" if by_side["none"] else ""
    )
    return [Claim("none", f"UAUC by {entity} segment: {said}.")]


def _segment_part(found: dict[str, Any], wording: Wording) -> str:
    metric, name = found["uauc"], segment_text(found["segment"])
    if metric["delta_pp"] is None:
        return f"{name} no user to score"
    side = adjusted_outcome(metric, wording.confidence)
    doubt = {"unclear": " (unclear)", "none": " (no interval)"}.get(side, "")
    return f"{name} {wording.points(metric['delta_pp'])} pp{doubt}"
