"""Speed and memory, measured: ``python -m tests.benchmarks``.

Writes ``results/benchmarks.json`` and prints a Markdown table. Ratios compare two
things timed in turns in this one run; seconds and bytes depend on the machine, whose
size is written down with them.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import psutil
import torch
from speechbrain import RunOptions
from speechbrain.utils.train_logger import FileTrainLogger
from torch.nn.functional import normalize

from dlink_plugin.brains import BridgeBrain
from dlink_plugin.bridges import DiffusionLink
from dlink_plugin.pairs import ClipBatches, Pairs

ROOT = Path(__file__).parents[2]
RECIPE = ("recipes/AudioCaps/train.py", "hparams/bridge.yaml")
HPARAMS = {
    "seed": 1,
    "number_of_epochs": 1,
    "passes_per_epoch": 5,
    "batch_size": 128,
    "warmup_share": 0.05,
    "ema_decay": 0.999,
    "log_every": 10,
    "ckpt_interval_steps": 25,
    "max_grad_norm": 1.0,
    "opt_class": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
}


def peak_memory(process, peak, stop):
    """Watch the resident memory of a process and its children, summed."""
    root = psutil.Process(process.pid)
    while not stop.wait(0.2):
        try:
            family = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(p.memory_info().rss for p in family))
        except psutil.NoSuchProcess:
            pass


def main_job(cache, output, seed):
    """Seconds and peak bytes of the README's main job."""
    options = {"cache_folder": cache, "output_folder": output, "seed": seed}
    arguments = [part for k, v in options.items() for part in (f"--{k}", str(v))]
    start, peak, stop = time.perf_counter(), [0], threading.Event()
    command = [sys.executable, *RECIPE, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watch = threading.Thread(target=peak_memory, args=(process, peak, stop))
    watch.start()
    failed = process.wait()
    stop.set()
    watch.join()
    if failed:
        raise SystemExit("the main job failed, so there is nothing to measure")
    return time.perf_counter() - start, peak[0]


class StopwatchBrain(BridgeBrain):
    """Measures the training stage alone."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if stage.name == "TRAIN":
            self.started = time.perf_counter()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage.name == "TRAIN":
            self.seconds = time.perf_counter() - self.started
        else:
            super().on_stage_end(stage, stage_loss, epoch)


def recipe_loop(pairs, folder):
    """Seconds of one epoch in the Brain: EMA, schedule, logs and checkpoints too."""
    logger = FileTrainLogger(str(folder / "train_log.txt"))
    brain = StopwatchBrain(
        DiffusionLink(pairs.audio.shape[1]),
        {**HPARAMS, "train_logger": logger},
        RunOptions.from_dictionary({"device": "cpu", "noprogressbar": True}),
        folder,
    )
    brain.fit(brain.epoch_counter, pairs)
    return brain.seconds


def bare_loop(pairs):
    """Seconds of the same batches through the same network in plain PyTorch."""
    bridge = DiffusionLink(pairs.audio.shape[1]).train()
    optimizer = HPARAMS["opt_class"](bridge.parameters())
    sizes = HPARAMS["batch_size"], HPARAMS["passes_per_epoch"]
    start = time.perf_counter()
    for rows in ClipBatches(pairs.clip_of_text, *sizes):
        bridge.loss(*pairs.__getitems__(rows))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(bridge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def training_ratio(repeats=3, clips=1500, dim=256):
    """Recipe over bare loop, timed in turns."""
    rows = torch.arange(clips)
    pairs = Pairs(*(normalize(torch.randn(clips, dim), dim=1) for _ in range(2)), rows)
    ratios = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            ratios.append(recipe_loop(pairs, Path(folder)) / bare_loop(pairs))
    return statistics.median(ratios), max(ratios) - min(ratios)


def main():
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cold, memory = main_job(cache, Path(folder) / "cold", 1)
        warm, warm_memory = main_job(cache, Path(folder) / "warm", 2)
    ratio, spread = training_ratio()
    measured = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "torch": torch.__version__,
        "main_job_cold_seconds": round(cold, 1),
        "main_job_warm_seconds": round(warm, 1),
        "main_job_peak_gb": round(max(memory, warm_memory) / 1e9, 2),
        "training_over_bare_loop": round(ratio, 3),
        "training_over_bare_loop_spread": round(spread, 3),
    }
    path = ROOT / "results" / "benchmarks.json"
    path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print("| what | measured |\n| --- | --- |")
    for name, value in measured.items():
        print(f"| {name.replace('_', ' ')} | {value} |")


if __name__ == "__main__":
    main()
