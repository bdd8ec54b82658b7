"""Diffusion-Link (Nam et al., arXiv 2510.11330): its losses and its reverse process.

Notation: a, y are the L2-normalized audio and text embeddings of one clip and one of
its captions; q(z, t, eps) is the forward process and f(x, t) the denoiser, which
predicts the clean TEXT embedding whatever modality was noised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .base import Bridge
from .denoiser import ResidualMLP
from .normalizer import unit_variance
from .schedule import NoiseSchedule
from .share import WHOLE, Share

__all__ = ["DiffusionLink", "topology_loss"]


def topology_loss(yhat: Tensor, y: Tensor) -> Tensor:
    """L_topo = mean over i != j of (cos(yhat_i, yhat_j) - cos(y_i, y_j))^2.

    That a topology loss preserves the geometry of the text space is confirmed by the
    paper; this form of it is inferred.

    Arguments
    ---------
    yhat : Tensor
        (N, d) predictions, of any scale; N >= 2.
    y : Tensor
        (N, d) text embeddings, of any scale.

    Returns
    -------
    loss : Tensor
        Scalar, 0 where all angles agree.

    Example
    -------
    >>> y = torch.eye(3)
    >>> float(topology_loss(-2 * y, y))
    0.0
    """
    yhat, y = normalize(yhat, dim=1), normalize(y, dim=1)
    difference = yhat @ yhat.T - y @ y.T
    pairs = len(y) * (len(y) - 1)
    return (difference.square().sum() - difference.diagonal().square().sum()) / pairs


class DiffusionLink(Bridge, name="diffusion_link"):
    """A diffusion bridge from audio embeddings to text embeddings.

    Confirmed by the paper: a DDPM on the output of a frozen encoder, three residual
    MLP blocks, paired data, a cross-sample prediction loss and a topology loss.
    Inferred: x0-prediction of the paired text from noised audio and from noised text,
    and the reverse process that starts from noised audio. Ours: every number.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    blocks : int
        Residual MLP blocks; the paper has 3.
    expansion : int
        Hidden width of a block over d.
    dropout : float
        Probability, inside the blocks.
    timesteps : int
        T of the noise schedule.
    t_max : int
        Training draws t from 1..t_max. Training at times that inference never visits
        costs accuracy at those it does, so keep it not far above the start step.
    topology_weight : float
        lambda in L = L_cross + lambda L_topo.
    start_step : int
        Time to which audio is noised before it is denoised; 0 is the regressor f(a, 0).
    steps : int
        Network evaluations of the reverse process.

    Example
    -------
    >>> bridge = DiffusionLink(dim=8)
    >>> audio = normalize(torch.randn(3, 8), dim=1)
    >>> bridge(audio, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 8])
    """

    saw = "pairs"
    inference_arguments = ("start_step", "steps")

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.1,
        timesteps: int = 1000,
        t_max: int = 400,
        topology_weight: float = 1.0,
        start_step: int = 200,
        steps: int = 3,
    ):
        super().__init__(dim)
        if not 0 <= start_step <= t_max <= timesteps:
            raise ValueError(
                f"start_step {start_step} <= t_max {t_max} <= timesteps {timesteps} "
                "does not hold; training must cover the times that inference visits."
            )
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.timesteps, self.t_max = timesteps, t_max
        self.topology_weight = topology_weight
        self.start_step, self.steps = start_step, steps
        self.schedule = NoiseSchedule(timesteps)
        self.denoiser = ResidualMLP(dim, blocks, expansion, dropout)

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """L = L_cross + lambda L_topo, each the mean of an audio and a text branch.

            L_cross = E[ m(f(q(a,t,eps), t), y) + m(f(q(y,t,eps'), t), y) ] / 2

        with m the mean squared error over coordinates, and for each pair one t for both
        branches and independent noise. See ``Bridge.loss`` for arguments and returns.

        Raises
        ------
        ValueError
            If the batch has fewer than two pairs.
        """
        if len(audio) < 2:
            raise ValueError(
                "The topology loss compares clips: give batches of 2 or more."
            )
        a, y = unit_variance(audio), unit_variance(text)
        here = {"generator": generator, "device": a.device}
        n = share.world * len(a)
        t = share.of(torch.randint(1, self.t_max + 1, (n,), **here)).repeat(2)
        eps = torch.randn(2, n, self.dim, dtype=a.dtype, **here)
        eps = share.of(eps, dim=1).flatten(0, 1)
        x_t = self.schedule.add_noise(torch.cat([a, y]), t, eps)
        yhat_audio, yhat_text = self.denoiser(x_t, t).chunk(2)
        every_y = share.gather(y)
        terms = {
            "cross_audio": mse_loss(yhat_audio, y),
            "cross_text": mse_loss(yhat_text, y),
            "topology_audio": topology_loss(share.gather(yhat_audio), every_y),
            "topology_text": topology_loss(share.gather(yhat_text), every_y),
        }
        cross = (terms["cross_audio"] + terms["cross_text"]) / 2
        topology = (terms["topology_audio"] + terms["topology_text"]) / 2
        return {"loss": cross + self.topology_weight * topology, **terms}

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise the audio embedding to the start step, walk back by DDIM, normalize.

        See ``Bridge.forward`` for arguments and returns.
        """
        a = unit_variance(audio)
        eps = torch.randn(a.shape, generator=generator, dtype=a.dtype, device=a.device)
        x = self.schedule.add_noise(a, self.start_step, eps)
        z0 = self.schedule.reverse(self.denoiser, x, self.start_step, self.steps)
        return normalize(z0, dim=1)

    def draws(
        self, audio: Tensor, k: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Several bridged embeddings of each clip, from independent noise.

        Arguments
        ---------
        audio : Tensor
            (N, d) L2-normalized audio embeddings.
        k : int
            K, the number of draws; 1 or more.
        generator : torch.Generator, optional
            Source of the noise.

        Returns
        -------
        bridged : Tensor
            (K, N, d) L2-normalized; their normalized mean is the consensus of K draws.

        Example
        -------
        >>> DiffusionLink(dim=8).draws(torch.eye(8)[:2], 5).shape
        torch.Size([5, 2, 8])
        """
        bridged = self(audio.repeat(k, 1), generator)
        return bridged.view(k, len(audio), self.dim)
