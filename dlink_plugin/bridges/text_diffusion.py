"""Diffusion-Bridge: a diffusion model of text alone, entered halfway by audio."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .denoiser import ResidualMLP
from .means import Centered
from .schedule import NoiseSchedule
from .share import WHOLE, Share
from .unet import UNet1d

__all__ = ["DiffusionBridge"]


class DiffusionBridge(Centered, name="diffusion_bridge"):
    """Diffusion-Bridge (Lee et al., CVPR 2025).

    A DDPM of centered text, z = scale (y - mean(y)) / |y - mean(y)|, that predicts z:

        L = E[ m(f(q(z, t, eps), t), z) ]

    The audio, centered by its own mean and scaled alike, is taken AS x_t at the start
    step, without noise, and walks to 0 by DDIM. Its text space is the centered one.
    Departures: the default denoiser is the residual MLP of Diffusion-Link, so that the
    two are compared like for like; "unet" has the original's shape. The budget is that
    of the other bridges instead of millions of steps.

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
    scale : float
        Of the centered unit vectors; the original has 5, for d = 512. It is not
        adapted to other widths.
    start_step : int
        Where the audio enters; the original has 600.
    steps : int
        Network evaluations; the original has 5.
    denoiser : str
        "mlp", or "unet" for a 1-D U-Net along the coordinates, which takes no dropout.
    unet_width : int
        Channels of the U-Net's first level.

    Raises
    ------
    ValueError
        If the denoiser is unknown, or the start step is not in 1..timesteps.

    Example
    -------
    >>> bridge = DiffusionBridge(dim=8)
    >>> bridge(torch.eye(8)[:3]).shape
    torch.Size([3, 8])
    """

    saw = "text"
    inference_arguments = ("start_step", "steps")

    def __init__(
        self,
        dim: int,
        blocks: int = 3,
        expansion: int = 4,
        dropout: float = 0.1,
        timesteps: int = 1000,
        scale: float = 5.0,
        start_step: int = 600,
        steps: int = 5,
        denoiser: str = "mlp",
        unet_width: int = 64,
    ):
        super().__init__(dim)
        if not 1 <= start_step <= timesteps:
            raise ValueError(
                f"start_step {start_step} is not in 1..{timesteps}, where audio can "
                "enter."
            )
        if denoiser not in ("mlp", "unet"):
            raise ValueError(f"denoiser {denoiser!r} is neither 'mlp' nor 'unet'.")
        self.blocks, self.expansion, self.dropout = blocks, expansion, dropout
        self.timesteps, self.scale = timesteps, scale
        self.start_step, self.steps = start_step, steps
        self.denoiser, self.unet_width = denoiser, unet_width
        self.schedule = NoiseSchedule(timesteps)
        if denoiser == "mlp":
            self.network = ResidualMLP(dim, blocks, expansion, dropout)
        else:
            self.network = UNet1d(dim, unet_width)

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """The loss above, from text alone; see ``Bridge.loss``."""
        z = self.scale * self.text(text)
        here = {"generator": generator, "device": z.device}
        n = share.world * len(z)
        t = share.of(torch.randint(1, self.timesteps + 1, (n,), **here))
        eps = share.of(torch.randn(n, self.dim, dtype=z.dtype, **here))
        return {
            "loss": mse_loss(self.network(self.schedule.add_noise(z, t, eps), t), z)
        }

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Enter at the start step, walk back, normalize: text of ``text_space``.

        See ``Bridge.forward`` for arguments and returns. Nothing is random.
        """
        x = self.scale * self.audio(audio)
        z0 = self.schedule.reverse(self.network, x, self.start_step, self.steps)
        return normalize(z0, dim=1)
