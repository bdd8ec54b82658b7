"""The regressor: Diffusion-Link's network and losses without diffusion."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .base import Bridge
from .denoiser import ResidualMLP
from .diffusion_link import topology_loss
from .normalizer import unit_variance
from .share import WHOLE, Share

__all__ = ["MLPRegressor"]


class MLPRegressor(Bridge, name="mlp"):
    """The same three residual blocks, trained to predict the paired text at once.

        L = m(f(a), y) + lambda L_topo(f(a), y)

    with m the mean squared error over coordinates. The fair control for whether
    diffusion helps: same network, pairs and losses, but no noise and no text branch
    (which would have nothing to learn). Ours.

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
    topology_weight : float
        lambda.

    Example
    -------
    >>> bridge = MLPRegressor(dim=8)
    >>> bridge(torch.eye(8)[:3]).shape
    torch.Size([3, 8])
    """

    saw = "pairs"

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.1,
        topology_weight: float = 1.0,
    ):
        super().__init__(dim)
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.topology_weight = topology_weight
        self.network = ResidualMLP(dim, blocks, expansion, dropout)

    def _predict(self, audio: Tensor) -> Tensor:
        never = torch.zeros(len(audio), device=audio.device)
        return self.network(unit_variance(audio), never)

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """The loss above; see ``Bridge.loss`` for arguments and returns."""
        yhat, y = self._predict(audio), unit_variance(text)
        topology = topology_loss(share.gather(yhat), share.gather(y))
        terms = {"cross": mse_loss(yhat, y), "topology": topology}
        return {
            "loss": terms["cross"] + self.topology_weight * terms["topology"]
        } | terms

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Predict and normalize; see ``Bridge.forward`` for arguments and returns."""
        return normalize(self._predict(audio), dim=1)
