"""Diffusion of text that is conditioned on audio: a prior, and a two-way bridge."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .base import Bridge
from .denoiser import ResidualMLP
from .normalizer import unit_variance
from .schedule import NoiseSchedule
from .share import WHOLE, Share

__all__ = ["DiffGAP", "DiffusionPrior"]


class DiffusionPrior(Bridge, name="diffusion_prior"):
    """A diffusion prior after DALL-E 2 (Ramesh et al., 2022): text from pure noise.

        L = E[ m(f(q(y, t, eps), t, c), y) ],   c = a, or 0 with probability p

    and at inference DDIM from noise at T, with classifier-free guidance w (Ho &
    Salimans, 2022): f(x, t, 0) + w (f(x, t, a) - f(x, t, 0)). Departures: DALL-E 2
    goes from text to image and its denoiser is a causal transformer; here audio leads
    to text, and the denoiser is the residual MLP with the condition added to its input.
    DALL-E 2 draws two samples and keeps the one nearer to its condition; here, one.

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
    timesteps : int
        T of the noise schedule, where the reverse process starts.
    condition_dropout : float
        p.
    guidance : float
        w; 1 is none.
    steps : int
        Network evaluations (twice as many with guidance).

    Example
    -------
    >>> bridge = DiffusionPrior(dim=8)
    >>> bridge(torch.eye(8)[:3], torch.Generator().manual_seed(0)).shape
    torch.Size([3, 8])
    """

    saw = "pairs"
    inference_arguments = ("guidance", "steps")

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.1,
        timesteps: int = 1000,
        condition_dropout: float = 0.1,
        guidance: float = 1.0,
        steps: int = 5,
    ):
        super().__init__(dim)
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.timesteps, self.condition_dropout = timesteps, condition_dropout
        self.guidance, self.steps = guidance, steps
        self.schedule = NoiseSchedule(timesteps)
        self.denoiser = ResidualMLP(dim, blocks, expansion, dropout, dim)

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """The loss above; see ``Bridge.loss`` for arguments and returns."""
        c, y = unit_variance(audio), unit_variance(text)
        here = {"generator": generator, "device": y.device}
        n = share.world * len(y)
        t = share.of(torch.randint(1, self.timesteps + 1, (n,), **here))
        eps = share.of(torch.randn(n, self.dim, dtype=y.dtype, **here))
        kept = share.of(torch.rand(n, 1, **here)) >= self.condition_dropout
        x_t = self.schedule.add_noise(y, t, eps)
        return {"loss": mse_loss(self.denoiser(x_t, t, c * kept), y)}

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Walk from noise to text, normalize; see ``Bridge.forward``."""
        a = unit_variance(audio)
        x = torch.randn(a.shape, generator=generator, dtype=a.dtype, device=a.device)
        guided = partial(self._guided, a=a)
        z0 = self.schedule.reverse(guided, x, self.timesteps, self.steps)
        return normalize(z0, dim=1)

    def _guided(self, x: Tensor, t: Tensor, a: Tensor) -> Tensor:
        with_a = self.denoiser(x, t, a)
        if self.guidance == 1:
            return with_a
        without = self.denoiser(x, t, torch.zeros_like(a))
        return without + self.guidance * (with_a - without)


class DiffGAP(Bridge, name="diffgap"):
    """A two-way conditional diffusion after DiffGAP (Mo et al., ICASSP 2025).

    One light network denoises text under the condition of audio and audio under the
    condition of text, told which by a flag (r = 0, 1):

        L = E[ m(f(q(y,t,eps), t, [a, 0]), y) + m(f(q(a,t,eps'), t, [y, 1]), a) ] / 2

    At inference the audio embedding is noised to the start step and denoised as text.
    Known of the original: bidirectional diffusion in contrastive space, text denoised
    under audio and audio under text. Ours, since no code is public: one network for
    both ways, the residual MLP, x0-prediction, and where the reverse process starts.

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
    timesteps : int
        T of the noise schedule.
    start_step : int
        Time to which audio is noised before it is denoised as text.
    steps : int
        Network evaluations.

    Raises
    ------
    ValueError
        If the start step is not in 1..timesteps.

    Example
    -------
    >>> bridge = DiffGAP(dim=8)
    >>> bridge(torch.eye(8)[:3], torch.Generator().manual_seed(0)).shape
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
        start_step: int = 600,
        steps: int = 5,
    ):
        super().__init__(dim)
        if not 1 <= start_step <= timesteps:
            raise ValueError(f"start_step {start_step} is not in 1..{timesteps}.")
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.timesteps, self.start_step, self.steps = timesteps, start_step, steps
        self.schedule = NoiseSchedule(timesteps)
        self.denoiser = ResidualMLP(dim, blocks, expansion, dropout, dim + 1)

    def _denoise(self, x: Tensor, t: Tensor, c: Tensor, r: float) -> Tensor:
        flag = c.new_full((len(c), 1), r)
        return self.denoiser(x, t, torch.cat([c, flag], dim=1))

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
        n = share.world * len(a)
        t = share.of(torch.randint(1, self.timesteps + 1, (n,), **here))
        eps = torch.randn(2, n, self.dim, dtype=a.dtype, **here)
        eps_y, eps_a = share.of(eps, dim=1)
        y_t = self.schedule.add_noise(y, t, eps_y)
        a_t = self.schedule.add_noise(a, t, eps_a)
        terms = {
            "to_text": mse_loss(self._denoise(y_t, t, a, 0.0), y),
            "to_audio": mse_loss(self._denoise(a_t, t, y, 1.0), a),
        }
        return {"loss": (terms["to_text"] + terms["to_audio"]) / 2} | terms

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise the audio, denoise it as text, normalize; see ``Bridge.forward``."""
        a = unit_variance(audio)
        eps = torch.randn(a.shape, generator=generator, dtype=a.dtype, device=a.device)
        x = self.schedule.add_noise(a, self.start_step, eps)
        f = partial(self._denoise, c=a, r=0.0)
        z0 = self.schedule.reverse(f, x, self.start_step, self.steps)
        return normalize(z0, dim=1)
