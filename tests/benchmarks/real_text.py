"""The decoder on real captions: ``python -m tests.benchmarks.real_text``.

Trains the default decoder for one epoch on the 49,838 AudioCaps training captions under
the folder that DLINK_REFERENCE names, embedded by the mini CLAP, which has never seen
real text: what counts is that the path carries them, and how fast.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import torch

from dlink_plugin.brains import DecoderBrain
from dlink_plugin.console import load_recipe
from dlink_plugin.corpora import Clip, load_texts
from dlink_plugin.embeddings import Embeddings, embed_texts
from dlink_plugin.encoders import load_encoder
from dlink_plugin.mini.language import write_lm
from dlink_plugin.pairs import Captioned
from dlink_plugin.tasks import clean_captions, text_task

ROOT = Path(__file__).parents[2]


class Stopwatch(DecoderBrain):
    """Keeps the losses and the seconds of the training stage alone."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if stage.name == "TRAIN":
            self.losses, self.started = [], time.perf_counter()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.losses.append(float(loss.detach()))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage.name == "TRAIN":
            self.seconds = time.perf_counter() - self.started
        super().on_stage_end(stage, stage_loss, epoch)


def embedded(file, encoder, cache):
    _, texts = clean_captions(load_texts(file, "", cache_folder=cache), file.name)
    return texts, embed_texts(texts, encoder, cache)


def main():
    captions = Path(os.environ["DLINK_REFERENCE"]) / "audiocaps_captions"
    recipe = [str(ROOT / "hparams" / "zero_shot.yaml"), "--number_of_epochs=1"]
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--output_folder={folder}", "--noprogressbar", *sys.argv[1:]]
        _, run_opts, _, hparams = load_recipe([*recipe, *options])
        encoder = load_encoder("mini")
        texts, text = embedded(captions / "train.csv", encoder, folder)
        said, rows = embedded(captions / "val.csv", encoder, folder)
        said, rows = said[:300], rows[:300]
        clips = tuple(Clip(str(i), "", (each,)) for i, each in enumerate(said))
        valid = Embeddings(rows, rows, torch.arange(len(said)), clips, (), 0)
        lm = write_lm(Path(folder) / "lm", texts, **hparams["mini_lm"])
        torch.manual_seed(hparams["seed"])
        decoder = hparams["decoder"](dim=encoder.dim, lm=lm, lm_training="scratch")
        task = text_task(texts, text, valid)
        brain = Stopwatch(decoder, task, hparams, run_opts, folder)
        loading = {"batch_size": 256, "collate_fn": Captioned.collate}
        brain.fit(
            brain.epoch_counter, task.train, task.valid, valid_loader_kwargs=loading
        )
        print((Path(folder) / "train_log.txt").read_text())
    tenths = torch.tensor(brain.losses).chunk(10)
    result = {
        "captions": len(texts),
        "captions_per_second": round(
            len(brain.losses) * hparams["batch_size"] / brain.seconds
        ),
        "train_perplexity_by_tenth_of_the_epoch": [
            round(losses.mean().exp().item(), 1) for losses in tenths
        ],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
