"""Sums to metrics, and metrics to what people read: JSON, HTML, Markdown, a terminal's table."""

from learn_rank.evaluation.report.report import Report
from learn_rank.evaluation.report.write import format_table, write_report

__all__ = ["Report", "format_table", "write_report"]
