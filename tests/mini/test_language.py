import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dlink_plugin.encoders import MINI_CLAP
from dlink_plugin.mini.language import train_tokenizer, write_lm

from ..conftest import SENTENCES

ROOT = Path(__file__).parents[2]
SIZES = {"vocab_size": 290, "width": 16, "layers": 3, "heads": 2, "dropout": 0.25}
UNSEEN = "Zwölf Hähne – 12 – crow,  then it's quiet . Really ?"


def content(tokenizer):
    return tokenizer.backend_tokenizer.to_str()


def test_the_same_texts_give_the_same_tokenizer():
    one, again = (train_tokenizer(SENTENCES, 290, 64) for _ in range(2))
    assert content(one) == content(again)
    assert content(one) == content(train_tokenizer(iter(SENTENCES), 290, 64))
    assert content(one) != content(train_tokenizer(SENTENCES[:2], 290, 64))


@pytest.mark.parametrize("caption", [*SENTENCES, UNSEEN, ""])
def test_captions_come_back_from_their_tokens(caption):
    tokenizer = train_tokenizer(SENTENCES, 290, 64)
    tokens = tokenizer(caption).input_ids
    assert (tokens[0], tokens[-1]) == (0, 2)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == caption
    assert tokenizer.decode(tokens) == f"<s>{caption}</s>"
    assert tokenizer.unk_token_id not in tokens


def test_the_vocabulary_is_as_large_as_asked_for():
    tokenizer = train_tokenizer(SENTENCES, 290, 64)
    assert len(tokenizer) == 290
    assert tokenizer.convert_ids_to_tokens(range(4)) == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
    ]
    assert len(train_tokenizer(SENTENCES, 5, 64)) == 260  # bytes and marks
    words = (
        tokenizer.tokenize("rain"),
        train_tokenizer(SENTENCES, 5, 64).tokenize("rain"),
    )
    assert len(words[0]) < len(words[1]) == 4


def test_batches_are_padded_and_masked():
    tokenizer = train_tokenizer(SENTENCES, 290, 8)
    batch = tokenizer(["a", "a a"], padding=True)
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch.attention_mask[0][-1] == 0 and batch.input_ids[0][-1] == 1
    assert len(tokenizer(SENTENCES[0], truncation=True).input_ids) == 8


def test_a_language_model_is_written_without_weights(tmp_path):
    folder = write_lm(tmp_path / "lm", SENTENCES, max_tokens=32, **SIZES)
    assert folder == tmp_path / "lm"
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    config = AutoConfig.from_pretrained(folder)
    assert (config.n_positions, config.n_embd, config.n_layer, config.n_head) == (
        *(32, 16, 3),
        2,
    )
    assert {config.embd_pdrop, config.attn_pdrop, config.resid_pdrop} == {0.25}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert content(tokenizer) == content(train_tokenizer(SENTENCES, 290, 32))
    assert config.vocab_size == len(tokenizer) == 290
    for mark in ("bos", "eos", "pad"):
        assert getattr(config, f"{mark}_token_id") == getattr(
            tokenizer, f"{mark}_token_id"
        )
    model = AutoModelForCausalLM.from_config(config)
    tokens = torch.tensor([tokenizer(SENTENCES[0]).input_ids])
    assert model(tokens).logits.shape == (1, tokens.shape[1], 290)
    with pytest.raises(OSError):
        AutoModelForCausalLM.from_pretrained(folder)


def test_the_vocabulary_of_few_texts_is_smaller_than_asked_for(tmp_path):
    folder = write_lm(tmp_path, ["a dog"] * 2, **{**SIZES, "vocab_size": 1000})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).vocab_size == len(tokenizer) < 270


def test_the_shipped_tokenizer_is_what_its_recipe_makes():
    settings = (ROOT / "hparams" / "mini_clap.yaml").read_text(encoding="utf-8")
    hparams = {
        key: int(re.search(rf"^{key}: (\d+)", settings, re.MULTILINE)[1])
        for key in ("seed", "vocab_size", "max_tokens")
    }
    recipe = runpy.run_path(str(ROOT / "recipes" / "Mini" / "pretrain_clap.py"))
    made = json.loads(content(recipe["make_tokenizer"](hparams)))
    shipped = json.loads((MINI_CLAP / "tokenizer.json").read_text(encoding="utf-8"))
    assert made["model"] == shipped["model"]
    assert made["post_processor"] == shipped["post_processor"]
    assert len(shipped["model"]["vocab"]) == 600
