"""Two rankers compared by user and item segment, from their predictions alone: UAUC, WUAUC, AUC, calibration."""

from learn_rank.evaluation.evaluate import EvaluateOptions, evaluate, user_auc
from learn_rank.evaluation.report import write_report

__all__ = ["EvaluateOptions", "evaluate", "user_auc", "write_report"]
