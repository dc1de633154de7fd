"""Scoring with a trained ranker in a service: `Scorer`. Needs torch, pyarrow and numba; nothing that trains."""

from learn_rank.serving.request import Request
from learn_rank.serving.scorer import Scorer

__all__ = ["Request", "Scorer"]
