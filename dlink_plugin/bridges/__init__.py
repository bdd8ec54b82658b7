"""Bridges: audio embedding in, text-like embedding out. Tensors only.

``Bridge`` is the contract; every other class here is one way to cross the gap.
"""

from .base import Bridge
from .conditional import DiffGAP, DiffusionPrior
from .denoiser import ResidualMLP
from .diffusion_link import DiffusionLink
from .flow import RectifiedFlow
from .linear import Procrustes, Ridge
from .means import C3, CapDec, Identity, MeanShift
from .memory import DeCap
from .regression import MLPRegressor
from .schedule import NoiseSchedule
from .share import Share
from .text_diffusion import DiffusionBridge
from .variant import DiffusionLinkVariant

__all__ = [
    "C3",
    "Bridge",
    "CapDec",
    "DeCap",
    "DiffGAP",
    "DiffusionBridge",
    "DiffusionLink",
    "DiffusionLinkVariant",
    "DiffusionPrior",
    "Identity",
    "MLPRegressor",
    "MeanShift",
    "NoiseSchedule",
    "Procrustes",
    "RectifiedFlow",
    "ResidualMLP",
    "Ridge",
    "Share",
]
