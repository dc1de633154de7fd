"""Table rows of a batch -> embeddings: pooled per feature, and one by one where a sequence shares the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from learn_rank.ranker.backbones.features import SequenceEmbeddings
from learn_rank.schema import SEQUENCE_PREFIX, SequenceFeature


class Embedded(NamedTuple):
    """pooled [B, sum of widths]: of the sparse features in order. sequences: in the order of the feature set."""

    pooled: torch.Tensor
    sequences: tuple[SequenceEmbeddings, ...] = ()


class SequenceTables(nn.Module):
    """The tables of a ranker that reads sequences.

    bags: of the features that no sequence shares a table with, None if there are none. unpooled: of the others, a
    collection per width, since TorchRec's hold tables of one width. names: all features in order.
    """

    def __init__(
        self,
        bags: EmbeddingBagCollection | None,
        unpooled: Mapping[int, EmbeddingCollection],
        *,
        names: Sequence[str],
        sequences: Sequence[SequenceFeature],
    ) -> None:
        super().__init__()
        self.bags = bags
        self.unpooled = nn.ModuleDict({str(width): collection for width, collection in unpooled.items()})
        self.names, self.sequences = names, sequences

    def forward(self, sparse: KeyedJaggedTensor) -> Embedded:
        """Of B rows, without those that fill up the batch: every one of the others has a value of a shared table."""
        unpooled: dict[str, JaggedTensor] = {}
        for collection in self.unpooled.values():
            unpooled |= dict(collection(sparse).items())
        embedded = {sequence.of: unpooled[sequence.of].values() for sequence in self.sequences}  # [B, D], a value each
        num_rows = len(next(iter(embedded.values())))
        if self.bags is not None:
            names = [name for name in self.names if name not in embedded]
            pooled, widths = _pooled(self.bags(sparse), sparse, names)
            embedded |= zip(names, _first(pooled, num_rows).split(widths, dim=1), strict=True)
        sequences = (
            _padded(unpooled[SEQUENCE_PREFIX + sequence.name], embedded[sequence.of]) for sequence in self.sequences
        )
        return Embedded(torch.cat([embedded[name] for name in self.names], dim=1), tuple(sequences))


def look_up(tables: nn.Module, sparse: KeyedJaggedTensor, num_rows: int) -> Embedded:
    """Embeddings of the first num_rows rows, from the sharded tables of `build_tables`; others fill up the batch."""
    if isinstance(tables, SequenceTables):
        return tables(sparse)
    return Embedded(_first(pooled_embeddings(tables(sparse), sparse), num_rows))


def pooled_embeddings(summed: KeyedTensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
    """[B, sum of widths] in the order of sparse.keys(): the mean over the rows of a list, zeros for an empty list."""
    return _pooled(summed, sparse, sparse.keys())[0]


def _pooled(summed: KeyedTensor, sparse: KeyedJaggedTensor, names: list[str]) -> tuple[torch.Tensor, list[int]]:
    """[B, sum of widths] and the widths, in the order of names.

    The key order of a sharded result depends on the plan, so it is regrouped. The mean is taken here because TorchRec
    1.8 with PoolingType.MEAN divides by the lengths of another feature once tables are sharded in two ways, some by
    table and some by rows.
    """
    values = KeyedTensor.regroup([summed], [names])[0]
    width_of = dict(zip(summed.keys(), summed.length_per_key(), strict=True))
    widths = [width_of[name] for name in names]
    keys = sparse.keys()
    lengths = sparse.lengths().view(len(keys), -1)
    if len(names) < len(keys):
        lengths = lengths[[keys.index(name) for name in names]]
    divisors = lengths.T.clamp(min=1).float().contiguous()  # [B, F]
    if len(set(widths)) == 1:  # no divisor per number: half the time
        return (values.unflatten(1, (len(names), -1)) / divisors.unsqueeze(2)).flatten(1), widths
    repeats = torch.tensor(widths, device=values.device)
    return values / divisors.repeat_interleave(repeats, dim=1, output_size=values.shape[1]), widths


def _padded(sequence: JaggedTensor, target: torch.Tensor) -> SequenceEmbeddings:
    """The sequence of each row of target [B, D]; rows that fill up the batch are at its end and hold no values."""
    lengths = _first(sequence.lengths(), len(target))
    longest = max(int(lengths.max()), 1)
    values = _first(sequence.to_padded_dense(longest), len(target))  # [B, L, D]
    return SequenceEmbeddings(values, torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1), target)


def _first(values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """values[:num_rows]; but a slice of everything costs its gradient a copy, a tenth of a step of DIN."""
    return values if len(values) == num_rows else values[:num_rows]
