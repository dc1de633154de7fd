"""Which labels have the towers learned from? What align records of it, export hands on and the report says."""

from __future__ import annotations

from typing import Any

from learn_rank.alignment.objectives import find_objective
from learn_rank.alignment.options import AlignOptions
from learn_rank.artifact import Manifest
from learn_rank.schema import LABELS_SEEN


def with_labels_seen(facts: dict[str, Any], options: AlignOptions, start: Manifest | None) -> dict[str, Any]:
    """The facts of trained towers, and beside them LABELS_SEEN.

    start: the towers that these began as, if they learned from the same log; what those have seen, these have too.
    """
    learns = find_objective(options.objective).trains and options.epochs > 0
    before = labels_seen(start) if start is not None else {}
    times = [time for time in (facts.get("until"), before.get("until")) if time is not None]
    seen = {
        "is_of_training": before.get("is_of_training", False) or (learns and not options.until and not options.halves),
        "until": max(times, default=None),
        "cosine_uauc": facts["cosine_uauc"],
    }
    return {**facts, LABELS_SEEN: seen}


def labels_seen(aligned: Manifest) -> dict[str, Any]:
    """LABELS_SEEN of align, or what its options say of it where an earlier version wrote none."""
    known: dict[str, Any] | None = aligned.facts.get(LABELS_SEEN)
    if known is not None:
        return known
    learns = find_objective(aligned.options["objective"]).trains and aligned.options["epochs"] > 0
    return {"is_of_training": learns, "until": None, "cosine_uauc": {}}


def leak_notes(seen: dict[str, Any] | None) -> list[str]:
    """The line of a report where vectors come from towers that learned from the labels of the ranker's own rows.

    seen: LABELS_SEEN of the stores that the rankers read; None of stores without it, of which nothing is known.
    """
    if not (seen and seen["is_of_training"]):
        return []
    training, later = (seen["cosine_uauc"].get(window) for window in ("train", "validation"))
    figures = ""
    if training is not None and later is not None:
        figures = f" (UAUC of the cosine: {training:.4f}, on validation {later:.4f})"
    return [
        "LEARN's vectors come from towers that learned from the labels of the ranker's training rows, with which they "
        f"agree better than with later ones{figures}: the ranker may trust them too much. align.halves=true or "
        "align.until=0.5 keeps those labels from them."
    ]
