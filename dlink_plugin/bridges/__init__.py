"""Bridges: audio embedding in, text-like embedding out. Tensors only.

``Bridge`` is the contract; every other class here is one way to cross the gap.
"""

from .base import Bridge
from .denoiser import ResidualMLP
from .diffusion_link import DiffusionLink
from .mean_shift import MeanShift
from .schedule import NoiseSchedule

__all__ = ["Bridge", "DiffusionLink", "MeanShift", "NoiseSchedule", "ResidualMLP"]
