"""DeCap's projection: an audio embedding as a weighted sum of known texts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Bridge

__all__ = ["DeCap"]

_ROWS = 2048  # of the memory at a time: 1,000 queries then need 8 MB of scores


class DeCap(Bridge, name="decap"):
    """Projection on a text memory (DeCap, Li et al., ICLR 2023).

        yhat = sum_j w_j y_j,   w = softmax_j( cos(a, y_j) / tau ),   normalized

    The memory is the text it is fitted on. For audio: WSAC (Kouzelis & Katsouros, 2023)
    and DRCap (Li et al., 2024). Departures: the softmax is summed up over blocks of the
    memory, which changes nothing but the space it takes.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    tau : float
        Temperature, above 0. At 0 only the nearest text would be left, with a large
        one the mean of all.
    memory_size : int
        Texts in the memory; ``fit`` sets it.

    Raises
    ------
    ValueError
        If tau is not above 0.

    Example
    -------
    >>> bridge = DeCap(dim=2)
    >>> bridge.fit(torch.eye(2), torch.eye(2))
    >>> bridge(torch.tensor([[0.8, 0.6]])).round(decimals=4)
    tensor([[1., 0.]])
    """

    saw = "text"
    inference_arguments = ("tau",)

    def __init__(self, dim: int, tau: float = 0.01, memory_size: int = 0):
        super().__init__(dim)
        if not tau > 0:
            raise ValueError(f"tau is {tau}; a softmax needs a temperature above 0.")
        self.tau, self.memory_size = tau, memory_size
        self.register_buffer("memory", torch.zeros(memory_size, dim))

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Remember the texts, without a copy; see ``Bridge.fit`` for arguments."""
        self.memory, self.memory_size = text.detach(), len(text)

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Project and normalize; see ``Bridge.forward`` for arguments and returns.

        Raises
        ------
        ValueError
            If the memory is empty.
        """
        if not self.memory_size:
            raise ValueError("The text memory of decap is empty: fit it on texts.")
        top = audio.new_full((len(audio), 1), -torch.inf)  # of the logits so far
        yhat = torch.zeros_like(audio)
        for texts in self.memory.split(_ROWS):
            logits = (audio @ texts.T).div_(self.tau)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights = logits.sub_(new_top).exp_()
            yhat = yhat * (top - new_top).exp() + weights @ texts
            top = new_top
        return normalize(yhat, dim=1)  # which also divides by the sum of the weights
