"""The Gaussian noise schedule: abar_t, adding noise, and one DDIM step back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["NoiseSchedule"]


class NoiseSchedule(nn.Module):
    """Cosine schedule of the cumulative signal level abar_t (Nichol & Dhariwal, 2021).

        abar_t = g(t) / g(0),   g(t) = cos^2( (t/T + s) / (1 + s) * pi/2 )

    That Diffusion-Link is a DDPM is confirmed; the cosine and T are ours.

    Arguments
    ---------
    timesteps : int
        T. Time runs from 0, which is clean, to T.
    s : float
        Offset that keeps the first steps from being too small.

    Example
    -------
    >>> schedule = NoiseSchedule(1000)
    >>> float(schedule.abar[0]), schedule.abar.shape
    (1.0, torch.Size([1001]))
    """

    def __init__(self, timesteps: int = 1000, s: float = 0.008):
        super().__init__()
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        g = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
        abar = (g / g[0]).clamp(min=1e-8)  # g(T) is zero up to rounding
        self.timesteps = timesteps
        self.register_buffer("abar", abar.float(), persistent=False)

    def _signal_and_noise(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[t]
        if abar.dim():
            abar = abar.view(-1, *[1] * (like.dim() - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, z: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """The forward process q(z, t, eps) = sqrt(abar_t) z + sqrt(1 - abar_t) eps.

        Arguments
        ---------
        z : Tensor
            (N, ...) clean vectors of about unit mean square.
        t : Tensor or int
            (N,) times, or one for all.
        eps : Tensor
            Standard normal, of z's shape.

        Returns
        -------
        x_t : Tensor
            Of z's shape; z itself at t = 0.
        """
        signal, noise = self._signal_and_noise(t, z)
        return signal * z + noise * eps

    def ddim_step(self, x_t: Tensor, z0: Tensor, t: int, t_next: int) -> Tensor:
        """One deterministic step back (DDIM with eta = 0; Song et al., 2021, eq. 12).

            eps_hat = (x_t - sqrt(abar_t) z0) / sqrt(1 - abar_t)
            x_next  = sqrt(abar_next) z0 + sqrt(1 - abar_next) eps_hat

        Arguments
        ---------
        x_t : Tensor
            Noisy vectors at time t.
        z0 : Tensor
            Estimate of the clean vectors.
        t : int
            The time of x_t, above t_next.
        t_next : int
            The time to step to; at 0 the result is z0.

        Returns
        -------
        x_next : Tensor
            Of x_t's shape.
        """
        signal, noise = self._signal_and_noise(t, x_t)
        signal_next, noise_next = self._signal_and_noise(t_next, x_t)
        eps_hat = (x_t - signal * z0) / noise
        return signal_next * z0 + noise_next * eps_hat

    def reverse(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        start_step: int,
        steps: int,
    ) -> Tensor:
        """The reverse process: DDIM from the start step to 0.

        Arguments
        ---------
        f : callable
            f(x, t), the denoiser: estimates the clean vectors from noisy ones and
            their time, (1,).
        x : Tensor
            (N, ...) noisy vectors at time ``start_step``.
        start_step : int
            See ``visits``.
        steps : int
            See ``visits``.

        Returns
        -------
        z0 : Tensor
            Of x's shape: the last estimate of the clean vectors.

        Example
        -------
        >>> seen = lambda x, t: t[:, None] * torch.ones_like(x)
        >>> NoiseSchedule(10).reverse(seen, torch.zeros(1, 3), start_step=4, steps=2)
        tensor([[2., 2., 2.]])
        """
        times = self.visits(start_step, steps)
        for t, t_next in zip(times, [*times[1:], 0], strict=True):
            z0 = f(x, torch.full((1,), t, device=x.device))
            x = self.ddim_step(x, z0, t, t_next) if t_next else z0
        return x

    @staticmethod
    def visits(start_step: int, steps: int) -> list[int]:
        """Times of a reverse process, evenly spaced from the start step to 0.

        Arguments
        ---------
        start_step : int
            The noisiest time. At 0 there is nothing to reverse: one visit, at 0.
        steps : int
            Network evaluations; fewer where the start step has not so many times.

        Returns
        -------
        times : list of int
            Strictly falling, from start_step; the step after the last one leads to 0.

        Example
        -------
        >>> NoiseSchedule.visits(300, 3), NoiseSchedule.visits(0, 3)
        ([300, 200, 100], [0])
        """
        steps = max(1, min(steps, start_step))
        return [round(start_step * (steps - k) / steps) for k in range(steps)]
