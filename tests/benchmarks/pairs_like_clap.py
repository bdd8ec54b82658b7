"""Pairs with the statistics of real CLAP spaces, drawn at random.

A row is c + sqrt(s) z + sqrt(1 - |c|^2 - s) e, brought to length 1: the centroid c of
its side, what the pair shares (z) and what is its own (e). c and s follow from
published measurements: within each side the mean cosine is |c|^2, between pairs it is
c_audio . c_text + s, and the centroid distance is |c_audio - c_text|.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

# Within audio, within text, centroid distance, paired cosine.
LAION_CLAP = (0.136, 0.123, 0.448, 0.496)
MS_CLAP = (0.301, 0.397, 0.779, 0.339)


def draw(statistics, rows, dim, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio and text embeddings, (rows, dim) each."""
    audio, text, distance, paired = statistics
    between = (audio + text - distance**2) / 2
    shared = (paired - between) ** 0.5 * torch.randn(rows, dim, generator=generator)
    angle = math.acos(between / math.sqrt(audio * text))
    sides = []
    for square, turn in ((audio, 0.0), (text, angle)):
        center = torch.zeros(dim)
        center[0], center[1] = math.cos(turn), math.sin(turn)
        own = (1 - square - paired + between) ** 0.5
        own = own * torch.randn(rows, dim, generator=generator)
        sides.append(normalize(square**0.5 * center + (shared + own) / dim**0.5, dim=1))
    return sides[0], sides[1]


def write(folder: Path, statistics, rows: int, dim: int, seed: int = 0) -> list[Path]:
    """audio.npy and text.npy, drawn and written a block at a time."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    files = [folder / "audio.npy", folder / "text.npy"]
    options = {"mode": "w+", "dtype": np.float32, "shape": (rows, dim)}
    for start in range(0, rows, 100_000):
        if not start:
            for file in files:
                np.lib.format.open_memmap(file, **options).flush()
        end = min(rows, start + 100_000)
        for file, side in zip(
            files, draw(statistics, end - start, dim, generator), strict=True
        ):
            np.lib.format.open_memmap(file, mode="r+")[start:end] = side.numpy()
    return files
