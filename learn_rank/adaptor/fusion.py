"""LEARN-Adaptor (arXiv 2405.03988, Fig. 5): frozen user and item vectors -> features for a ranker and a CVR logit."""

# annotations are types here and not strings: TorchScript reads them
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from learn_rank.adaptor.loss import cvr_loss
from learn_rank.adaptor.vectors import RawVectors
from learn_rank.errors import InputError
from learn_rank.layers import mlp

CONCATENATION, INTERACTIONS = FUSION_INPUTS = ("concatenation", "interactions")


class AdaptorOutput(NamedTuple):
    """Output of the adaptor for B rows.

    user [B, U] and item [B, I]: the normalised frozen vectors, or the learned missing vector where there is none.
    fusion [B, E]: the fusion embedding. cvr_logit [B]: before the sigmoid, for `cvr_loss`.
    """

    user: torch.Tensor
    item: torch.Tensor
    fusion: torch.Tensor
    cvr_logit: torch.Tensor

    def features(self) -> torch.Tensor:
        """[B, U + I + E], to be concatenated with the ranker's own features.

        TorchScript tuples have no methods; there, use torch.cat([output.user, output.item, output.fusion], 1).
        """
        return torch.cat([self.user, self.item, self.fusion], dim=1)

    def cvr_loss(self, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar to add to the ranker's loss; label and weight [B] as in `learn_rank.adaptor.cvr_loss`."""
        return cvr_loss(self.cvr_logit, label.reshape(-1), None if weight is None else weight.reshape(-1))


class LearnAdaptor(RawVectors):
    """Fusion module of two linear layers over [user, item], and an MLP on the fusion embedding that predicts CVR.

    RawVectors describes masks, normalization, scale, vector_dropout and synchronise.

    fusion_inputs: "concatenation" as in the paper; "interactions" adds the element-wise product of both and the cosine
    of the vectors before normalisation, and needs user_dim = item_dim. A row without one of them has cosine 0.
    stop_ranker_gradient: the ranker gets the fusion embedding detached, so only the CVR loss trains the fusion module;
    otherwise the ranker's loss trains it too.
    """

    def __init__(
        self,
        user_dim: int = 64,
        item_dim: int = 64,
        *,
        fusion_dim: int = 64,
        hidden_dim: int = 128,
        cvr_hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        normalization: str = "center",
        scale: float = 1.0,
        fusion_inputs: str = CONCATENATION,
        stop_ranker_gradient: bool = False,
        vector_dropout: float = 0.0,
        synchronise: bool = False,
    ) -> None:
        super().__init__(
            user_dim,
            item_dim,
            normalization=normalization,
            scale=scale,
            vector_dropout=vector_dropout,
            synchronise=synchronise,
        )
        if fusion_inputs not in FUSION_INPUTS:
            raise InputError(f"fusion_inputs is '{fusion_inputs}', expected one of {', '.join(FUSION_INPUTS)}")
        self.has_interactions = fusion_inputs == INTERACTIONS
        if self.has_interactions and user_dim != item_dim:
            raise InputError(
                f"fusion_inputs={INTERACTIONS} multiplies user and item vectors, which are {user_dim} and {item_dim} "
                f"wide; use {CONCATENATION}"
            )
        self.fusion_dim, self.stop_ranker_gradient = fusion_dim, stop_ranker_gradient
        in_dim = user_dim + item_dim + (user_dim + 1 if self.has_interactions else 0)
        self.fusion = mlp(in_dim, [hidden_dim], fusion_dim)
        self.cvr = mlp(fusion_dim, cvr_hidden_dims, 1, dropout=dropout)

    @property
    def feature_dim(self) -> int:
        """Width of `AdaptorOutput.features()`."""
        return self.user_dim + self.item_dim + self.fusion_dim

    def forward(  # type: ignore[override]
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        user_mask: torch.Tensor | None = None,
        item_mask: torch.Tensor | None = None,
    ) -> AdaptorOutput:
        """[B, U] and [B, I] vectors of any float type, with [B] masks (True: there is a vector; None: all have one)."""
        taken = self.take(user, item, user_mask, item_mask)
        x = torch.cat([taken.user, taken.item], dim=1)
        if self.has_interactions:
            cosine = F.cosine_similarity(user.to(x.dtype), item.to(x.dtype), dim=1)
            cosine = torch.where(taken.has_both, cosine, torch.zeros_like(cosine))  # an absent vector may hold NaN
            x = torch.cat([x, taken.user * taken.item, cosine.unsqueeze(1)], dim=1)
        fusion = self.fusion(x)
        cvr_logit = self.cvr(fusion).squeeze(1)
        if self.stop_ranker_gradient:
            fusion = fusion.detach()
        return AdaptorOutput(taken.user, taken.item, fusion, cvr_logit)
