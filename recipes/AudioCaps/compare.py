#!/usr/bin/env python3
"""Trains and judges all bridges side by side, and shows them in one table.

python recipes/AudioCaps/compare.py hparams/compare.yaml
python recipes/AudioCaps/compare.py hparams/compare.yaml --bridges "[none,mlp]"
python recipes/AudioCaps/compare.py hparams/compare.yaml \
    --audio_embeddings a.npy --text_embeddings t.npy

The run folder gets compare.json, compare.md, a figure for each criterion, TensorBoard
events and, for each seed, every bridge's checkpoints and ``bridge/``.
"""

import logging
import sys
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main

from dlink_plugin.comparison import (
    add_captions,
    check_names,
    claim,
    compare_once,
)
from dlink_plugin.console import load_hparams, load_recipe, plain_errors
from dlink_plugin.embeddings import embed_splits
from dlink_plugin.encoders import load_encoder
from dlink_plugin.files import hold
from dlink_plugin.mini.language import write_lm
from dlink_plugin.report import write_comparison
from dlink_plugin.splits import corpus_split, fold_splits, read_arrays
from dlink_plugin.standings import rivals, summarize
from dlink_plugin.tasks import embed_training_texts

logger = logging.getLogger(__name__)


def load_splits(hparams, device, seed):
    """The splits to compare on, what to say of them, and the corpus, if it is one."""
    files = hparams["audio_embeddings"], hparams["text_embeddings"]
    if any(files):
        if not all(files) or hparams["captions"]:
            raise ValueError(
                "Embeddings of one's own are two files, --audio_embeddings and "
                "--text_embeddings, and come without captions: --captions False."
            )
        audio, text, skipped = read_arrays(*files)
        splits = fold_splits(audio.to(device), text.to(device), hparams["folds"], seed)
        names = [Path(file).name for file in files]
        title = f"{' and '.join(names)}, {len(splits)} folds"
        return splits, {"data": title, "clips": len(audio), "skipped": skipped}, None
    encoder = load_encoder(str(hparams["clap"])).to(device)
    data = embed_splits(hparams, encoder)
    test = data["test"]
    about = {
        "data": f"{test.title}, {hparams['clap']} CLAP",
        "clips": len(test.clips),
        "skipped": test.skipped,
        "rows_without_audio": test.rows_without_audio,
    }
    return [corpus_split(data)], about, (encoder, data)


def caption(runs, hparams, hparams_file, run_opts, output, corpus):
    """A decoder for each seed, trained on text alone, reads every bridge."""
    encoder, data = corpus
    shared = ("corpus", "data_folder", "clap", "cache_folder")
    path = Path(hparams_file).with_name(hparams["decoder_hparams"])
    for run in runs:
        folder = output / str(run.seed)
        own = {key: hparams[key] for key in shared} | {"seed": run.seed}
        own |= {"output_folder": str(folder), "train_log": hparams["train_log"]}
        decoding = load_hparams(path, own | hparams["decoder_overrides"])
        texts, embedded = embed_training_texts(decoding, encoder)
        if decoding["lm"] == "mini":
            run_on_main(write_lm, [folder / "lm", texts], decoding["mini_lm"])
            decoding |= {"lm": folder / "lm", "lm_training": "scratch"}
        add_captions(run, decoding, run_opts, folder, texts, embedded, data)


def main(argv):
    """Embed, train all bridges with each seed, judge them, write it all down."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    names = check_names(hparams["bridges"], hparams["settings"])
    given = hparams["seeds"]
    seeds = [given] if isinstance(given, int) else list(given)
    if not seeds:
        raise ValueError('--seeds is empty; give one or more, as in --seeds "[1234]".')
    output = Path(hparams["output_folder"])
    hold(output)
    sb.create_experiment_directory(output, hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    splits, about, corpus = load_splits(hparams, device, seeds[0])

    runs = []
    for seed in seeds:
        for fold, split in enumerate(splits):
            folder = output / str(seed) / (f"fold_{fold}" if len(splits) > 1 else "")
            claim(folder, hparams, split)
            logger.info("Seed %d, fold %d of %d", seed, fold + 1, len(splits))
            own = {**hparams, "seed": seed}
            runs.append(compare_once(names, own, run_opts, split, folder, fold))
    about |= {
        "candidates": [len(split.test) for split in splits],
        "seeds": seeds,
        "folds": len(splits),
        "settings_tried": {k: v for k, v in hparams["settings"].items() if k in names},
        "settings_chosen": {k: [run.chosen.get(k) for run in runs] for k in names},
    }
    if if_main_process():  # before captions, which may fail
        about["diffusion_link_against"] = rivals(runs, hparams["bootstrap_draws"])
        write = partial(write_comparison, output, *splits[0].test[:], runs[0].moved)
        write({**about, "bridges": summarize(runs)})
    if hparams["captions"]:
        caption(runs, hparams, hparams_file, run_opts, output, corpus)
        if if_main_process():
            write({**about, "bridges": summarize(runs)})
    failed = {name: why for run in runs for name, why in run.errors.items()}
    if failed:
        sys.exit(f"error: {len(failed)} of {len(names)} bridges failed: {failed}")


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
