#!/usr/bin/env python3
"""Trains a bridge over the modality gap and judges it on the test split.

python recipes/AudioCaps/train.py hparams/bridge.yaml
python recipes/AudioCaps/train.py hparams/bridge.yaml --data_folder /data --clap FOLDER

The run folder gets gap.json, figures, TensorBoard events, checkpoints and ``bridge/``,
which ``DiffusionLink.from_pretrained`` loads.
"""

import sys
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from dlink_plugin import figures
from dlink_plugin.brains import train_bridge
from dlink_plugin.console import load_recipe, plain_errors
from dlink_plugin.embeddings import embed_extra, embed_splits
from dlink_plugin.encoders import load_encoder
from dlink_plugin.files import hold
from dlink_plugin.gap import modality_gap, paired_bootstrap
from dlink_plugin.judge import stand_ins, tune
from dlink_plugin.report import (
    gap_table,
    log_embeddings,
    log_run,
    save_figures,
    write_json,
)


def train(hparams, run_opts, pairs, valid, output):
    """The bridge and, in the folder ``shuffled``, the control on shuffled pairs."""
    brain = train_bridge(hparams, run_opts, pairs, valid, output)
    bridges = {"diffusion_link": brain.load_best()}
    if hparams["shuffled_control"]:
        control = pairs.shuffled(hparams["seed"]), valid, output / "shuffled"
        bridges["shuffled"] = train_bridge(hparams, run_opts, *control).load_best()
    return brain, bridges


def judge(bridges, test, seed):
    """What stands in the audio's place on test, and its criteria: rows of gap.json."""
    regressor = bridges["diffusion_link"].with_arguments(start_step=0)
    pairs, bridges = test.first_pairs, {**bridges, "diffusion_link_s0": regressor}
    spaces = stand_ins(bridges, test, seed)
    gaps = {k: modality_gap(rows, pairs.text, seed=seed) for k, rows in spaces.items()}
    return spaces, gaps


def main(argv):
    """Embed, train, choose on validation, judge on test, write it all down."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    output, seed = Path(hparams["output_folder"]), hparams["seed"]
    hold(output)
    sb.create_experiment_directory(output, hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    encoder = load_encoder(str(hparams["clap"])).to(device)
    data = embed_splits(hparams, encoder)
    valid, test = data["val"].first_pairs, data["test"]
    extra = embed_extra(hparams, encoder, [data["val"], test])
    del encoder  # makes room
    pairs = data["train"].pairs.joined(*(each.pairs for each in extra.values()))
    brain, bridges = train(hparams, run_opts, pairs, valid, output)
    if not if_main_process():
        return

    bridge = bridges["diffusion_link"]
    grid = hparams["start_steps"], hparams["step_counts"], hparams["keep_recall"]
    rows, raw = tune(bridge, valid, *grid, seed, not run_opts.noprogressbar)
    for other in bridges.values():
        other.start_step, other.steps = bridge.start_step, bridge.steps
    bridge.save_pretrained(output / "bridge")

    spaces, gaps = judge(bridges, test, seed)
    bridged, (audio, text) = spaces["diffusion_link"], test.first_pairs[:]
    title = f"{test.title}, {hparams['clap']} CLAP"
    result = {
        "data": title,
        "clips": len(audio),
        "captions": len(test.text),
        **gaps,
        "bridged_minus_none": paired_bootstrap(bridged, audio, text, seed=seed),
        "start_step": bridge.start_step,
        "steps": bridge.steps,
        "skipped": test.skipped,
        "rows_without_audio": test.rows_without_audio,
        "extra_pairs": {name: len(each.text) for name, each in extra.items()},
    }
    write_json(output / "gap.json", result)

    writer, step = brain.writer, brain.optimizer_step
    chosen = bridge.start_step, bridge.steps
    pictures = {
        "migration": figures.migration(audio, text, bridged),
        "cosines": figures.cosine_histograms(audio, text, bridged),
        "start_step_sweep": figures.start_step_sweep(
            rows, chosen=chosen, references={"none": raw}
        ),
    }
    save_figures(output, pictures, writer, step)
    kinds = {"audio": audio, "text": text, "bridged": bridged}
    log_embeddings(writer, step, [clip.captions[0] for clip in test.clips], kinds)
    table = f"{title}: {len(audio)} clips\n\n{gap_table(gaps)}"
    texts = {"gap": table, "hparams": f"```yaml\n{Path(hparams_file).read_text()}\n```"}
    log_run(writer, step, hparams, gaps["diffusion_link"], texts)
    print(f"\n{table}\n\nIn {output}: gap.json, figures, bridge/, tensorboard/")


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
