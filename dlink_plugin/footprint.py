"""How much memory a decoder takes, told from its language model's configuration.

Before anything is downloaded or rented: which settings fit which GPU. Parameters are
counted exactly, on PyTorch's meta device. What is kept for the backward pass stands
below, tensor by tensor; these formulas are ours, read off transformers' LLaMA and GPT-2
and checked against measurements (``results/README.md``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ClapConfig,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from .decoder import DTYPES, check_choice, make_projector
from .encoders import blueprint

__all__ = ["footprint"]

_KINDS = ("llama", "mistral", "qwen2", "gpt2")  # the middle two are built like LLaMA
_WIDE = 4  # bytes of a float32: of what is trained, of LoRA's input, of the loss
_WINDOW = 27_300_000  # bytes that 10 s of sound take on their way through CLAP


def footprint(
    config: PretrainedConfig | str,
    *,
    lm_training: str = "lora",
    dtype: str = "bfloat16",
    batch_size: int = 4,
    tokens: int = 40,
    prompt_tokens: int = 8,
    prefix_length: int = 1,
    projector: str = "mlp",
    dim: int = 512,
    gradient_checkpointing: bool = False,
    lora_rank: int = 8,
    lora_targets: Sequence[str] = ("q_proj", "v_proj"),
    beams: int | None = None,
    clap_windows: int = 0,
    device: str = "cuda",
) -> dict[str, float]:
    """Peak memory of training a ``PrefixDecoder``, or of writing captions with it.

    What is there before the first tensor is no part of it: PyTorch and its libraries
    in the memory of a machine, the CUDA context in that of a GPU.

    Arguments
    ---------
    config : PretrainedConfig or str
        Of the language model, or the folder or hub id that has it: LLaMA, Vicuna,
        Mistral, Qwen2, GPT-2.
    lm_training : str
        "lora", "frozen" or "full", as for ``PrefixDecoder``.
    dtype : str
        Of the language model's weights.
    batch_size : int
        Captions at a time.
    tokens : int
        Of the longest caption, its end included.
    prompt_tokens : int
        Of the prompt and the start token.
    prefix_length : int
        Vectors that stand for the embedding.
    projector : str
        "linear" or "mlp".
    dim : int
        Width of the embeddings.
    gradient_checkpointing : bool
        Whether layers are computed a second time in the backward pass.
    lora_rank : int
        LoRA's r.
    lora_targets : sequence of str
        Names of the linear layers that get adapters.
    beams : int, optional
        Given, captions are written with so many beams; else the decoder is trained.
    clap_windows : int
        Windows of 10 s at a time through a CLAP of full size that stays beside the
        decoder, as it does in a captioner; 0 for none, as in the recipes.
    device : str
        "cuda", or "cpu", where the mask of a dropout is made of floats.

    Returns
    -------
    parts : dict of str to float
        In GB of 1e9 bytes: "weights" of the language model; "trained", its adapters and
        the projector; then "optimizer", "gradients", "activations" and "logits" of
        training, or "cache", "activations" and "logits" of writing; "clap" and
        "clap_activations"; "total". The total is less than the sum, as not all of them
        peak at once: gradients come while activations go.

    Raises
    ------
    ValueError
        If an option is unknown, or the language model is none of these kinds.

    Example
    -------
    LLaMA-2-7B with DRCap's settings, without and with gradient checkpointing:

    >>> from transformers import LlamaConfig
    >>> llama = LlamaConfig()  # has this size by itself
    >>> round(footprint(llama)["total"], 1)
    14.8
    >>> round(footprint(llama, gradient_checkpointing=True)["total"], 1)
    13.8
    """
    check_choice("lm_training", lm_training, ("lora", "frozen", "full"))
    check_choice("dtype", dtype, DTYPES)
    check_choice("device", device, ("cuda", "cpu"))
    if isinstance(config, str):
        config = AutoConfig.from_pretrained(config, trust_remote_code=False)
    check_choice("model_type", config.model_type, _KINDS)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
        bridge = make_projector(projector, dim, prefix_length, config.hidden_size)
    size, full = getattr(torch, dtype).itemsize, lm_training == "full"
    adapted = _linears(lm, lora_targets) if lm_training == "lora" else []
    parts = {
        "weights": size * _count(lm),
        "trained": _WIDE * (_count(bridge) + lora_rank * sum(map(sum, adapted))),
    }
    before = prefix_length + prompt_tokens
    if beams is None:
        learned = parts["trained"] + full * parts["weights"]
        kept = _kept(config, size, full) + _kept_by_lora(adapted, lora_rank, device)
        layer, layers = _passing(config, size), config.num_hidden_layers
        if gradient_checkpointing:  # all of one layer, and what the others read
            layer += kept / layers
            kept = layers * size * config.hidden_size
        rows = batch_size * (before + tokens)
        spare = _spare(config, size, learned, full, device)
        logits = batch_size * tokens * config.vocab_size
        work, peak = _training(learned, spare, rows * kept, rows * layer, logits)
    else:
        work, peak = _writing(config, size, batch_size * beams, before, tokens)
    clap = _clap(clap_windows)
    peak = max(peak, clap["clap_activations"]) + clap["clap"]
    total = sum(parts.values()) + peak
    parts |= work | clap | {"total": total}
    return {name: part / 1e9 for name, part in parts.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linears(lm: nn.Module, names: Sequence[str]) -> list[tuple[int, int]]:
    """How many numbers the layers of these names read and write."""
    found = [
        module.weight.shape[:: 1 if isinstance(module, Conv1D) else -1]
        for name, module in lm.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[-1] in names
    ]
    if not found:
        raise ValueError(
            f"lora_targets {list(names)} name no linear layers of a language model of "
            "this kind; give c_attn for GPT-2, q_proj and v_proj for the others."
        )
    return [tuple(shape) for shape in found]


def _heads(config: PretrainedConfig, name: str = "num_attention_heads") -> int:
    """Width of all heads together."""
    heads = config.num_attention_heads
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    return each * getattr(config, name, heads)


def _kept(config: PretrainedConfig, size: int, full: bool) -> int:
    """Bytes that the layers keep of one token for the backward pass.

    A frozen linear layer keeps nothing: the gradient of its input needs its weights
    alone. Where dropout is left out (GPT-2 trained whole has some), so it is here.
    """
    width, wide, inner = config.hidden_size, _heads(config), _inner(config)
    if config.model_type == "gpt2":
        norms = 2 * size * width  # what they read
        attention = 6 * size * wide  # q, k, v; k and v in the cache; the output
        feed_forward = 4 * size * inner  # GELU: x, x / 2, the tanh, 1 + the tanh
    else:
        norms = 2 * _WIDE * width  # what they read, in float32
        attention = 4 * size * wide  # q, k and v, one for each head; the output
        feed_forward = 3 * size * inner  # the gate, its SiLU, and what that multiplies
    sums = _WIDE * config.num_attention_heads  # of the softmax, as logarithms
    # Trained layers keep what they read, and norms what they scale.
    reads = size * (4 * width + inner) if full else 0
    layer = norms + attention + sums + feed_forward + reads
    return config.num_hidden_layers * layer


def _inner(config: PretrainedConfig) -> int:
    """Width of the feed-forward block."""
    if config.model_type == "gpt2":
        return config.n_inner or 4 * config.hidden_size
    return config.intermediate_size


def _passing(config: PretrainedConfig, size: int) -> int:
    """Bytes of gradients of one token in one layer's feed-forward block."""
    return size * (3 * _inner(config) + 2 * config.hidden_size)


def _kept_by_lora(adapted: Sequence[tuple[int, int]], rank: int, device: str) -> int:
    """The same for the adapters: input after dropout, the mask of that, A's output."""
    mask = 1 if device == "cuda" else _WIDE
    return sum((_WIDE + mask) * read + _WIDE * rank for read, _ in adapted)


def _spare(
    config: PretrainedConfig, size: int, learned: int, full: bool, device: str
) -> int:
    """Beside the gradients, when all are there.

    A GPU takes AdamW's step for all tensors at once, with their denominators. The
    gradient of embeddings that are trained is the sum of the prompt's and the words'.
    """
    tables = 2 * full * size * config.vocab_size * config.hidden_size
    return max(tables, learned if device == "cuda" else 0)


def _training(
    learned: int, spare: int, kept: int, layer: int, logits: int
) -> tuple[dict[str, int], int]:
    """Peak as the backward pass starts, in its first layer or, trained whole, after it.

    Those are the loss and the top of the language model.
    """
    # The softmax of the logits, its gradient and that of the logits
    three = 3 * _WIDE * logits
    states = 2 * learned  # AdamW's averages of the gradient and of its square
    work = {
        "optimizer": states,
        "gradients": learned,
        "activations": kept + layer,
        "logits": three,
    }
    return work, states + max(kept + layer, kept + three, learned + spare)


def _writing(
    config: PretrainedConfig, size: int, sequences: int, before: int, tokens: int
) -> tuple[dict[str, int], int]:
    """Peak either as the prefix is read or as the last token is chosen."""
    width, kind = config.hidden_size, "num_key_value_heads"
    layers = config.num_hidden_layers + 0.5  # one layer's keys twice, while reordered
    position = sequences * layers * 2 * size * _heads(config, kind)
    passing = 3 * _inner(config) + 4 * width
    if config.model_type == "gpt2":  # whose GELU is written out
        passing += 2 * _inner(config)
    work = {
        "cache": position * (before + tokens),
        "activations": sequences * before * size * passing,
        # As they are, and five times in float32: copied, softmax, summed, ranked
        "logits": sequences * config.vocab_size * (size + 5 * _WIDE),
    }
    start = position * before + work["activations"]
    return work, max(start, work["cache"] + work["logits"])


def _clap(windows: int) -> dict[str, int]:
    weights = _WIDE * _count(blueprint(ClapConfig())) if windows else 0
    return {"clap": weights, "clap_activations": windows * _WINDOW}
