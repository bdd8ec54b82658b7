"""Bridging against the bare chain of its matrix products, which is the limit."""

from functools import partial

import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import DiffusionLink

from .timing import in_turns


def matrix_products(bridge: DiffusionLink, rows: torch.Tensor, steps: int):
    """What the network multiplies, and nothing else."""
    for _ in range(steps):
        for block in bridge.denoiser.blocks:
            rows = rows @ block.mlp[0].weight.T @ block.mlp[-1].weight.T
        rows = rows @ bridge.denoiser.out.weight.T
    return rows


def bridge_batches(bridge: DiffusionLink, audio: torch.Tensor, times: int) -> None:
    """Noise, network and DDIM."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(times):
        bridge(audio, generator)


@torch.inference_mode()
def measure(dim=512, repeats=25) -> dict:
    """For each batch size and number of steps the share of the limit, and its speed."""
    found = {}
    for batch in (1, 1024):
        audio = normalize(torch.randn(batch, dim), dim=1)
        times = max(1, 64 // batch)  # one row is over too soon to be timed
        for steps in (1, 3, 5):
            bridge = DiffusionLink(dim, start_step=50, steps=steps).eval()
            share, taken = in_turns(
                partial(bridge_batches, bridge, audio, times),
                partial(matrix_products, bridge, audio, steps * times),
                repeats,
            )
            name = f"batch_{batch}_steps_{steps}"
            found[f"{name}_over_matrix_products"] = share
            found[f"{name}_per_second"] = batch * times / taken
    return found
