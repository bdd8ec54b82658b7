"""The mini language: a byte-level BPE and a small GPT-2, made from captions alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

__all__ = ["train_tokenizer", "write_lm"]

_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE in RoBERTa's frame, ``<s> ... </s>``.

    Arguments
    ---------
    texts : iterable of str
        What it is trained on; the same texts give the same tokenizer.
    vocab_size : int
        Tokens, of which 260 are bytes and marks.
    max_tokens : int
        Length beyond which the models it serves cannot read.

    Returns
    -------
    tokenizer : PreTrainedTokenizerFast

    Example
    -------
    >>> tokenizer = train_tokenizer(["a dog barks"] * 9, vocab_size=280, max_tokens=8)
    >>> tokenizer.decode(tokenizer("a dog barks").input_ids)
    '<s>a dog barks</s>'
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(_SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in _SPECIAL.items()},
    )


def write_lm(
    folder: str | Path,
    texts: Iterable[str],
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    dropout: float,
    max_tokens: int = 128,
) -> Path:
    """Write a GPT-2 without weights: its tokenizer and its architecture.

    Arguments
    ---------
    folder : str or Path
        Gets the files that ``AutoConfig`` and ``AutoTokenizer`` read.
    texts : iterable of str
        What the tokenizer is trained on.
    vocab_size : int
        See ``train_tokenizer``.
    width : int
        Of the hidden states.
    layers : int
        Transformer blocks.
    heads : int
        Attention heads of each.
    dropout : float
        Everywhere in the network.
    max_tokens : int
        Positions, the prefix included.

    Returns
    -------
    folder : Path
    """
    tokenizer = train_tokenizer(texts, vocab_size, max_tokens)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=max_tokens,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the default, fused
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["GPT2LMHeadModel"],
    )
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    return Path(folder)
