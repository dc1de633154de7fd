"""DCNv2 (Wang et al., arXiv 2008.13535) with TorchRec's cross network."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from learn_rank.layers import mlp
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.options import RankerOptions


class DCNv2(nn.Module):
    """Cross network beside an MLP, both over the concatenation of all features (the paper's parallel form).

    x_{l+1} = x_0 * (W_l V_l x_l + b_l) + x_l, with cross_rank=0 one square matrix in place of W_l V_l; LEARN features
    are crossed like any other.
    """

    features_first = ("head.weight",)  # for `start_without_learn`

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        in_dim, hidden_dims, cross = widths.total, options.backbone.hidden_dims, options.backbone.dcnv2
        self.cross: nn.Module
        if cross.cross_rank:
            self.cross = LowRankCrossNet(in_dim, cross.num_cross_layers, low_rank=min(cross.cross_rank, in_dim))
        else:
            self.cross = CrossNet(in_dim, cross.num_cross_layers)
        self.deep = mlp(in_dim, hidden_dims, dropout=options.backbone.dropout)
        self.head = nn.Linear(in_dim + hidden_dims[-1], 1)

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [B]."""
        x = features.concatenated()  # [B, in_dim]
        logit: torch.Tensor = self.head(torch.cat([self.cross(x), self.deep(x)], dim=1))
        return logit.squeeze(1)
