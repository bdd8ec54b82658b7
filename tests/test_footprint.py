"""Predictions against memory that is counted tensor by tensor, on small models."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    ClapConfig,
    ClapModel,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.footprint import footprint
from dlink_plugin.mini.language import train_tokenizer

from .live import LiveMemory

ENDS = {"bos_token_id": 0, "eos_token_id": 2}
LLAMA = LlamaConfig(  # 27 million parameters
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=4000,
    **ENDS,
)
FEW_WORDS = LlamaConfig.from_dict(LLAMA.to_dict() | {"vocab_size": 300})
# Not every CPU is fast at bfloat16.
SMALL = LlamaConfig.from_dict(LLAMA.to_dict() | {"hidden_size": 128, "head_dim": 16})
SIZES = [(LLAMA, "float32"), (SMALL, "bfloat16")]
GPT2 = GPT2Config(
    n_embd=256,
    n_layer=6,
    n_head=8,
    vocab_size=4000,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    **ENDS,
)
BATCH, BEAMS, WORDS = 8, 4, ["rain"] * 12
NEAR = pytest.approx(1, abs=0.15)


@pytest.fixture
def make(tmp_path):
    """make(config, **options): a decoder with random weights, and how to predict it."""

    def make(config, checkpointing=False, dtype="float32", **options):
        gpt2 = config.model_type == "gpt2"
        options["lora_targets"] = ["c_attn"] if gpt2 else ["q_proj", "v_proj"]
        train_tokenizer(["rain rain"] * 9, 280, 64).save_pretrained(tmp_path)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        settings = {"prefix_length": 1, "gradient_checkpointing": checkpointing}
        settings["dtype"] = dtype
        decoder = PrefixDecoder(64, tmp_path, **settings, **options)
        tokens = decoder._tokenize([" ".join(WORDS)])[0].shape[1]
        known = {"batch_size": BATCH, "tokens": tokens, "prompt_tokens": 1, "dim": 64}
        return decoder, {**settings, **options, **known, "device": "cpu"}

    return make


def captions():
    """One is shorter, so that attention is masked."""
    return [" ".join(WORDS)] * (BATCH - 1) + ["rain"]


def step(decoder, optimizer):
    decoder.loss(torch.ones(BATCH, 64), captions()).backward()
    optimizer.step()
    optimizer.zero_grad()


def check_training(decoder, config, options):
    """What comes on top of weights and AdamW's states, in the second step."""
    learned = [p for p in decoder.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-4)
    step(decoder, optimizer)
    with LiveMemory() as live:
        step(decoder, optimizer)
    parts = footprint(config, **options)
    there = parts["weights"] + parts["trained"] + parts["optimizer"]
    assert (parts["total"] - there) * 1e9 / live.peak == NEAR
    states = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert parts["optimizer"] * 1e9 == pytest.approx(states)
    weights = sum(p.nbytes for p in decoder.parameters())
    assert (parts["weights"] + parts["trained"]) * 1e9 == pytest.approx(weights)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config, dtype", SIZES, ids=["float32", "bfloat16"])
def test_training_with_lora(make, config, dtype, checkpointing):
    check_training(*_with(make, config, checkpointing, dtype=dtype))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_outweigh_a_small_vocabulary(make, checkpointing):
    check_training(*_with(make, FEW_WORDS, checkpointing))


@pytest.mark.parametrize("lm_training", ["frozen", "full"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_training_otherwise(make, config, lm_training):
    check_training(*_with(make, config, lm_training=lm_training))


def test_training_gpt2(make):
    check_training(*_with(make, GPT2, dtype="bfloat16"))


def _with(make, config, checkpointing=False, **options):
    decoder, options = make(config, checkpointing, **options)
    return decoder, config, options


@pytest.mark.parametrize("config, dtype", SIZES, ids=["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(make, config, dtype):
    decoder, options = make(config, dtype=dtype)
    own = {p.untyped_storage()._cdata for p in decoder.train().parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder.loss(torch.ones(BATCH, 64), captions())
    parts = footprint(config, **options)
    softmax = parts["logits"] / 3  # is saved as well
    size = sum(storage.nbytes() for storage in saved.values())
    assert (parts["activations"] + softmax) * 1e9 / size == NEAR


@pytest.mark.parametrize(
    "config, dtype",
    [*SIZES, (FEW_WORDS, "float32"), (GPT2, "float32")],
    ids=["float32", "bfloat16", "few_words", "gpt2"],
)
def test_writing(make, config, dtype):
    decoder, options = make(config, dtype=dtype)
    new = options["tokens"]
    length = {"max_new_tokens": new, "min_new_tokens": new}
    with LiveMemory() as live:
        decoder.generate(torch.ones(BATCH, 64), num_beams=BEAMS, **length)
    parts = footprint(config, beams=BEAMS, **options)
    beside = parts["total"] - parts["weights"] - parts["trained"]
    assert beside * 1e9 / live.peak == NEAR


@torch.inference_mode()
def test_clap():
    model = ClapModel(ClapConfig()).eval()
    windows = torch.randn(2, 1, 1001, 64)
    with LiveMemory() as live:
        model.get_audio_features(windows)
    alone = footprint(LLAMA, beams=1, batch_size=1)
    beside = footprint(LLAMA, beams=1, batch_size=1, clap_windows=2)
    assert beside["clap_activations"] * 1e9 / live.peak == NEAR
    assert beside["clap"] * 1e9 == sum(p.nbytes for p in model.parameters())
    held = alone["weights"] + alone["trained"]
    most = max(beside["clap_activations"], alone["total"] - held)
    assert beside["total"] == pytest.approx(held + beside["clap"] + most)


VICUNA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
QWEN = Qwen2Config(  # Qwen2.5-0.5B
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    "config, target, parameters, adapters",
    [
        (LlamaConfig(**VICUNA, max_position_embeddings=4096), "q_proj", 6738415616, 64),
        (LlamaConfig(**VICUNA, vocab_size=32000), "v_proj", 6738415616, 64),
        (QWEN, "q_proj", 494032768, 48),
        (GPT2Config(), "c_attn", 124439808, 24),
    ],
    ids=["llama-2-7b", "vicuna-7b", "qwen2.5-0.5b", "gpt2"],
)
def test_published_sizes_are_counted_exactly(config, target, parameters, adapters):
    options = {"prefix_length": 1, "projector": "linear", "lora_targets": [target]}
    parts = footprint(config, lora_rank=8, **options)
    assert parts["weights"] * 1e9 == pytest.approx(2 * parameters, abs=1)
    width, layers = config.hidden_size, adapters // 2
    out = 3 * width if target == "c_attn" else width
    lora, projector = 8 * layers * (width + out), 513 * width
    assert parts["trained"] * 1e9 == pytest.approx(4 * (lora + projector), abs=1)


def test_what_saves_memory_saves_memory():
    llama = LlamaConfig(**VICUNA)

    def total(**options):
        return footprint(llama, **options)["total"]

    assert total(gradient_checkpointing=True) < total() < total(batch_size=8)
    assert total() < total(dtype="float32") / 1.7
    assert total(beams=1) < total(beams=4)
    assert total(device="cpu") > total()


def test_what_is_unknown_is_told(tmp_path):
    with pytest.raises(ValueError, match="model_type 'bert' is unknown; choose one of"):
        footprint(BertConfig())
    with pytest.raises(ValueError, match="dtype 'int4' is unknown; choose one of"):
        footprint(LLAMA, dtype="int4")
    with pytest.raises(ValueError, match=r"lora_targets \['c_attn'\] name no linear"):
        footprint(LLAMA, lora_targets=["c_attn"])
    LLAMA.save_pretrained(tmp_path)
    assert footprint(str(tmp_path)) == footprint(LLAMA)
