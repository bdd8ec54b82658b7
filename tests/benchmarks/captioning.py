"""What the bridge costs a captioner: 300 clips, from file to caption, with and without.

Needs the main job and the zero-shot captions, whose captioner it uses.
"""

import sys

import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import Identity
from dlink_plugin.captioner import Captioner

from .main_job import ROOT
from .timing import in_turns, seconds, spread

CLIPS = 300


def measure(model=ROOT / "results/zero_shot/1234/captioner", repeats=5) -> dict:
    """Speed with the bridge over speed without, and the bridge's own share."""
    files = sorted((ROOT / "results/cache/mini-v1").rglob("test/*.flac"))[:CLIPS]
    if len(files) < CLIPS or not model.is_dir():
        sys.exit("Run the README's main job and its zero-shot captions first.")
    captioner = Captioner.from_pretrained(model)
    bridge, none = captioner.bridge, Identity(captioner.bridge.dim)
    parts = normalize(torch.randn(CLIPS, bridge.dim), dim=1).split(32)

    def caption(through):
        captioner.bridge = through
        captioner.caption(files)

    share, taken = in_turns(lambda: caption(bridge), lambda: caption(none), repeats)
    with torch.inference_mode():
        alone = [seconds(lambda: [bridge(rows) for rows in parts]) for _ in range(5)]
    return {
        "speed_with_bridge_over_without": share,
        "clips_per_second": CLIPS / taken,
        "share_of_the_bridge": spread([each / taken for each in alone]),
    }
