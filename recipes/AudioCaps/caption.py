#!/usr/bin/env python3
"""Trains decoders behind a bridge, captions the test split and scores the captions.

python recipes/AudioCaps/caption.py hparams/zero_shot.yaml
python recipes/AudioCaps/caption.py hparams/supervised.yaml

The run folder gets scores.json, predictions.csv, TensorBoard events, checkpoints,
``captioner/`` for ``dlink caption``, and its decoder alone in ``decoder/``.
"""

import shlex
import sys
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main

from dlink_plugin import PrefixDecoder
from dlink_plugin.brains import caption_in_shares, train_decoder
from dlink_plugin.captioner import export_captioner
from dlink_plugin.choosing import chosen_captions
from dlink_plugin.console import load_recipe, plain_errors
from dlink_plugin.files import hold
from dlink_plugin.judge import stand_ins
from dlink_plugin.mini.language import write_lm
from dlink_plugin.report import log_captions, write_captions
from dlink_plugin.tasks import (
    add_noise,
    as_they_are,
    audio_task,
    decoder_task,
    gather,
    mix_text,
    text_task,
)


def zero_shot(hparams, train, write, its):
    """One decoder, trained on text, reads whatever stands where text was.

    A bridge with noise or a text space of its own gets a decoder of its own as well.
    """
    valid, seed, kind = its.data["val"], hparams["seed"], hparams["text_input"]
    noisy = partial(add_noise, variance=hparams["noise_variance"])
    inputs = {"plain": as_they_are, "noise": noisy}
    bridge = its.bridges.get(its.name)
    own_text = bridge is not None and bridge.reading != "text"
    if bridge is not None and not own_text:
        inputs["bridged"] = bridge
    if kind not in inputs:
        raise ValueError(f"text_input {kind!r} is not one of {', '.join(inputs)}.")
    test, captions = stand_ins(its.bridges, its.data["test"], seed), {}
    if hparams["controls"]:
        task = text_task(its.texts, its.embedded, valid, noisy)
        captions["noise_trained"] = write(
            train(task, "noise_trained").load_best(), test["none"]
        )
    probes = stand_ins(its.bridges, valid, seed)
    task = text_task(its.texts, its.embedded, valid, inputs[kind], probes)
    if own_text:
        rows, test = test, {its.name: test.pop(its.name)}
        plain = train(task, "plain").load_best()
        captions |= {name: write(plain, each) for name, each in rows.items()}
        plain.save_pretrained(Path(hparams["output_folder"]) / "plain_decoder")
        del plain  # makes room for the next
        shown = {its.name: probes[its.name]}
        task = decoder_task(bridge, its.texts, its.embedded, valid, shown)
    brain = train(task)
    decoder = brain.load_best()
    return brain, {name: write(decoder, rows) for name, rows in test.items()} | captions


def supervised(hparams, train, write, its):
    """A decoder for each input, trained and tested on it, all from the same start."""
    clips, valid, seed = its.data["train"], its.data["val"], hparams["seed"]
    start = None
    if hparams["start"] == "text":
        task = text_task(its.texts, its.embedded, valid)
        changes = hparams["text_training"]
        start = train(task, "text", changes=changes).load_best().learned_state()
    elif hparams["start"] != "none":
        start = PrefixDecoder.from_pretrained(hparams["start"]).learned_state()
    tasks = {
        name: audio_task(clips, valid, name, each, seed=seed)
        for name, each in {"none": as_they_are, **its.bridges}.items()
    }
    if k := hparams["mixed_draws"]:
        mixed = its.texts, its.embedded, k, seed
        tasks = {name: mix_text(task, *mixed) for name, task in tasks.items()}
    test = stand_ins(its.bridges, its.data["test"], seed)
    if "ceiling" in test:
        said = [caption for clip in clips.clips for caption in clip.captions]
        tasks["ceiling"] = text_task(said, clips.text, valid)
    wanted = tasks if hparams["controls"] else {"none", its.name}
    captions = {}
    for name in sorted(wanted, key=its.name.__eq__):  # the exported one comes last
        brain = None  # makes room for the next
        brain = train(tasks[name], "" if name == its.name else name, start)
        captions[name] = write(brain.load_best(), test[name])
    return brain, captions


def main(argv):
    """Embed, train on text or on audio, caption the test split, write it all down."""
    hparams_file, run_opts, overrides, hparams = load_recipe(argv)
    output = Path(hparams["output_folder"])
    hold(output)
    sb.create_experiment_directory(output, hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    its = gather(hparams, device)
    if hparams["lm"] == "mini":
        run_on_main(write_lm, [output / "lm", its.texts], hparams["mini_lm"])
        hparams |= {"lm": output / "lm", "lm_training": "scratch"}

    train = partial(train_decoder, hparams, run_opts, output)
    shown = not run_opts.noprogressbar
    write = partial(caption_in_shares, progressbar=shown, **hparams["generation"])
    study = {"text": zero_shot, "audio": supervised}[hparams["train_on"]]
    brain, captions = study(hparams, train, write, its)
    if not if_main_process():
        return
    if hparams["choose"]:
        reads = its.read_alike(by_text=hparams["train_on"] == "text")
        own = reads, its.data["test"].audio, hparams, its.texts
        captions |= chosen_captions(brain.decoder, *own)

    title = f"{its.data['test'].title}, {hparams['clap']} CLAP"
    command = f"python recipes/AudioCaps/caption.py {shlex.join(argv)}"
    about = title, its.data["test"], captions, its.name, command
    result = write_captions(output, *about)
    brain.decoder.save_pretrained(output / "decoder")
    its.bridges["mean_shift"].save_pretrained(output / "mean_shift")
    where = brain.writer, brain.optimizer_step
    log_captions(*where, hparams, result, captions, its.data["test"])
    parts = its.bridges.get(its.name), brain.decoder, result, its.texts
    export_captioner(output / "captioner", hparams, *parts)


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
