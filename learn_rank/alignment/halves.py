"""Two towers, each of which learned from half of the users, in one space (`align.halves`)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from learn_rank.alignment.towers import MeanContent, Tower
from learn_rank.arrays import Float32Array, Int64Array
from learn_rank.hashing import hash_int64
from learn_rank.store.keys import to_keys


class Halves(nn.Module):
    """Cross-fitting over users: vectors of a user are those of the tower that did not learn from that user.

    first learned from the users of half 0, second from those of half 1, of `half_of` with this seed. Whoever neither
    has learned from has a half as well. An item's vector, which users of both halves are compared with, is the mean of
    both towers', at unit length: content makes it, which is the same for all users, and one user moves it little.
    """

    def __init__(self, first: Tower, second: Tower, *, seed: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.seed = seed
        self.output_dim = first.output_dim

    @property
    def each(self) -> tuple[Tower, Tower]:
        return self.first, self.second

    def of_items(self, first: Float32Array, second: Float32Array) -> Float32Array:
        """[N, D] of [N, D] by either tower. Opposite ones, which have no mean direction, give zeros."""
        total = first + second
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), np.finfo(np.float32).tiny)


Towers: TypeAlias = Tower | MeanContent | Halves


def half_of(user_ids: pa.Array, seed: int) -> Int64Array:
    """[U] 0 or 1: the half of each user, by a hash of id and seed, so the same in every command.

    >>> half_of(pa.array([1, 2, 3, 4, 5, 6]), 0)
    array([1, 0, 0, 1, 1, 0])
    """
    mixed = to_keys(user_ids) ^ hash_int64(np.array([seed], np.int64))
    return (hash_int64(mixed.view(np.int64)) & np.uint64(1)).astype(np.int64)


@torch.no_grad()
def rotate_into(tower: Tower, vectors: Float32Array, space: Float32Array) -> None:
    """Turns a tower's output so that its vectors [N, D] of some items come nearest to those in another space [N, D].

    The map is the orthogonal one with the least squared distance (Procrustes): rotations and reflections keep all
    cosines within the tower. It is part of the output layer afterwards, and costs nothing.
    """
    left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ space.astype(np.float64))
    weight = tower.output.weight
    rotation = torch.from_numpy((left @ right).T).to(weight.device, weight.dtype)  # of columns
    weight.copy_(rotation @ weight)
    tower.output.bias.copy_(rotation @ tower.output.bias)
