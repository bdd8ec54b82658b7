"""Embeddings by laion_clap itself, for test_conversion.py; run in a process of its own.

laion_clap changes ``sys.path``, needs torchvision and loads tokenizers and RoBERTa from
the hub at import. Here the first has no other effect, the second is a stub, and the
others come from a folder, with random weights.

``python -m tests.laion_route FOLDER AMODEL FUSION LAYERS``: FOLDER has RoBERTa's
vocab.json and merges.txt, clips.npy and texts.json; it gets checkpoint.pt and
embeddings.npz. Exit status 3 says that laion_clap cannot be imported.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import dlink_plugin.compat

import numpy as np
import torch
import transformers
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from dlink_plugin.encoders import LaionClapEncoder


class _Anything(ModuleType):
    """A module of which every name can be imported, and is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_laion_clap(folder: Path, layers: int):
    dlink_plugin.compat.ensure_torchaudio()
    for name in ("", ".datasets", ".transforms", ".ops", ".ops.misc"):
        sys.modules[f"torchvision{name}"] = _Anything(f"torchvision{name}")
    tokenizer = RobertaTokenizer(folder / "vocab.json", folder / "merges.txt")
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": layers}
    positions = {"max_position_embeddings": 514, "type_vocab_size": 1}
    # As in roberta-base's config.json.
    config = RobertaConfig(**sizes, **positions, layer_norm_eps=1e-5)
    RobertaTokenizer.from_pretrained = lambda name: tokenizer
    RobertaModel.from_pretrained = lambda name: RobertaModel(config)
    for name in ("BertTokenizer", "BartTokenizer"):
        getattr(transformers, name).from_pretrained = lambda name: None
    try:
        import laion_clap
    except ImportError as error:
        print(error)
        sys.exit(3)
    return laion_clap


@torch.no_grad()
def _randomize(model: torch.nn.Module) -> None:
    """Let every tensor matter: a fresh model has zeros and ones that hide mistakes."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "_extractor" in name or "logit_scale" in name:
            continue
        if weight.ndim > 1:
            deviation = 1.5 * weight[0].numel() ** -0.5
            if "embeddings" in name:
                deviation = 0.02  # as RoBERTa's, so that layer_norm_eps matters
            elif "bias_table" in name:
                deviation = 0.75
            weight.normal_(std=deviation)
        else:
            weight.add_(0.1 * torch.randn_like(weight))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(-20.0 if "bn0" in name else 0.0, 3.0)
        elif name.endswith("running_var"):
            buffer.uniform_(50, 200)


def main(folder: str, amodel: str, fusion: str, layers: str) -> None:
    """Write checkpoint.pt and embeddings.npz."""
    folder = Path(folder)
    laion_clap = _import_laion_clap(folder, int(layers))
    module = laion_clap.CLAP_Module(
        enable_fusion=fusion == "fusion", device="cpu", amodel=amodel
    )
    _randomize(module.model)
    clips = np.load(folder / "clips.npy")
    texts = json.loads((folder / "texts.json").read_text())
    with torch.no_grad():
        tensors = torch.from_numpy(clips)
        embeddings = {
            "audio": module.get_audio_embedding_from_data(tensors, use_tensor=True),
            "audio_16_bit": module.get_audio_embedding_from_data(clips),
            "text": module.get_text_embedding(texts, use_tensor=True),
        }
    state = {f"module.{k}": v for k, v in module.model.state_dict().items()}
    positions = torch.arange(514)[None]
    state["module.text_branch.embeddings.position_ids"] = positions
    whole = {"epoch": 15, "name": "random", "state_dict": state}
    torch.save(whole, folder / "checkpoint.pt")
    del module, state, whole
    encoder = LaionClapEncoder(folder / "checkpoint.pt")
    assert encoder.settings == {"amodel": amodel, "enable_fusion": fusion == "fusion"}
    embeddings["encoder_audio"] = encoder.encode_audio(list(tensors))
    embeddings["encoder_text"] = encoder.encode_text(texts)
    np.savez(folder / "embeddings.npz", **embeddings)


if __name__ == "__main__":
    main(*sys.argv[1:])
