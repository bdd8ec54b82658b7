"""The recipe's training stage against the same batches in plain PyTorch."""

import tempfile
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import torch
from speechbrain import RunOptions
from speechbrain.utils.train_logger import FileTrainLogger
from torch.nn.functional import normalize

from dlink_plugin.brains import BridgeBrain
from dlink_plugin.bridges import DiffusionLink
from dlink_plugin.pairs import ClipBatches, Pairs

from .timing import seconds, spread

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


def make_brain(pairs: Pairs, folder: Path, kind=BridgeBrain, **changes) -> BridgeBrain:
    """EMA, schedule, logs and checkpoints as in the recipe."""
    logger = FileTrainLogger(str(folder / "train_log.txt"))
    where = {"device": str(pairs.audio.device), "noprogressbar": True}
    options = RunOptions.from_dictionary(where)
    bridge = DiffusionLink(pairs.audio.shape[1]).to(pairs.audio.device)
    hparams = {**HPARAMS, **changes, "train_logger": logger}
    return kind(bridge, hparams, options, folder)


def recipe_loop(pairs: Pairs) -> float:
    """Seconds of one epoch in the Brain."""
    with tempfile.TemporaryDirectory() as folder:
        brain = make_brain(pairs, Path(folder))
        return seconds(lambda: brain.fit(brain.epoch_counter, pairs))


def bare_loop(pairs: Pairs) -> float:
    """Seconds of the same batches through the same network."""
    bridge = DiffusionLink(pairs.audio.shape[1]).train()
    optimizer = HPARAMS["opt_class"](bridge.parameters())
    sizes = HPARAMS["batch_size"], HPARAMS["passes_per_epoch"]

    def loop():
        for rows in ClipBatches(pairs.clip_of_text, *sizes):
            bridge.loss(*pairs.__getitems__(rows))["loss"].backward()
            torch.nn.utils.clip_grad_norm_(bridge.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return seconds(loop)


def measure(clips=1500, dim=256, repeats=5) -> dict:
    """Share of the bare loop's speed, and steps a second."""
    rows = torch.arange(clips)
    pairs = Pairs(*(normalize(torch.randn(clips, dim), dim=1) for _ in range(2)), rows)
    times = [(recipe_loop(pairs), bare_loop(pairs)) for _ in range(repeats)]
    steps = HPARAMS["passes_per_epoch"] * (clips // HPARAMS["batch_size"])
    return {
        "speed_over_bare_loop": spread([bare / own for own, bare in times]),
        "steps_per_second": spread([steps / own for own, _ in times]),
    }
