"""What may be claimed? Plain sentences from the numbers of a report."""

from __future__ import annotations

from typing import Any, NamedTuple

from learn_rank.evaluation.statistics import interval_key

SEGMENT_NAMES = {"cold_start": "cold-start", "long_tail": "long-tail", "others": "others"}


class Claim(NamedTuple):
    """A sentence and its outcome: 'up', 'down', 'unclear' (the interval holds zero) or 'none' (no interval)."""

    outcome: str
    sentence: str


def outcome(metric: dict[str, Any], key: str) -> str:
    """Which side of zero the interval lies on; a metric where less is better is for the caller to turn round."""
    bounds = metric.get(key)
    if bounds is None:
        return "none"
    low, high = bounds
    return "up" if low > 0 else "down" if high < 0 else "unclear"


def claims(report: dict[str, Any]) -> list[Claim]:
    """The verdict on the treatment, the control's if there is one, and the lift by segment; the verdict is first."""
    if report["treatment"] is None:
        return [_alone(report)]
    found = [_verdict(report)]
    if report["control"] is not None:
        found.append(_control(report))
    return found + [_by_segment(report, entity) for entity in ("user", "item")]


def signed_interval(metric: dict[str, Any], report: dict[str, Any]) -> str:
    """'95 % interval +1.80 to +2.40', in percentage points."""
    low, high = metric[interval_key(report["confidence"])]
    return f"{100 * report['confidence']:g} % interval {low:+.2f} to {high:+.2f}"


def _alone(report: dict[str, Any]) -> Claim:
    value, num_users = report["overall"]["uauc"]["baseline"], report["overall"]["num_users_scored"]
    if value is None:
        return Claim("none", f"{report['baseline']} has no UAUC: no user has both classes.")
    return Claim("none", f"{report['baseline']} has a UAUC of {value:.4f} over {num_users:,} users.")


def _verdict(report: dict[str, Any]) -> Claim:
    metric, num_users = report["overall"]["uauc"], report["overall"]["num_users_scored"]
    side = outcome(metric, interval_key(report["confidence"]))
    arm, baseline = report["treatment"], report["baseline"]
    if side == "none":
        return Claim(side, f"No lift can be claimed: {num_users} users with both classes give no interval for UAUC.")
    delta, bounds = metric["delta_pp"], signed_interval(metric, report)
    if side == "up":
        return Claim(side, f"{arm} lifts UAUC by {delta:+.2f} pp over {baseline} ({bounds}).")
    if side == "down":
        return Claim(side, f"{arm} lowers UAUC: {delta:+.2f} pp against {baseline} ({bounds}).")
    return Claim(side, f"No lift can be claimed: the interval of UAUC holds zero ({delta:+.2f} pp, {bounds}).")


def _control(report: dict[str, Any]) -> Claim:
    metric = report["control"]["overall"]["uauc"]
    side = outcome(metric, interval_key(report["confidence"]))
    if side == "none":
        return Claim(side, "The shuffled control has no interval.")
    start = f"The shuffled control shows {metric['delta_pp']:+.2f} pp ({signed_interval(metric, report)})"
    if side == "up":
        return Claim(side, f"{start}: part of any lift comes without meaning; look for a leak or for added capacity.")
    lift = report["overall"]["uauc"]["delta_pp"]
    if side == "unclear" and lift is not None and 0 < lift <= metric[interval_key(report["confidence"])][1]:
        return Claim(side, f"{start}: it holds zero, but is too wide to rule out the treatment's {lift:+.2f} pp.")
    return Claim(side, f"{start}: no lift without meaning.")


def _by_segment(report: dict[str, Any], entity: str) -> Claim:
    key = interval_key(report["confidence"])
    parts = []
    for found in report["segments"]:
        if found["entity"] != entity:
            continue
        metric, name = found["uauc"], SEGMENT_NAMES[found["segment"]]
        side = outcome(metric, key)
        if metric["delta_pp"] is None:
            parts.append(f"{name} no user to score")
        else:
            doubt = {"unclear": " (unclear)", "none": " (no interval)"}.get(side, "")
            parts.append(f"{name} {metric['delta_pp']:+.2f} pp{doubt}")
    return Claim("none", f"UAUC by {entity} segment: {', '.join(parts)}.")
