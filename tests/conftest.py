"""Fixtures small enough to run anywhere: a random CLAP and corpora of short clips."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.utils import importutils

from dlink_plugin.encoders import ClapEncoder

torch.set_num_threads(1)

SENTENCES = [
    "a dog barks twice while rain falls",
    "an engine idles and a bell rings",
    "a man is speaking near a busy street",
    "birds sing and steps come closer",
]


# Hypothesis asks every module for its file, at which SpeechBrain's lazy ones would try
# to import what is not installed. This is the file that makes them.
importutils.LazyModule.__file__ = importutils.__file__


@pytest.fixture(scope="session")
def make_clap(tmp_path_factory):
    """make_clap(seed=0, projection_dim=32, fusion=False): a folder with a tiny CLAP.

    16 kHz, windows of 2 s, random weights scaled so that clips differ.
    """

    def make(seed=0, projection_dim=32, fusion=False):
        return write_clap(tmp_path_factory.mktemp("clap"), seed, projection_dim, fusion)

    return make


def write_clap(folder, seed=0, projection_dim=32, fusion=False):
    torch.manual_seed(seed)
    _tiny_clap(projection_dim, fusion).save_pretrained(folder)
    make_extractor().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clap_folder(make_clap):
    return make_clap()


@pytest.fixture(scope="session")
def tiny_clap(tiny_clap_folder):
    return ClapEncoder(tiny_clap_folder)


@pytest.fixture(scope="session")
def saved_captioner(tmp_path_factory, tiny_clap, tiny_clap_folder):
    """The folder of a captioner with random weights, which writes something."""
    return write_captioner(
        tmp_path_factory.mktemp("model"), tiny_clap, tiny_clap_folder
    )


def write_captioner(folder, tiny_clap, tiny_clap_folder):
    from dlink_plugin.bridges import DiffusionLink
    from dlink_plugin.captioner import Captioner
    from dlink_plugin.decoder import PrefixDecoder
    from dlink_plugin.mini.language import write_lm

    sizes = {"vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "dropout": 0.0}
    lm = write_lm(folder / "lm", ["a dog barks", "rain [falls]"] * 6, **sizes)
    torch.manual_seed(0)
    decoder = PrefixDecoder(32, lm, lm_training="scratch", prefix_length=2)
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    parts = tiny_clap, DiffusionLink(32), decoder, str(tiny_clap_folder)
    generation = {"num_beams": 2, "max_new_tokens": 8}
    captioner = Captioner(*parts, generation, texts=SENTENCES)
    captioner.save_pretrained(folder / "captioner")
    return folder / "captioner"


def write_llama(folder, texts, vocab_size=290):
    """A LLaMA of a few thousand random weights, with a tokenizer made from texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from dlink_plugin.mini.language import train_tokenizer

    train_tokenizer(texts, vocab_size, 64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=vocab_size, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _tiny_clap(projection_dim, fusion):
    from transformers import ClapConfig, ClapModel

    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "projection_dim": projection_dim,
    }
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "num_hidden_layers": 2,
        "spec_size": 64,
        "num_mel_bins": 32,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "projection_dim": projection_dim,
        "enable_fusion": fusion,
        "aff_block_r": 2,
    }
    config = ClapConfig(
        text_config=text, audio_config=audio, projection_dim=projection_dim
    )
    model = ClapModel(config)
    norm = model.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-20.0)  # decibels, about what the clips below have
    norm.running_var.fill_(10.0**2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5.0)
    return model


def make_extractor(**changes):
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=16000,
        hop_length=320,
        max_length_s=2,
        fft_window_size=512,
        frequency_max=8000,
        truncation="rand_trunc",
        **changes,
    )


def _tokenizer():
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=64,
    )


def write_clip(path, seed, seconds, rate):
    """A tone in noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (150 + 110 * seed) * time)
    soundfile.write(path, tone + 0.05 * draw.standard_normal(len(time)), rate)


def write_rows(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _captions(seed, number):
    return [f"{SENTENCES[(seed + i) % 4]}, take {seed}" for i in range(number)]


@pytest.fixture
def audiocaps_tree(tmp_path):
    """A data folder with AudioCaps: 4 train, 3 val and 3 test clips of 0.5 s."""
    folder = tmp_path / "data" / "AUDIOCAPS"
    splits = [
        ("train", range(0, 4), 1),
        ("val", range(4, 7), 5),
        ("test", range(7, 10), 5),
    ]
    for split, seeds, number in splits:
        rows = []
        for seed in seeds:
            write_clip(
                folder / "audio_32000Hz" / split / f"clip{seed}_{seed}.flac",
                seed,
                0.5,
                32000,
            )
            rows += [
                (10 * seed + i, f"clip{seed}", seed, caption)
                for i, caption in enumerate(_captions(seed, number))
            ]
        write_rows(
            folder / "csv_files_v1" / f"{split}.csv",
            ("audiocap_id", "youtube_id", "start_time", "caption"),
            rows,
        )
    return folder.parent


@pytest.fixture
def clotho_tree(tmp_path):
    """A data folder with Clotho: 3 dev, 2 val and 3 eval clips of 2.5 s."""
    folder = tmp_path / "data" / "CLOTHO_v2.1"
    splits = {
        "development": range(20, 23),
        "validation": range(23, 25),
        "evaluation": range(25, 28),
    }
    captions_header = ("file_name", *(f"caption_{i}" for i in range(1, 6)))
    metadata_header = (
        *("file_name", "keywords", "sound_id", "sound_link"),
        *("start_end_samples", "manufacturer", "license"),
    )
    for split, seeds in splits.items():
        names = [f"clip {seed}.wav" for seed in seeds]
        for seed, name in zip(seeds, names, strict=True):
            write_clip(folder / "clotho_audio_files" / split / name, seed, 2.5, 44100)
        tables = folder / "clotho_csv_files"
        write_rows(
            tables / f"clotho_captions_{split}.csv",
            captions_header,
            [(n, *_captions(s, 5)) for s, n in zip(seeds, names, strict=True)],
        )
        write_rows(
            tables / f"clotho_metadata_{split}.csv",
            metadata_header,
            [(n, *[""] * 6) for n in names],
        )
    return folder.parent


@pytest.fixture
def reference_folder():
    """The folder of real clips that DLINK_REFERENCE names."""
    folder = os.environ.get("DLINK_REFERENCE")
    if not folder:
        pytest.skip("DLINK_REFERENCE, the folder of real clips, is not set")
    return Path(folder)
