"""All criteria of the gap on 10,000 and 50,000 pairs, and the similarities alone.

Two clouds apart, as CLAP's are, and two that overlap, as behind a bridge, where it
takes longer to find out how well a classifier tells them apart.
"""

from functools import partial

import torch

from dlink_plugin.gap import modality_gap

from .pairs_like_clap import LAION_CLAP, draw
from .timing import seconds, spread

OVERLAPPING = (0.123, 0.123, 0.05, 0.6)


@torch.inference_mode()
def cosines_alone(audio, text, block=1024) -> float:
    """Seconds of every audio-text cosine, once: retrieval cannot do without."""
    return seconds(lambda: [(rows @ text.T).sum() for rows in audio.split(block)])


def measure(repeats=3) -> dict:
    """Seconds, and how often all similarities alone would fit into them."""
    modality_gap(*draw(LAION_CLAP, 100, 512, torch.Generator()))  # loads the libraries
    found = {}
    for pairs in (10_000, 50_000):
        for name, space in {"apart": LAION_CLAP, "overlapping": OVERLAPPING}.items():
            rows = draw(space, pairs, 512, torch.Generator().manual_seed(0))
            gap = partial(modality_gap, *rows)
            times = [(seconds(gap), cosines_alone(*rows)) for _ in range(repeats)]
            row = f"{pairs}_pairs_{name}"
            found[f"{row}_seconds"] = spread([ours for ours, _ in times])
            found[f"{row}_over_all_cosines"] = spread([o / bare for o, bare in times])
    return found
