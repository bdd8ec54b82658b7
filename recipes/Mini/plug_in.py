#!/usr/bin/env python3
"""The bridge between a transformers.ClapModel and a language model's generate call.

python recipes/Mini/plug_in.py sound.wav   # after train.py and caption.py of AudioCaps
"""

import sys
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import soundfile
import soxr
import torch
from torch.nn.functional import normalize
from transformers import ClapFeatureExtractor, ClapModel

import dlink_plugin
from dlink_plugin import DiffusionLink, PrefixDecoder

clap_folder = Path(dlink_plugin.__file__).parent / "mini" / "clap"
clap = ClapModel.from_pretrained(clap_folder, dtype=torch.float32).eval()
extract = ClapFeatureExtractor.from_pretrained(clap_folder)
bridge = DiffusionLink.from_pretrained("results/bridge/1234/bridge")
decoder = PrefixDecoder.from_pretrained("results/zero_shot/1234/decoder")  # or yours

samples, rate = soundfile.read(sys.argv[1], always_2d=True, dtype="float32")
samples = soxr.resample(samples.mean(1), rate, extract.sampling_rate)
samples = samples[: extract.nb_max_samples]  # one window; Captioner averages over all
inputs = extract(samples, sampling_rate=extract.sampling_rate, return_tensors="pt")
with torch.no_grad():
    audio = normalize(clap.get_audio_features(**inputs), dim=1)
    text_like = bridge(audio, torch.Generator().manual_seed(0))
print("without the bridge:", *decoder.generate(audio, num_beams=3))
print("with the bridge:   ", *decoder.generate(text_like, num_beams=3))
