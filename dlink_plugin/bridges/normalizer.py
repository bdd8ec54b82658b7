"""Scaling and centering of embeddings, shared by the bridges."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["Centering", "unit_variance"]


def unit_variance(unit: Tensor) -> Tensor:
    """Scale unit vectors by sqrt(d), to a mean square of 1.

    Unit vectors have a mean square of 1/d: unit noise would drown them at once. Ours.

    Arguments
    ---------
    unit : Tensor
        (N, d) L2-normalized.

    Returns
    -------
    z : Tensor
        (N, d).
    """
    return unit * math.sqrt(unit.shape[1])


class Centering(nn.Module):
    """Subtracts the mean of a modality and renormalizes: z = (x - m) / |x - m|.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.

    Example
    -------
    >>> centering = Centering(2)
    >>> centering.fit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> centering(torch.tensor([[1.0, 0.0]]))
    tensor([[ 0.7071, -0.7071]])
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def fit(self, x: Tensor) -> None:
        """Take the mean of (N, d) embeddings."""
        self.mean.copy_(x.mean(0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) to (N, d), L2-normalized."""
        return normalize(x - self.mean, dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """The unit vectors that centering takes to z.

        x = m + s z with s > 0 such that |x| = 1: the ray from m, which lies inside the
        unit sphere, meets it once.

            s = sqrt( (m.z)^2 + 1 - |m|^2 ) - m.z

        Arguments
        ---------
        z : Tensor
            (N, d) L2-normalized.

        Returns
        -------
        x : Tensor
            (N, d) L2-normalized.
        """
        m_z = (z @ self.mean)[:, None]
        s = (m_z.square() + 1 - self.mean.square().sum()).sqrt() - m_z
        return normalize(self.mean + s * z, dim=1)
