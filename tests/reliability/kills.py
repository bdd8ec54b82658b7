"""Kills recipes at many moments, starts them again, and compares what they end with."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
SHORT = {
    "number_of_epochs": 2,
    "passes_per_epoch": 2,
    "batch_size": 8,
    "ckpt_interval_steps": 2,
    "log_every": 1,
    "num_workers": 0,
}
TRAIN = ("recipes/AudioCaps/train.py", "hparams/bridge.yaml")
CAPTION = ("recipes/AudioCaps/caption.py", "hparams/zero_shot.yaml")
TOLERANCE = 1e-5
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Job:
    """A recipe, and a folder that holds all it writes."""

    def __init__(self, recipe, folder, **options):
        self.recipe, self.folder = recipe, Path(folder)
        places = {"cache_folder": "cache", "output_folder": "run"}
        places = {key: self.folder / name for key, name in places.items()}
        self.options = {**SHORT, **places, **options}

    def command(self, order=None):
        """What a shell would be given; the order is the assassin's."""
        order = order or {"event": 0, "watched": f"{self.folder}/"}
        command = [sys.executable, "-m", "tests.reliability.assassin"]
        command += [json.dumps(order), *self.recipe, "--noprogressbar"]
        for key, value in self.options.items():
            command += [f"--{key}", str(value)]
        return command

    def start(self, event=0, delay=0.0, signal=signal.SIGKILL, half=False):
        """Run it to its end or its death; the exit status and what happened."""
        trace = self.folder.with_suffix(".trace")
        trace.unlink(missing_ok=True)
        order = {"event": event, "delay": delay, "signal": signal, "half": half}
        order |= {"trace": str(trace), "watched": f"{self.folder}/"}
        done = subprocess.run(
            self.command(order),
            cwd=ROOT,
            env=ALONE,
            capture_output=True,
            text=True,
            timeout=600,
        )
        told = json.loads(trace.read_text()) if trace.is_file() else {}
        if done.returncode > 0:
            raise AssertionError(f"{self.recipe[0]} failed:\n{done.stderr[-3000:]}")
        return done.returncode, told

    def figures(self):
        """Every number and text that the run ended with, by name."""
        run, found = self.folder / "run", {}
        for name in ("gap.json", "scores.json"):
            if (run / name).is_file():
                _flatten(name, json.loads((run / name).read_text()), found)
        for path in sorted(run.glob("predictions*.csv")):
            with open(path, newline="", encoding="utf-8") as file:
                found[path.name] = list(csv.reader(file))
        for path in sorted(run.glob("*/model.safetensors")):
            for key, tensor in load_file(path).items():
                _flatten(f"{path.parent.name} {key}", tensor.double().tolist(), found)
        return {k: v for k, v in found.items() if "command" not in k}


def _flatten(name, value, found):
    if isinstance(value, dict):
        for key, each in value.items():
            _flatten(f"{name} {key}", each, found)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _flatten(f"{name} {place}", each, found)
    else:
        found[name] = value


def differences(one, other):
    """Names of what differs by more than the tolerance, or is not in both."""
    differ = sorted(one.keys() ^ other.keys())
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        number = isinstance(a, float) and isinstance(b, float)
        if not (abs(a - b) <= TOLERANCE if number else a == b):
            differ.append(name)
    return differ


def shards(folder):
    """Finished files of the cache: when each was written."""
    found = (folder / "cache").rglob("*.safetensors")
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in found
        if not path.name.startswith(".draft")
    }


def check_whole(folder):
    """Read every file that stands under its own name; an error if one is cut."""
    for path in shards(folder):
        load_file(path)
    run = folder / "run"
    for path in [*run.glob("*.json"), *(folder / "cache").rglob("index.json")]:
        json.loads(path.read_text())
    for path in run.glob("*/model.safetensors"):
        load_file(path)
    for path in run.rglob("save/CKPT*/*.ckpt"):
        if path.stem in ("bridge", "decoder", "ema", "optimizer", "scheduler"):
            torch.load(path, map_location="cpu", weights_only=True)


def kill_and_restart(job, expected, moments):
    """Kill a job at one moment after another, then let it end.

    Gives the phases of those kills that came before the job's end.
    """
    killed, finished = [], {}
    for moment in moments:
        status, told = job.start(**moment)
        if status == 0:
            break
        assert status == -moment["signal"], (status, moment)
        killed.append((told["phase"], signal.Signals(moment["signal"]).name))
        check_whole(job.folder)
        finished |= shards(job.folder)
    else:
        job.start()
    again = {
        path: when for path, when in shards(job.folder).items() if path in finished
    }
    assert again == finished, "a finished shard was encoded again"
    assert not (differ := differences(job.figures(), expected)), differ[:5]
    left = list(job.folder.rglob(".draft-*"))
    assert not left, left
    return killed


def draw_moments(rng, events, first, number):
    """The first kill as told, the others anywhere in what is then left."""
    for place in range(number):
        yield {
            "event": first if place == 0 else rng.randint(1, max(2, events // 8)),
            "delay": rng.choice([0.0, 0.0, 0.01, 0.1, 0.3]),
            "signal": rng.choice([signal.SIGKILL, signal.SIGTERM]),
            "half": rng.random() < 0.5,
        }


def jobs(folder, chains):
    """The bridge from nothing, corpus included; then a decoder behind that bridge.

    Makes (name, uninterrupted job, function that gives a fresh one, chains).
    """
    first = Job(TRAIN, folder / "whole_bridge")
    yield "train.py", first, lambda name: Job(TRAIN, folder / name), chains

    options = {"bridge": first.folder / "run" / "bridge", "num_beams": 2}
    options |= {"max_new_tokens": 8, "number_of_epochs": 1, "passes_per_epoch": 1}

    def fresh(name):
        job = Job(CAPTION, folder / name, **options)
        # The corpus is there, the embeddings of the captions are not.
        shutil.copytree(first.folder / "cache", job.folder / "cache")
        return job

    yield "caption.py", fresh("whole_captions"), fresh, chains


def main(folder, chains=9, depth=4, seed=0, progressbar=True):
    """Kill both recipes; what was killed where, every survival asserted."""
    rng, result = random.Random(seed), {}
    for name, whole, fresh, number in jobs(Path(folder), chains):
        status, told = whole.start()
        assert status == 0 and whole.figures()
        events, killed = told["events"], []
        firsts = [round((i + rng.random()) * events / number) for i in range(number)]
        for chain in tqdm(range(number), name, disable=not progressbar):
            job = fresh(f"{whole.folder.name}_{chain}")
            moments = draw_moments(rng, events, max(1, firsts[chain]), depth)
            killed += kill_and_restart(job, whole.figures(), moments)
            shutil.rmtree(job.folder)
        result[name] = {
            "kills": len(killed),
            "survived": len(killed),  # an AssertionError, otherwise
            "runs_ended": number,
            "by_phase": dict(Counter(phase for phase, _ in killed)),
            "by_signal": dict(Counter(signal for _, signal in killed)),
        }
    return result
