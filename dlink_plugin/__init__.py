"""Diffusion-Link: a diffusion bridge over the audio-text modality gap.

The public names, imported when they are first used: a YAML file that says
``!name:dlink_plugin.DiffusionLink`` loads PyTorch, ``import dlink_plugin`` does not.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Bridge": "bridges",
    "C3": "bridges",
    "CapDec": "bridges",
    "Captioner": "captioner",
    "ClapEncoder": "encoders",
    "DeCap": "bridges",
    "DiffGAP": "bridges",
    "DiffusionBridge": "bridges",
    "DiffusionLink": "bridges",
    "DiffusionPrior": "bridges",
    "Identity": "bridges",
    "LaionClapEncoder": "encoders",
    "MLPRegressor": "bridges",
    "MeanShift": "bridges",
    "PrefixDecoder": "decoder",
    "Procrustes": "bridges",
    "RectifiedFlow": "bridges",
    "Ridge": "bridges",
    "load_encoder": "encoders",
    "modality_gap": "gap",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
