"""The whole training of 50,000 pairs of 512 numbers, 100 epochs, on a GPU.

Pairs and bridge stay on the card. Its limit is what it does in large matrix products
of the same precision in the same run. Without a GPU there is nothing to write down.
"""

import tempfile
from pathlib import Path

import torch

from dlink_plugin.pairs import Pairs

from .pairs_like_clap import LAION_CLAP, draw
from .timing import seconds
from .training import HPARAMS, make_brain

FIGURES = ("seconds", "steps_per_second", "share_of_the_limit", "gpu_memory_gb")


def products_per_second(device: str, side: int, times: int = 20) -> float:
    """Multiplications and additions a second of large matrix products."""
    rows = torch.randn(side, side, device=device)

    def multiply():
        product = rows
        for _ in range(times):
            product = rows @ product / side
        product.sum().item()  # waits for the card

    multiply()
    return times * 2 * side**3 / seconds(multiply)


def measure(device="cuda", pairs=50_000, epochs=100, dim=512, side=8192) -> dict:
    """Seconds of all epochs, share of the card's speed, and its memory."""
    if device == "cuda" and not torch.cuda.is_available():
        return dict.fromkeys(FIGURES)
    sides = draw(LAION_CLAP, pairs, dim, torch.Generator().manual_seed(0))
    data = Pairs(*(rows.to(device) for rows in sides), torch.arange(pairs))
    changes = {"number_of_epochs": epochs, "passes_per_epoch": 1}
    with tempfile.TemporaryDirectory() as folder:
        brain = make_brain(data, Path(folder), **changes)
        taken = seconds(lambda: brain.fit(brain.epoch_counter, data))
    steps = epochs * (pairs // HPARAMS["batch_size"])
    weights = sum(p.numel() for p in brain.modules.parameters() if p.dim() == 2)
    # A weight is used three times, forward and back, by each row of both branches.
    operations = steps * 2 * HPARAMS["batch_size"] * weights * 3 * 2
    limit = products_per_second(device, side)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    figures = taken, steps / taken, operations / taken / limit, memory / 1e9
    return dict(zip(FIGURES, figures, strict=True))
