"""The decoder: one embedding becomes a prefix that a language model continues.

    <s>  prefix 1 .. prefix k  prompt  ->  caption  </s>

The prefix is a projection of the embedding, the language model any causal one of
Hugging Face transformers. Architecture after ClipCap (Mokady et al. 2021); LoRA after
Hu et al. 2022, through peft.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shortly

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.pytorch_utils import Conv1D

from .bridges.sealed import check_shapes, seal, told_as_oserror, unseal, verify, whole
from .bridges.share import WHOLE, Share
from .reading import check_files, damage_told, first_line, read_json

__all__ = ["PrefixDecoder"]

FORMAT = 1
LM_TRAINING = ("scratch", "full", "lora", "frozen")
DTYPES = ("float32", "bfloat16", "float16")
_CONFIG, _WEIGHTS, _LM = "config.json", "model.safetensors", "lm"
_NUMBERS = 1 << 31  # weights of a projector at most: 8 GiB, far more than one needs
_LAYERS = 1000  # of a language model at most; the largest have about 130
# What a config.json may ask for: kind, and bounds of a number or a text's length. Far
# beyond any use, but no stranger's file should take the memory of a machine.
_BOUNDS = {
    "dim": (int, 1, 1 << 16),
    "lm": (str, 1, 4096),
    "lm_training": (str, 1, 100),
    "prefix_length": (int, 1, 1000),
    "projector": (str, 1, 100),
    "prompt": (str, 0, 10_000),
    "dtype": (str, 1, 100),
    "gradient_checkpointing": (bool, 0, 1),
    "lora_rank": (int, 1, 4096),
    "lora_alpha": (float, 0, 1e6),
    "lora_dropout": (float, 0, 0.99),
    "lora_targets": (list, 0, 1000),
}


class PrefixDecoder(nn.Module):
    """Writes a caption from one embedding.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.
    lm : str or Path
        A folder or Hugging Face id of a causal language model.
    lm_training : str
        "scratch": the architecture of ``lm`` with new weights, trained whole; "full":
        its weights, trained whole; "lora": its weights, frozen, with low-rank
        adapters; "frozen": only the projector is trained.
    prefix_length : int
        k, the number of prefix vectors.
    projector : str
        "linear" or "mlp" (two layers, the hidden one half as wide as the prefix).
    prompt : str
        Text between prefix and caption.
    dtype : str
        Of the language model's weights; with "lora", adapters stay in float32.
    gradient_checkpointing : bool
        Whether to trade a second forward pass for the memory of activations.
    lora_rank, lora_alpha, lora_dropout : int, int, float
        LoRA's r, its scaling numerator and its dropout.
    lora_targets : sequence of str
        Names of the linear layers that get adapters.

    Raises
    ------
    OSError
        If there is no such language model, or the hub does not hand it out.
    ValueError
        If an option is unknown, or the model lacks an end-of-sequence token or the
        layers ``lora_targets`` names.

    Example
    -------
    >>> from dlink_plugin.mini.language import write_lm
    >>> sizes = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
    >>> folder = getfixture("tmp_path")
    >>> lm = write_lm(folder, ["a dog barks"] * 9, vocab_size=300, **sizes)
    >>> decoder = PrefixDecoder(4, lm, lm_training="scratch")
    >>> embeddings = torch.eye(4)[:2]
    >>> decoder.loss(embeddings, ["a dog barks", "a cat"]).shape
    torch.Size([])
    >>> len(decoder.generate(embeddings, max_new_tokens=3))
    2
    """

    def __init__(
        self,
        dim: int,
        lm: str | Path,
        lm_training: str = "lora",
        prefix_length: int = 10,
        projector: str = "mlp",
        prompt: str = "",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        lora_rank: int = 8,
        lora_alpha: int = 32,
        lora_dropout: float = 0.05,
        lora_targets: Sequence[str] = ("q_proj", "v_proj"),
    ):
        super().__init__()
        check_choice("lm_training", lm_training, LM_TRAINING)
        check_choice("projector", projector, ("linear", "mlp"))
        check_choice("dtype", dtype, DTYPES)
        self.dim, self.lm_training = dim, lm_training
        self.config = {
            "dim": dim,
            "lm": str(lm),
            "lm_training": lm_training,
            "prefix_length": prefix_length,
            "projector": projector,
            "prompt": prompt,
            "dtype": dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "lora_targets": list(lora_targets),
        }
        self.tokenizer, self.lm = _load_lm(str(lm), lm_training, dtype)
        if lm_training in ("lora", "frozen"):
            self.lm.requires_grad_(False)
        if lm_training == "lora":
            lora = (lora_rank, lora_alpha, lora_dropout, list(lora_targets))
            self.lm = _add_lora(self.lm, str(lm), *lora)
        if gradient_checkpointing:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
            self.lm.config.use_cache = False
        width = self.lm.get_input_embeddings().embedding_dim
        self.projector = make_projector(projector, dim, prefix_length, width)
        bos, prompt_ids = _frame(self.tokenizer, prompt, str(lm))
        own = self.lm.get_input_embeddings().num_embeddings
        if max(*bos, *prompt_ids, self._pad, self.tokenizer.eos_token_id) >= own:
            raise ValueError(
                f"The tokenizer at {lm} has tokens beyond the {own} that its language "
                "model knows; save both together again."
            )
        self.register_buffer("bos", torch.tensor(bos, dtype=torch.long), False)
        self.register_buffer(
            "prompt", torch.tensor(prompt_ids, dtype=torch.long), False
        )
        self.lm_is_frozen = lm_training == "frozen"
        self._learned = frozenset(self.trained_state())

    def train(self, mode: bool = True) -> PrefixDecoder:
        """Switch what is trained; a frozen language model stays in eval mode."""
        super().train(mode)
        if self.lm_is_frozen or self.lm_training == "lora":
            self.lm.eval()
            for name, module in self.lm.named_modules():
                # transformers checkpoints activations only in layers in training mode.
                saves = getattr(module, "gradient_checkpointing", False)
                if saves or ("lora_dropout" in name and not self.lm_is_frozen):
                    module.training = mode
        return self

    def freeze_lm(self) -> None:
        """Train the projector alone from here on.

        What the language model has learned stays part of ``learned_state``.
        """
        self.lm.requires_grad_(False)
        self.lm_is_frozen = True
        self.train(self.training)

    def loss(
        self, embeddings: Tensor, captions: Sequence[str], share: Share = WHOLE
    ) -> Tensor:
        """Mean cross-entropy of the captions' tokens, their end included.

        Arguments
        ---------
        embeddings : Tensor
            (N, d).
        captions : sequence of str
            N captions.
        share : Share
            Of the global batch: what these captions are. A process with more tokens
            then counts for more, as it does in one process with all of them.

        Returns
        -------
        loss : Tensor
            Scalar, in nats per token; its exponential is the perplexity.

        Raises
        ------
        ValueError
            If the embeddings are not (N, d).
        """
        head = self._head(embeddings)
        tokens, mask = self._tokenize(captions)
        words = self.lm.get_input_embeddings()(tokens)
        attention = torch.cat([mask.new_ones(head.shape[:2]), mask], dim=1)
        inputs = torch.cat([head, words], dim=1)
        logits = self.lm(inputs_embeds=inputs, attention_mask=attention.long()).logits
        logits = logits[:, head.shape[1] - 1 : -1].flatten(0, 1)
        truth = tokens.masked_fill(~mask, -100).flatten()
        return cross_entropy(logits.float(), truth) * share.weight(mask.sum())

    forward = loss

    @torch.no_grad()
    def generate(
        self,
        embeddings: Tensor,
        *,
        batch_size: int = 250,
        generator: torch.Generator | None = None,
        progressbar: bool = False,
        **generation,
    ) -> list[str]:
        """Write captions.

        Arguments
        ---------
        embeddings : Tensor
            (N, d).
        batch_size : int
            Embeddings at a time.
        generator : torch.Generator, optional
            Source of the randomness of sampling.
        progressbar : bool
            Whether to show progress.
        **generation : dict
            Arguments of ``transformers.GenerationConfig``: ``num_beams``,
            ``repetition_penalty``, ``do_sample``, ``top_p``, ``max_new_tokens``, ...

        Returns
        -------
        captions : list of str
            N of them; with ``num_return_sequences`` s, s for each embedding in turn.
            The decoder is left in eval mode.

        Raises
        ------
        ValueError
            If the embeddings are not (N, d), or ``max_new_tokens`` are more than the
            language model can read.
        """
        self.eval()
        generation = {"max_new_tokens": 50, **generation}
        self._check_room(generation["max_new_tokens"])
        settings = GenerationConfig(
            **generation,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self._pad,
            use_cache=True,
        )
        captions = []
        with (
            torch.random.fork_rng(),
            tqdm(
                total=len(embeddings),
                unit="clip",
                desc="captions",
                disable=not progressbar,
            ) as bar,
        ):
            if generator is not None:  # transformers samples from the global one only
                torch.manual_seed(_draw_seed(generator))
            for rows in embeddings.split(batch_size):
                head = self._head(rows)
                mask = head.new_ones(head.shape[:2], dtype=torch.long)
                try:
                    tokens = self.lm.generate(
                        inputs_embeds=head,
                        attention_mask=mask,
                        generation_config=settings,
                    )
                except (TypeError, IndexError) as error:
                    raise ValueError(
                        f"{_named(self.config['lm'])} has sizes that do not fit; save "
                        f"or download it again. The reason: {first_line(error)}"
                    ) from error
                texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                captions += [" ".join(text.split()) for text in texts]
                bar.update(len(rows))
        return captions

    def _check_room(self, new: int) -> None:
        reads = getattr(self.lm.config, "max_position_embeddings", None)
        if reads is None:
            return
        prefix = self.config["prefix_length"]
        room = reads - len(self.bos) - prefix - len(self.prompt)
        if new > room:
            raise ValueError(
                f"max_new_tokens {new} is more than the {room} that a language model "
                f"which reads {reads} tokens can write; give {room} or fewer."
            )

    def _head(self, embeddings: Tensor) -> Tensor:
        """What stands before the caption: (N, 1 + k + prompt, width)."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"The decoder reads embeddings of shape (N, {self.dim}), not "
                f"{tuple(embeddings.shape)}; use the encoder it was trained with, or "
                "train a decoder for this one."
            )
        embed = self.lm.get_input_embeddings()
        bos, prompt = (
            embed(ids).expand(len(embeddings), -1, -1)
            for ids in (self.bos, self.prompt)
        )
        prefix = self.projector(embeddings).unflatten(1, (-1, bos.shape[-1]))
        return torch.cat([bos, prefix.to(bos.dtype), prompt], dim=1)

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids, padded on the right, and where they are: (N, L) each."""
        ids = self.tokenizer(list(captions), add_special_tokens=False).input_ids
        rows = [torch.tensor([*row, self.tokenizer.eos_token_id]) for row in ids]
        tokens = nn.utils.rnn.pad_sequence(rows, True, self._pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return tokens.to(self.bos.device), mask.to(self.bos.device)

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name: what a checkpoint has to hold."""
        return {k: p.detach() for k, p in self.named_parameters() if p.requires_grad}

    def learned_state(self) -> dict[str, Tensor]:
        """All that the named language model does not hold: what an export needs.

        The trained tensors, and those that were trained before ``freeze_lm``.
        """
        return {k: p.detach() for k, p in self.named_parameters() if k in self._learned}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``trained_state`` gave.

        Arguments
        ---------
        state : mapping of str to Tensor
            All trained tensors and nothing else.

        Raises
        ------
        ValueError
            If a tensor is missing, strange or of another shape.
        """
        own = self.trained_state()
        differ = {
            k for k in own.keys() & state.keys() if own[k].shape != state[k].shape
        }
        differ |= own.keys() ^ state.keys()
        if differ:
            raise ValueError(
                f"{len(differ)} trained tensors do not fit this decoder "
                f"({min(differ)}, ...); load them with the configuration they were "
                "saved with."
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Only what was trained is written. A language model trained whole comes with its
        architecture and tokenizer in ``lm/``; any other is named, and loaded from its
        own place.

        Arguments
        ---------
        folder : str or Path
            Created where missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).unlink(missing_ok=True)  # comes last: it says all is there
        unseal(folder)
        config = {"format": FORMAT, **self.config}
        if self.lm_training in ("scratch", "full"):
            config |= {"lm": _LM}
            with told_as_oserror(folder / _LM):
                self.tokenizer.save_pretrained(folder / _LM)
                self.lm.config.save_pretrained(folder / _LM)
        state = {k: v.cpu().contiguous() for k, v in self.learned_state().items()}
        with whole(folder / _WEIGHTS) as draft:
            save_file(state, draft, {"format": "pt"})
        with whole(folder / _CONFIG) as draft:
            draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        seal(folder, _CONFIG, _WEIGHTS, *([_LM] if config["lm"] == _LM else []))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PrefixDecoder:
        """Load what ``save_pretrained`` wrote.

        Arguments
        ---------
        folder : str or Path
            The folder.

        Returns
        -------
        decoder : PrefixDecoder
            In eval mode, on the CPU.

        Raises
        ------
        FileNotFoundError
            If there is no saved decoder.
        ValueError
            If its files are not those of a decoder of this format.
        """
        folder = Path(folder)
        check_files(folder / _LM)
        config = _read_config(folder / _CONFIG)
        lm_training = config["lm_training"]
        if lm_training in ("scratch", "full"):  # its weights come with the rest
            config |= {"lm": str(folder / _LM), "lm_training": "scratch"}
        verify(folder)
        try:
            if not (folder / _WEIGHTS).is_file():  # a pipe would wait for a writer
                raise ValueError("there is no such file")
            if config["lm_training"] == "scratch":
                # Built without memory first: it may ask for more than there is.
                with torch.device("meta"):
                    shell = cls(**config).learned_state()
                check_shapes(shell, folder / _WEIGHTS)
            state = load_file(folder / _WEIGHTS)
            decoder = cls(**config)
            decoder.load_trained_state(state)
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"{folder / _WEIGHTS} cannot be read as the decoder that its "
                f"config.json describes; export it again ({first_line(error)})."
            ) from error
        decoder.lm_training = decoder.config["lm_training"] = lm_training
        return decoder.eval()


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(
            f"{option} {value!r} is unknown; choose one of {', '.join(choices)}."
        )


def _draw_seed(generator: torch.Generator) -> int:
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    return int(drawn)


def _load_lm(lm: str, lm_training: str, dtype: str):
    with damage_told(_named(lm)):
        tokenizer, model = _load_parts(lm, lm_training, dtype)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {lm} has no end-of-sequence token, so captions would "
            "never end; set eos_token in its tokenizer_config.json."
        )
    model.generation_config = GenerationConfig()  # its own would override ours
    return tokenizer, model


def _named(lm: str | Path) -> str:
    return f"The language model or tokenizer at {lm}"


def _load_parts(lm: str, lm_training: str, dtype: str):
    # Else transformers asks on the terminal whether to run a folder's own code.
    safe = {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(lm, **safe)
        kind = getattr(torch, dtype)
        if lm_training == "scratch":
            config = AutoConfig.from_pretrained(lm, **safe)
            model = AutoModelForCausalLM.from_config(config, dtype=kind, **safe)
        else:
            model = AutoModelForCausalLM.from_pretrained(lm, dtype=kind, **safe)
    # transformers opens the name None where a folder has no tokenizer: TypeError, ...
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise OSError(
            f"No causal language model at {lm}: give mini, a folder with config, "
            "weights and tokenizer, or a Hugging Face id (its first use needs the "
            "network; a gated one such as meta-llama/Llama-2-7b-hf needs its license "
            "accepted on its page and `hf auth login`). The reason: "
            f"{first_line(error)}"
        ) from error
    return tokenizer, model


def _add_lora(model: nn.Module, lm: str, rank, alpha, dropout, targets) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",  # its layers are transposed
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        linear = {
            k.rpartition(".")[2]
            for k, m in model.named_modules()
            if isinstance(m, (nn.Linear, Conv1D))
        }
        raise ValueError(
            f"lora_targets {targets} name no linear layers of {lm}; choose among "
            f"{', '.join(sorted(linear))}."
        ) from error


def make_projector(kind: str, dim: int, prefix_length: int, width: int) -> nn.Module:
    """From (N, dim) to (N, prefix_length * width)."""
    out = prefix_length * width
    numbers = dim * out if kind == "linear" else (dim + out) * (out // 2)
    if prefix_length < 1 or numbers > _NUMBERS:
        raise ValueError(
            f"A {kind} projector from {dim} numbers to {prefix_length} times {width} "
            f"would have {numbers} weights; set prefix_length so that it has between 1 "
            f"and {_NUMBERS}."
        )
    if kind == "linear":
        return nn.Linear(dim, out)
    return nn.Sequential(nn.Linear(dim, out // 2), nn.ReLU(), nn.Linear(out // 2, out))


def _frame(tokenizer, prompt: str, lm: str) -> tuple[list[int], list[int]]:
    """The start token, where the tokenizer puts one before a text, and the prompt."""
    with damage_told(_named(lm)):  # settings of the wrong kind show when it is used
        start = tokenizer("a").input_ids[:1]
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
    return start if start == [tokenizer.bos_token_id] else [], ids


def _read_config(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, so {path.parent} is not a saved decoder; make one "
            "with recipes/AudioCaps/caption.py."
        )
    config = read_json(path, "export the decoder again")
    version = config.pop("format", None)
    if version is None:
        raise ValueError(
            f"{path} is not the configuration of a decoder; export it again."
        )
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {shortly(version)} and this dlink_plugin reads "
            f"{FORMAT}; install the release that wrote it."
        )
    strange = sorted(config.keys() ^ inspect.signature(PrefixDecoder).parameters.keys())
    if strange:
        raise ValueError(
            f"{path} does not have the arguments of PrefixDecoder (see "
            f"{shortly(strange)}); export it again."
        )
    for name, value in config.items():
        _check_bounds(path, name, value)
    if config["lm_training"] in ("scratch", "full"):
        _check_depth(path.parent / _LM)
    return config


def _check_bounds(path: Path, name: str, value) -> None:
    kind, least, most = _BOUNDS[name]
    plain = type(value) is kind or (kind is float and type(value) is int)
    size = len(value) if plain and kind in (str, list) else value
    words = kind is not list or (plain and all(isinstance(v, str) for v in value))
    if not (plain and words and least <= size <= most):
        raise ValueError(
            f"{path} has {str(value)[:50]!r} for {name}, which cannot be; export the "
            "decoder again."
        )


def _check_depth(lm: Path) -> None:
    """Layers are made one by one, even where they take no memory."""
    with damage_told(_named(lm)):  # a strange size fails in many ways
        sizes = AutoConfig.from_pretrained(lm, trust_remote_code=False)
        sizes = sizes.get_text_config()
        layers = sizes.num_hidden_layers
        heads = getattr(sizes, "num_attention_heads", 1)
        if layers > _LAYERS or heads < 1:
            raise ValueError(f"it has {layers} layers and {heads} heads")
