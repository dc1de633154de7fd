"""Rankers compared by user and item segment, from their predictions alone: UAUC, WUAUC, AUC, calibration, revenue."""

from learn_rank.evaluation.evaluate import evaluate, user_auc
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.evaluation.report.report import Report
from learn_rank.evaluation.report.write import write_report
from learn_rank.evaluation.seeds import SeedLift, lift_over_seeds

__all__ = [
    "EvaluateOptions",
    "Report",
    "SeedLift",
    "SegmentOptions",
    "evaluate",
    "lift_over_seeds",
    "user_auc",
    "write_report",
]
