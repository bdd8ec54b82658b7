"""A checkpoint file of ``laion_clap`` into a folder that ``transformers`` reads.

Both hold the same network under other names. What only ``laion_clap``'s training or
feature extraction used is left out; a name that is unknown or missing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    RobertaTokenizerFast,
)

from .bridges.sealed import whole
from .encoders import FUSION, blueprint, read_checkpoint
from .reading import check_files, damage_told, first_line

__all__ = ["config_of", "convert_clap", "renamed"]

# The same in all of laion_clap's models with an HTSAT and a RoBERTa.
_MAX_TOKENS = 77
_HEAD = 64  # numbers in a head of RoBERTa
_FEATURES = {
    "feature_size": 64,
    "sampling_rate": 48_000,
    "fft_window_size": 1024,
    "hop_length": 480,
    "max_length_s": 10,
    "frequency_min": 50,  # not the default
    "frequency_max": 14_000,
    "padding": "repeatpad",
}
_FILTERS = "audio_branch.logmel_extractor.melW"

_BLOCK = r"audio_branch\.(layers\.\d+\.blocks\.\d+)"
_TOWER = r"audio_model.audio_encoder"
_NAMES = {
    r"(logit_scale_[at])": r"\1",
    r"(audio|text)_projection\.0\.(\w+)": r"\1_projection.linear1.\2",
    r"(audio|text)_projection\.2\.(\w+)": r"\1_projection.linear2.\2",
    r"text_branch\.(.+)": r"text_model.\1",
    r"audio_branch\.bn0\.(\w+)": rf"{_TOWER}.batch_norm.\1",
    r"audio_branch\.(norm\.\w+)": rf"{_TOWER}.\1",
    r"audio_branch\.(patch_embed\..+)": rf"{_TOWER}.\1",
    r"audio_branch\.(layers\.\d+\.downsample\..+)": rf"{_TOWER}.\1",
    rf"{_BLOCK}\.norm1\.(\w+)": rf"{_TOWER}.\1.layernorm_before.\2",
    rf"{_BLOCK}\.norm2\.(\w+)": rf"{_TOWER}.\1.layernorm_after.\2",
    rf"{_BLOCK}\.attn\.(relative_position_bias_table|qkv\.\w+)": (
        rf"{_TOWER}.\1.attention.self.\2"
    ),
    rf"{_BLOCK}\.attn\.proj\.(\w+)": rf"{_TOWER}.\1.attention.output.dense.\2",
    rf"{_BLOCK}\.mlp\.fc1\.(\w+)": rf"{_TOWER}.\1.intermediate.dense.\2",
    rf"{_BLOCK}\.mlp\.fc2\.(\w+)": rf"{_TOWER}.\1.output.dense.\2",
}
_LEFT_OUT = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor)\..+"  # the extractor's
    r"|audio_branch\.(tscam_conv|head)\..+"  # classes of AudioSet
    r"|(audio|text)_transform\..+"  # a second head that only the training used
    # What follows from the architecture.
    rf"|{_BLOCK}\.attn_mask|{_BLOCK}\.attn\.relative_position_index|attn_mask"
    r"|text_branch\.embeddings\.(position_ids|token_type_ids)"
)
_FOLLOWS = ("relative_position_index", "position_ids", "token_type_ids")


def convert_clap(
    checkpoint: str | Path, folder: str | Path, tokenizer: str | Path = "roberta-base"
) -> ClapConfig:
    """Write the model of a checkpoint file as :class:`ClapEncoder` reads it.

    That is ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and the
    tokenizer's files. The sizes are those of the tensors in the file: HTSAT-tiny or
    -base, fused or not.

    Arguments
    ---------
    checkpoint : str or Path
        For instance ``630k-audioset-best.pt``. Only tensors are read, no code is run.
    folder : str or Path
        Gets the model when all of it is written. May be there if it is empty.
    tokenizer : str or Path
        RoBERTa's, which the file does not hold: a Hugging Face id or a folder.

    Returns
    -------
    config : ClapConfig
        What was found.

    Raises
    ------
    OSError
        If the folder is in use, a file is missing or nothing can be written.
    ValueError
        If the checkpoint is not a CLAP of an HTSAT and a RoBERTa, or the tokenizer is
        not the one of its text tower.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there and not empty; name a new folder or empty this one."
        )
    words = _load_tokenizer(str(tokenizer))
    state = read_checkpoint(checkpoint)
    try:
        model = _model(state)
        extractor = _extractor(model.config.audio_config.enable_fusion, state)
    except Exception as error:  # tensors of the wrong kind fail in many ways
        raise ValueError(
            f"{checkpoint} is not a checkpoint of laion_clap with an HTSAT and a "
            "RoBERTa; name such a file or fetch it again. The reason: "
            f"{first_line(error)}"
        ) from error
    _check_tokenizer(words, model.config.text_config, tokenizer)
    words.model_max_length = _MAX_TOKENS
    with whole(folder) as draft:
        for part in (model, extractor, words):
            part.save_pretrained(draft)
    return model.config


def _model(state: Mapping[str, torch.Tensor]) -> ClapModel:
    config, weights = config_of(state), renamed(state)
    _check_weights(weights, blueprint(config).state_dict())
    model = ClapModel(config)
    model.load_state_dict(weights, strict=False)  # it makes itself what follows
    return model


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that ``transformers`` needs, by its names.

    Arguments
    ---------
    state : mapping of str to torch.Tensor
        By laion_clap's names, without the ``module.`` of wrapped models.

    Returns
    -------
    weights : dict of str to torch.Tensor
        Query, key and value apart, which laion_clap's audio tower keeps in one.

    Raises
    ------
    ValueError
        If a name is not known.

    Example
    -------
    >>> attention = "audio_branch.layers.2.blocks.0.attn"
    >>> state = {f"{attention}.qkv.bias": torch.arange(6), "attn_mask": torch.ones(3)}
    >>> for name, tensor in renamed(state).items():
    ...     print(name.removeprefix("audio_model.audio_encoder."), tensor.tolist())
    layers.2.blocks.0.attention.self.query.bias [0, 1]
    layers.2.blocks.0.attention.self.key.bias [2, 3]
    layers.2.blocks.0.attention.self.value.bias [4, 5]
    """
    weights = {}
    for name, tensor in state.items():
        if _LEFT_OUT.fullmatch(name):
            continue
        before, three, kind = _new_name(name).partition(".qkv.")
        if not three:
            weights[before] = tensor
            continue
        parts = zip(
            ("query", "key", "value"), torch.atleast_1d(tensor).chunk(3), strict=False
        )
        weights |= {f"{before}.{part}.{kind}": rows for part, rows in parts}
    return weights


def _new_name(name: str) -> str:
    for old, new in _NAMES.items():
        if match := re.fullmatch(old, name):
            return match.expand(new)
    raise ValueError(f"it holds {name[:200]}")


def config_of(state: Mapping[str, torch.Tensor]) -> ClapConfig:
    """The architecture, from the shapes of the tensors.

    Arguments
    ---------
    state : mapping of str to torch.Tensor
        By laion_clap's names.

    Returns
    -------
    config : ClapConfig

    Raises
    ------
    ValueError
        If a tensor that tells a size is missing or has another number of dimensions.
    """
    words, width = _shape(state, "text_branch.embeddings.word_embeddings.weight", 2)
    positions, _ = _shape(state, "text_branch.embeddings.position_embeddings.weight", 2)
    types, _ = _shape(state, "text_branch.embeddings.token_type_embeddings.weight", 2)
    inner, _ = _shape(state, "text_branch.encoder.layer.0.intermediate.dense.weight", 2)
    joint, _ = _shape(state, "text_projection.0.weight", 2)
    patches, *_ = _shape(state, "audio_branch.patch_embed.proj.weight", 4)
    stages = _count(state, r"audio_branch\.layers\.(\d+)\..+")
    blocks = [rf"audio_branch\.layers\.{i}\.blocks" for i in range(stages)]
    table = "attn.relative_position_bias_table"
    heads = [
        _shape(state, f"audio_branch.layers.{i}.blocks.0.{table}", 2)[1]
        for i in range(stages)
    ]
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": _count(state, r"text_branch\.encoder\.layer\.(\d+)\..+"),
        "num_attention_heads": width // _HEAD,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-5,  # as RoBERTa's; transformers' default for CLAP is not
    }
    fusion = FUSION in state
    audio = {
        "patch_embeds_hidden_size": patches,
        "hidden_size": patches * 2 ** (stages - 1),
        "depths": [_count(state, rf"{block}\.(\d+)\..+") for block in blocks],
        "num_attention_heads": heads,
        "num_hidden_layers": stages,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    return ClapConfig(text_config=text, audio_config=audio, projection_dim=joint)


def _shape(state: Mapping[str, torch.Tensor], name: str, dimensions: int) -> tuple:
    if name not in state:
        raise ValueError(f"it lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions:
        raise ValueError(f"{name} has the shape {shape}")
    return shape


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """How many numbers stand in that place of a name; gaps are found later."""
    found = (re.fullmatch(pattern, name) for name in state)
    return len({match.group(1) for match in found if match})


def _check_weights(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in expected.items()
        if not name.endswith(_FOLLOWS)
    }
    if differ := found.items() ^ wanted.items():
        name = min(name for name, _ in differ)
        raise ValueError(
            f"what becomes {name} is {found.get(name, 'missing')} instead of "
            f"{wanted.get(name, 'nothing')}"
        )


def _extractor(fusion: bool, state: Mapping[str, torch.Tensor]) -> ClapFeatureExtractor:
    extractor = ClapFeatureExtractor(
        **_FEATURES, truncation="fusion" if fusion else "rand_trunc"
    )
    ours = extractor.mel_filters_slaney
    theirs = state[_FILTERS].float().numpy() if _FILTERS in state else ours
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-6):
        raise ValueError(
            f"{_FILTERS} is not the filters of 64 bands from 50 to 14,000 Hz at 48 kHz"
        )
    return extractor


def _load_tokenizer(source: str) -> RobertaTokenizerFast:
    check_files(source)
    try:
        # Of an empty folder, and offline, it opens the name None: TypeError.
        with damage_told(f"The tokenizer at {source}"):
            return RobertaTokenizerFast.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise OSError(
            f"No tokenizer of RoBERTa at {source}; give a folder with its vocab.json "
            "and merges.txt, or its tokenizer.json, as --tokenizer, or go online once "
            f"for roberta-base. The reason: {first_line(error)}"
        ) from error


def _check_tokenizer(tokenizer, text: ClapTextConfig, source: str | Path) -> None:
    special = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    if special != (text.bos_token_id, text.pad_token_id, text.eos_token_id):
        raise ValueError(
            f"The tokenizer at {source} has {special} for <s>, <pad> and </s>, "
            "RoBERTa's has (0, 1, 2); name RoBERTa's."
        )
    if len(tokenizer) != text.vocab_size:
        raise ValueError(
            f"The tokenizer at {source} has {len(tokenizer)} tokens, the checkpoint's "
            f"text tower {text.vocab_size}; name the tokenizer it was trained with."
        )
