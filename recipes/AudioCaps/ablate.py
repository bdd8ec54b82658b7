#!/usr/bin/env python3
"""Changes one thing at a time about Diffusion-Link and shows what that does.

python recipes/AudioCaps/ablate.py hparams/ablation.yaml

Captions are written by the decoders of the zero-shot recipe, one for each seed, which
have to be there. The run folder gets ablation.json, ablation.md, a figure for each
criterion, TensorBoard events and, for each seed, every bridge's checkpoints.
"""

import logging
import shlex
import sys
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from dlink_plugin import PrefixDecoder
from dlink_plugin.ablation import ablate_once, check_variants, few_pairs, rows_of
from dlink_plugin.comparison import claim
from dlink_plugin.console import load_recipe, plain_errors
from dlink_plugin.embeddings import embed_splits
from dlink_plugin.encoders import load_encoder
from dlink_plugin.files import hold
from dlink_plugin.report import write_ablation
from dlink_plugin.splits import corpus_split
from dlink_plugin.tasks import embed_training_texts

logger = logging.getLogger(__name__)


def main(argv):
    """Embed, train every variant with each seed, judge them, write it all down."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    variants = hparams["variants"]
    if hparams["only"]:
        wanted = (
            [hparams["only"]] if isinstance(hparams["only"], str) else hparams["only"]
        )
        if strange := [name for name in wanted if name not in variants]:
            raise ValueError(f"--only names {strange}; choose from {list(variants)}.")
        variants = {name: variants[name] for name in wanted}
    check_variants(variants, hparams)
    given = hparams["seeds"]
    seeds = [given] if isinstance(given, int) else list(given)
    if not seeds:
        raise ValueError('--seeds is empty; give one or more, as in --seeds "[1234]".')
    decoders = {
        seed: PrefixDecoder.from_pretrained(hparams["decoder"].format(seed=seed))
        for seed in seeds
    }
    output = Path(hparams["output_folder"])
    hold(output)
    sb.create_experiment_directory(output, hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    encoder = load_encoder(str(hparams["clap"])).to(device)
    data = embed_splits(hparams, encoder)
    _, texts = embed_training_texts(hparams, encoder)
    split = corpus_split(data)

    runs = []
    for seed in seeds:
        claim(output / str(seed), hparams, split)
        logger.info("Seed %d: %d variants", seed, len(variants))
        own = {**hparams, "seed": seed}
        with_it = data, split, texts, decoders[seed].to(device)
        runs.append(ablate_once(variants, own, run_opts, *with_it, output / str(seed)))
    if if_main_process():
        result = {
            "data": f"{data['test'].title}, {hparams['clap']} CLAP",
            "clips": len(data["test"].clips),
            "skipped": list(data["test"].skipped),
            "seeds": seeds,
            "variants": variants,
            "command": f"python recipes/AudioCaps/ablate.py {shlex.join(argv)}",
            "bridges": rows_of(runs, variants),
        }
        write_ablation(output, result, few_pairs(variants, len(split.train.audio)))
    failed = {name: why for run in runs for name, why in run.errors.items()}
    if failed:
        sys.exit(f"error: {len(failed)} of {len(variants)} variants failed: {failed}")


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
