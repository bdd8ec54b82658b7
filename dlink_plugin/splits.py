"""What a comparison trains, chooses and tests on: a corpus, or arrays in folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .embeddings import Embeddings
from .pairs import Pairs, seeded
from .reading import read_npy

__all__ = ["Split", "corpus_split", "fold_splits", "read_arrays"]

logger = logging.getLogger(__name__)

_PAIRS_PER_FOLD = 10  # below, recall@10 is 1 whatever the bridge does


@dataclass(frozen=True)
class Split:
    """Pairs to train on, to choose on and to test on.

    Arguments
    ---------
    train : Pairs
        Every caption with its clip.
    valid : Pairs
        One caption of each clip.
    test : Pairs
        One caption of each clip.
    second : Tensor, optional
        (N, d) another caption of each test clip: the ceiling.
    """

    train: Pairs
    valid: Pairs
    test: Pairs
    second: Tensor | None = None


def corpus_split(data: Mapping[str, Embeddings]) -> Split:
    """The splits "train", "val" and "test" of an embedded corpus."""
    test = data["test"]
    second = None if test.second_text is None else test.text[test.second_text]
    return Split(data["train"].pairs, data["val"].first_pairs, test.first_pairs, second)


def read_arrays(
    audio_file: str | Path, text_file: str | Path
) -> tuple[Tensor, Tensor, list[int]]:
    """Paired embeddings of any encoder and any two modalities, from ``.npy`` files.

    Arguments
    ---------
    audio_file : str or Path
        (N, d) numbers of any scale: rows are L2-normalized here. Pickled objects are
        refused.
    text_file : str or Path
        (N, d), row i paired with row i of the other.

    Returns
    -------
    audio : Tensor
        (M, d) float32.
    text : Tensor
        (M, d) float32.
    skipped : list of int
        The N - M rows that are zero or not finite in either file; they are logged.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is no array of numbers, or the two do not fit together.
    """
    audio, text = _read(audio_file), _read(text_file)
    if audio.shape != text.shape:
        raise ValueError(
            f"{audio_file} has shape {audio.shape} but {text_file} {text.shape}; row i "
            "of each must be a pair, so give arrays of one length and one width."
        )
    good = np.isfinite(audio).all(1) & np.isfinite(text).all(1)
    good &= audio.any(1) & text.any(1)
    skipped = np.flatnonzero(~good).tolist()
    if skipped:
        logger.warning(
            "%d of %d pairs are left out, zero or not finite in %s or %s; rows %s",
            *(len(skipped), len(audio), audio_file, text_file),
            f"{skipped[:10]}{' and more' if len(skipped) > 10 else ''}",
        )
    # Largest number first to 1: squares of what is far from 1 over- or underflow.
    rows = [side[good] / np.abs(side[good]).max(1, keepdims=True, initial=0)
            for side in (audio, text)]  # fmt: skip
    unit = (normalize(torch.from_numpy(side), dim=1).float() for side in rows)
    return *unit, skipped


def _read(file: str | Path) -> np.ndarray:
    array = read_npy(file)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.size:
        raise ValueError(
            f"{file} holds {array.dtype} {array.shape}; give one array (N, d) of "
            "numbers."
        )
    return np.array(array, dtype=np.float64)


def fold_splits(audio: Tensor, text: Tensor, folds: int, seed: int) -> list[Split]:
    """Each fold in turn is the test; what is left is for training and choosing.

    A fifth of what is left is for choosing (validation), so no fold's bridge has seen
    its test pairs. Rows of the same audio stay together. Which clips go where is random
    and follows from the seed.

    Arguments
    ---------
    audio : Tensor
        (N, d).
    text : Tensor
        (N, d), row i paired with row i of ``audio``.
    folds : int
        1 or more; with 1 a fifth of the pairs is the test, once.
    seed : int
        Of the order.

    Returns
    -------
    splits : list of Split
        As many as folds.

    Raises
    ------
    ValueError
        If there is no fold, or fewer than 10 pairs in one.

    Example
    -------
    >>> a = torch.eye(40)
    >>> [len(split.test) for split in fold_splits(a, a, folds=4, seed=0)]
    [10, 10, 10, 10]
    """
    shares = 5 if folds == 1 else folds
    if folds < 1 or len(audio) < _PAIRS_PER_FOLD * shares:
        raise ValueError(
            f"{len(audio)} pairs cannot be compared with --folds {folds}, which takes "
            f"{_PAIRS_PER_FOLD * max(shares, 1)} or more; give more pairs or 1 to "
            f"{max(1, len(audio) // _PAIRS_PER_FOLD)} folds."
        )
    # A clip that stands there once for each of its captions is in one fold with all.
    _, clip = torch.unique(audio, dim=0, return_inverse=True)
    clips = int(clip.max()) + 1
    place = torch.randperm(clips, generator=seeded(seed)).to(clip.device)[clip]
    fold = place * shares // clips
    splits = []
    for number in range(folds):
        test = fold == number
        rest = place[~test].unique()
        valid = ~test & (place < rest[len(rest) // 5])
        rows = (~test & ~valid, valid, test)
        splits.append(Split(*(_pairs(audio[some], text[some]) for some in rows)))
    return splits


def _pairs(audio: Tensor, text: Tensor) -> Pairs:
    return Pairs(audio, text, torch.arange(len(audio)))
