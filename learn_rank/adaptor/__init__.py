"""LEARN-Adaptor for any ranker: fusion of frozen user and item vectors, trained by the CVR loss. Needs only torch."""

from learn_rank.adaptor.attach import attach
from learn_rank.adaptor.attached import Attached
from learn_rank.adaptor.features import LearnFeatures, VectorTable
from learn_rank.adaptor.fusion import AdaptorOutput, LearnAdaptor
from learn_rank.adaptor.loss import cvr_loss
from learn_rank.adaptor.vectors import RawVectors

__all__ = [
    "AdaptorOutput",
    "Attached",
    "LearnAdaptor",
    "LearnFeatures",
    "RawVectors",
    "VectorTable",
    "attach",
    "cvr_loss",
]
