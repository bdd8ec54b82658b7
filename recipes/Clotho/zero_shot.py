#!/usr/bin/env python3
"""Captions Clotho with what was trained on AudioCaps, raw and through the bridge.

python recipes/Clotho/zero_shot.py hparams/clotho_zero_shot.yaml

The run folder gets scores.json, predictions.csv and TensorBoard events.
"""

import shlex
import sys
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from torch.utils.tensorboard import SummaryWriter

from dlink_plugin import Bridge, MeanShift, PrefixDecoder
from dlink_plugin.brains import caption_in_shares
from dlink_plugin.console import load_recipe, plain_errors
from dlink_plugin.embeddings import embed_splits
from dlink_plugin.encoders import load_encoder
from dlink_plugin.files import hold
from dlink_plugin.judge import load_bridge, stand_ins
from dlink_plugin.report import log_captions, write_captions


def same(bridge, folder):
    """Whether the decoder's bridge is this one: it reads no other's text space."""
    other = Bridge.from_pretrained(folder)
    if other.config != bridge.config:
        return False
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[k]) for k, value in bridge.state_dict().items()
    )


def main(argv):
    """Embed the evaluation split, caption it, score it."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    output, seed = Path(hparams["output_folder"]), hparams["seed"]
    hold(output)
    sb.create_experiment_directory(output, hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    trained = Path(hparams["trained"])
    decoder = PrefixDecoder.from_pretrained(trained / "decoder").to(device)
    plain = decoder  # unless that one was trained for a bridge with its own text
    if (trained / "plain_decoder").is_dir():
        plain = PrefixDecoder.from_pretrained(trained / "plain_decoder").to(device)
    bridges = {"mean_shift": MeanShift.from_pretrained(trained / "mean_shift")}
    name = "none"
    if hparams["bridge"] == "none":
        decoder = plain
    else:
        bridge = load_bridge(hparams["bridge"], decoder.dim, seed)
        bridges[bridge.name], name = bridge, bridge.name
        if bridge.reading == "text":
            decoder = plain
        elif decoder is plain or not same(bridge, trained / "captioner" / "bridge"):
            raise ValueError(
                f"{trained} has no decoder for {name}, which brings its own text; run "
                f"caption.py hparams/zero_shot.yaml --bridge {hparams['bridge']} with "
                "an --output_folder of its own and give that as --trained."
            )

    encoder = load_encoder(str(hparams["clap"])).to(device)
    clips = embed_splits(hparams, encoder, ["test"])["test"]
    rows = stand_ins({k: each.to(device) for k, each in bridges.items()}, clips, seed)
    options = {"progressbar": not run_opts.noprogressbar, **hparams["generation"]}
    captions = {
        key: caption_in_shares(decoder if key == name else plain, each, **options)
        for key, each in rows.items()
    }
    if not if_main_process():
        return

    title = f"{clips.title}, {hparams['clap']} CLAP"
    command = f"python recipes/Clotho/zero_shot.py {shlex.join(argv)}"
    result = write_captions(output, title, clips, captions, name, command)
    writer = SummaryWriter(output / "tensorboard")
    log_captions(writer, 0, hparams, result, captions, clips)


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
