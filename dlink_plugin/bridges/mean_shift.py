"""Mean shift (Liang et al., NeurIPS 2022): the gap taken for a constant vector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Bridge

__all__ = ["MeanShift"]


class MeanShift(Bridge, name="mean_shift"):
    """Moves the audio centroid onto the text centroid: the trivial baseline.

        yhat = (a - mean(a) + mean(y)) / |a - mean(a) + mean(y)|

    The means are those of the training pairs. Nothing is learned and no pairing is
    used.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.

    Example
    -------
    >>> bridge = MeanShift(dim=2)
    >>> bridge.fit(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    >>> bridge(torch.tensor([[1.0, 0.0]]))
    tensor([[0., 1.]])
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("audio_mean", torch.zeros(dim))
        self.register_buffer("text_mean", torch.zeros(dim))

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Take the two means; see ``Bridge.fit`` for arguments."""
        self.audio_mean.copy_(audio.mean(0))
        self.text_mean.copy_(text.mean(0))

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Shift and normalize; see ``Bridge.forward`` for arguments and returns."""
        return normalize(audio - self.audio_mean + self.text_mean, dim=1)
