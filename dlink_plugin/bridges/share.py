"""One process's share of a global batch, so that several train as one would."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

__all__ = ["WHOLE", "Share"]


@dataclass(frozen=True)
class Share:
    """Which rows of a global batch this process holds: equal parts, in order of rank.

    Noise is drawn for the global batch by every process alike, of which each takes its
    rows: a sample's noise follows from its place in the batch, not from who holds it.
    What compares samples with each other gathers them from all processes. Ours.

    Arguments
    ---------
    rank : int
        Which part.
    world : int
        How many parts.

    Example
    -------
    >>> Share(rank=1, world=2).of(torch.arange(6))
    tensor([3, 4, 5])
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Share:
        """The share of this process, under torchrun; elsewhere the whole.

        Returns
        -------
        share : Share
        """
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def of(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """Its rows of what was drawn for all.

        Arguments
        ---------
        drawn : Tensor
            W n long in ``dim``.
        dim : int
            Which dimension counts the samples.

        Returns
        -------
        own : Tensor
            n long in ``dim``.
        """
        n = drawn.shape[dim] // self.world
        return drawn.narrow(dim, self.rank * n, n)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, through which gradients flow back to each.

        A loss of gathered rows counts in every process; with gradients averaged over
        processes, as DDP does, the parameters get the gradient of one such loss.

        Arguments
        ---------
        rows : Tensor
            (n, ...) of this process; as many in each.

        Returns
        -------
        gathered : Tensor
            (W n, ...) in order of rank.
        """
        return rows if self.world == 1 else _Gather.apply(rows, self)

    def weight(self, count: Tensor) -> Tensor | float:
        """What a mean over things that processes hold unequal numbers of counts for.

        Arguments
        ---------
        count : Tensor
            Scalar: how many things this process averages over, caption tokens say.

        Returns
        -------
        weight : Tensor or float
            The count over its mean; 1 for a single process.
        """
        if self.world == 1:
            return 1.0
        total = count.clone()
        distributed.all_reduce(total)
        return self.world * count / total


WHOLE = Share()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, share: Share) -> Tensor:
        ctx.share = share
        parts = [torch.empty_like(rows) for _ in range(share.world)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return ctx.share.of(total), None
