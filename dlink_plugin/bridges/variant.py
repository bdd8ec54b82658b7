"""Diffusion-Link with parts taken out, exchanged or added, to see what each is for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .diffusion_link import DiffusionLink, topology_loss
from .normalizer import unit_variance
from .share import WHOLE, Share

__all__ = ["DiffusionLinkVariant"]


class DiffusionLinkVariant(DiffusionLink, name="diffusion_link_variant"):
    """Diffusion-Link for ablations; with its defaults it is Diffusion-Link.

    What the paper leaves open can be chosen here, and some ideas beyond it; all ours.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    text_share : float
        w of the text branch in L = (1 - w) L(audio) + w L(text); 0 is without it, 1
        never shows the denoiser audio.
    unpaired : int
        Texts without audio that each batch of the text branch holds besides its own;
        drawn from ``texts``, an attribute to be set before training.
    mixup : float
        Each pair is mixed with another one: with 1 - u of itself and u of the other, u
        uniform in 0..mixup, audio and text alike (Zhang et al., ICLR 2018).
    scale : float
        Of all embeddings, besides sqrt(d).
    mean_shift : bool
        Whether audio goes through mean shift first.
    residual : bool
        Whether the denoiser adds to what it sees: f(x, t) + sqrt(abar_t) x. With
        ``mean_shift`` an untrained bridge is then about mean shift.
    noise_at_start : bool
        Whether the reverse process starts from q(a, s, eps) or from its mean.
    averaged_draws : int
        K: what comes out is the normalized mean of K draws.
    blocks, expansion, dropout, timesteps, t_max, topology_weight, start_step, steps
        See ``DiffusionLink``.

    Example
    -------
    >>> bridge = DiffusionLinkVariant(dim=8, text_share=0.0, averaged_draws=4)
    >>> bridge(torch.eye(8)[:2]).shape
    torch.Size([2, 8])
    """

    inference_arguments = (
        *DiffusionLink.inference_arguments,
        *("noise_at_start", "averaged_draws"),
    )

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
        text_share: float = 0.5,
        unpaired: int = 0,
        mixup: float = 0.0,
        scale: float = 1.0,
        mean_shift: bool = False,
        residual: bool = False,
        noise_at_start: bool = True,
        averaged_draws: int = 1,
    ):
        options = timesteps, t_max, topology_weight, start_step, steps
        super().__init__(dim, blocks, expansion, dropout, *options)
        self.text_share, self.unpaired, self.mixup = text_share, unpaired, mixup
        self.scale, self.mean_shift, self.residual = scale, mean_shift, residual
        self.noise_at_start, self.averaged_draws = noise_at_start, averaged_draws
        self.texts: Tensor | None = None
        self.register_buffer("shift", torch.zeros(dim))

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Take the difference of the means; see ``Bridge.fit`` for arguments."""
        self.shift.copy_(text.mean(0) - audio.mean(0))

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """L = (1 - w) L(audio) + w L(text), see ``Bridge.loss`` for the rest.

        L(z) = m(f(q(z, t, eps), t), y) + lambda L_topo: the terms of ``DiffusionLink``.
        Samples are mixed, so each process works on the whole batch.
        """
        audio, text = share.gather(audio), share.gather(text)
        here = {"generator": generator, "device": audio.device}
        if self.mixup:
            audio, text = self._mix(audio, text, here)
        a, y = self._scaled(self._shifted(audio)), self._scaled(text)
        z = y
        if self.unpaired:
            rows = torch.randint(len(self.texts), (self.unpaired,), **here)
            z = torch.cat([y, self._scaled(self.texts[rows])])
        t = torch.randint(1, self.t_max + 1, (len(z),), **here)
        eps = torch.randn(len(a) + len(z), self.dim, dtype=a.dtype, **here)
        t = torch.cat([t[: len(a)], t])
        yhat = self._predict(self.schedule.add_noise(torch.cat([a, z]), t, eps), t)
        shares = 1 - self.text_share, self.text_share
        terms = {}
        for name, guess, truth in zip(
            ("audio", "text"), yhat.split([len(a), len(z)]), (y, z), strict=True
        ):
            terms[f"cross_{name}"] = mse_loss(guess, truth) / self.scale**2
            terms[f"topology_{name}"] = topology_loss(guess, truth)
        cross = shares[0] * terms["cross_audio"] + shares[1] * terms["cross_text"]
        topology = (
            shares[0] * terms["topology_audio"] + shares[1] * terms["topology_text"]
        )
        return {"loss": cross + self.topology_weight * topology, **terms}

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """As ``DiffusionLink.forward``; see ``Bridge.forward`` for the rest."""
        a = self._scaled(self._shifted(audio)).repeat(self.averaged_draws, 1)
        eps = torch.zeros_like(a)
        if self.noise_at_start:
            eps.normal_(generator=generator)
        x = self.schedule.add_noise(a, self.start_step, eps)
        z0 = self.schedule.reverse(self._predict, x, self.start_step, self.steps)
        draws = normalize(z0, dim=1).view(self.averaged_draws, *audio.shape)
        return normalize(draws.mean(0), dim=1)

    def _scaled(self, unit: Tensor) -> Tensor:
        return self.scale * unit_variance(unit)

    def _shifted(self, audio: Tensor) -> Tensor:
        return normalize(audio + self.shift, dim=1) if self.mean_shift else audio

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        z0 = self.denoiser(x, t)
        if self.residual:
            z0 = z0 + self.schedule.abar[t].sqrt()[:, None] * x
        return z0

    def _mix(self, audio: Tensor, text: Tensor, here: dict) -> tuple[Tensor, Tensor]:
        u = self.mixup * torch.rand(len(audio), 1, **here)
        other = torch.randperm(len(audio), **here)
        mixed = (torch.lerp(side, side[other], u) for side in (audio, text))
        return tuple(normalize(side, dim=1) for side in mixed)
