"""All criteria of the gap on 10,000 and 50,000 pairs, and the similarities alone."""

import torch

from dlink_plugin.gap import modality_gap

from .pairs_like_clap import LAION_CLAP, draw
from .timing import seconds


@torch.inference_mode()
def cosines(audio, text, block=1024) -> None:
    """Every audio-text cosine, once: what retrieval cannot do without."""
    for rows in audio.split(block):
        rows @ text.T


def measure() -> dict:
    """Seconds, and how often the similarities alone fit into them."""
    found = {}
    for pairs in (10_000, 50_000):
        generator = torch.Generator().manual_seed(0)
        audio, text = draw(LAION_CLAP, pairs, 512, generator)
        taken = seconds(lambda: modality_gap(audio, text))  # noqa: B023
        bare = seconds(lambda: cosines(audio, text))  # noqa: B023
        found[f"{pairs}_pairs_seconds"] = taken
        found[f"{pairs}_pairs_over_all_cosines"] = taken / bare
    return found
