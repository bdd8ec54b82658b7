#!/usr/bin/env python3
"""Trains the mini CLAP that dlink_plugin ships: contrastively, on synthetic scenes.

python recipes/Mini/pretrain_clap.py hparams/mini_clap.yaml
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import run_on_main
from tqdm import tqdm
from transformers import ClapConfig, ClapModel

from dlink_plugin.bridges import Share
from dlink_plugin.bridges.sealed import whole
from dlink_plugin.checkpoints import AtomicCheckpointer
from dlink_plugin.console import load_recipe, plain_errors
from dlink_plugin.files import hold
from dlink_plugin.gap import modality_gap
from dlink_plugin.mini.captions import caption
from dlink_plugin.mini.language import train_tokenizer
from dlink_plugin.mini.scenes import draw_scene, render


class ClapBrain(sb.Brain):
    """Symmetric InfoNCE at a fixed temperature; captions are drawn anew every epoch."""

    def compute_forward(self, batch, stage):
        features, texts = batch
        tokens = self.hparams.tokenizer(texts, padding=True, return_tensors="pt")
        clap = self.modules.clap
        audio = clap.get_audio_features(features.float().to(self.device))
        return audio, clap.get_text_features(**tokens.to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        audio, text = predictions
        if stage != sb.Stage.TRAIN:
            self.heldout.append(predictions)
        logits = self.hparams.logit_scale * audio @ text.T
        here = torch.arange(len(logits), device=logits.device)
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, here) + cross_entropy(logits.T, here)) / 2

    def on_stage_start(self, stage, epoch=None):
        self.heldout = []

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.scheduler.step()

    def init_optimizers(self):
        super().init_optimizers()
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            self.hparams.lr,
            total_steps=self.hparams.steps,
            pct_start=0.1,
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("scheduler", self.scheduler)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        audio, text = (torch.cat(side) for side in zip(*self.heldout, strict=True))
        gap = modality_gap(audio, text, separability=False)
        self.hparams.train_logger.log_stats(
            {"epoch": epoch}, {"loss": self.train_loss}, {"loss": stage_loss, **gap}
        )
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch})


class Scenes(torch.utils.data.Dataset):
    """Log-mel features of scenes, each with a caption that a new annotator writes."""

    def __init__(self, path, size, seed, extractor, clotho_share):
        self.seed, self.share = seed, clotho_share
        self.rng = np.random.default_rng(seed)
        self.scenes = [
            draw_scene(np.random.default_rng((seed, i))) for i in range(size)
        ]
        if not path.exists():
            with ProcessPoolExecutor() as pool:
                rows = pool.map(
                    partial(_features, extractor), self.scenes, chunksize=32
                )
                with whole(path) as draft:
                    np.save(draft, np.stack(list(tqdm(rows, path.stem, size))))
        self.features = np.load(path, mmap_mode="r")

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, i):
        register = "clotho" if self.rng.random() < self.share else "audiocaps"
        return torch.from_numpy(self.features[i].copy()), caption(
            self.scenes[i], self.rng, register
        )


def _features(extractor, scene):
    rate = extractor.sampling_rate
    features = extractor(render(scene, rate), sampling_rate=rate, return_tensors="np")
    return features["input_features"][0].astype(np.float16)


def make_tokenizer(hparams):
    """A tokenizer trained on captions of the grammar, in both registers."""
    rng = np.random.default_rng(hparams["seed"])
    registers = ("audiocaps", "audiocaps", "clotho")
    texts = (caption(draw_scene(rng), rng, r) for _ in range(5000) for r in registers)
    return train_tokenizer(texts, hparams["vocab_size"], hparams["max_tokens"])


def main(argv):
    """Make scenes and tokenizer, train, save as a transformers folder in fp16."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    if Share.here().world > 1:  # its batch norms would look at parts of a batch
        raise ValueError("The mini CLAP is trained in one process; leave out torchrun.")
    hold(hparams["output_folder"])
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    output, seed = Path(hparams["output_folder"]), hparams["seed"]
    extractor = hparams["feature_extractor"]
    sizes = hparams["number_of_scenes"], hparams["number_of_heldout"]
    share = hparams["clotho_share"]
    train = Scenes(output / "train.npy", sizes[0], seed, extractor, share)
    heldout = Scenes(output / "heldout.npy", sizes[1], seed + 1, extractor, 0.0)
    hparams["tokenizer"] = make_tokenizer(hparams)
    hparams["steps"] = hparams["number_of_epochs"] * (
        len(train) // hparams["batch_size"]
    )
    config = ClapConfig(
        text_config=hparams["text_config"],
        audio_config=hparams["audio_config"],
        projection_dim=hparams["projection_dim"],
        logit_scale_init_value=hparams["logit_scale"],
    )
    clap = ClapModel(config)
    brain = ClapBrain(
        {"clap": clap},
        hparams["opt_class"],
        hparams,
        run_opts,
        AtomicCheckpointer(
            hparams["save_folder"], {"clap": clap, "counter": hparams["epoch_counter"]}
        ),
    )
    batches = {"batch_size": hparams["batch_size"]}
    brain.fit(
        hparams["epoch_counter"],
        train,
        heldout,
        train_loader_kwargs={**batches, "shuffle": True, "drop_last": True},
        valid_loader_kwargs=batches,
    )
    for part in (clap.half(), hparams["tokenizer"], extractor):
        run_on_main(part.save_pretrained, [output / "clap"])


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
