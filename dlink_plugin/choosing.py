"""Several captions of one sound, and which of them to keep.

A generative bridge draws several text embeddings for a sound, each of which gives a
caption. Minimum Bayes risk keeps the one that agrees most with all of them,

    c* = argmax_c_i  sum_{k != i} u(c_i, c_k)

(Kumar & Byrne, 2004), with u = CIDEr-D or the cosine of CLAP text embeddings; instead,
the one nearest to the sound in CLAP's space can be kept. Nothing of this is confirmed
by the paper.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .bridges import Bridge
from .decoder import PrefixDecoder
from .encoders import FrozenEncoder, load_encoder
from .pairs import seeded
from .scoring import plain_tokens

__all__ = ["WAYS", "Chooser", "CiderUtility", "caption_draws", "chosen_captions"]

WAYS = ("cider_d", "similarity", "clap")
_SIGMA = 6.0  # of CIDEr-D's penalty on differences in length


class CiderUtility:
    """CIDEr-D of captions with each other (Vedantam et al., CVPR 2015, section 5).

    aac-metrics takes document frequencies from the references that it scores with,
    which for the few captions of one sound say nothing. Here they come from a body of
    captions; all else is as there.

    Arguments
    ---------
    background : sequence of str
        The captions whose n-grams are counted, two or more; those a decoder was
        trained on.

    Raises
    ------
    ValueError
        If there are fewer than two.

    Example
    -------
    >>> utility = CiderUtility(["a dog barks", "rain falls", "a cat"])
    >>> utility(["a dog barks", "a dog barks", "rain"]).round(1)
    array([[7.5, 7.5, 0. ],
           [7.5, 7.5, 0. ],
           [0. , 0. , 2.5]])
    """

    def __init__(self, background: Sequence[str]):
        if len(background) < 2:
            raise ValueError(
                f"Consensus by CIDEr-D counts the words of many captions, not of "
                f"{len(background)}; give those that the decoder was trained on."
            )
        self.log_size = math.log(len(background))
        self.frequency = Counter(
            gram for text in background for gram in set(_ngrams(text))
        )

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """(K, K): what caption i scores against caption j as its reference."""
        counts = [Counter(_ngrams(caption)) for caption in captions]
        lengths = np.array(
            [sum(len(gram) == 2 for gram in c.elements()) for c in counts]
        )
        penalty = np.exp(-np.square(lengths[:, None] - lengths) / (2 * _SIGMA**2))
        score = np.zeros((len(captions), len(captions)))
        for n in range(1, 5):
            weights = self._weights(counts, n)
            norm = np.linalg.norm(weights, axis=1)
            clipped = np.minimum(weights[:, None], weights) * weights
            scale = np.maximum(norm[:, None] * norm, 1e-12)
            score += clipped.sum(2) / scale
        return 10 * penalty * score / 4

    def _weights(self, counts: Sequence[Counter], n: int) -> np.ndarray:
        """(K, V): tf-idf of the V different n-grams of these captions."""
        grams = sorted({gram for count in counts for gram in count if len(gram) == n})
        idf = [self.log_size - math.log(max(1, self.frequency[g])) for g in grams]
        rows = [[count[gram] for gram in grams] for count in counts]
        return np.array(rows, dtype=float).reshape(len(counts), -1) * np.array(idf)


class Chooser:
    """Keeps one of several captions of each sound.

    Arguments
    ---------
    how : str
        "cider_d" or "similarity": what agrees most with all of them, by CIDEr-D or by
        the cosine of CLAP text embeddings; "clap": what is nearest to the sound, by the
        cosine of CLAP's text and audio embedding.
    encoder : FrozenEncoder
        CLAP.
    background : sequence of str
        See ``CiderUtility``; for "cider_d".

    Raises
    ------
    ValueError
        If there is no such way of choosing.
    """

    def __init__(self, how: str, encoder: FrozenEncoder, background: Sequence[str]):
        if how not in WAYS:
            raise ValueError(f"choose {how!r} is unknown; choose of {', '.join(WAYS)}.")
        self.how, self.encoder = how, encoder
        self.utility = CiderUtility(background) if how == "cider_d" else None

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Sequence[str]], audio: Tensor) -> list[str]:
        """The caption to keep of each sound's; the earliest of equals.

        Arguments
        ---------
        candidates : sequence of sequence of str
            K captions of each of N sounds.
        audio : Tensor
            (N, d) raw audio embeddings.

        Returns
        -------
        captions : list of str
            N of them.
        """
        if self.how == "cider_d":
            tables = (self.utility(each) for each in candidates)
            # Not with itself: a short caption has fewer n-grams to agree in.
            merits = [table.sum(1) - table.diagonal() for table in tables]
        else:
            texts = list(dict.fromkeys(c for each in candidates for c in each))
            rows = dict(zip(texts, self.encoder.encode_text(texts), strict=True))
            merits = []
            for each, sound in zip(candidates, audio, strict=True):
                text = torch.stack([rows[caption] for caption in each])
                near = text.sum(0) if self.how == "similarity" else sound
                merits.append((text @ near).cpu().numpy())
        # Rounded, so that the order of sums does not decide between equals.
        return [
            each[int(merit.round(5).argmax())]
            for each, merit in zip(candidates, merits, strict=True)
        ]


def caption_draws(
    decoder: PrefixDecoder, draws: Tensor, **generation
) -> list[list[str]]:
    """A caption of each draw.

    Arguments
    ---------
    decoder : PrefixDecoder
        Writes them.
    draws : Tensor
        (K, N, d) embeddings.
    **generation : dict
        See ``PrefixDecoder.generate``.

    Returns
    -------
    captions : list of list of str
        K of each of N sounds.
    """
    written = decoder.generate(draws.transpose(0, 1).flatten(0, 1), **generation)
    return [written[i : i + len(draws)] for i in range(0, len(written), len(draws))]


@torch.no_grad()
def chosen_captions(
    decoder: PrefixDecoder,
    bridges: Mapping[str, Bridge],
    audio: Tensor,
    hparams: Mapping,
    background: Sequence[str],
) -> dict[str, list[str]]:
    """What a recipe's decoder writes through a bridge when there are several draws.

    The control is the same number of captions sampled from one embedding: "none" in
    place of a bridge has no other draws.

    Arguments
    ---------
    decoder : PrefixDecoder
        Reads the bridges.
    bridges : mapping of str to Bridge
        By name.
    audio : Tensor
        (N, d) raw audio embeddings.
    hparams : mapping
        ``clap``, ``seed``, ``draws`` (K), ``choose`` (ways), ``sample_temperature``
        and ``generation``.
    background : sequence of str
        See ``CiderUtility``.

    Returns
    -------
    captions : dict of str to list of str
        N for each bridge and way, as "<bridge>_<way>"; "average" is one caption of the
        normalized mean of the draws.
    """
    encoder = load_encoder(str(hparams["clap"])).to(audio.device)
    settings, k = hparams["generation"], hparams["draws"]
    choosers = {
        how: Chooser(how, encoder, background)
        for how in hparams["choose"]
        if how != "average"
    }
    captions = {}
    for name, bridge in bridges.items():
        generator = seeded(hparams["seed"], device=audio.device)
        draws = torch.stack([bridge(audio, generator) for _ in range(k)])
        sampling = {}
        if torch.equal(draws[0], draws[-1]):  # nothing is drawn: the decoder has to
            sampling = {"do_sample": True, "num_beams": 1, "generator": generator}
            sampling["temperature"] = hparams["sample_temperature"]
        elif "average" in hparams["choose"]:
            mean = normalize(draws.mean(0), dim=1)
            captions[f"{name}_average"] = decoder.generate(mean, **settings)
        candidates = caption_draws(decoder, draws, **settings | sampling)
        for how, chooser in choosers.items():
            captions[f"{name}_{how}"] = chooser(candidates, audio)
    return captions


def _ngrams(caption: str) -> Iterator[tuple[str, ...]]:
    words = plain_tokens(caption).split()
    for n in range(1, 5):
        yield from (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
