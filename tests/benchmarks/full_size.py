"""The full-size path on random weights: its memory beside what ``footprint`` says.

A CLAP of full size embeds real recordings (those below DLINK_REFERENCE, else the mini
corpus's), and a LLaMA of 1.1 billion parameters is trained with LoRA and writes
captions, on the CPU. Every point runs in a process of its own; counted is what its
resident memory rises by from before anything is loaded. Fails where a prediction is
more than 15 % off. Takes 8 GB of memory and 3 GB of disk.

``python -m tests.benchmarks.full_size`` prints what a LLaMA of 7 billion parameters
would take, which is predicted alone.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    LlamaConfig,
)

from dlink_plugin.audio import load_audio
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.encoders import load_encoder
from dlink_plugin.footprint import footprint
from dlink_plugin.mini.corpus import prepare
from dlink_plugin.mini.language import train_tokenizer
from dlink_plugin.report import markdown

from .main_job import ROOT
from .timing import seconds

LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
PROMPT, CAPTION = "Describe the audio you hear.", "a dog barks while rain falls"
# dtype, batch size, gradient checkpointing
TRAINING = [
    ("float32", 4, False),
    ("float32", 4, True),
    ("float32", 16, False),
    ("float32", 16, True),
    ("bfloat16", 4, False),
    ("bfloat16", 16, False),
    ("bfloat16", 16, True),
]
WRITING = [("float32", 4), ("float32", 16), ("bfloat16", 4)]
TOKENS = 40
SEVEN_BILLION = {
    f"training, batch {batch}{', checkpointed' * checkpointing}": {
        "batch_size": batch,
        "gradient_checkpointing": checkpointing,
    }
    for batch in (4, 16, 32)
    for checkpointing in (False, True)
} | {
    "training, batch 1, checkpointed": {
        "batch_size": 1,
        "gradient_checkpointing": True,
    },
    "training, batch 4, float32": {"dtype": "float32"},
    "training, batch 4, 10 prefix vectors": {"prefix_length": 10},
    "training, batch 4, whole": {"lm_training": "full"},
    "writing, batch 1, 1 beam": {"batch_size": 1, "beams": 1},
    "writing, batch 16, 4 beams": {"batch_size": 16, "beams": 4},
    "writing, batch 32, 4 beams": {"batch_size": 32, "beams": 4},
    "the same, CLAP beside it": {"batch_size": 32, "beams": 4, "clap_windows": 32},
    "writing, batch 250, 4 beams": {"batch_size": 250, "beams": 4},
}
CARDS, ROOM = (24, 80), 0.9  # the rest for what only a GPU can tell
BEAMS, CLIPS, OFF = 4, 8, 0.15
SOUNDS = (".flac", ".wav")
# Freed tensors go back to the system at once: resident memory is then what is held.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def write_llama(folder: str) -> None:
    """Random weights and a tokenizer of a few words."""
    words = [PROMPT, " ".join([CAPTION] * 8)]
    train_tokenizer(words * 9, 400, 2048).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    lm.save_pretrained(folder)


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def start_watching(model: nn.Module) -> None:
    """Forget the peak of loading; read what is mapped from disk and not read yet."""
    for weight in model.parameters():
        weight.detach().amax()
    Path("/proc/self/clear_refs").write_text("5")


def load_decoder(folder: str, dtype: str, checkpointing: bool = False):
    """DRCap's settings."""
    return PrefixDecoder(
        512,
        folder,
        "lora",
        prefix_length=1,
        prompt=PROMPT,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
    )


def point(base: int, loading: int, parts: dict[str, float], taken=None) -> dict:
    """Measured and predicted, whole and without the weights, which are easy."""
    measured, predicted = (memory("VmHWM") - base) / 1e9, parts["total"]
    weights = parts["weights"] + parts["clap"]
    return {
        "gb": measured,
        "predicted_gb": predicted,
        "off": predicted / measured - 1,
        "beside_weights_gb": measured - weights,
        "beside_weights_predicted_gb": predicted - weights,
        "loading_gb": (loading - base) / 1e9,
        "libraries_gb": base / 1e9,
        "seconds": taken,
    }


class Reached(Exception):
    """The gradient has come as far as it should."""


def begin_backward(decoder: PrefixDecoder, rows, captions: list[str]) -> None:
    """As far as the gradient of the logits, where training should peak.

    A CPU without arithmetic in bfloat16 would need about half an hour for the rest.
    """

    def stop(gradient):
        raise Reached

    def watch(module, inputs, logits):
        logits.register_hook(stop)

    decoder.lm.get_output_embeddings().register_forward_hook(watch)
    with contextlib.suppress(Reached):
        decoder.loss(rows, captions).backward()


def train(folder: str, dtype: str, batch: int, checkpointing: bool):
    """Two steps, the second with AdamW's states; seconds are the second's."""
    base = memory("VmRSS")
    decoder = load_decoder(folder, dtype, checkpointing).train()
    loading = memory("VmHWM")
    learned = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-5)
    rows = torch.randn(batch, 512)
    words = (CAPTION.split() * TOKENS)[: TOKENS - 1]
    captions = [" ".join(words)] * (batch - 1) + [CAPTION]  # one is padded

    def step():
        decoder.loss(rows, captions).backward()
        optimizer.step()
        optimizer.zero_grad()

    parts = footprint(
        decoder.lm.config,
        dtype=dtype,
        batch_size=batch,
        tokens=decoder._tokenize(captions)[0].shape[1],
        prompt_tokens=len(decoder.bos) + len(decoder.prompt),
        gradient_checkpointing=checkpointing,
        device="cpu",
    )
    start_watching(decoder)
    if dtype == "float32":
        step()
        return point(base, loading, parts, seconds(step))
    begin_backward(decoder, rows, captions)
    parts["total"] -= parts["optimizer"]  # which was not there yet
    return point(base, loading, parts)


def write(folder: str, dtype: str, batch: int):
    """Captions by beam search, all of the same length."""
    base = memory("VmRSS")
    decoder = load_decoder(folder, dtype)
    loading = memory("VmHWM")
    rows = torch.randn(batch, 512)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    start_watching(decoder)
    taken = seconds(lambda: decoder.generate(rows, num_beams=BEAMS, **length))
    parts = footprint(
        decoder.lm.config,
        dtype=dtype,
        batch_size=batch,
        tokens=TOKENS,
        prompt_tokens=len(decoder.bos) + len(decoder.prompt),
        beams=BEAMS,
        device="cpu",
    )
    return point(base, loading, parts, taken)


def embed(folder: str, *files: str):
    """Recordings through CLAP, some at a time; seconds are of one recording."""
    base = memory("VmRSS")
    encoder = load_encoder(folder)
    loading = memory("VmHWM")
    if encoder.dim != 512:
        raise SystemExit(f"CLAP gives {encoder.dim} numbers, not 512")
    features = [
        encoder.front_end(load_audio(file, encoder.sample_rate)) for file in files
    ]
    batches = [features[i : i + CLIPS] for i in range(0, len(files), CLIPS)]
    start_watching(encoder)
    taken = seconds(lambda: [encoder.encode_prepared(batch) for batch in batches])
    windows = max(sum(map(len, batch)) for batch in batches)
    parts = footprint(LlamaConfig(**LLAMA), clap_windows=windows)
    parts["weights"] = 0
    parts["total"] = parts["clap"] + parts["clap_activations"]
    return point(base, loading, parts, taken / len(files))


def write_clap(folder: str) -> None:
    """The sizes of laion/clap-htsat-unfused, with the mini CLAP's tokenizer."""
    load_encoder("mini").save_pretrained(folder)
    ClapModel(ClapConfig()).save_pretrained(folder)
    ClapFeatureExtractor().save_pretrained(folder)


def recordings(folder: str) -> list[str]:
    """Real ones where there are some."""
    real = Path(os.environ.get("DLINK_REFERENCE", "nowhere"), "real_clips")
    if not real.is_dir():
        real = prepare("audiocaps", folder)
    return [str(file) for file in sorted(real.rglob("*.*")) if file.suffix in SOUNDS][
        :25
    ]


def alone(what: str, *arguments) -> dict:
    """One point, in a process of its own."""
    module, told = "tests.benchmarks.full_size", json.dumps([what, *arguments])
    process = subprocess.run(
        [sys.executable, "-m", module, told],
        cwd=ROOT,
        env=os.environ | ALLOCATOR,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(what, *arguments[1:4], process.stdout.splitlines()[-1], file=sys.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def measure() -> dict:
    """All points; none may be further off than ``OFF``."""
    points = {}
    with tempfile.TemporaryDirectory() as folder:
        clap, llama = f"{folder}/clap", f"{folder}/llama"
        alone("write_clap", clap), alone("write_llama", llama)
        points["clap"] = alone("embed", clap, *recordings(folder))
        for dtype, batch, checkpointing in TRAINING:
            name = f"training_{dtype}_batch_{batch}" + "_checkpointed" * checkpointing
            points[name] = alone("train", llama, dtype, batch, checkpointing)
        for dtype, batch in WRITING:
            points[f"writing_{dtype}_batch_{batch}"] = alone(
                "write", llama, dtype, batch
            )
    far = [name for name, found in points.items() if abs(found["off"]) > OFF]
    if far:
        raise SystemExit(f"{', '.join(far)}: further off than {OFF:.0%}")
    return {f"{k}_{what}": v for k, each in points.items() for what, v in each.items()}


def seven_billion() -> str:
    """Markdown: LLaMA-2-7B or Vicuna-7B with DRCap's settings."""
    names = ("weights", "trained", "optimizer", "gradients", "activations")
    names = (*names, "logits", "cache", "clap", "clap_activations", "total")
    head = ("settings", *(name.replace("_", " ") for name in names))
    head = (*head, *(f"{card} GB" for card in CARDS))
    lines = [head]
    for what, settings in SEVEN_BILLION.items():
        parts = footprint(LlamaConfig(), **settings)
        sizes = [f"{parts[name]:.2f}" if parts.get(name) else "" for name in names]
        fits = ["yes" if parts["total"] < ROOM * card else "no" for card in CARDS]
        lines.append([what, *sizes, *fits])
    return markdown(lines)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(seven_billion())
    else:
        action, *rest = json.loads(sys.argv[1])
        print(json.dumps(globals()[action](*rest)))
