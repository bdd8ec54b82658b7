"""The README's command: cold, with an empty cache folder, and warm, with a new seed."""

import subprocess
import sys
import tempfile
from pathlib import Path

from .timing import seconds

ROOT = Path(__file__).parents[2]
RECIPE = ("recipes/AudioCaps/train.py", "hparams/bridge.yaml", "--noprogressbar")


def run(cache: Path, output: Path, seed: int) -> None:
    options = {"cache_folder": cache, "output_folder": output, "seed": seed}
    arguments = [part for k, v in options.items() for part in (f"--{k}", str(v))]
    command = [sys.executable, *RECIPE, *arguments]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def measure() -> dict:
    """Seconds of both."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        return {
            "cold_seconds": seconds(lambda: run(cache, Path(folder) / "cold", 1)),
            "warm_seconds": seconds(lambda: run(cache, Path(folder) / "warm", 2)),
        }
