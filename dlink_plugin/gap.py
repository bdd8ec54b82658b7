"""The modality-gap criteria: how far audio embeddings are from their texts'.

Row i of ``audio`` and of ``text`` belong to the same clip. Everything is measured on
L2-normalized rows and reported together: mean shift alone lifts the paired cosine
while retrieval falls, so no criterion means much without the others, without the
trivial baselines and without the ceiling (a second caption in the audio's place).

Sources: Liang et al., "Mind the Gap" (NeurIPS 2022); Schrodi et al., "Two Effects,
One Trigger" (ICLR 2025); Dowson and Landau (1982) for the Frechet distance.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

__all__ = [
    "CRITERIA",
    "HIGHER_IS_BETTER",
    "interval",
    "migration_criteria",
    "modality_gap",
    "paired_bootstrap",
    "resampled_criteria",
]

_RECALL_AT = (1, 5, 10)

CRITERIA: tuple[str, ...] = (
    "paired_cosine",
    "unpaired_cosine",
    "centroid_distance",
    "paired_distance",
    "relative_modality_gap",
    "frechet_distance",
    "linear_separability",
    *(f"recall@{k}_audio_to_text" for k in _RECALL_AT),
    *(f"recall@{k}_text_to_audio" for k in _RECALL_AT),
    "topology_error",
)

# Of a bridge, up to the ceiling. The others are better when they are lower.
HIGHER_IS_BETTER = {"paired_cosine", *(k for k in CRITERIA if k.startswith("recall"))}

# Cosines of float32 embeddings are known to about 1e-7: closer than this is a tie.
_TIE = 1e-6
_SEPARABILITY_CLIPS = 2000
_INVERSE_PENALTIES = (1e-4, 1e-2, 1.0)  # strongest first: it wins a tie


def modality_gap(
    audio: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    *,
    separability: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """All criteria of paired embeddings, in the order of ``CRITERIA``.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d), any scale: rows are L2-normalized here.
    text : torch.Tensor | np.ndarray
        Shape (N, d); row i is a caption of clip i.
    separability : bool
        False leaves ``linear_separability`` out: it alone trains a model.
    seed : int
        Of the folds of ``linear_separability``; nothing else is random.

    Returns
    -------
    criteria : dict[str, float]
        Criterion -> value. Recalls have the N rows as candidates.

    Raises
    ------
    ValueError
        If the shapes differ, N < 2, or a row is zero or not finite.

    Example
    -------
    >>> text = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> audio = np.array([[1.0, 1.0], [-1.0, 1.0]])
    >>> gap = modality_gap(audio, text)
    >>> round(gap["paired_cosine"], 3), round(gap["centroid_distance"], 3)
    (0.707, 0.541)
    """
    audio, text = _unit_rows(audio=audio, text=text)
    values = {
        **_clip_criteria(audio, text, _equal_weights(len(audio))),
        "unpaired_cosine": unpaired_cosine(audio, text),
        "paired_distance": paired_distance(audio, text),
        "frechet_distance": frechet_distance(audio, text),
        "topology_error": topology_error(audio, text),
    }
    if separability:
        values["linear_separability"] = linear_separability(audio, text, seed)
    return {name: float(values[name]) for name in CRITERIA if name in values}


def paired_bootstrap(
    a: torch.Tensor | np.ndarray,
    b: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Differences a - b of two systems on the same clips, with 95 % intervals.

    Clips are resampled with replacement, the same clips for both systems. A recall
    keeps its N candidates: what is resampled is each clip's hit among all of them.
    Two draws of one clip count as a self-pair in the relative modality gap. Draws
    are centered on the observed difference before their percentiles are taken:
    resampling noise alone moves two close centroids apart, and would push the
    interval of ``centroid_distance`` off its own estimate.

    Arguments
    ---------
    a : torch.Tensor | np.ndarray
        Shape (N, d): the audio embeddings as the first system bridges them.
    b : torch.Tensor | np.ndarray
        Shape (N, d): as the second system bridges them.
    text : torch.Tensor | np.ndarray
        Shape (N, d): row i is a caption of clip i.
    draws : int
        Number of resamples.
    seed : int
        Of the resamples.

    Returns
    -------
    differences : dict[str, tuple[float, float, float]]
        Criterion -> (a - b, lower end, upper end), for ``paired_cosine``,
        ``centroid_distance``, ``relative_modality_gap`` and the recalls.

    Raises
    ------
    ValueError
        As ``modality_gap``; or if ``draws`` is not positive.

    Example
    -------
    >>> text = np.eye(3)
    >>> difference = paired_bootstrap(text, np.roll(text, 1, axis=0), text)
    >>> difference["recall@1_audio_to_text"]
    (1.0, 1.0, 1.0)
    """
    a, b, text = _unit_rows(a=a, b=b, text=text)
    of_a = resampled_criteria(a, text, draws=draws, seed=seed, frechet=False)
    of_b = resampled_criteria(b, text, draws=draws, seed=seed, frechet=False)
    return {name: interval(of_a[name] - of_b[name]) for name in of_a}


def resampled_criteria(
    audio: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    frechet: bool = True,
) -> dict[str, np.ndarray]:
    """Criteria of the clips, and of resamples of them, for bootstraps of one's own.

    Systems that are measured with the same seed on as many clips are resampled alike,
    so their differences, also of means over several runs, go into ``interval``.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d).
    text : torch.Tensor | np.ndarray
        Shape (N, d); row i is a caption of clip i.
    draws : int
        Number of resamples.
    seed : int
        Of the resamples.
    frechet : bool
        Whether ``frechet_distance`` is among them: it takes some 20 ms a draw.

    Returns
    -------
    criteria : dict[str, np.ndarray]
        Criterion -> (1 + draws,), that of the clips themselves first.

    Raises
    ------
    ValueError
        As ``modality_gap``; or if ``draws`` is not positive.

    Example
    -------
    >>> resampled_criteria(np.eye(3), np.eye(3), draws=2)["paired_cosine"]
    array([1., 1., 1.])
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; an interval needs 1 or more, say 1000.")
    audio, text = _unit_rows(audio=audio, text=text)
    equal = _equal_weights(len(text))
    counts = np.random.default_rng(seed).multinomial(len(text), equal, size=draws)
    weights = np.vstack([equal, counts / len(text)])
    values = _clip_criteria(audio, text, weights)
    if frechet:
        each = [frechet_distance(audio, text, row) for row in weights]
        values["frechet_distance"] = np.array(each)
    return values


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """A difference and its 95 % interval.

    Arguments
    ---------
    differences : np.ndarray
        Shape (1 + draws,): the observed one, then those of the resamples.

    Returns
    -------
    observed, low, high : tuple[float, float, float]

    Example
    -------
    >>> interval(np.array([2.0, 3.0, 5.0]))
    (2.0, 1.05, 2.95)
    """
    observed, drawn = differences[0], differences[1:]
    low, high = observed + np.percentile(drawn - drawn.mean(), [2.5, 97.5])
    return float(observed), float(low), float(high)


def migration_criteria(
    audio: torch.Tensor | np.ndarray,
    bridged: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
) -> dict[str, float]:
    """Whether the clips migrate together, and whether they come closer to text.

    The paper speaks of a collective migration; these two numbers for it are ours.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d): before the bridge.
    bridged : torch.Tensor | np.ndarray
        Shape (N, d): behind it.
    text : torch.Tensor | np.ndarray
        Shape (N, d): texts, of which the nearest to each clip counts.

    Returns
    -------
    criteria : dict[str, float]
        "displacement_cosine": the mean cosine of each clip's displacement with the
        mean displacement, 1 for a common shift; "nearest_text_nearer": the share of
        clips whose nearest text is nearer than before. Empty where nothing moves.

    Raises
    ------
    ValueError
        As ``modality_gap``.

    Example
    -------
    >>> migration_criteria(np.eye(4)[:2], np.eye(4)[2:], np.eye(4)[2:])
    {'displacement_cosine': 0.7071067811865475, 'nearest_text_nearer': 1.0}
    """
    audio, bridged, text = _unit_rows(audio=audio, bridged=bridged, text=text)
    moved = bridged - audio
    lengths = np.linalg.norm(moved, axis=1)
    mean = moved.mean(0)
    if np.linalg.norm(mean) < _TIE:
        return {}
    cosines = moved @ mean / np.maximum(lengths * np.linalg.norm(mean), 1e-12)
    nearer = _nearest(bridged, text) > _nearest(audio, text) + _TIE
    return {
        "displacement_cosine": float(cosines.mean()),
        "nearest_text_nearer": float(nearer.mean()),
    }


def _nearest(rows: np.ndarray, text: np.ndarray, block: int = 256) -> np.ndarray:
    """Cosine of each row with its nearest text, (N,), block by block."""
    starts = range(0, len(rows), block)
    return np.concatenate([(rows[i : i + block] @ text.T).max(1) for i in starts])


def _equal_weights(n: int) -> np.ndarray:
    return np.full(n, 1 / n)


def _clip_criteria(
    audio: np.ndarray, text: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The criteria that weighted clips define cheaply; weights (..., N) sum to 1."""
    return {
        "paired_cosine": weights @ paired_cosines(audio, text),
        "centroid_distance": centroid_distance(audio, text, weights),
        "relative_modality_gap": relative_modality_gap(audio, text, weights),
        **{name: weights @ hit for name, hit in recall_hits(audio, text).items()},
    }


def paired_cosines(audio: np.ndarray, text: np.ndarray) -> np.ndarray:
    """``cos(a_i, y_i)`` of every pair, shape (N,)."""
    return (audio * text).sum(1)


def unpaired_cosine(audio: np.ndarray, text: np.ndarray) -> float:
    """Mean of ``cos(a_i, y_j)`` over i != j, from the two sum vectors."""
    n = len(audio)
    total = audio.sum(0) @ text.sum(0)
    return (total - paired_cosines(audio, text).sum()) / (n * (n - 1))


def paired_distance(audio: np.ndarray, text: np.ndarray) -> float:
    """Mean of ``D(a_i, y_i)``, ``D = (1 - cos) / 2`` (Schrodi et al., 2025)."""
    return max(1 - paired_cosines(audio, text).mean(), 0.0) / 2


def centroid_distance(
    audio: np.ndarray, text: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """``||mean a - mean y||`` (Liang et al., 2022) for each row of clip weights."""
    return np.linalg.norm(weights @ (audio - text), axis=-1)


def relative_modality_gap(
    audio: np.ndarray, text: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """``D_pairs / (D_pairs + (D_within_audio + D_within_text) / 2)`` for each row of
    clip weights, ``D`` the mean of ``(1 - cos) / 2``, self-pairs left out (Schrodi et
    al., 2025). It is 0 where all embeddings coincide.
    """
    pairs = np.maximum(1 - weights @ paired_cosines(audio, text), 0) / 2
    within = (_within_distance(audio, weights) + _within_distance(text, weights)) / 2
    total = pairs + within
    return np.where(total < 1e-12, 0, pairs / np.maximum(total, 1e-12))


def _within_distance(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ``(1 - cos) / 2`` over i != j in closed form: the cosines of unit rows sum
    to ``||sum_i w_i x_i||^2``, of which self-pairs are ``sum_i w_i^2``.
    """
    self_pairs = (weights**2).sum(-1)
    cosines = ((weights @ rows) ** 2).sum(-1) - self_pairs
    # A resample may be one clip N times over, without another pair: 0 / tiny.
    return (1 - cosines / np.maximum(1 - self_pairs, 1e-9)) / 2


def frechet_distance(
    audio: np.ndarray, text: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Squared Frechet distance of the Gaussians fitted to the two samples:
    ``||mu1 - mu2||^2 + tr S1 + tr S2 - 2 ||Xc Yc^T||_* / (N - 1)``, or the
    same of weighted clips, weights (N,).

    With ``Xc`` and ``Yc`` the centered samples, the nuclear norm is
    ``tr (S1 S2)^(1/2)`` (Dowson and Landau, 1982) without the root of a covariance
    that is singular for N <= d. ``Xc = Q R`` leaves ``||R1 R2^T||_*``, a matrix of
    side min(N, d). The value depends on N: compare it at equal N only.
    """
    weights = _equal_weights(len(audio)) if weights is None else weights
    n, root = len(weights), np.sqrt(weights)[:, None]
    shift = weights @ (audio - text)
    r1, r2 = (np.linalg.qr(root * (x - weights @ x), mode="r") for x in (audio, text))
    nuclear = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    spread = (r1**2).sum() + (r2**2).sum() - 2 * nuclear
    return max(shift @ shift + spread * n / (n - 1), 0.0)


def topology_error(audio: np.ndarray, text: np.ndarray) -> float:
    """Root mean square of ``cos(a_i, a_j) - cos(y_i, y_j)`` over i != j.

    ``||A A^T - Y Y^T||_F^2`` needs no N x N matrix: it is ``||A^T A||^2 +
    ||Y^T Y||^2 - 2 ||A^T Y||^2`` (squared Frobenius norms), and the diagonals
    cancel. Rounding leaves about 1e-8 where the geometries agree.
    """
    n = len(audio)
    aa, yy, ay = audio.T @ audio, text.T @ text, audio.T @ text
    squares = (aa**2).sum() + (yy**2).sum() - 2 * (ay**2).sum()
    return np.sqrt(max(squares, 0.0) / (n * (n - 1)))


def recall_hits(
    audio: np.ndarray, text: np.ndarray, block: int = 256
) -> dict[str, np.ndarray]:
    """Probability, shape (N,), that the pair is among the k nearest of N candidates.

    Cosines within 1e-6 are ties, broken at random: a pair with h candidates above it
    and t level with it, itself included, is found with probability ``(k - h) / t``,
    clipped to [0, 1]. Constant embeddings thus get k / N, which is chance.
    """
    of_audio, of_text = _ranks(audio, text, block)
    directions = {"audio_to_text": of_audio, "text_to_audio": of_text}
    return {
        f"recall@{k}_{direction}": np.clip((k - above) / level, 0, 1)
        for direction, (above, level) in directions.items()
        for k in _RECALL_AT
    }


def _ranks(
    audio: np.ndarray, text: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates are above the pair and how many level with it, (2, N), for
    audio queries and for text queries.

    One pass over blocks of rows of the N x N cosines serves both directions, in
    float32: its rounding is well inside the tolerance of a tie.
    """
    audio, text = audio.astype(np.float32), text.astype(np.float32)
    pair = paired_cosines(audio, text)
    of_audio, of_text = np.zeros((2, 2, len(pair)))
    for start in range(0, len(pair), block):
        rows = slice(start, start + block)
        cosines = audio[rows] @ text.T
        of_audio[:, rows] = _above_and_level(cosines, pair[rows, None], axis=1)
        of_text += _above_and_level(cosines, pair[None], axis=0)
    return of_audio, of_text


def _above_and_level(cosines: np.ndarray, pair: np.ndarray, axis: int) -> np.ndarray:
    above = (cosines > pair + _TIE).sum(axis)
    return np.stack([above, (cosines >= pair - _TIE).sum(axis) - above])


def linear_separability(audio: np.ndarray, text: np.ndarray, seed: int = 0) -> float:
    """Accuracy of an L2-regularized logistic regression telling audio from text.

    Five folds grouped by clip; the penalty is chosen by three inner folds, grouped
    likewise. 0.5 is indistinguishable; centroids matched on these very clips leave
    opposite differences in the two parts of a fold, hence values below 0.5. Above
    2,000 clips a random 2,000 are used; below 5 clips there are fewer folds.
    """
    order = np.random.default_rng(seed).permutation(len(audio))[:_SEPARABILITY_CLIPS]
    # x sqrt(d): coordinates of mean square 1, so that one grid of C suits every d.
    pairs = np.stack([audio[order], text[order]], axis=1) * np.sqrt(audio.shape[1])
    # As exact as float32 knows them: rounding errors must not tell equals apart.
    pairs = np.round(pairs, 6).astype(np.float32)
    with threadpool_limits(1):  # the folds share out the cores
        return _accuracy(
            pairs, folds=5, choose=_best_inverse_penalty, threads=os.cpu_count()
        )


def _accuracy(
    pairs: np.ndarray,
    folds: int,
    choose: Callable[[np.ndarray], float],
    threads: int = 1,
) -> float:
    """Cross-validated accuracy on (N, 2, d) pairs; ``choose`` maps a fold's training
    pairs to C. Folds are of whole pairs: a clip is never on both sides.
    """
    folds = min(folds, len(pairs))
    fold = np.arange(len(pairs)) % folds

    def right(held_out: int) -> float:
        train, test = pairs[fold != held_out], pairs[fold == held_out]
        # Centered, so that no solver has to walk to a distant intercept. Newton's few
        # exact steps beat lbfgs's thousand rough ones where the clouds overlap.
        center = train.mean((0, 1))
        train, test = train - center, test - center
        model = LogisticRegression(
            C=choose(train), solver="newton-cholesky", tol=1e-2, max_iter=1000
        )
        return model.fit(*_labeled(train)).score(*_labeled(test)) * len(test)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(right, range(folds))) / len(pairs)


def _best_inverse_penalty(pairs: np.ndarray) -> float:
    if len(pairs) < 2:
        return _INVERSE_PENALTIES[0]
    best, highest = None, -1.0
    for c in _INVERSE_PENALTIES:
        accuracy = _accuracy(pairs, folds=3, choose=lambda train, c=c: c)
        if accuracy > highest:
            best, highest = c, accuracy
        if highest == 1:  # nor can a weaker penalty do better
            break
    return best


def _labeled(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pairs.reshape(-1, pairs.shape[-1]), np.tile([0, 1], len(pairs))


def _unit_rows(**named: torch.Tensor | np.ndarray) -> list[np.ndarray]:
    """The named embeddings in float64, checked and L2-normalized, in their order."""
    arrays = {name: _checked(name, rows) for name, rows in named.items()}
    shapes = {name: rows.shape for name, rows in arrays.items()}
    first, *others = shapes
    for name in others:
        if shapes[name] != shapes[first]:
            raise ValueError(
                f"{first} has shape {shapes[first]} but {name} {shapes[name]}; row i "
                "of each must be the same clip, so pass arrays of one shape."
            )
    return [_unit(arrays.pop(name)) for name in named]  # never two copies of all


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _checked(name: str, rows: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().double().numpy()
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"{name} has shape {rows.shape}; pass (N, d), one row per clip, with at "
            "least 2 clips."
        )
    for problem, bad in (
        ("not finite", ~np.isfinite(rows).all(1)),
        ("all zeros, which has no direction", ~rows.any(1)),
    ):
        if bad.any():
            raise ValueError(
                f"Row {bad.argmax()} of {name} is {problem}; leave that clip out of "
                "all arrays or embed it again."
            )
    return rows
