"""Frozen user and item vectors as input of a ranker: normalised, with a learned vector where there is none."""

# annotations are types here and not strings: TorchScript reads them
from collections.abc import Callable
from typing import Final, NamedTuple, Self

import torch
import torch.fx
from torch import distributed, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from learn_rank.errors import InputError

NORMALIZATIONS = ("center", "layer", "batch", "none")


class TakenVectors(NamedTuple):
    """user [B, U] and item [B, I], ready for the ranker; has_both [B] bool: neither is the missing vector."""

    user: torch.Tensor
    item: torch.Tensor
    has_both: torch.Tensor


class RawVectors(nn.Module):
    """User and item vectors side by side, without a fusion: the base of LearnAdaptor, and its comparison.

    Vectors are inputs, never parameters: pass the stores' vectors, without gradient. A row without a vector (mask
    False) takes a learned missing vector, whatever its values. So does a row with NaN or an infinity, which would spoil
    the statistics of its batch and of all later ones.

    normalization: unit-norm vectors of 64 dimensions have values of about 0.1, too small beside id embeddings, and much
    of that is often one direction that all vectors share. "center" subtracts the mean of the present rows (see
    PresentBatchNorm) and divides by one root mean square of all dimensions, which keeps their relative strengths.
    "batch" divides each dimension by its own, so the weakest counts as much as the strongest. "layer" standardises each
    vector by its own mean and variance and keeps the shared direction. "none" changes nothing. scale multiplies the
    result.
    vector_dropout: share of rows that take the missing vector in training although they have one, drawn separately for
    users and items. The ranker then cannot use a user's vector as a second id, and has seen missing vectors before it
    serves them.
    synchronise: batch statistics over all processes of the default group; all processes must then call together.
    """

    def __init__(
        self,
        user_dim: int = 64,
        item_dim: int = 64,
        *,
        normalization: str = "center",
        scale: float = 1.0,
        vector_dropout: float = 0.0,
        synchronise: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= vector_dropout < 1:
            raise InputError(f"vector_dropout is {vector_dropout}, expected 0 <= vector_dropout < 1")
        self.vector_dropout, self.scale = vector_dropout, scale
        self.user_dim, self.item_dim = user_dim, item_dim
        self.user_norm = _normalization(normalization, user_dim, synchronise)
        self.item_norm = _normalization(normalization, item_dim, synchronise)
        self.user_missing = nn.Parameter(torch.zeros(user_dim))
        self.item_missing = nn.Parameter(torch.zeros(item_dim))

    @property
    def feature_dim(self) -> int:
        """Width of the output."""
        return self.user_dim + self.item_dim

    def forward(
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        user_mask: torch.Tensor | None = None,
        item_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, U + I] from [B, U] and [B, I] vectors of any float type; masks as in `take`."""
        taken = self.take(user, item, user_mask, item_mask)
        return torch.cat([taken.user, taken.item], dim=1)

    def take(
        self, user: torch.Tensor, item: torch.Tensor, user_mask: torch.Tensor | None, item_mask: torch.Tensor | None
    ) -> TakenVectors:
        """Both, in the type of the weights; masks [B] (True: there is a vector), None if all rows have one."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pass  # TorchScript does not compile the other branches
        elif not is_fx_symbolic_tracing():
            _check_shapes(user, item, user_mask, item_mask, self.user_dim, self.item_dim)
        user_mask, item_mask = _finite(user, user_mask), _finite(item, item_mask)
        user_kept, item_kept = self._kept(user_mask), self._kept(item_mask)
        return TakenVectors(
            self._fill(self.user_norm(user, user_mask), user_kept, self.user_missing),
            self._fill(self.item_norm(item, item_mask), item_kept, self.item_missing),
            user_kept & item_kept,
        )

    def _kept(self, mask: torch.Tensor) -> torch.Tensor:
        """[B] bool: rows that have a vector which, in training, is not dropped."""
        if self.training and self.vector_dropout > 0:
            mask = mask & (torch.rand_like(mask, dtype=torch.float32) >= self.vector_dropout)
        return mask

    def _fill(self, vectors: torch.Tensor, mask: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """[B, D]: the scaled vectors of kept rows, the missing vector of others."""
        vectors = vectors.to(missing.dtype)
        if self.scale != 1.0:
            vectors = vectors * self.scale
        return torch.where(mask.unsqueeze(1), vectors, missing)


class PresentBatchNorm(nn.Module):
    """Standardises vectors with the statistics of the present rows: "batch" and "center" of RawVectors.

    by_dimension: each dimension by itself, like nn.BatchNorm1d without affine parameters. Otherwise all dimensions by
    their mean variance, with the running statistics in training too: the average of all batches at first, then of about
    the last 1 / momentum of them. A vector then looks the same in training and scoring, whatever its batch.

    Absent rows do not count. A batch with fewer than two present rows uses the running statistics and does not change
    them. The inputs are frozen, so no gradient goes through the statistics, and statistics over several processes take
    one plain all-reduce, also on the CPU. In models of float16 or bfloat16 the statistics stay float32: small changes
    of a running mean would be rounded away.
    """

    by_dimension: Final[bool]  # TorchScript leaves out the other branch
    running_mean: torch.Tensor
    running_variance: torch.Tensor
    num_batches: torch.Tensor  # of "center" only

    def __init__(
        self,
        dim: int,
        *,
        by_dimension: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        synchronise: bool = False,
    ) -> None:
        super().__init__()
        self.by_dimension, self.momentum, self.eps, self.synchronise = by_dimension, momentum, eps, synchronise
        self.register_buffer("running_mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("running_variance", torch.ones(dim, dtype=torch.float32))
        if not by_dimension:
            self.register_buffer("num_batches", torch.zeros(1, dtype=torch.int64))

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, D] -> [B, D]; rows with mask False hold arbitrary values."""
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            of_batch = self._update(vectors.detach(), _present(vectors, mask))
            if self.by_dimension:
                mean, variance = of_batch
        return _standardise(vectors, mean, variance, self.eps, self.by_dimension)

    def _update(self, vectors: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance [D] of this batch; moves the running ones."""
        # smaller numbers: less cancellation in the variance
        shifted = vectors.to(self.running_mean.dtype) - self.running_mean
        shifted = shifted.masked_fill(~mask.unsqueeze(1), 0.0)
        count = mask.sum(dtype=shifted.dtype).reshape(1)
        sums = torch.cat([count, shifted.sum(0), shifted.square().sum(0)])  # [1 + 2 D]
        if self.synchronise:
            sums = _sum_over_processes(sums)
        count = sums[0]
        offset, square = (sums[1:] / count.clamp(min=1)).chunk(2)
        variance = (square - offset.square()).clamp(min=0)
        is_enough = count > 1
        mean = self.running_mean + torch.where(is_enough, offset, torch.zeros_like(offset))
        variance = torch.where(is_enough, variance, self.running_variance)
        unbiased = torch.where(is_enough, variance * count / (count - 1).clamp(min=1), variance)
        if self.by_dimension:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_variance.lerp_(unbiased, self.momentum)
        else:
            num_batches = self.num_batches.add_(is_enough.to(torch.int64))
            momentum = num_batches.to(mean.dtype).clamp(min=1).reciprocal().clamp(min=self.momentum)
            self.running_mean.lerp_(mean, momentum)
            self.running_variance.lerp_(unbiased, momentum)
        return mean, variance

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Called by to(), half() and bfloat16(); keeps the statistics in float32."""
        before = self.running_mean, self.running_variance
        super()._apply(fn, recurse)
        if self.running_mean.dtype.itemsize < before[0].dtype.itemsize:
            self.running_mean, self.running_variance = (kept.to(self.running_mean.device) for kept in before)
        return self


class _RowNorm(nn.Module):
    """Normalises each row by itself, or not at all; takes and ignores the mask that PresentBatchNorm needs."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = self.norm(vectors)
        return out


def _normalization(name: str, dim: int, synchronise: bool) -> nn.Module:
    if name == "center":
        # the scale of all dimensions is near zero only if all vectors are equal
        return PresentBatchNorm(dim, by_dimension=False, momentum=0.01, eps=1e-9, synchronise=synchronise)
    if name == "batch":
        return PresentBatchNorm(dim, synchronise=synchronise)
    if name == "layer":
        return _RowNorm(nn.LayerNorm(dim, elementwise_affine=False))
    if name == "none":
        return _RowNorm(nn.Identity())
    raise InputError(f"normalization is '{name}', expected one of {', '.join(NORMALIZATIONS)}")


def _present(vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[B] bool."""
    return torch.ones_like(vectors[:, 0], dtype=torch.bool) if mask is None else mask.to(torch.bool)


def _finite(vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[B] bool: the present rows whose numbers are finite; one pass: the sum is not finite if any number is not."""
    is_finite = vectors.sum(1, dtype=torch.float32).isfinite()
    return is_finite if mask is None else mask.to(torch.bool) & is_finite


# torch.fx does not trace these: it would turn values made of buffers into constants, and cannot branch on shapes
@torch.fx.wrap
def _standardise(
    vectors: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, eps: float, by_dimension: bool
) -> torch.Tensor:
    if not by_dimension:
        variance = variance.mean(dim=0, keepdim=True)
    return (vectors - mean) * torch.rsqrt(variance + eps)


@torch.fx.wrap
def _check_shapes(
    user: torch.Tensor,
    item: torch.Tensor,
    user_mask: torch.Tensor | None,
    item_mask: torch.Tensor | None,
    user_dim: int,
    item_dim: int,
) -> None:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return
    for name, vectors, mask, dim in (("user", user, user_mask, user_dim), ("item", item, item_mask, item_dim)):
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise InputError(f"{name} vectors have shape {tuple(vectors.shape)}, expected [B, {dim}]; set {name}_dim")
        if mask is not None and mask.shape != vectors.shape[:1]:
            raise InputError(f"{name}_mask has shape {tuple(mask.shape)}, expected [{len(vectors)}]")
    if user.shape[0] != item.shape[0]:
        raise InputError(f"{len(user)} user vectors for {len(item)} item vectors, expected one of each per row")


@torch.fx.wrap
@torch.jit.unused
def _sum_over_processes(sums: torch.Tensor) -> torch.Tensor:
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(sums)
    return sums
