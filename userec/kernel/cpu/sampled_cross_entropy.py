"""Cross-entropy over drawn negatives without [N, K, D]: by sorted candidates, by all logits where classes are few, or by one
matrix where the negatives are shared. The gradient is ready with the mean."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.cpu.chunked_logits import Chunks, Gradients, empty, keep_gradients, losses_of, one_dtype, scaled, slopes
from userec.kernel.dtypes import wide
from userec.kernel.reference.sampled_cross_entropy import check

DENSE: Final = 6
"""Where classes are at most so many times the candidates of a row, all logits and a gather beat sorted candidates (at a
width of 64: in two thirds of the time at 4 times, in twice the time at 14)."""
CHUNK_CANDIDATES: Final = 2**19
"""Candidates that are sorted at a time: their order and logits stay near the core."""


def sampled_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor | None = None,
    *,
    reduction: str = "none",
) -> Tensor:
    """As the reference. `mean` computes the gradient in forward, `none` again in backward; bfloat16 is computed in float32, and
    under autocast so is the result."""
    check(x, weight, bias, target, negatives, log_q, reduction)
    x, weight, bias = one_dtype(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        if reduction == "mean":
            needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
            return _mean(x, weight, bias, target, negatives, log_q, needs_grad)[0]
        return _each(x, weight, bias, target, negatives, log_q)


class _Candidates(Protocol):
    """Logits of the candidates, chunk by chunk, and the sums of gradients."""

    def starts(self) -> range: ...

    def logits(self, start: int) -> Tensor:
        """[r, 1 + K], the answer's first; the caller may write there until the next call."""
        ...

    def add(self, start: int, dlogits: Tensor) -> None:
        """Take d loss / d logits [r, 1 + K] of the chunk whose logits were asked last."""
        ...

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias (empty without one), in the dtype of `x`."""
        ...


@dataclass(frozen=True)
class _Order:
    """A chunk's candidates [r, C], sorted by class: each class then has one segment of rows that ask for it."""

    place: Tensor  # [r C] where each stands in the flattened chunk
    row: Tensor  # [r C] which row of the chunk asks
    bounds: Tensor  # [V + 1] where each class' segment begins

    @classmethod
    def of(cls, ids: Tensor, classes: int) -> _Order:
        """By a stable radix sort: the same ids, the same order of every sum."""
        flat = ids.flatten()
        place = torch.sort(flat.int(), stable=True).indices
        bounds = torch.zeros(classes + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(flat, minlength=classes), 0, out=bounds[1:])
        return cls(place, place // ids.shape[1], bounds)


class _Sorted:
    """Each row's own candidates among many classes. A row of `weight` is read once for all that ask for it, and its gradient is
    one sum of a segment; x [r, D] is small enough to be read at random."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> None:
        self.x, self.weight, self.bias, self.ids = x.contiguous(), weight.contiguous(), bias, ids
        self.rows = max(1, CHUNK_CANDIDATES // ids.shape[1])
        self.dx, self.dweight = torch.empty_like(self.x), torch.zeros_like(self.weight)
        self.dbias = None if bias is None else torch.zeros_like(bias)

    def starts(self) -> range:
        """Where each chunk begins."""
        return range(0, len(self.x), self.rows)

    def logits(self, start: int) -> Tensor:
        """Dot products in the order of classes, put back in the order of rows."""
        x, ids = self.x[start : start + self.rows], self.ids[start : start + self.rows]
        self.order = _Order.of(ids, len(self.weight))
        dots = _dots(self.order, self.weight, x)
        out = torch.empty_like(dots).scatter_(0, self.order.place, dots).view(ids.shape)
        return out if self.bias is None else out.add_(self.bias[ids])

    def add(self, start: int, dlogits: Tensor) -> None:
        """Weighted bags of rows, both ways."""
        rows = slice(start, start + self.rows)
        self.dx[rows] = F.embedding_bag(self.ids[rows], self.weight, mode="sum", per_sample_weights=dlogits)
        by_class = dlogits.flatten().gather(0, self.order.place)
        self.dweight += F.embedding_bag(
            self.order.row,
            self.x[rows],
            self.order.bounds,
            mode="sum",
            per_sample_weights=by_class,
            include_last_offset=True,
        )
        if self.dbias is not None:
            self.dbias += torch.bincount(self.ids[rows].flatten(), dlogits.flatten(), minlength=len(self.dbias))

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight and bias."""
        dbias = x.new_empty(0) if self.dbias is None else self.dbias
        return self.dx.to(x.dtype), self.dweight.to(x.dtype), dbias.to(x.dtype)


def _dots(order: _Order, weight: Tensor, x: Tensor) -> Tensor:
    """[r C]: of each class with each row that asks for it, as a matrix product sampled at those places [V, r]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        size, zeros = (len(weight), len(x)), x.new_zeros(len(order.row))
        places = torch.sparse_csr_tensor(order.bounds, order.row, zeros, size, check_invariants=False)
    return torch.sparse.sampled_addmm(places, weight, x.T, beta=0.0).values()


class _Dense:
    """Each row's own candidates among few classes: all logits of a chunk, and a gather."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> None:
        self.ids = ids
        self.chunks, self.gradients = Chunks(x, weight, bias), Gradients(x, weight, bias)
        self.starts, self.of = self.chunks.starts, self.gradients.of

    def logits(self, start: int) -> Tensor:
        """[r, 1 + K] of [r, V]."""
        logits = self.chunks.logits(start)
        return logits.gather(1, self.ids[start : start + len(logits)])

    def add(self, start: int, dlogits: Tensor) -> None:
        """Scattered into the buffer that held the logits."""
        every = self.chunks.buffer[: len(dlogits)].zero_()
        self.gradients.add(start, every.scatter_add_(1, self.ids[start : start + len(dlogits)], dlogits))


class _Shared:
    """Negatives [K] for all: one matrix whose first row, of zeros, keeps the answers' column."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, negatives: Tensor) -> None:
        self.x, self.target, self.negatives = x, target, negatives
        self.classes = len(weight)
        self.own = weight.index_select(0, target)  # [N, D]
        self.own_bias = None if bias is None else bias[target]
        rows = F.pad(weight.index_select(0, negatives), (0, 0, 1, 0))  # [1 + K, D]
        row_bias = None if bias is None else F.pad(bias[negatives], (1, 0))
        self.chunks, self.gradients = Chunks(x, rows, row_bias), Gradients(x, rows, row_bias)
        self.starts = self.chunks.starts
        self.d_own = x.new_empty(len(x), 1)

    def logits(self, start: int) -> Tensor:
        """The negatives' by a product, the answers' row by row."""
        logits = self.chunks.logits(start)
        rows = slice(start, start + len(logits))
        logits[:, 0] = (self.x[rows] * self.own[rows]).sum(1)
        if self.own_bias is not None:
            logits[:, 0] += self.own_bias[rows]
        return logits

    def add(self, start: int, dlogits: Tensor) -> None:
        """The answers' column apart, for each has a row of its own; what it adds to the row of zeros is left there."""
        rows = slice(start, start + len(dlogits))
        self.d_own[rows] = dlogits[:, :1]
        self.gradients.add(start, dlogits)
        self.gradients.dx[rows].addcmul_(self.d_own[rows], self.own[rows])

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the matrix and of the answers, back where they stand in weight."""
        dx, rows, row_bias = self.gradients.of(self.x)
        dweight = rows.new_zeros(self.classes, x.shape[1])
        dweight.index_add_(0, self.negatives, rows[1:]).index_add_(0, self.target, self.d_own * self.x)
        dbias = row_bias
        if self.own_bias is not None:
            dbias = rows.new_zeros(self.classes).index_add_(0, self.negatives, row_bias[1:])
            dbias.index_add_(0, self.target, self.d_own.squeeze(1))
        return dx.to(x.dtype), dweight.to(x.dtype), dbias.to(x.dtype)


def _candidates(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, negatives: Tensor) -> _Candidates:
    """The form that suits the call. Raises UserError where an id is no row of weight: nothing below would look."""
    for name, ids in (("target", target), ("negatives", negatives)):
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < len(weight)):
            raise UserError(f"sampled_cross_entropy: {name} has ids outside the {len(weight)} rows of weight")
    x, weight, bias = wide(x), wide(weight), None if bias is None else wide(bias)
    if negatives.dim() == 1:
        return _Shared(x, weight, bias, target, negatives)
    ids = torch.cat([target[:, None], negatives], 1)  # [N, 1 + K]
    few = len(weight) <= DENSE * ids.shape[1]
    return (_Dense if few else _Sorted)(x, weight, bias, ids)


def _walk(candidates: _Candidates, log_q: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(start, losses [r], exponentials [r, 1 + K], their sums [r, 1]) of each chunk."""
    for start in candidates.starts():
        logits = candidates.logits(start)
        if log_q is not None:
            logits -= log_q[start : start + len(logits)]
        losses, sums = losses_of(logits, _first(logits))
        yield start, losses, logits, sums


def _first(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), dtype=torch.int64)


@custom_op("userec::cpu_sampled_cross_entropy", mutates_args=())
def _each(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, negatives: Tensor, log_q: Tensor | None) -> Tensor:
    out = x.new_empty(len(x))
    for start, losses, _, _ in _walk(_candidates(x, weight, bias, target, negatives), log_q):
        out[start : start + len(losses)] = losses
    return out


@custom_op("userec::cpu_sampled_cross_entropy_backward", mutates_args=())
def _each_backward(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    candidates = _candidates(x, weight, bias, target, negatives)
    for start, losses, exponentials, sums in _walk(candidates, log_q):
        own = wide(upstream[start : start + len(losses), None])
        candidates.add(start, slopes(exponentials, sums, _first(losses), own))
    return candidates.of(x)


@custom_op("userec::cpu_mean_sampled_cross_entropy", mutates_args=())
def _mean(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the mean, its gradients of x, weight and bias: empty where none is needed)."""
    candidates = _candidates(x, weight, bias, target, negatives)
    share = wide(x).new_full((1, 1), 1.0 / max(len(x), 1))
    total = wide(x).new_zeros(())
    for start, losses, exponentials, sums in _walk(candidates, log_q):
        total += losses.sum()
        if needs_grad:
            candidates.add(start, slopes(exponentials, sums, _first(losses), share.expand(len(losses), 1)))
    mean = (total * share.squeeze()).to(x.dtype)
    return mean, *(candidates.of(x) if needs_grad else (x.new_empty(0) for _ in range(3)))


@_each.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(len(x))


@_each_backward.register_fake
def _(upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return empty(x, weight, bias)


@_mean.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return x.new_empty(()), *(empty(x, weight, bias) if rest[-1] else (x.new_empty(0) for _ in range(3)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _each_backward(upstream, *ctx.saved_tensors)
    return dx, dweight, None if ctx.saved_tensors[2] is None else dbias, None, None, None


_each.register_autograd(_gradients, setup_context=_keep)
_mean.register_autograd(scaled, setup_context=keep_gradients)
