"""How bridges stand after several runs: means, deviations, and who beats whom."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .bridges import Bridge
from .gap import CRITERIA, HIGHER_IS_BETTER, interval, resampled_criteria

__all__ = ["Run", "mapped_back", "mean_and_std", "rivals", "summarize"]

# What Diffusion-Link is held against: the other diffusion bridges, in the spaces they
# are judged in, and the same network without diffusion.
RIVALS = (
    "diffusion_bridge",
    "diffusion_bridge_mapped_back",
    "diffusion_prior",
    "diffgap",
    "rectified_flow",
    "mlp",
)
_HELD = (
    "paired_cosine",
    "centroid_distance",
    "relative_modality_gap",
    "frechet_distance",
    "recall@1_audio_to_text",
    "recall@10_audio_to_text",
)


@dataclass
class Run:
    """What one seed gave, on one fold: everything by the name of its row.

    Arguments
    ---------
    seed : int
        Of training and noise.
    fold : int
        Which of the splits.
    criteria : dict of str to dict
        On test.
    spaces : dict of str to tuple of Tensor
        (N, d) what stands for the test clips, and the (N, d) texts it is judged by.
    moved : dict of str to Tensor
        (N, d) where the test clips are behind the bridge, in the encoder's space.
    bridges : dict of str to Bridge
        The chosen ones.
    chosen : dict of str to dict
        Their settings.
    seconds : dict of str to float
        What fitting, training and choosing took.
    errors : dict of str to str
        Why a bridge has no row.
    """

    seed: int
    fold: int = 0
    criteria: dict[str, dict[str, float]] = field(default_factory=dict)
    spaces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    moved: dict[str, Tensor] = field(default_factory=dict)
    bridges: dict[str, Bridge] = field(default_factory=dict)
    chosen: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def mapped_back(name: str) -> str:
    """The second row of a bridge with its own text space."""
    return f"{name}_mapped_back"


def summarize(runs: Sequence[Run]) -> dict[str, dict]:
    """The rows of compare.json: mean and standard deviation over runs.

    Arguments
    ---------
    runs : sequence of Run
        Of the same bridges, over seeds and folds.

    Returns
    -------
    rows : dict of str to dict
        Criterion to ``{"mean": float, "std": float}`` (with n - 1; 0 for one run),
        "saw" and "seconds"; "saw" and "error" where a run failed. "chance" is what
        retrieval gives to random embeddings.
    """
    names = dict.fromkeys(name for run in runs for name in run.criteria)
    failed = {name: why for run in runs for name, why in run.errors.items()}
    rows = {}
    for name in [*names, *failed]:
        base = name.removesuffix(mapped_back(""))
        if base in failed:
            rows[name] = {"saw": _saw(base), "error": failed[base]}
            continue
        tables = [run.criteria[name] for run in runs]
        shared = [key for key in tables[0] if all(key in table for table in tables)]
        rows[name] = {key: mean_and_std([t[key] for t in tables]) for key in shared}
        seconds = statistics.mean(run.seconds.get(base, 0.0) for run in runs)
        rows[name] |= {"saw": _saw(base), "seconds": seconds}
    sizes = [len(text) for run in runs for _, text in list(run.spaces.values())[:1]]
    if sizes:
        rows["chance"] = _chance(sizes) | {"saw": "nothing", "seconds": 0.0}
    return rows


def _saw(name: str) -> str:
    if name == "shuffled":
        name = "diffusion_link"
    return Bridge.registry[name].saw if name in Bridge.registry else "nothing"


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """The "mean", and the "std" with n - 1, which is 0 for one value."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": spread}


def _chance(sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    recalls = [key for key in CRITERIA if key.startswith("recall@")]
    k = {key: int(key.split("@")[1].split("_")[0]) for key in recalls}
    return {key: mean_and_std([min(1, k[key] / n) for n in sizes]) for key in recalls}


def rivals(runs: Sequence[Run], draws: int) -> dict[str, dict[str, dict]]:
    """Diffusion-Link held against its rivals by paired bootstrap.

    The difference is that of the means over runs; clips are resampled, the same ones
    for all bridges and all seeds.

    Arguments
    ---------
    runs : sequence of Run
        Over seeds and folds.
    draws : int
        Number of resamples.

    Returns
    -------
    table : dict of str to dict
        Rival to criterion to "difference" (Diffusion-Link minus rival), "low" and
        "high" (95 %), and "verdict": "better", "worse", or "level" where the interval
        includes 0. Empty without Diffusion-Link.
    """
    everywhere = set.intersection(*(set(run.spaces) for run in runs))
    if "diffusion_link" not in everywhere:
        return {}
    ours = _resampled(runs, "diffusion_link", draws)
    return {
        name: {key: _verdict(key, ours[key] - theirs[key]) for key in _HELD}
        for name in RIVALS
        if name in everywhere
        for theirs in [_resampled(runs, name, draws)]
    }


def _resampled(runs: Sequence[Run], name: str, draws: int) -> dict[str, np.ndarray]:
    each = [
        resampled_criteria(*run.spaces[name], draws=draws, seed=run.fold)
        for run in runs
    ]
    return {key: np.mean([one[key] for one in each], axis=0) for key in each[0]}


def _verdict(criterion: str, differences: np.ndarray) -> dict[str, float | str]:
    difference, low, high = interval(differences)
    verdict = "level"
    if low > 0 or high < 0:
        good = (difference > 0) == (criterion in HIGHER_IS_BETTER)
        verdict = "better" if good else "worse"
    return {"difference": difference, "low": low, "high": high, "verdict": verdict}
