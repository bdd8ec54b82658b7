"""Judging a bridge: a sweep on validation, a rule that chooses, a report on test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .bridges import Bridge, DiffusionLink, MeanShift
from .embeddings import Embeddings
from .gap import modality_gap, paired_bootstrap
from .pairs import Pairs, seeded

__all__ = [
    "choose",
    "cross",
    "load_bridge",
    "load_bridges",
    "stand_ins",
    "sweep",
    "tune",
]


@torch.no_grad()
def cross(bridge: Bridge, audio: Tensor, seed: int, batch_size: int = 4096) -> Tensor:
    """Bridge many embeddings in batches, with noise that follows from a seed.

    Arguments
    ---------
    bridge : Bridge
        Put into eval mode.
    audio : Tensor
        (N, d) L2-normalized, on the bridge's device.
    seed : int
        Seed of the noise.
    batch_size : int
        Rows at a time.

    Returns
    -------
    bridged : Tensor
        (N, d) L2-normalized.
    """
    generator = seeded(seed, device=audio.device)
    bridge.eval()
    return torch.cat([bridge(rows, generator) for rows in audio.split(batch_size)])


def stand_ins(
    bridges: Mapping[str, Bridge], clips: Embeddings, seed: int
) -> dict[str, Tensor]:
    """What can stand where a text embedding is expected.

    Arguments
    ---------
    bridges : mapping of str to Bridge
        By name.
    clips : Embeddings
        N clips.
    seed : int
        Seed of the bridges' noise.

    Returns
    -------
    rows : dict of str to Tensor
        (N, d) each: "none", the raw audio; the bridged audio by the bridge's name; and
        "ceiling", another caption of the clip, where every clip has a second one.
    """
    rows = {"none": clips.audio}
    rows |= {name: cross(each, clips.audio, seed) for name, each in bridges.items()}
    if clips.second_text is not None:
        rows["ceiling"] = clips.text[clips.second_text]
    return rows


def load_bridges(
    folder: str | Path, train: Embeddings, seed: int
) -> tuple[dict[str, Bridge], str]:
    """Mean shift, and the trained bridge that a recipe is given.

    Arguments
    ---------
    folder : str or Path
        What ``recipes/AudioCaps/train.py`` exported, a Hugging Face id, or "none".
    train : Embeddings
        Training clips, whose means mean shift takes.
    seed : int
        Of the recipe that asks, which is named in the advice.

    Returns
    -------
    bridges : dict of str to Bridge
        By name, in eval mode, on the device of the clips.
    name : str
        Of the trained one; "none" where there is none.

    Raises
    ------
    FileNotFoundError
        If it is not there; the sentence says what makes it.
    ValueError
        If it takes embeddings of another width.
    """
    dim, device = train.audio.shape[1], train.audio.device
    shift = MeanShift(dim).to(device)
    shift.fit(train.audio[train.clip_of_text], train.text)
    bridges = {shift.name: shift.eval()}
    if str(folder) == "none":
        return bridges, "none"
    bridge = load_bridge(folder, dim, seed).to(device)
    return bridges | {bridge.name: bridge}, bridge.name


def load_bridge(folder: str | Path, dim: int, seed: int) -> Bridge:
    """A trained bridge; see ``load_bridges``."""
    try:
        bridge = Bridge.from_pretrained(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No bridge at {folder}; make it with: python recipes/AudioCaps/train.py "
            f"hparams/bridge.yaml --seed {seed}, or run without one: --bridge none."
        ) from error
    if bridge.dim != dim:
        raise ValueError(
            f"The bridge {folder} takes embeddings of {bridge.dim} coordinates and "
            f"this encoder gives {dim}; train the bridge with the same --clap."
        )
    return bridge


def sweep(
    bridge: DiffusionLink,
    audio: Tensor,
    text: Tensor,
    start_steps: Iterable[int],
    step_counts: Iterable[int],
    seed: int,
    progressbar: bool = False,
) -> list[dict[str, float]]:
    """The gap on validation for every start step and number of steps.

    Arguments
    ---------
    bridge : DiffusionLink
        Its own ``start_step`` and ``steps`` are left as they are.
    audio : Tensor
        (N, d) L2-normalized validation embeddings.
    text : Tensor
        (N, d) caption 1 of each clip.
    start_steps : iterable of int
        Those beyond the bridge's ``t_max`` are left out.
    step_counts : iterable of int
        Numbers of network evaluations.
    seed : int
        Seed of the noise, the same for every row.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    rows : list of dict
        "start_step", "steps" and every criterion but ``linear_separability``, which
        the choice does not need.

    Raises
    ------
    ValueError
        If a start step is negative or a number of steps below 1.
    """
    counts = list(step_counts)
    starts = [start for start in start_steps if start <= bridge.t_max]
    if min([*starts, 0]) < 0 or min(counts) < 1:
        raise ValueError(
            f"start_steps {starts} and step_counts {counts} cannot be swept; start "
            "steps are 0 or more, step counts 1 or more."
        )
    grid = sorted({(start, n if start else 1) for start in starts for n in counts})
    rows = []
    for start, steps in tqdm(grid, "sweep", disable=not progressbar):
        trial = bridge.with_arguments(start_step=start, steps=steps)
        gap = modality_gap(cross(trial, audio, seed), text, separability=False)
        rows.append({"start_step": start, "steps": steps, **gap})
    return rows


def choose(
    rows: list[dict[str, float]], none: Mapping[str, float], keep_recall: float = 0.97
) -> dict[str, float]:
    """The lowest relative modality gap among settings that keep retrieval.

    Where none keeps ``keep_recall`` of the raw recall@1, the one with the highest
    recall@1 is taken. The rule is ours, and the same for every bridge.

    Arguments
    ---------
    rows : list of dict
        The criteria of each setting on validation; one or more.
    none : mapping of str to float
        The criteria of the raw audio embeddings on the same clips.
    keep_recall : float
        Share of ``none``'s recall@1_audio_to_text that must be kept.

    Returns
    -------
    row : dict
        The chosen one of ``rows``.
    """
    recall, gap = "recall@1_audio_to_text", "relative_modality_gap"
    kept = [row for row in rows if row[recall] >= keep_recall * none[recall]]
    if kept:
        return min(kept, key=lambda row: row[gap])
    return max(rows, key=lambda row: (row[recall], -row[gap]))


def tune(
    bridge: DiffusionLink,
    valid: Pairs,
    start_steps: Iterable[int],
    step_counts: Iterable[int],
    keep_recall: float,
    seed: int,
    progressbar: bool = False,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Sweep, choose and set the bridge's start step and number of steps.

    Only diffusion can be chosen: start steps of 50 or more with two or more network
    evaluations. Start step 0 is the regressor in disguise. Of the start step that
    ``choose`` takes, the fewest network evaluations within noise of the best.

    Arguments
    ---------
    bridge : DiffusionLink
        Gets the chosen ``start_step`` and ``steps``.
    valid : Pairs
        Validation pairs, caption 1 of each clip.
    start_steps : iterable of int
        See ``sweep``.
    step_counts : iterable of int
        See ``sweep``.
    keep_recall : float
        See ``choose``.
    seed : int
        Seed of the noise.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    rows : list of dict
        Every setting that was tried, see ``sweep``.
    none : dict
        The criteria of the raw audio embeddings.

    Raises
    ------
    ValueError
        If there is no diffusion to choose.
    """
    audio, text = valid.audio, valid.text
    rows = sweep(bridge, audio, text, start_steps, step_counts, seed, progressbar)
    diffused = [row for row in rows if row["start_step"] >= 50 and row["steps"] >= 2]
    if not diffused:
        raise ValueError(
            "No setting to choose from: give start_steps of 50 or more (not above "
            "t_max) and step_counts of 2 or more."
        )
    none = modality_gap(audio, text, separability=False)
    chosen = choose(diffused, none, keep_recall)
    bridge.start_step, bridge.steps = chosen["start_step"], chosen["steps"]
    fewer = [count for count in sorted(step_counts) if 2 <= count < bridge.steps]
    for trial in (bridge.with_arguments(steps=count) for count in fewer):
        if not _is_worse(trial, bridge, valid, seed):
            bridge.steps = trial.steps
            break
    return rows, none


def _is_worse(trial: Bridge, best: Bridge, valid: Pairs, seed: int) -> bool:
    """In relative gap or recall@1, beyond the noise of a paired bootstrap, 95 %."""
    bridged = (cross(bridge, valid.audio, seed) for bridge in (trial, best))
    difference = paired_bootstrap(*bridged, valid.text, seed=seed)
    _, low, _ = difference["relative_modality_gap"]
    _, _, high = difference["recall@1_audio_to_text"]
    return low > 0 or high < 0
