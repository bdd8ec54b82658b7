"""A 1-D U-Net along the coordinates of an embedding, told the time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .denoiser import time_features

__all__ = ["UNet1d"]


class _ConvBlock(nn.Module):
    """Two convolutions with a skip; the time sets scale and shift in between."""

    def __init__(self, channels_in: int, channels: int, time_dim: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(channels_in, channels, 3, padding=1), nn.GroupNorm(8, channels)
        )
        self.modulation = nn.Linear(time_dim, 2 * channels)
        self.second = nn.Sequential(
            nn.SiLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
        )
        self.skip = nn.Conv1d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time)[:, :, None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class UNet1d(nn.Module):
    """f(x, t) with the shape of Diffusion-Bridge's denoiser (Lee et al., CVPR 2025).

    The embedding is a signal of d samples and one channel; three levels halve it and
    double the channels (1, 2, 4, 8 times the width), and three bring it back, beside
    skips. Departure: no attention at the bottom.

    Arguments
    ---------
    dim : int
        Width d of the embeddings, a multiple of 8.
    width : int
        Channels of the first level, a multiple of 8.

    Raises
    ------
    ValueError
        If d or the width is not a multiple of 8.

    Example
    -------
    >>> f = UNet1d(dim=16, width=8)
    >>> f(torch.zeros(2, 16), torch.tensor([0, 10])).shape
    torch.Size([2, 16])
    """

    time_dim = 128

    def __init__(self, dim: int, width: int):
        super().__init__()
        if dim % 8 or width % 8:
            raise ValueError(
                f"A U-Net of 4 levels takes embeddings and widths in multiples of 8, "
                f"not {dim} and {width}; use the mlp denoiser."
            )
        self.time = nn.Sequential(nn.Linear(self.time_dim, self.time_dim), nn.SiLU())
        levels = [width * factor for factor in (1, 2, 4, 8)]
        steps = list(zip(levels, levels[1:], strict=False))
        self.enter = nn.Conv1d(1, width, 7, padding=3)
        self.down = nn.ModuleList(_ConvBlock(c, c, self.time_dim) for c, _ in steps)
        self.halve = nn.ModuleList(
            nn.Conv1d(c, wider, 4, stride=2, padding=1) for c, wider in steps
        )
        self.middle = _ConvBlock(levels[-1], levels[-1], self.time_dim)
        self.widen = nn.ModuleList(
            nn.ConvTranspose1d(wider, c, 4, stride=2, padding=1)
            for c, wider in reversed(steps)
        )
        self.up = nn.ModuleList(
            _ConvBlock(2 * c, c, self.time_dim) for c, _ in reversed(steps)
        )
        self.out = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(N, d) and (N,) times to (N, d) estimates of the clean vectors."""
        time = self.time(time_features(t, self.time_dim).to(x.dtype))
        h, skips = self.enter(x[:, None]), []
        for block, halve in zip(self.down, self.halve, strict=True):
            h = block(h, time)
            skips.append(h)
            h = halve(h)
        h = self.middle(h, time)
        for block, widen in zip(self.up, self.widen, strict=True):
            h = block(torch.cat([widen(h), skips.pop()], dim=1), time)
        return self.out(h)[:, 0]
