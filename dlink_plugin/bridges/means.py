"""Bridges of nothing but means, and those that leave the gap to the decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Bridge
from .normalizer import Centering

__all__ = ["C3", "CapDec", "Centered", "Identity", "MeanShift"]


class Identity(Bridge, name="none"):
    """No bridge: the audio embedding as it is.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.

    Example
    -------
    >>> Identity(dim=2)(torch.tensor([[0.6, 0.8]]))
    tensor([[0.6000, 0.8000]])
    """

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Nothing; see ``Bridge.forward`` for arguments and returns."""
        return audio


class CapDec(Identity, name="capdec"):
    """CapDec (Nukrai et al., Findings of EMNLP 2022): noise for the decoder, no bridge.

    The decoder is trained on y + N(0, noise_variance) and takes an audio embedding for
    one of those; the embedding itself stays as it is. Departure: the original trains a
    GPT-2 on CLIP image-text space; here the noisy text is renormalized.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    noise_variance : float
        Of each coordinate; the original has 0.016.

    Example
    -------
    >>> CapDec(dim=2).noise_variance
    0.016
    """

    def __init__(self, dim: int, noise_variance: float = 0.016):
        super().__init__(dim)
        self.noise_variance = noise_variance


class MeanShift(Bridge, name="mean_shift"):
    """Moves the audio centroid onto the text centroid (Liang et al., NeurIPS 2022).

    The trivial baseline, which takes the gap for a constant vector:

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

    saw = "means"

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


class Centered(Bridge):
    """A bridge whose text space is the centered one: y minus the mean, renormalized.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    """

    own_text_space = True

    def __init__(self, dim: int):
        super().__init__(dim)
        self.audio, self.text = Centering(dim), Centering(dim)

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Take the two means; see ``Bridge.fit`` for arguments."""
        self.audio.fit(audio)
        self.text.fit(text)

    def text_space(self, text: Tensor) -> Tensor:
        """Center the text: (N, d) to (N, d)."""
        return self.text(text)

    def encoder_space(self, bridged: Tensor) -> Tensor:
        """Undo the centering with the mean of text: (N, d) to (N, d)."""
        return self.text.inverse(bridged)


class C3(Centered, name="c3"):
    """C3 (Zhang et al., ICLR 2024): connect, collapse, corrupt.

    Each modality loses its own mean and is renormalized; the decoder is trained on
    centered text with Gaussian noise. Its text space is the centered one. Departure:
    the noisy text is renormalized, and the decoder is whatever one is trained.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    noise_variance : float
        Of each coordinate of the noise for the decoder; the original has 0.016.

    Example
    -------
    >>> bridge = C3(dim=2)
    >>> bridge.fit(torch.eye(2), -torch.eye(2))
    >>> bridge(torch.eye(2)[:1]), bridge.text_space(-torch.eye(2)[:1])
    (tensor([[ 0.7071, -0.7071]]), tensor([[-0.7071,  0.7071]]))
    """

    saw = "means"

    def __init__(self, dim: int, noise_variance: float = 0.016):
        super().__init__(dim)
        self.noise_variance = noise_variance

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Center the audio; see ``Bridge.forward`` for arguments and returns."""
        return self.audio(audio)
