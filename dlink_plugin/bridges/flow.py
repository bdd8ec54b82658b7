"""Rectified flow: a straight path from the audio embedding to the text embedding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .base import Bridge
from .denoiser import ResidualMLP
from .normalizer import unit_variance
from .share import WHOLE, Share

__all__ = ["RectifiedFlow"]

_CLOCK = 1000  # the network tells times apart that run to about 1,000


class RectifiedFlow(Bridge, name="rectified_flow"):
    """Rectified flow (Liu et al., ICLR 2023), from a to y.

        z_t = (1 - t) a + t y,   L = E_t | v(z_t, t) - (y - a) |^2

    and at inference Euler steps of dz = v(z, t) dt from z_0 = a. Flow matching (Lipman
    et al., ICLR 2023) with coupled ends is the same. Departures: embeddings instead of
    images, the pairing is given instead of found by reflow, the residual MLP instead of
    a U-Net. Beyond the Diffusion-Link paper.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    blocks : int
        Residual MLP blocks.
    expansion : int
        Hidden width of a block over d.
    dropout : float
        Probability, inside the blocks.
    steps : int
        Euler steps, 1 or more.

    Raises
    ------
    ValueError
        If steps is below 1.

    Example
    -------
    >>> bridge = RectifiedFlow(dim=8)
    >>> bridge(torch.eye(8)[:3]).shape
    torch.Size([3, 8])
    """

    saw = "pairs"
    inference_arguments = ("steps",)

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.1,
        steps: int = 4,
    ):
        super().__init__(dim)
        if steps < 1:
            raise ValueError(f"steps is {steps}; a flow takes 1 Euler step or more.")
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.steps = steps
        self.network = ResidualMLP(dim, blocks, expansion, dropout)

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """The loss above; see ``Bridge.loss`` for arguments and returns."""
        a, y = unit_variance(audio), unit_variance(text)
        here = {"generator": generator, "device": a.device}
        t = share.of(torch.rand(share.world * len(a), dtype=a.dtype, **here))
        z_t = torch.lerp(a, y, t[:, None])
        return {"loss": mse_loss(self.network(z_t, _CLOCK * t), y - a)}

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Follow the flow, normalize; see ``Bridge.forward``. Nothing is random."""
        z = unit_variance(audio)
        for k in range(self.steps):
            t = torch.full((1,), _CLOCK * k / self.steps, device=z.device)
            z = z + self.network(z, t) / self.steps
        return normalize(z, dim=1)
