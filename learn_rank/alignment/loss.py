"""Contrastive losses between user and item embeddings."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dense_all_action_loss(
    users: torch.Tensor,
    items: torch.Tensor,
    item_ids: torch.Tensor,
    *,
    temperature: float,
    user_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over all N_h x N_t pairs of a user of -log softmax against other users' targets (paper, Training Target).

    users [B, N_h, D] and items [B, N_t, D] are unit length; item_ids [B, N_t] are -1 where padded; user_mask [B, N_h]
    marks real user embeddings. For user b, history position h, target t:

        -log( e^{s(h,t)} / (e^{s(h,t)} + sum over negatives j of e^{s(h,j)}) ),  s = u . v / temperature

    Negatives are the targets of the other users in the batch, except items that are among b's own targets (the same
    item cannot be right and wrong for one user) and padding.
    """
    num_users, num_histories, dim = users.shape
    num_targets = items.shape[1]
    logits = users.reshape(-1, dim) @ items.reshape(-1, dim).T / temperature  # [B * N_h, B * N_t]
    logits = logits.view(num_users, num_histories, num_users, num_targets)
    flat_ids = item_ids.reshape(-1)
    is_own = (item_ids.unsqueeze(2) == flat_ids).any(dim=1)  # [B, B * N_t]: some own target is this item
    is_negative = (~is_own & (flat_ids >= 0)).view(num_users, 1, num_users, num_targets)
    negatives = logits.masked_fill(~is_negative, -torch.inf).flatten(2).logsumexp(dim=2)  # [B, N_h]
    own = logits[torch.arange(num_users), :, torch.arange(num_users)]  # [B, N_h, N_t]
    pair_loss = torch.logaddexp(own, negatives.unsqueeze(2)) - own
    is_pair = (item_ids >= 0).unsqueeze(1).expand_as(pair_loss)
    if user_mask is not None:
        is_pair = is_pair & user_mask.unsqueeze(2)
    return pair_loss[is_pair].mean()


def catalogue_loss(
    users: torch.Tensor,
    targets: torch.Tensor,
    catalogue: torch.Tensor,
    *,
    temperature: float,
    log_popularity: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy of the target item among all catalogue items.

    users [M, D] and catalogue [N, D] are unit length; targets [M] are positions in the catalogue. With log_popularity
    [N] the softmax is over u . v / temperature + log popularity: what everybody likes needs no embedding, which is left
    to say what this user likes more than others do.
    """
    logits = users @ catalogue.T / temperature
    return F.cross_entropy(logits if log_popularity is None else logits + log_popularity, targets)
