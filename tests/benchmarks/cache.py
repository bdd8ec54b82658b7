"""The cache with 50,000 clips and an encoder that costs nothing."""

import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from dlink_plugin.audio import load_audio
from dlink_plugin.corpora import Clip, Corpus
from dlink_plugin.embeddings import embed_corpus

from .timing import seconds, spread

DIM = 512


class NoFeatures:
    """Stands for the front end."""

    sample_rate = 8000

    def __call__(self, waveform):
        return torch.zeros(1)


class FreeEncoder:
    """Rows of CLAP's size for nothing, so that only the cache is timed."""

    dim, device, fingerprint = DIM, torch.device("cpu"), "0" * 12

    def __init__(self):
        self.front_end = NoFeatures()

    def encode_prepared(self, prepared):
        return torch.full((len(prepared), DIM), DIM**-0.5)

    encode_text = encode_prepared


def make_corpus(folder: Path, clips: int) -> Corpus:
    """Hard links to one short recording; as many names as there would be files."""
    first = folder / "0.wav"
    soundfile.write(first, np.full(800, 0.1), 8000)
    for clip in range(1, clips):
        os.link(first, folder / f"{clip}.wav")
    made = tuple(
        Clip(f"{clip}.wav", str(folder / f"{clip}.wav"), (f"sound number {clip}",))
        for clip in range(clips)
    )
    return Corpus("audiocaps", "train", made, 0)


def measure(clips=50_000, repeats=5) -> dict:
    """Writing against reading the sound files; opening again against reading it all."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), clips)
        call = corpus, FreeEncoder(), f"{folder}/cache"
        quiet = {"progressbar": False, "batch_size": 256}
        written = seconds(lambda: embed_corpus(*call, **quiet))
        decoded = seconds(lambda: [load_audio(c.path, 8000) for c in corpus.clips])
        shards = sorted(Path(folder, "cache").rglob("*.safetensors"))

        def read_alone():
            parts = [load_file(shard) for shard in shards]
            return [torch.cat([p[name] for p in parts]) for name in ("audio", "text")]

        opened = [
            (seconds(lambda: embed_corpus(*call)), seconds(read_alone))
            for _ in range(repeats)
        ]
    return {
        "written_over_decoding_alone": decoded / written,
        "written_clips_per_second": clips / written,
        "reopened_over_reading_alone": spread([bare / own for own, bare in opened]),
        f"reopen_{clips}_pairs_seconds": spread([own for own, _ in opened]),
    }
