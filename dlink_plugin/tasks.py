"""What a decoder is trained on: text alone, or audio with its captions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .bridges import Bridge, Identity
from .corpora import load_texts
from .embeddings import Embeddings, embed_splits, embed_texts
from .encoders import FrozenEncoder, load_encoder
from .judge import load_bridges
from .pairs import Captioned, seeded
from .scoring import clean

__all__ = [
    "CaptionTask",
    "Material",
    "add_noise",
    "as_they_are",
    "audio_task",
    "clean_captions",
    "decoder_task",
    "embed_training_texts",
    "gather",
    "mix_text",
    "text_task",
]

logger = logging.getLogger(__name__)

Inputs = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class CaptionTask:
    """What a decoder learns from, and what shows whether it learned it.

    Arguments
    ---------
    train : Captioned
        Embeddings and captions.
    valid : Captioned
        The same kind of embeddings, for the validation loss.
    inputs : callable
        ``inputs(embeddings, generator)`` gives what the decoder reads in their place:
        a bridge, ``add_noise``, ``as_they_are``.
    probes : mapping of str to Tensor
        (N, d) what stands for N validation clips that are captioned after every epoch.
        The score of the first chooses the checkpoint.
    references : sequence of sequence of str
        The captions of those clips.
    """

    train: Captioned
    valid: Captioned
    inputs: Inputs
    probes: Mapping[str, Tensor]
    references: Sequence[Sequence[str]]


def as_they_are(embeddings: Tensor, generator: torch.Generator) -> Tensor:
    """What a decoder reads that is trained on the embeddings themselves."""
    return embeddings


def add_noise(
    embeddings: Tensor, generator: torch.Generator, variance: float
) -> Tensor:
    """Noise injection: y + N(0, variance) in each coordinate, renormalized.

    After CapDec (Nukrai et al., Findings of EMNLP 2022): a decoder that was trained on
    noisy text embeddings takes an audio embedding for one of them.

    Arguments
    ---------
    embeddings : Tensor
        (N, d) L2-normalized.
    generator : torch.Generator
        Source of the noise.
    variance : float
        Of each coordinate; CapDec has 0.016.

    Returns
    -------
    noisy : Tensor
        (N, d) L2-normalized.
    """
    noise = torch.randn(embeddings.shape, generator=generator, device=embeddings.device)
    return normalize(embeddings + math.sqrt(variance) * noise, dim=1)


def clean_captions(captions: Sequence[str], source: str) -> tuple[list[int], list[str]]:
    """Captions as they are trained on; those that are empty then are left out.

    Arguments
    ---------
    captions : sequence of str
        As they were read.
    source : str
        Where from, for the log.

    Returns
    -------
    kept : list of int
        The places of those that are left.
    cleaned : list of str
        Their texts.

    Raises
    ------
    ValueError
        If none is left.

    Example
    -------
    >>> clean_captions(["a [loud] dog", "[]", "rain"], "x.csv")
    ([0, 2], ['a loud dog', 'rain'])
    """
    cleaned = [clean(caption) for caption in captions]
    kept = [i for i, caption in enumerate(cleaned) if caption]
    if len(kept) < len(cleaned):
        empty = len(cleaned) - len(kept)
        logger.warning("%s: %d captions are empty and left out.", source, empty)
    if not kept:
        raise ValueError(f"{source} holds no caption to train on; give another file.")
    return kept, [cleaned[i] for i in kept]


@dataclass(frozen=True)
class Material:
    """All that decoders are trained and tested with.

    Arguments
    ---------
    data : dict of str to Embeddings
        By split.
    texts : sequence of str
        M captions, for training on text alone.
    embedded : Tensor
        (M, d) their embeddings.
    bridges : dict of str to Bridge
        By name; mean shift is always among them.
    name : str
        Of the trained bridge, or "none".
    """

    data: dict[str, Embeddings]
    texts: Sequence[str]
    embedded: Tensor
    bridges: dict[str, Bridge]
    name: str

    def read_alike(self, by_text: bool) -> dict[str, Bridge]:
        """What the decoder behind the trained bridge can read, by name.

        That bridge; and no bridge, if the decoder was trained on plain text.
        """
        none = Identity(self.embedded.shape[1])
        bridge = self.bridges.get(self.name, none)
        plain = {"none": none} if by_text and bridge.reading == "text" else {}
        return {self.name: bridge} | plain


def gather(hparams: Mapping, device: str) -> Material:
    """Embed what a recipe's YAML file names and load its bridge.

    Arguments
    ---------
    hparams : mapping
        What ``embed_splits`` needs, ``clap``, ``bridge``, ``seed``, ``train_texts``
        and ``scored``: the split that stands for "test", which may be "val".
    device : str
        Where CLAP runs and where the embeddings go.

    Returns
    -------
    material : Material
        The encoder is not kept: a language model may need its place.

    Raises
    ------
    ValueError
        If there is nothing to score on.
    """
    if (scored := hparams["scored"]) not in ("test", "val"):
        raise ValueError(
            f"scored {scored!r} is no split to score on; give test or val."
        )
    encoder = load_encoder(str(hparams["clap"])).to(device)
    data = embed_splits(hparams, encoder)
    data["test"] = data[scored]
    bridges, name = load_bridges(hparams["bridge"], data["train"], hparams["seed"])
    return Material(data, *embed_training_texts(hparams, encoder), bridges, name)


def embed_training_texts(
    hparams: Mapping, encoder: FrozenEncoder
) -> tuple[list[str], Tensor]:
    """The captions that a decoder is trained on, and their embeddings.

    Arguments
    ---------
    hparams : mapping
        ``train_texts``, ``data_folder`` and ``cache_folder``.
    encoder : FrozenEncoder
        From ``load_encoder``.

    Returns
    -------
    texts : list of str
        M captions.
    embedded : Tensor
        (M, d), on the encoder's device.
    """
    cache, source = hparams["cache_folder"], str(hparams["train_texts"])
    texts = load_texts(source, hparams["data_folder"], cache_folder=cache)
    _, texts = clean_captions(texts, source)
    return texts, embed_texts(texts, encoder, cache).to(encoder.device)


def text_task(
    texts: Sequence[str],
    embedded: Tensor,
    valid: Embeddings,
    inputs: Inputs = as_they_are,
    probes: Mapping[str, Tensor] | None = None,
) -> CaptionTask:
    """Text embeddings to their own captions: what a zero-shot decoder learns.

    Arguments
    ---------
    texts : sequence of str
        M captions.
    embedded : Tensor
        (M, d) their embeddings.
    valid : Embeddings
        Validation clips. Only their captions count for the loss and for choosing the
        checkpoint, which reads one caption of a clip and is scored against all.
    inputs : callable
        See ``CaptionTask``.
    probes : mapping of str to Tensor, optional
        What else to caption after every epoch, to look at.

    Returns
    -------
    task : CaptionTask
    """
    read = valid.first_text if valid.second_text is None else valid.second_text
    return CaptionTask(
        Captioned(embedded, torch.arange(len(texts)), texts),
        _first_captions(valid.text[valid.first_text], valid),
        inputs,
        {"text": valid.text[read], **(probes or {})},
        [clip.captions for clip in valid.clips],
    )


def decoder_task(
    bridge: Bridge,
    texts: Sequence[str],
    embedded: Tensor,
    valid: Embeddings,
    probes: Mapping[str, Tensor] | None = None,
) -> CaptionTask:
    """What a zero-shot decoder learns that will read a bridge: its kind of text.

    Arguments
    ---------
    bridge : Bridge
        Whose ``text_space`` and ``noise_variance`` count.
    texts : sequence of str
        See ``text_task``.
    embedded : Tensor
        See ``text_task``.
    valid : Embeddings
        See ``text_task``.
    probes : mapping of str to Tensor, optional
        See ``text_task``.

    Returns
    -------
    task : CaptionTask
    """
    with torch.no_grad():
        embedded = bridge.text_space(embedded)
        valid = replace(valid, text=bridge.text_space(valid.text))
    inputs = as_they_are
    if bridge.noise_variance:
        inputs = partial(add_noise, variance=bridge.noise_variance)
    return text_task(texts, embedded, valid, inputs, probes)


def audio_task(
    train: Embeddings,
    valid: Embeddings,
    name: str,
    inputs: Inputs = as_they_are,
    *,
    seed: int,
) -> CaptionTask:
    """Audio embeddings to the captions of their clips: what a supervised one learns.

    Arguments
    ---------
    train : Embeddings
        Training clips.
    valid : Embeddings
        Validation clips.
    name : str
        What to call the audio once it has passed ``inputs``.
    inputs : callable
        See ``CaptionTask``.
    seed : int
        Of the noise on the validation clips.

    Returns
    -------
    task : CaptionTask
    """
    captions = [caption for clip in train.clips for caption in clip.captions]
    kept, captions = clean_captions(captions, train.title)
    # A clip that lost all its captions must not leave a gap in the numbering.
    clips, owner = train.clip_of_text[kept].cpu().unique(return_inverse=True)
    generator = seeded(seed, device=valid.audio.device)
    with torch.no_grad():
        probe = inputs(valid.audio, generator)
    return CaptionTask(
        Captioned(train.audio[clips.to(train.audio.device)], owner, captions),
        _first_captions(valid.audio, valid),
        inputs,
        {name: probe},
        [clip.captions for clip in valid.clips],
    )


def mix_text(
    task: CaptionTask, texts: Sequence[str], embedded: Tensor, draws: int, seed: int
) -> CaptionTask:
    """Audio among texts: what a decoder learns that may be shown both.

    Behind a bridge both are of one kind, so that captions without audio teach to
    caption audio. Each clip stands there K times, each time with another draw of the
    bridge; every text once. Ours.

    Arguments
    ---------
    task : CaptionTask
        From ``audio_task``.
    texts : sequence of str
        M captions.
    embedded : Tensor
        (M, d) their embeddings.
    draws : int
        K.
    seed : int
        Of the draws.

    Returns
    -------
    task : CaptionTask
    """
    own, generator = task.train, seeded(seed, device=task.train.source.device)
    with torch.no_grad():
        audio = [task.inputs(own.source, generator) for _ in range(draws)]
    starts = [len(texts) + k * len(own.source) for k in range(draws)]
    rows = [torch.arange(len(texts)), *(own.clip_of_text + start for start in starts)]
    (probe,) = task.probes.values()
    return replace(
        task,
        train=Captioned(
            torch.cat([embedded, *audio]),
            torch.cat(rows),
            [*texts, *(own.captions * draws)],
        ),
        valid=Captioned(probe, task.valid.clip_of_text, task.valid.captions),
        inputs=as_they_are,
    )


def _first_captions(rows: Tensor, clips: Embeddings) -> Captioned:
    captions = [clip.captions[0] for clip in clips.clips]
    return Captioned(rows, torch.arange(len(captions)), captions)
