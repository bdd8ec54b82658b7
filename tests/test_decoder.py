import json
import os
import shutil

import pytest
import requests
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from dlink_plugin.bridges.sealed import unseal
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.mini.language import train_tokenizer, write_lm

from .conftest import SENTENCES

DIM = 6
CAPTIONS = [*SENTENCES, "rain", "a bell rings", "steps and rain", "a busy man barks"]
SIZES = {"vocab_size": 300, "width": 32, "layers": 2, "heads": 2, "max_tokens": 64}
# What each kind of decoder is made of: the language model and the options.
KINDS = {
    "scratch": ("mini", {"lm_training": "scratch"}),
    "full": ("gpt2", {"lm_training": "full"}),
    "frozen": ("gpt2", {"lm_training": "frozen"}),
    "lora": ("gpt2", {"lm_training": "lora", "lora_targets": ["c_attn"]}),
    "llama": ("llama", {"lm_training": "lora", "lora_dropout": 0.5}),
}
WHOLE, ADAPTED = ("scratch", "full"), ("lora", "llama")
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of language models: one without weights, two with random ones."""
    root = tmp_path_factory.mktemp("lms")
    tokenizer = train_tokenizer(SENTENCES, 300, 64)
    torch.manual_seed(0)
    models = {
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
            )
        ),
    }
    for name, model in models.items():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data.mul_(5.0)  # else all tokens are about equally likely
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    write_lm(root / "mini", SENTENCES, dropout=0.1, **SIZES)
    return root


@pytest.fixture
def make(folders):
    """make(kind, **options): a decoder whose trained weights are all random."""

    def make(kind, lm=None, seed=0, **options):
        name, settings = KINDS[kind]
        torch.manual_seed(seed)
        settings = {"prefix_length": 2, **settings, **options}
        decoder = PrefixDecoder(DIM, lm or folders / name, **settings)
        for parameter in decoder.trained_state().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        return decoder.eval()

    return make


@pytest.fixture
def copied(folders, tmp_path):
    """copied(name, **changes): a copy of a folder, its tokenizer's settings changed."""

    def copied(name, **changes):
        folder = tmp_path / "copied"
        shutil.copytree(folders / name, folder)
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        edit(folder / "tokenizer_config.json", **changes)
        return folder

    return copied


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def draw(number, seed=1):
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(seed))


def fit(decoder, steps, embeddings, captions=CAPTIONS, lr=5e-3):
    """Train as a Brain does; embeddings(step) are what the decoder reads."""
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr)
    decoder.train()
    for step in range(steps):
        decoder.loss(embeddings(step), captions).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.eval()


@pytest.fixture(scope="module")
def overfitted(folders):
    """A decoder that knows eight captions by heart, and their embeddings."""
    torch.manual_seed(0)
    decoder = PrefixDecoder(
        DIM, folders / "mini", "scratch", prefix_length=2, prompt="the sound of"
    )
    return fit(decoder, 150, lambda step: draw(8)), draw(8)


# The loss


def reference_loss(decoder, embeddings, captions):
    """One caption at a time, by the loss of the language model itself."""
    lm, tokenizer = decoder.lm, decoder.tokenizer
    embed = lm.get_input_embeddings()
    total = tokens = 0
    for row, caption in zip(embeddings, captions, strict=True):
        start = tokenizer("a").input_ids[:-1]  # without </s>
        start = start[: len(start) - len(tokenizer.tokenize("a"))]
        prompt = tokenizer.encode(decoder.config["prompt"], add_special_tokens=False)
        said = tokenizer.encode(caption, add_special_tokens=False)
        said = [*said, tokenizer.eos_token_id]
        prefix = decoder.projector(row).view(decoder.config["prefix_length"], -1)
        parts = [prefix.to(embed.weight.dtype)]
        for place, ids in ((0, start), (2, prompt), (3, said)):
            parts.insert(place, embed(torch.tensor(ids, dtype=torch.long)))
        labels = [-100] * (len(start) + len(prefix) + len(prompt)) + said
        inputs, labels = torch.cat(parts)[None], torch.tensor([labels])
        total += lm(inputs_embeds=inputs, labels=labels).loss * len(said)
        tokens += len(said)
    return total / tokens


@kinds
@pytest.mark.parametrize(
    "options", [{}, {"prompt": "the sound of", "projector": "linear"}]
)
def test_the_loss_is_the_one_of_the_language_model(make, kind, options):
    decoder = make(kind, **options)
    one, all_of_them = draw(8)[:1], draw(8)
    torch.testing.assert_close(
        decoder.loss(all_of_them, CAPTIONS),
        reference_loss(decoder, all_of_them, CAPTIONS),
    )
    torch.testing.assert_close(
        decoder.loss(one, CAPTIONS[:1]), reference_loss(decoder, one, CAPTIONS[:1])
    )


def test_a_tokenizer_that_puts_nothing_before_a_text_gets_no_start_token(make, copied):
    folder = copied("gpt2")
    edit(folder / "tokenizer.json", post_processor=None)
    decoder, framed = make("full", folder), make("full")
    tokens = decoder.tokenizer("a").input_ids
    assert tokens == decoder.tokenizer.encode("a", add_special_tokens=False)
    embeddings = draw(4)
    embed = decoder.lm.get_input_embeddings()
    prefix = decoder.projector(embeddings[:1]).view(1, 2, -1)
    said = torch.tensor([decoder.tokenizer("rain").input_ids + [2]])
    logits = decoder.lm(inputs_embeds=torch.cat([prefix, embed(said)], 1)).logits
    expected = cross_entropy(logits[0, 1:-1], said[0])
    torch.testing.assert_close(decoder.loss(embeddings[:1], ["rain"]), expected)
    assert decoder.loss(embeddings, SENTENCES) != framed.loss(embeddings, SENTENCES)


def test_a_tokenizer_without_padding_gives_the_same(make, copied):
    decoder, padded = make("full", copied("gpt2", pad_token=...)), make("full")
    assert decoder.tokenizer.pad_token is None
    assert decoder.loss(draw(8), CAPTIONS) == padded.loss(draw(8), CAPTIONS)
    assert decoder.generate(draw(3)) == padded.generate(draw(3))


def test_the_prompt_is_read(make):
    losses = {p: make("full", prompt=p).loss(draw(8), CAPTIONS) for p in ("", "a", "b")}
    assert len({round(loss.item(), 4) for loss in losses.values()}) == 3


# What is generated


def test_eight_captions_are_learned_by_heart_and_come_without_prompt(overfitted):
    decoder, embeddings = overfitted
    assert decoder.generate(embeddings) == CAPTIONS
    assert decoder.generate(embeddings, num_beams=3) == CAPTIONS
    shuffled = embeddings.roll(1, dims=0)
    assert decoder.generate(shuffled) == CAPTIONS[-1:] + CAPTIONS[:-1]


def test_nothing_is_learned_from_embeddings_that_do_not_belong(make):
    def shuffled(step):
        order = torch.Generator().manual_seed(step)
        return draw(8)[torch.randperm(8, generator=order)]

    decoder = fit(make("scratch", prompt="the sound of"), 150, shuffled)
    written = decoder.generate(draw(8))
    assert sum(a == b for a, b in zip(written, CAPTIONS, strict=True)) <= 2


@kinds
def test_greedy_captions_are_made_of_the_likeliest_tokens(make, kind):
    decoder = make(kind, prompt="a")
    embed = decoder.lm.get_input_embeddings()
    embeddings, captions = draw(4), []
    for row in embeddings:
        head = embed(torch.tensor([0])), decoder.projector(row).view(2, -1)
        (prompt,) = decoder.tokenizer.encode("a", add_special_tokens=False)
        inputs, tokens = torch.cat([*head, embed(torch.tensor([prompt]))]), []
        while len(tokens) < 6 and tokens[-1:] != [2]:
            tokens.append(
                int(decoder.lm(inputs_embeds=inputs[None]).logits[0, -1].argmax())
            )
            inputs = torch.cat([inputs, embed(torch.tensor(tokens[-1:]))])
        text = decoder.tokenizer.decode(tokens, skip_special_tokens=True)
        captions.append(" ".join(text.split()))
    assert decoder.generate(embeddings, max_new_tokens=6) == captions
    assert len(set(captions)) > 1


def test_the_batch_size_changes_nothing(overfitted):
    decoder, _ = overfitted
    embeddings = draw(7, seed=2)  # others than it knows
    whole = decoder.generate(embeddings, num_beams=2)
    assert len(whole) == 7
    for batch_size in (1, 3):
        assert whole == decoder.generate(embeddings, num_beams=2, batch_size=batch_size)


def test_several_captions_of_an_embedding_come_in_turn(overfitted):
    decoder, embeddings = overfitted
    options = {"num_beams": 4, "num_return_sequences": 3, "batch_size": 3}
    captions = decoder.generate(embeddings, **options)
    assert captions[::3] == CAPTIONS  # the best beam comes first
    assert all(len(set(captions[i : i + 3])) == 3 for i in range(0, 24, 3))


def test_the_repetition_penalty_is_applied(make):
    decoder = make("full")
    plain = decoder.generate(draw(4), max_new_tokens=8)
    punished = decoder.generate(draw(4), max_new_tokens=8, repetition_penalty=100.0)
    assert plain != punished

    def repeats(caption):
        tokens = decoder.tokenizer.tokenize(caption)
        return len(tokens) - len(set(tokens))

    assert sum(map(repeats, punished)) < sum(map(repeats, plain))


def sampled(decoder, generator, **options):
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    options = {"do_sample": True, "max_new_tokens": 8, **options}
    return decoder.generate(draw(4), generator=generator, **options)


def test_samples_follow_from_the_generator_alone(make):
    decoder = make("full")
    torch.manual_seed(5)
    first = sampled(decoder, 1)
    torch.manual_seed(6)
    assert sampled(decoder, 1) == first
    assert sampled(decoder, 2) != first
    generator = torch.Generator().manual_seed(1)
    assert sampled(decoder, generator) == first
    assert sampled(decoder, generator) != first  # it has moved on
    greedy = decoder.generate(draw(4), max_new_tokens=8)
    assert sampled(decoder, 1, top_p=1e-9) == greedy


def test_the_global_generator_is_left_alone(make):
    decoder = make("full")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sampled(decoder, 1)
    sampled(decoder, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_of_the_language_model_do_not_decide(make, copied):
    folder = copied("gpt2")
    strange = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 9.0}
    edit(folder / "generation_config.json", **strange)
    assert make("full", folder).generate(draw(4)) == make("full").generate(draw(4))


def test_a_decoder_that_has_generated_is_in_eval_mode(make):
    decoder = make("lora").train()
    decoder.generate(draw(1), max_new_tokens=1)
    assert not any(module.training for module in decoder.modules())


# What is trained


@pytest.mark.parametrize("kind", ["frozen", *ADAPTED])
def test_a_frozen_language_model_stays_what_it_was(make, folders, kind):
    decoder = make(kind)
    before = {k: p.clone() for k, p in decoder.named_parameters()}
    trained = decoder.trained_state().keys()
    assert all(k.startswith("projector.") or "lora_" in k for k in trained)
    assert any("lora_" in k for k in trained) == (kind in ADAPTED)
    untrained = decoder.loss(draw(8), CAPTIONS)
    fit(decoder, 5, lambda step: draw(8))
    assert decoder.loss(draw(8), CAPTIONS) < untrained
    for name, parameter in decoder.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (name in trained), name
        assert changed or parameter.grad is None
    original = load_file(folders / KINDS[kind][0] / "model.safetensors")
    kept = {id(p) for k, p in decoder.named_parameters() if k not in trained}
    assert len(kept) == len(original)


@pytest.mark.parametrize("kind, names", [("lora", 1), ("llama", 2)])
def test_adapters_add_their_product_to_the_layers_that_are_named(make, kind, names):
    decoder = make(kind, lora_rank=3, lora_alpha=12)
    modules = dict(decoder.lm.named_modules()).items()
    adapted = {k: m for k, m in modules if hasattr(m, "lora_A")}
    assert len({k.rpartition(".")[2] for k in adapted}) == names
    assert len(adapted) == 2 * names  # in each of two blocks
    x = torch.randn(5, 32)
    for layer in adapted.values():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert down.shape == (3, 32)
        expected = layer.base_layer(x) + 12 / 3 * x @ down.T @ up.T
        torch.testing.assert_close(layer(x), expected)


def dropouts(decoder):
    """Whether the dropouts of the adapters, and those of the base, are at work."""
    found = {True: set(), False: set()}
    for name, module in decoder.lm.named_modules():
        if isinstance(module, torch.nn.Dropout):
            found["lora_dropout" in name].add(module.training)
    return found[True], found[False]


def test_a_frozen_language_model_never_drops_out(make):
    frozen, lora, full = (make(k).train() for k in ("frozen", "lora", "full"))
    assert dropouts(frozen) == (set(), {False})
    assert dropouts(lora) == ({True}, {False})
    assert dropouts(full) == (set(), {True})
    assert all(d.projector.training for d in (frozen, lora, full))
    assert dropouts(lora.eval()) == ({False}, {False})

    def varies(decoder):
        return decoder.loss(draw(8), CAPTIONS) != decoder.loss(draw(8), CAPTIONS)

    assert not varies(frozen)
    assert varies(full)
    assert varies(make("llama").train()) and not varies(make("llama"))


@kinds
def test_the_trained_state_can_be_put_back(make, kind):
    one, other = make(kind, seed=0), make(kind, seed=1)
    state = {k: v.clone() for k, v in one.trained_state().items()}
    assert one.loss(draw(8), CAPTIONS) != other.loss(draw(8), CAPTIONS)
    other.load_trained_state(state)
    assert one.loss(draw(8), CAPTIONS) == other.loss(draw(8), CAPTIONS)
    strange = {**state, "strange": torch.zeros(1)}
    for wrong in (strange, {k: state[k] for k in [*state][1:]}):
        with pytest.raises(ValueError, match="1 trained tensors do not fit"):
            other.load_trained_state(wrong)


@pytest.mark.parametrize("kind", ["llama", "frozen", "full"])
def test_checkpointing_of_activations_is_at_work_and_changes_nothing(make, kind):
    found = []
    for checkpointing in (False, True):
        decoder = make(kind, gradient_checkpointing=checkpointing).train()
        forwards = []
        layer = next(
            m for m in decoder.lm.modules() if isinstance(m, torch.nn.ModuleList)
        )
        layer[0].register_forward_pre_hook(lambda *_, log=forwards: log.append(1))
        torch.manual_seed(3)  # of the dropouts
        loss = decoder.loss(draw(8), CAPTIONS)
        assert len(forwards) == 1
        loss.backward()
        assert len(forwards) == 1 + checkpointing
        gradients = [p.grad for p in decoder.parameters() if p.requires_grad]
        found.append((loss, *gradients))
        decoder.eval().loss(draw(8), CAPTIONS).backward()
        assert len(forwards) == 2 + checkpointing  # not in eval mode
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_language_model_is_in_low_precision(make):
    decoder = make("llama", dtype="bfloat16", lora_dropout=0.0)
    exact = make("llama", lora_dropout=0.0)
    kinds_of = {True: set(), False: set()}
    for parameter in decoder.parameters():
        kinds_of[parameter.requires_grad].add(parameter.dtype)
    assert kinds_of == {True: {torch.float32}, False: {torch.bfloat16}}
    loss = decoder.loss(draw(8), CAPTIONS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact.loss(draw(8), CAPTIONS), rtol=0.02, atol=0)
    fit(decoder, 5, lambda step: draw(8))
    assert decoder.loss(draw(8), CAPTIONS) < loss
    assert len(decoder.generate(draw(3), max_new_tokens=3)) == 3


# Saved and loaded


def assert_same(one, other):
    torch.testing.assert_close(
        one.loss(draw(8), CAPTIONS), other.loss(draw(8), CAPTIONS), atol=1e-6, rtol=0
    )
    assert one.generate(draw(8)) == other.generate(draw(8))
    assert one.config.keys() == other.config.keys()
    assert all(one.config[k] == other.config[k] for k in one.config.keys() - {"lm"})


@kinds
def test_a_saved_decoder_loads_as_what_it_was_again_and_again(make, tmp_path, kind):
    decoder = make(kind, prompt="the sound of")
    before = decoder
    for folder in (tmp_path / "one", tmp_path / "two" / "deep"):
        before.save_pretrained(folder)
        before = PrefixDecoder.from_pretrained(folder)
        assert not any(module.training for module in before.modules())
        assert before.lm_training == KINDS[kind][1]["lm_training"]
        assert_same(before, decoder)
    assert before.trained_state().keys() == decoder.trained_state().keys()


@kinds
def test_a_language_model_frozen_later_keeps_what_it_learned(make, tmp_path, kind):
    decoder = make(kind).train()
    learned = decoder.learned_state().keys()
    decoder.freeze_lm()
    assert all(name.startswith("projector.") for name in decoder.trained_state())
    assert decoder.learned_state().keys() == learned
    before = {k: p.clone() for k, p in decoder.named_parameters()}
    fit(decoder, 3, lambda step: draw(8))
    assert not any(module.training for module in decoder.lm.modules())
    for name, parameter in decoder.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.startswith("projector."), name
    decoder.save_pretrained(tmp_path)
    assert_same(PrefixDecoder.from_pretrained(tmp_path), decoder.eval())


@kinds
def test_what_is_saved_is_what_was_trained(make, tmp_path, folders, kind):
    decoder = make(kind)
    decoder.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == decoder.trained_state().keys()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != "SHA256SUMS"}
    assert kinds == {".json", ".safetensors"}
    assert len([path for path in files if path.suffix == ".safetensors"]) == 1
    assert (tmp_path / "lm").exists() == (kind in WHOLE)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == 1
    named = "lm" if kind in WHOLE else str(folders / KINDS[kind][0])
    assert config["lm"] == named
    if kind not in WHOLE:
        base = folders / KINDS[kind][0] / "model.safetensors"
        saved = tmp_path / "model.safetensors"
        assert saved.stat().st_size < base.stat().st_size / 3


@kinds
def test_a_decoder_trained_whole_needs_no_other_folder(make, copied, tmp_path, kind):
    original = copied(KINDS[kind][0])
    decoder = make(kind, original)
    decoder.save_pretrained(tmp_path / "saved")
    original.rename(tmp_path / "away")
    if kind in WHOLE:
        (tmp_path / "saved").rename(tmp_path / "moved")
        assert_same(PrefixDecoder.from_pretrained(tmp_path / "moved"), decoder)
    else:
        with pytest.raises(OSError, match=f"language model at {original}"):
            PrefixDecoder.from_pretrained(tmp_path / "saved")


def test_a_frozen_language_model_may_be_called_lm(make, copied, tmp_path, monkeypatch):
    copied("gpt2").rename(tmp_path / "lm")
    monkeypatch.chdir(tmp_path)
    decoder = make("frozen", "lm")
    decoder.save_pretrained(tmp_path / "saved")
    assert_same(PrefixDecoder.from_pretrained(tmp_path / "saved"), decoder)


# What is refused


def test_embeddings_of_another_width_are_refused(make):
    decoder = make("scratch")
    for strange in (torch.ones(2, DIM + 1), torch.ones(DIM), torch.ones(2, 1, DIM)):
        with pytest.raises(ValueError, match=rf"shape \(N, {DIM}\), not"):
            decoder.loss(strange, ["a", "b"])
        with pytest.raises(ValueError, match="use the encoder it was trained with"):
            decoder.generate(strange)


@pytest.mark.parametrize("lm", ["nobody/no-such-lm", "no/such/folder", "/nowhere"])
@pytest.mark.parametrize("lm_training", ["scratch", "lora"])
def test_a_language_model_that_is_not_there_is_one_sentence(lm, lm_training):
    with pytest.raises(OSError, match=f"No causal language model at {lm}") as caught:
        PrefixDecoder(DIM, lm, lm_training)
    assert "its first use needs the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_language_model_without_its_license_says_how_to_get_it(monkeypatch):
    def refuse(*args, **kwargs):
        raise GatedRepoError("Access is restricted.", response=requests.Response())

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    with pytest.raises(OSError, match="hf auth login.*gated repo") as caught:
        PrefixDecoder(DIM, "meta-llama/Llama-2-7b-hf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no weights", "weights cut", "no tokenizer", "{"])
def test_a_damaged_language_model_is_one_sentence(make, copied, damage):
    folder = copied("gpt2")
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    else:
        (folder / "config.json").write_text(damage)
    with pytest.raises(OSError, match=f"No causal language model at {folder}"):
        make("full", folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "no index"])
def test_half_downloaded_shards_are_one_sentence(make, copied, damage):
    folder = copied("llama")
    (folder / "model.safetensors").unlink()
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    model.save_pretrained(folder, max_shard_size="30kB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert make("llama", folder).lm_training == "lora"
    if damage == "missing":
        shards[-1].unlink()
    elif damage == "cut":
        shards[-1].write_bytes(shards[-1].read_bytes()[:-100])
    else:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        OSError, match=f"No causal language model at {folder}"
    ) as caught:
        make("llama", folder)
    assert "\n" not in str(caught.value)


def test_a_language_model_of_another_width_is_refused(make, copied, tmp_path):
    """That of a saved projector and adapters was replaced by a larger one."""
    folder = copied("llama")
    make("llama", folder).save_pretrained(tmp_path / "decoder")
    PrefixDecoder.from_pretrained(tmp_path / "decoder")
    config = LlamaConfig.from_pretrained(folder, hidden_size=64)
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ValueError, match="decoder/model.safetensors .* do not fit"):
        PrefixDecoder.from_pretrained(tmp_path / "decoder")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"lm_training": "most"}, "lm_training 'most' is unknown; choose one of scr"),
        ({"projector": "conv"}, "projector 'conv' is unknown; choose one of linear"),
        ({"dtype": "float99"}, "dtype 'float99' is unknown; choose one of float32"),
        ({"lora_targets": ["q_proj"]}, "'q_proj'.* choose among c_attn, c_fc, c_proj"),
        ({"lora_targets": ["ln_1"]}, "'ln_1'.* name no linear layers"),
    ],
)  # fmt: skip
def test_options_that_are_not_known_are_refused(make, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("lora", **options)


def test_a_tokenizer_without_an_end_is_refused(make, copied):
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        make("full", copied("gpt2", eos_token=...))


@pytest.fixture
def saved(make, tmp_path):
    make("frozen", projector="linear").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"format": 2}, "has format 2 and this dlink_plugin reads 1"),
        ({"format": ...}, "is not the configuration of a decoder"),
        ({"surprise": 1}, r"arguments of PrefixDecoder \(see \['surprise'\]\)"),
        ({"lm": ...}, r"arguments of PrefixDecoder \(see \['lm'\]\)"),
        ({"prompt": ...}, r"arguments of PrefixDecoder \(see \['prompt'\]\)"),
        ({"lm_training": ["x"]}, "for lm_training, which cannot be"),
        ({"lm_training": "x"}, "model.safetensors .* is unknown"),
        ({"format": "9" * 9999}, "has format '9.{1,40}' and"),
        ({"a" * 9999: 1}, r"arguments of PrefixDecoder \(see .{1,99}\)"),
        ({"dim": 7}, "trained tensors do not fit this decoder"),
        ({"projector": "mlp"}, "trained tensors do not fit this decoder"),
    ],
)
def test_an_altered_config_is_refused_with_a_sentence(saved, changes, sentence):
    unseal(saved)
    edit(saved / "config.json", **changes)
    with pytest.raises(ValueError, match=sentence):
        PrefixDecoder.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not (JSON|a JSON object)"):
        PrefixDecoder.from_pretrained(saved)


def test_a_folder_without_a_decoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a saved decoder; make one"):
        PrefixDecoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "folder", "cut", "renamed", "reshaped"])
def test_damaged_weights_are_refused_with_a_sentence(saved, damage):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "projector.weight"
    unseal(saved)
    sentence = rf"1 trained tensors do not fit this decoder \({name}"
    if damage in ("gone", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "renamed":
        tensors["other.weight"] = tensors.pop(name)
        save_file(tensors, path)
        sentence = "2 trained tensors do not fit"
    else:
        save_file({**tensors, name: tensors[name].T.contiguous()}, path)
    if damage in ("gone", "folder", "cut"):
        sentence = "model.safetensors cannot be read as the decoder"
    with pytest.raises(ValueError, match=sentence):
        PrefixDecoder.from_pretrained(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["lm/tokenizer.json", "lm/config.json"])
def test_a_pipe_is_not_waited_for(make, tmp_path, name):
    make("scratch").save_pretrained(tmp_path)
    unseal(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no file but a pipe"):
        PrefixDecoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "lm/tokenizer.json", "lm/config.json"]
)
def test_a_flipped_byte_is_found(make, tmp_path, name):
    make("scratch").save_pretrained(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        PrefixDecoder.from_pretrained(tmp_path)


def test_a_decoder_too_large_for_its_weights_is_not_built(make, tmp_path):
    make("scratch").save_pretrained(tmp_path)
    unseal(tmp_path)
    edit(tmp_path / "lm" / "config.json", n_embd=4_000_000)  # 1 PB if it were built
    with pytest.raises(ValueError, match="cannot be read as the decoder"):
        PrefixDecoder.from_pretrained(tmp_path)


def test_the_tokenizer_travels_with_a_decoder_trained_whole(make, tmp_path):
    decoder = make("scratch")
    decoder.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    assert tokenizer("a dog").input_ids == decoder.tokenizer("a dog").input_ids


# What a stranger's folder may hold


@pytest.fixture
def whole(make, tmp_path):
    """A decoder saved with its language model, which a stranger then alters."""
    make("scratch", projector="linear").save_pretrained(tmp_path / "whole")
    unseal(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix_length": 10**12},
        {"prefix_length": 0},
        {"prefix_length": "2"},
        {"prefix_length": 2.5},
        {"prefix_length": True},
        {"dim": 10**12},
        {"dim": float("nan")},
        {"prompt": 5},
        {"prompt": "a" * 10_001},
        {"gradient_checkpointing": "no"},
        {"lora_rank": 10**12},
        {"lora_alpha": float("inf")},
        {"lora_dropout": 1.5},
        {"lora_targets": "c_attn"},
        {"lora_targets": [3]},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(saved, changes, monkeypatch):
    monkeypatch.setattr("dlink_plugin.decoder._load_lm", None)
    edit(saved / "config.json", **changes)
    (name,) = changes
    with pytest.raises(ValueError, match=f"config.json has .* for {name}, which"):
        PrefixDecoder.from_pretrained(saved)


def test_a_projector_beyond_any_use_is_refused(make):
    with pytest.raises(ValueError, match="set prefix_length so that"):
        make("scratch", prefix_length=10**9)
    with pytest.raises(ValueError, match="set prefix_length so that"):
        make("scratch", prefix_length=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_embd": 2**20, "n_head": 2},
        {"vocab_size": 10**12},
        {"n_inner": 10**12},
        {"n_layer": 10**12},
        {"n_layer": 999},
        {"n_layer": "2"},
        {"n_head": -1},
        {"n_head": 0},
        {"activation_function": "none"},
    ],
)
def test_a_language_model_larger_than_its_weights_is_not_built(whole, changes):
    edit(whole / "lm" / "config.json", **changes)
    with pytest.raises(ValueError, match="is damaged|cannot be read as the decoder"):
        PrefixDecoder.from_pretrained(whole)


def test_no_code_of_a_folder_is_run_or_asked_about(whole, folders, monkeypatch):
    def ask(*_):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", ask)
    strange = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(whole / "lm" / "config.json", auto_map=strange, model_type="strange")
    (whole / "lm" / "own.py").write_text("raise AssertionError('run')")
    with pytest.raises(ValueError, match=f"at {whole / 'lm'} is damaged"):
        PrefixDecoder.from_pretrained(whole)
    for lm_training in ("scratch", "full"):
        with pytest.raises(OSError, match=f"No causal language model at {whole}"):
            PrefixDecoder(DIM, whole / "lm", lm_training)


@pytest.mark.parametrize(
    "content", ['{"model": {}}', '{"version": "9"}', "[]", "[" * 10_000, "3"]
)
def test_a_damaged_tokenizer_is_one_sentence(whole, content):
    (whole / "lm" / "tokenizer.json").write_text(content)
    with pytest.raises((ValueError, OSError), match=f"{whole / 'lm'}") as caught:
        PrefixDecoder.from_pretrained(whole)
    assert "\n" not in str(caught.value)


def test_even_a_panic_of_the_tokenizer_is_one_sentence(folders, monkeypatch):
    class Panic(BaseException):
        pass

    def panic(*_, **__):
        raise Panic("no entry found for key")

    monkeypatch.setattr("dlink_plugin.decoder.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(ValueError, match="mini is damaged; .* no entry found"):
        PrefixDecoder(DIM, folders / "mini", "scratch")


def test_a_tokenizer_of_the_wrong_kind_is_one_sentence(whole):
    edit(whole / "lm" / "tokenizer_config.json", model_max_length="many")
    with pytest.raises(ValueError, match=f"{whole / 'lm'} is damaged"):
        PrefixDecoder.from_pretrained(whole)


def test_a_tokenizer_of_a_larger_model_is_refused(whole, copied):
    large = copied("mini")
    path = whole / "lm" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][2]["id"] = 5000
    content["model"]["vocab"]["</s>"] = 5000
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokens beyond the 300"):
        PrefixDecoder(DIM, whole / "lm", "scratch")
    assert PrefixDecoder(DIM, large, "scratch").tokenizer.eos_token_id < 300


def test_more_tokens_than_the_model_reads_are_refused(make):
    decoder = make("scratch", prefix_length=3, prompt="a dog")
    room = 64 - 1 - 3 - len(decoder.prompt)
    assert len(decoder.generate(draw(1), max_new_tokens=room, min_new_tokens=room)) == 1
    with pytest.raises(ValueError, match=f"{room + 1} is more than .*give {room} or"):
        decoder.generate(draw(1), max_new_tokens=room + 1)
