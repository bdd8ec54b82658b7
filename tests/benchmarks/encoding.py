"""Encoding a cold corpus against CLAP alone, fed with features in memory.

Twice: with the mini CLAP, which costs less than the decoding of a FLAC file does, and
with a CLAP of the size of laion/clap-htsat-unfused: random weights, which take as long.
Encoder and decoding share the cores, hence a second limit: the work of both, spread
over all cores.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from dlink_plugin.audio import load_audio
from dlink_plugin.corpora import Corpus, load_corpus
from dlink_plugin.embeddings import embed_corpus
from dlink_plugin.encoders import FrozenEncoder, load_encoder
from dlink_plugin.mini.corpus import prepare

from .timing import seconds, spread

BATCH = 32


def full_size_encoder(folder: str) -> FrozenEncoder:
    """Untrained, with the mini CLAP's tokenizer."""
    mini = load_encoder("mini")
    mini.save_pretrained(folder)
    tokens = mini.model.config.text_config
    names = ("vocab_size", "max_position_embeddings", "pad_token_id")
    config = ClapConfig(text_config={name: getattr(tokens, name) for name in names})
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor().save_pretrained(folder)
    return load_encoder(folder)


@torch.inference_mode()
def encoder_alone(encoder, features, captions) -> None:
    """The same batches, with nothing to read, decode or write."""
    for start in range(0, len(features), BATCH):
        encoder.encode_prepared(features[start : start + BATCH])
        batch = captions[start : start + BATCH]
        encoder.encode_text([caption for several in batch for caption in several])


def compare(encoder: FrozenEncoder, corpus: Corpus, folder: Path, repeats: int) -> dict:
    """Shares of the encoder's speed and of what all cores could do at best."""
    clips, rate = corpus.clips, encoder.sample_rate

    def prepare_alone():
        return [encoder.front_end(load_audio(clip.path, rate)) for clip in clips]

    features, captions = prepare_alone(), [clip.captions for clip in clips]

    def cold():
        options = {"rebuild": True, "progressbar": False, "batch_size": BATCH}
        embed_corpus(corpus, encoder, folder, **options)

    def alone():
        encoder_alone(encoder, features, captions)

    cold(), alone()
    times = [(seconds(cold), seconds(alone)) for _ in range(repeats)]
    torch.set_num_threads(1)  # as in each of the processes that decode
    preparing = seconds(prepare_alone) / os.cpu_count()
    torch.set_num_threads(os.cpu_count())
    return {
        "cold_over_encoder_alone": spread([a / c for c, a in times]),
        "cold_over_all_work_on_all_cores": spread(
            [(a + preparing) / c for c, a in times]
        ),
        "clips_per_second": spread([len(clips) / c for c, _ in times]),
    }


def measure(repeats=5) -> dict:
    """On 1,000 and on 64 clips of the test split."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare("audiocaps", folder)
        corpus = load_corpus("audiocaps", "mini", "test", cache_folder=folder)
        some = replace(corpus, clips=corpus.clips[:64])
        encoders = {
            "mini": (load_encoder("mini"), corpus),
            "full_size": (full_size_encoder(f"{folder}/clap"), some),
        }
        for name, (encoder, clips) in encoders.items():
            cache = Path(folder) / "embeddings" / name
            figures = compare(encoder, clips, cache, repeats)
            found |= {f"{name}_{what}": value for what, value in figures.items()}
    return found
