"""What may be claimed? Plain sentences from the numbers of a comparison.

Overall, the interval of UAUC decides. In segments and cells, many of which are looked at, it is the p-value after
Holm's adjustment: an interval that leaves out zero is not enough there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from learn_rank.evaluation.report.comparison import Comparison, Control
from learn_rank.evaluation.report.metrics import RANKING
from learn_rank.evaluation.report.slices import Metric, Slice
from learn_rank.evaluation.report.wording import Wording, listed, segment_text, share_text, slice_text
from learn_rank.evaluation.statistics import FEW_USERS, Interval

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


def outcome(interval: Interval | None) -> str:
    """Which side of zero an interval lies on; a metric where less is better is for the caller to turn round."""
    if interval is None:
        return "none"
    return "up" if interval.low > 0 else "down" if interval.high < 0 else "unclear"


def holm_outcome(
    estimate: float | None, p_value: float | None, p_value_holm: float | None, *, confidence: float
) -> str:
    """Which side of zero a test of many is on after Holm's adjustment; never a side without one."""
    if p_value is None or estimate is None:
        return "none"
    if p_value_holm is None or p_value_holm >= round(1 - confidence, 12):  # 1 - 0.95 is a little above 0.05
        return "unclear"
    return "up" if estimate > 0 else "down"


def adjusted_outcome(metric: Metric, confidence: float) -> str:
    """`holm_outcome` of a metric of a segment or cell."""
    return holm_outcome(metric.delta, metric.p_value, metric.p_value_holm, confidence=confidence)


def standing(comparison: Comparison) -> Standing:
    """Verdict and control in one label."""
    if comparison.treatment is None:
        return Standing("none", "One ranker, nothing to compare")
    side = outcome(comparison.overall.uauc.interval)
    if side != "up":
        return Standing(side, {"down": "A loss", "unclear": "Unclear", "none": "Nothing to judge by"}[side])
    if comparison.control is None:
        return Standing("up", "A lift")
    return {
        "clean": Standing("up", "A lift, and the control has none"),
        "lifts": Standing("doubt", "A lift, but the control lifts too"),
        "wide": Standing("doubt", "A lift, but the control cannot confirm it"),
        "none": Standing("doubt", "A lift, but the control cannot confirm it"),
    }[_judge_control(comparison, comparison.control)]


def claims(comparison: Comparison, *, with_segments: bool = True) -> list[Claim]:
    """The verdict on the treatment first, then the control's, what speaks against it, and the lift by segment."""
    wording = Wording.of(comparison)
    if comparison.treatment is None:
        return [_alone(comparison, wording), *_coverage(comparison)]
    made = [
        _verdict(comparison, wording),
        *_control(comparison, wording),
        *_dissent(comparison, wording),
        *_coverage(comparison),
    ]
    if with_segments:
        made += [claim for entity in ("user", "item") for claim in _by_segment(comparison, wording, entity)]
    return made


def check_notes(comparison: Comparison) -> list[str]:
    """A note where the bootstrap and the closed form disagree on how wide an interval is."""
    if comparison.setup.bootstrap_samples < _CHECK_SAMPLES:
        return []
    apart = []
    for part in comparison.slices:
        if part.num_users_scored < FEW_USERS:
            continue  # has a note of its own
        tests = [(spec.title, part.metrics[spec.key]) for spec in RANKING if spec.key in part.metrics]
        tests += [(f"top {k}", metric) for k, metric in part.value.items()]
        for title, metric in tests:
            closed, drawn = metric.interval, metric.bootstrap
            if closed and drawn and closed.width > 0:
                ratio = drawn.width / closed.width
                if abs(ratio - 1) > CHECK_TOLERANCE:
                    apart.append(f"{slice_text(part)} {title} ({ratio:.2f} times as wide)")
    if not apart:
        return []
    return [
        f"The bootstrap, a check, does not confirm the width of these intervals: {listed(apart)}. A few users may "
        "decide them; believe the wider of the two, which report.json holds."
    ]


def num_tests(slices: Sequence[Slice]) -> int:
    """How many p-values of ranking metrics Holm's adjustment went over, in all segments or all cells."""
    return sum(
        part.metrics[spec.key].p_value is not None for part in slices for spec in RANKING if spec.key in part.metrics
    )


def _alone(comparison: Comparison, wording: Wording) -> Claim:
    baseline, metric = comparison.setup.baseline, comparison.overall.uauc
    if metric.baseline is None:
        return Claim("none", f"{baseline} has no UAUC: no user has both classes.")
    said, interval = "", metric.baseline_interval
    if interval:
        said = f" ({wording.percent} interval {wording.level(interval.low)} to {wording.level(interval.high)})"
    return Claim(
        "none",
        f"{baseline} has a UAUC of {wording.level(metric.baseline)}{said} over "
        f"{comparison.overall.num_users_scored:,} users.",
    )


def _verdict(comparison: Comparison, wording: Wording) -> Claim:
    metric, num_users = comparison.overall.uauc, comparison.overall.num_users_scored
    side = outcome(metric.interval)
    arm, baseline = comparison.treatment, comparison.setup.baseline
    if side == "none" or metric.delta is None:
        return Claim(side, f"No lift can be claimed: {num_users} users with both classes give no interval for UAUC.")
    delta, interval = f"{wording.points(metric.delta)} pp", wording.with_bounds(metric)
    if side == "up":
        return Claim(side, f"{arm} lifts UAUC by {delta} over {baseline} ({interval}).")
    if side == "down":
        return Claim(side, f"{arm} lowers UAUC: {delta} against {baseline} ({interval}).")
    return Claim(side, f"No lift can be claimed: the interval of UAUC holds zero ({delta}, {interval}).")


def _judge_control(comparison: Comparison, control: Control) -> str:
    """'lifts', 'wide' (holds zero and the treatment's lift), 'clean', or 'none' without an interval."""
    interval, lift = control.overall.uauc.interval, comparison.overall.uauc.delta
    side = outcome(interval)
    if interval is None or side == "up":
        return "none" if interval is None else "lifts"
    return "wide" if side == "unclear" and lift is not None and 0 < lift <= interval.high else "clean"


def _control(comparison: Comparison, wording: Wording) -> list[Claim]:
    control, lift = comparison.control, comparison.overall.uauc
    if control is None:
        if outcome(lift.interval) != "up":
            return []
        return [Claim("none", "No control arm: a leak or added capacity is not ruled out as the cause.")]
    metric = control.overall.uauc
    judged = _judge_control(comparison, control)
    if judged == "none" or metric.delta is None:
        return [Claim("none", "The shuffled control has no interval.")]
    start = f"The shuffled control shows {wording.points(metric.delta)} pp ({wording.with_bounds(metric)})"
    end = {
        "lifts": "part of any lift comes without meaning; look for a leak or for added capacity.",
        "wide": f"it holds zero, but is too wide to rule out the treatment's {wording.points(lift.delta or 0.0)} pp.",
        "clean": "no lift without meaning.",
    }[judged]
    return [Claim(outcome(metric.interval), f"{start}: {end}")]


def _dissent(comparison: Comparison, wording: Wording) -> list[Claim]:
    """Metrics that move against UAUC."""
    metrics = comparison.overall.metrics
    side = outcome(comparison.overall.uauc.interval)
    against = []
    for spec in RANKING[1:]:
        other = outcome(metrics[spec.key].interval) if spec.key in metrics else "none"
        if {side, other} == {"up", "down"} or (other == "down" and side == "unclear"):
            verb = "falls" if other == "down" else "rises"
            against.append(Claim(other, f"{spec.title} {verb}: {wording.difference(metrics[spec.key])} pp."))
    loss = metrics.get("log_loss")
    if loss is not None and loss.delta is not None and outcome(loss.interval) == "up":
        said = f"{wording.change(loss.delta, loss.unit)} ({wording.with_bounds(loss)})"
        against.append(Claim("down", f"Its probabilities are worse: log loss {said}."))
    return against


def _coverage(comparison: Comparison) -> list[Claim]:
    """A caution where UAUC leaves out most users."""
    scored, num_users = comparison.overall.num_users_scored, comparison.overall.num_users
    if not scored or scored >= _LOW_SHARE * num_users:
        return []
    return [Claim("none", f"UAUC and WUAUC speak of the {share_text(scored / num_users)} of users with both classes.")]


def _by_segment(comparison: Comparison, wording: Wording, entity: str) -> list[Claim]:
    segments = [part for part in comparison.segments if part.entity == entity]
    if all(part.uauc.delta is None for part in segments):
        return []
    if len(segments) <= _LISTED_SEGMENTS:
        parts = [_segment_part(part, wording) for part in segments]
        return [Claim("none", f"UAUC by {entity} segment: {', '.join(parts)}.")]
    by_side: dict[str, list[Slice]] = {"up": [], "down": [], "unclear": [], "none": []}
    for part in segments:
        by_side[adjusted_outcome(part.uauc, wording.confidence)].append(part)
    up, down = (sorted(by_side[side], key=lambda part: -abs(part.uauc.delta or 0.0)) for side in ("up", "down"))
    said = f"up in {len(up)} of {len(segments)}" + (f" (most: {_segment_part(up[0], wording)})" if up else "")
    said += f", down in {listed([_segment_part(part, wording) for part in down])}" if down else ", down in none"
    said += f", unclear in {len(by_side['unclear'])}"
    said += f", no interval in {len(by_side['none'])}" if by_side["none"] else ""
    return [Claim("none", f"UAUC by {entity} segment: {said}.")]


def _segment_part(part: Slice, wording: Wording) -> str:
    delta, name = part.uauc.delta, segment_text(part.segment)
    if delta is None:
        return f"{name} no user to score"
    side = adjusted_outcome(part.uauc, wording.confidence)
    doubt = {"unclear": " (unclear)", "none": " (no interval)"}.get(side, "")
    return f"{name} {wording.points(delta)} pp{doubt}"
