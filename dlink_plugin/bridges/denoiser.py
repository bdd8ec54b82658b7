"""The denoiser: three residual MLP blocks, told the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

__all__ = ["ResidualMLP"]

_MOST_BLOCKS = 1000  # the paper has 3


def time_features(t: Tensor, size: int) -> Tensor:
    """Sinusoidal features of the time (Vaswani et al., 2017).

    Arguments
    ---------
    t : Tensor
        (N,) times, 0 to about 1000.
    size : int
        Even number of features.

    Returns
    -------
    features : Tensor
        (N, size).

    Example
    -------
    >>> time_features(torch.tensor([0]), 4)
    tensor([[0., 0., 1., 1.]])
    """
    rates = torch.exp(
        -math.log(10_000) / (size // 2) * torch.arange(size // 2, device=t.device)
    )
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """x + W2 drop(silu(W1 (norm(x) (1 + scale) + shift))); the identity when new.

    Arguments
    ---------
    dim : int
        Width d of the residual stream.
    expansion : int
        The hidden width is expansion * d.
    time_dim : int
        Width of the time embedding that sets scale and shift.
    dropout : float
        Probability, on the hidden units.
    """

    def __init__(self, dim: int, expansion: int, time_dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.modulation = nn.Linear(time_dim, 2 * dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim),
            nn.SiLU(inplace=True),  # the widest tensor: not written twice
            nn.Dropout(dropout),
            nn.Linear(expansion * dim, dim),
        )
        for layer in (self.modulation, self.mlp[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, d) and (N, time_dim), or (1, time_dim) for all, to (N, d)."""
        scale, shift = self.modulation(time).chunk(2, dim=1)
        if len(time) == 1:  # one pass over x in place of three
            weight = self.norm.weight * (1 + scale[0])
            bias = self.norm.bias * (1 + scale[0]) + shift[0]
            normed = layer_norm(x, x.shape[1:], weight, bias, self.norm.eps)
        else:
            normed = self.norm(x) * (1 + scale) + shift
        return x + self.mlp(normed)


class ResidualMLP(nn.Module):
    """f(x, t): estimates the clean vector from a noisy one.

    The three residual MLP blocks are confirmed by the paper. Pre-norm, SiLU, widths,
    the time modulation and the linear output are ours.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    blocks : int
        Number of residual blocks.
    expansion : int
        Hidden width of a block over d.
    dropout : float
        Probability, inside the blocks.
    condition_dim : int
        Width of a condition c that f(x, t, c) is given as well; 0 for none.

    Example
    -------
    >>> f = ResidualMLP(dim=8)
    >>> f(torch.zeros(2, 8), torch.tensor([0, 10])).shape
    torch.Size([2, 8])
    """

    time_dim = 128

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.0,
        condition_dim: int = 0,
    ):
        super().__init__()
        if blocks > _MOST_BLOCKS:
            raise ValueError(f"{blocks} blocks are too many; give {_MOST_BLOCKS}.")
        self.condition = nn.Linear(condition_dim, dim) if condition_dim else None
        self.time = nn.Sequential(
            nn.Linear(self.time_dim, self.time_dim),
            nn.SiLU(),
            nn.Linear(self.time_dim, self.time_dim),
            nn.SiLU(),
        )
        self.blocks = nn.ModuleList(
            Block(dim, expansion, self.time_dim, dropout) for _ in range(blocks)
        )
        self.out = nn.Linear(dim, dim)
        # Near zero: the identity would let the noise of x through in the directions in
        # which texts hardly vary, and a linear classifier would tell bridged from text.
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Estimate the clean vectors.

        Arguments
        ---------
        x : Tensor
            (N, d) noisy vectors of about unit mean square.
        t : Tensor
            (N,) their times, or (1,) one for all.
        condition : Tensor, optional
            (N, condition_dim) of about unit mean square, where one is expected.

        Returns
        -------
        z0 : Tensor
            (N, d) estimates of the clean vectors.
        """
        time = self.time(time_features(t, self.time_dim).to(x.dtype))
        if self.condition is not None:
            x = x + self.condition(condition)
        for block in self.blocks:
            x = block(x, time)
        return self.out(x)
