"""What the bridge costs a captioner: ``python -m tests.benchmarks.captioning [MODEL]``.

300 clips of the embedded corpus, from file to caption, with the bridge and without it,
in turns; the bridge alone on the same clips. Adds to ``results/benchmarks.json``.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from dlink_plugin.bridges import Identity
from dlink_plugin.captioner import Captioner

ROOT = Path(__file__).parents[2]
CLIPS = 300


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main(model):
    captioner = Captioner.from_pretrained(model)
    files = sorted((ROOT / "results/cache/mini-v1").rglob("test/*.flac"))[:CLIPS]
    if len(files) < CLIPS:
        sys.exit("Run the main job first: it writes the embedded corpus.")
    bridge, none = captioner.bridge, Identity(captioner.bridge.dim)
    audio = torch.nn.functional.normalize(torch.randn(CLIPS, bridge.dim), dim=1)
    parts = audio.split(32)
    captioner.caption(files[:32])  # warms up
    times = {"with": [], "without": [], "bridge": []}
    for _ in range(3):
        for name, each in (("with", bridge), ("without", none)):
            captioner.bridge = each
            times[name].append(seconds(lambda: captioner.caption(files)))
        with torch.no_grad():
            times["bridge"].append(seconds(lambda: [bridge(rows) for rows in parts]))
    middle = {name: statistics.median(values) for name, values in times.items()}
    found = {
        "captioning_300_clips_seconds": round(middle["with"], 2),
        "captioning_speed_with_bridge_over_without": round(
            middle["without"] / middle["with"], 3
        ),
        "captioning_share_of_the_bridge": round(middle["bridge"] / middle["with"], 4),
    }
    path = ROOT / "results" / "benchmarks.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | found, indent=2) + "\n")
    print(json.dumps({**found, "times": times}, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:] or [ROOT / "results/zero_shot/1234/captioner"])
