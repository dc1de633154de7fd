"""Numbers of the validation rows, by which training chooses its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.ranker.training.options import AUC, LOSS, UAUC, WUAUC

# (user_ids [N], labels [N] in {0, 1}, probabilities [N]) -> the number; None where it is undefined
Metric = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], float | None]


def validation_metrics() -> dict[str, Metric]:
    """What `ranker.training.monitor` can name."""
    return {UAUC: validation_uauc, WUAUC: validation_wuauc, AUC: validation_auc, LOSS: validation_loss}


def validation_uauc(users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float | None:
    """UAUC; None where no user has both classes."""
    return _mean_user_auc(users, labels, scores, is_weighted=False)


def validation_wuauc(users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float | None:
    """UAUC with users weighted by their impressions; None where no user has both classes."""
    return _mean_user_auc(users, labels, scores, is_weighted=True)


def validation_auc(_: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float | None:
    """AUC of all rows together; None where they have one class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if labels.min() < labels.max() else None


def validation_loss(_: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Mean log loss, lower is better; a probability of 0 or 1 counts as the nearest other float32."""
    edge = np.finfo(np.float32).eps / 2
    probabilities = np.clip(scores.astype(np.float64), edge, 1 - edge)
    return float(-np.log(np.where(labels == 1, probabilities, 1 - probabilities)).mean())


def _mean_user_auc(
    users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any], *, is_weighted: bool
) -> float | None:
    from learn_rank.evaluation.evaluate import user_auc

    positives = np.unique(users[labels == 1])
    if not np.isin(users[labels == 0], positives).any():
        return None
    return user_auc(users, labels.astype(np.int8), scores, is_weighted=is_weighted)
