"""Training from disk at 50,000, 500,000 and 5,000,000 pairs of 512 numbers.

Steps a second and the most memory that the process held, random batches read through
the memory map. Needs 20 GB of disk for the largest.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dlink_plugin.brains import BridgeBrain
from dlink_plugin.pairs import MappedRows, Pairs

from .main_job import ROOT
from .pairs_like_clap import LAION_CLAP, MS_CLAP, write
from .timing import spread
from .training import make_brain

DIM, BATCH, WARM_UP, STEPS, ALL_STEPS = 512, 128, 20, 300, 100_000


class Enough(Exception):
    """The steps that were to be timed are done."""


class TimedBrain(BridgeBrain):
    """Times some steps after the first ones, and stops."""

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if self.step == WARM_UP:
            self.started = time.perf_counter()
        if self.step == WARM_UP + STEPS:
            self.seconds = time.perf_counter() - self.started
            raise Enough


def steps_per_second(folder: str, rows: int) -> float:
    """Of a Brain that reads the pairs from disk."""
    audio, text = (MappedRows(f"{folder}/{side}.npy") for side in ("audio", "text"))
    pairs = Pairs(audio, text, torch.arange(rows))
    with tempfile.TemporaryDirectory() as output:
        # As many steps in all whatever the number of pairs: one learning-rate schedule.
        passes = {"passes_per_epoch": ALL_STEPS * BATCH // rows}
        brain = make_brain(pairs, Path(output), TimedBrain, batch_size=BATCH, **passes)
        try:
            brain.fit(brain.epoch_counter, pairs)
        except Enough:
            brain.close_writer()
            return STEPS / brain.seconds
    raise SystemExit(f"{rows} pairs are fewer than the steps to time")


def in_process(folder: Path, rows: int) -> dict[str, float]:
    """Speed and peak memory of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", str(folder), str(rows)]
    process = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def measure(sizes=(50_000, 500_000, 5_000_000), repeats=3) -> dict:
    """Each number of pairs in turns with the smallest."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "few"), Path(folder, "many")
        write(few, LAION_CLAP, sizes[0], DIM)
        for name, statistics, size in [
            ("ms_clap", MS_CLAP, sizes[0]),
            *(("laion_clap", LAION_CLAP, size) for size in sizes[1:]),
        ]:
            row, needed = f"{size}_pairs_{name}", 2 * 4 * DIM * size
            if shutil.disk_usage(folder).free < 1.1 * needed:
                found[row] = f"skipped: needs {needed / 1e9:.0f} GB of disk"
                continue
            write(many, statistics, size, DIM)
            runs = [
                (in_process(many, size), in_process(few, sizes[0]))
                for _ in range(repeats)
            ]
            speeds = [(a["steps_per_second"], b["steps_per_second"]) for a, b in runs]
            found[f"{row}_speed_over_{sizes[0]}"] = spread([a / b for a, b in speeds])
            found[f"{row}_steps_per_second"] = spread([a for a, _ in speeds])
            found[f"{row}_gb"] = max(run["gb"] for run, _ in runs)
        found[f"{sizes[0]}_pairs_laion_clap_steps_per_second"] = spread(
            [b for _, b in speeds]
        )
        found[f"{sizes[0]}_pairs_laion_clap_gb"] = max(run["gb"] for _, run in runs)
    return found


if __name__ == "__main__":
    speed = steps_per_second(sys.argv[1], int(sys.argv[2]))
    # Not getrusage, which counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"steps_per_second": speed, "gb": peak / 1e9}))
