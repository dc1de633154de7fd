"""Sums to metrics, and metrics to what people read: JSON, HTML, Markdown, a terminal's table."""

from learn_rank.evaluation.report.write import format_table, write_experiment, write_report

__all__ = ["format_table", "write_experiment", "write_report"]
