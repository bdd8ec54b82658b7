"""Linear bridges in closed form: ridge regression and orthogonal Procrustes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Bridge

__all__ = ["Procrustes", "Ridge"]


class _Linear(Bridge):
    """yhat = (a - mean(a)) W + mean(y), normalized; a subclass says what W is."""

    saw = "pairs"

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("audio_mean", torch.zeros(dim))
        self.register_buffer("text_mean", torch.zeros(dim))
        self.register_buffer("W", torch.eye(dim))

    @abstractmethod
    def solve(self, A: Tensor, Y: Tensor) -> Tensor:
        """W from centered pairs, (N, d) in double precision: (d, d)."""

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Solve for W on centered pairs; see ``Bridge.fit`` for arguments."""
        self.audio_mean.copy_(audio.mean(0))
        self.text_mean.copy_(text.mean(0))
        A, Y = audio.double() - self.audio_mean, text.double() - self.text_mean
        self.W.copy_(self.solve(A, Y))

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Map and normalize; see ``Bridge.forward`` for arguments and returns."""
        return normalize((audio - self.audio_mean) @ self.W + self.text_mean, dim=1)


class Ridge(_Linear, name="ridge"):
    """Ridge regression from audio to text (Hoerl & Kennard, 1970).

        W = argmin |A W - Y|^2 + alpha |W|^2 = (A^T A + alpha I)^-1 A^T Y

    on centered pairs, as scikit-learn's ``Ridge`` has it. Normalizing the prediction
    is ours.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    alpha : float
        Penalty, above 0: with fewer pairs than d, A^T A alone has no inverse.

    Raises
    ------
    ValueError
        If alpha is not above 0.

    Example
    -------
    >>> bridge = Ridge(dim=2, alpha=1e-6)
    >>> a = torch.eye(2)
    >>> bridge.fit(a, a.flip(0))
    >>> (bridge(a) - a.flip(0)).abs().max() < 1e-5
    tensor(True)
    """

    def __init__(self, dim: int, alpha: float = 1.0):
        super().__init__(dim)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; ridge needs a penalty above 0.")
        self.alpha = alpha

    def solve(self, A: Tensor, Y: Tensor) -> Tensor:
        """The closed form above; (N, d) twice to (d, d)."""
        penalty = self.alpha * torch.eye(self.dim, dtype=A.dtype, device=A.device)
        return torch.linalg.solve(A.T @ A + penalty, A.T @ Y)


class Procrustes(_Linear, name="procrustes"):
    """The rotation that takes audio closest to text (Schoenemann, 1966).

        W = argmin over orthogonal W of |A W - Y|^2 = U V^T,   U S V^T = A^T Y

    on centered pairs, as scipy's ``orthogonal_procrustes`` has it. It keeps all angles
    between centered clips. Normalizing the prediction is ours.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.

    Example
    -------
    >>> bridge = Procrustes(dim=2)
    >>> a = torch.eye(2)
    >>> bridge.fit(a, a.flip(0))
    >>> (bridge(a) - a.flip(0)).abs().max() < 1e-6
    tensor(True)
    """

    def solve(self, A: Tensor, Y: Tensor) -> Tensor:
        """The closed form above; (N, d) twice to (d, d)."""
        U, _, Vt = torch.linalg.svd(A.T @ Y)
        return U @ Vt
