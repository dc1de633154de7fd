"""A report in a notebook: verdict, notes and the metrics of ranking by segment, as one piece of HTML."""

from __future__ import annotations

from collections.abc import Sequence

from learn_rank.evaluation.report.comparison import Comparison
from learn_rank.evaluation.report.rendering import render
from learn_rank.evaluation.report.table_rows import ranking_table
from learn_rank.evaluation.report.verdict import check_notes, claims, standing
from learn_rank.evaluation.report.wording import Wording, label_text


def fragment(comparisons: Sequence[Comparison], notes: Sequence[str]) -> str:
    """HTML that needs no style sheet of its own; names of the data are escaped."""
    first = comparisons[0]
    sections = [
        (
            label_text(comparison.label),
            comparison.treatment,
            standing(comparison),
            claims(comparison, with_segments=False),
            ranking_table(comparison, Wording.of(comparison)),
        )
        for comparison in comparisons
    ]
    return render(
        "notebook.html.jinja",
        baseline=first.setup.baseline,
        percent=Wording.of(first).percent,
        notes=[*notes, *check_notes(first)],
        sections=sections,
    )
