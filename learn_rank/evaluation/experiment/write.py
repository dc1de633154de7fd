"""Writes the report of an online experiment: report.json, report.md, report.html."""

from __future__ import annotations

from pathlib import Path

from learn_rank.durable import write_json, write_text
from learn_rank.evaluation.experiment.page import ExperimentPage
from learn_rank.evaluation.experiment.report import FILE, ExperimentReport
from learn_rank.evaluation.experiment.text import experiment_markdown
from learn_rank.evaluation.report.rendering import render


def write_experiment(report: ExperimentReport, directory: Path) -> None:
    """Writes report.json, report.md and report.html into a folder; the HTML is one file that needs no network."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / FILE, report.to_json())
    write_text(directory / "report.md", experiment_markdown(report))
    write_text(directory / "report.html", render("experiment.html.jinja", page=ExperimentPage.of(report)))
