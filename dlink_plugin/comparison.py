"""Bridges side by side: the same pairs, seeds and budget, and one rule that chooses."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import numpy as np
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from .brains import train_bridge, train_decoder
from .bridges import Bridge, Identity
from .embeddings import Embeddings
from .gap import (
    CRITERIA,
    HIGHER_IS_BETTER,
    interval,
    migration_criteria,
    modality_gap,
    resampled_criteria,
)
from .judge import choose, cross
from .scoring import cider_d
from .splits import Split
from .tasks import decoder_task

__all__ = [
    "Run",
    "add_captions",
    "check_names",
    "claim",
    "compare_once",
    "mapped_back",
    "rivals",
    "summarize",
    "train_contender",
]

logger = logging.getLogger(__name__)

CONTROLS = ("shuffled", "ceiling")

# What Diffusion-Link is held against, in the spaces they are judged in.
RIVALS = (
    "diffusion_bridge",
    "diffusion_bridge_mapped_back",
    "diffusion_prior",
    "diffgap",
    "rectified_flow",
)
_HELD = (
    "paired_cosine",
    "centroid_distance",
    "relative_modality_gap",
    "frechet_distance",
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


def check_names(names: Sequence[str], settings: Mapping[str, Sequence]) -> list[str]:
    """The bridges to compare, once each is known to exist; "shuffled" comes after.

    Arguments
    ---------
    names : sequence of str
        As the user gave them.
    settings : mapping of str to sequence
        Those to try, by bridge.

    Returns
    -------
    names : list of str
        Each once, controls last.

    Raises
    ------
    ValueError
        If a name is unknown or has no settings.

    Example
    -------
    >>> check_names(["shuffled", "mlp", "none"], {"none": [{}], "mlp": [{}]})
    ['mlp', 'none', 'shuffled']
    """
    known = [name for name in settings if name in Bridge.registry and settings[name]]
    known += CONTROLS
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"--bridges names {', '.join(map(repr, strange))}; choose from "
            f"{', '.join(known)}, each with one of its settings in the YAML file."
        )
    return sorted(dict.fromkeys(names), key=lambda name: name in CONTROLS)


def claim(folder: str | Path, hparams: Mapping, split: Split) -> None:
    """Make sure that what is in a run folder was trained on the same, and alike.

    Arguments
    ---------
    folder : str or Path
        Where the runs' checkpoints are, or will be.
    hparams : mapping
        Whose training knobs count; which bridges and settings are compared does not.
    split : Split
        Whose training pairs count.

    Raises
    ------
    ValueError
        If they are others than before: checkpoints would be taken for what they are
        not.
    """
    knobs = ("network", "number_of_epochs", "steps_per_epoch", "batch_size", "lr",
             "warmup_share", "ema_decay", "max_grad_norm")  # fmt: skip
    made_from = {key: hparams[key] for key in knobs}
    digest = hashlib.sha256()
    for rows in (split.train.audio, split.train.text, split.valid.text):
        digest.update(rows.cpu().numpy().tobytes())
    made_from["data"] = digest.hexdigest()
    before = _first(Path(folder) / "made_from.json", made_from)
    other = [key for key in made_from if made_from[key] != before.get(key)]
    if other:
        raise ValueError(
            f"{folder} holds bridges that were trained with another "
            f"{' and '.join(other)}; give another --output_folder or delete it."
        )


def _first(path: Path, content):
    """What was written there first: the content, unless a file is there already."""
    if not if_main_process():
        return content
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def train_contender(
    name: str,
    settings: Sequence[Mapping],
    hparams: Mapping,
    run_opts,
    split: Split,
    folder: str | Path,
) -> tuple[Bridge, dict]:
    """Train one bridge in all its settings and choose one on validation.

    Settings that differ only in how the bridge is crossed share one training.

    Arguments
    ---------
    name : str
        Of a bridge in ``Bridge.registry``.
    settings : sequence of mapping
        Constructor arguments to try.
    hparams : mapping
        What ``train_bridge`` needs, ``network`` (constructor arguments of every bridge
        that takes them), ``steps_per_epoch`` and ``keep_recall``.
    run_opts : RunOptions
        SpeechBrain's.
    split : Split
        Of which the test is not looked at.
    folder : str or Path
        Gets a run folder for each training.

    Returns
    -------
    bridge : Bridge
        The chosen one.
    setting : dict
        Its setting.
    """
    kind, seed = Bridge.registry[name], hparams["seed"]
    common = {k: v for k, v in hparams["network"].items() if k in kind.arguments()}
    trained, tried = {}, []
    for setting in settings:
        later = {k: v for k, v in setting.items() if k in kind.inference_arguments}
        fixed = {k: v for k, v in setting.items() if k not in later}
        key = ",".join(f"{k}={v}" for k, v in fixed.items()) or "default"
        if key not in trained:
            build = partial(kind, **common | fixed)
            trained[key] = _train(build, hparams, run_opts, split, Path(folder) / key)
        tried.append((dict(setting), trained[key].with_arguments(**later)))
    if len(tried) == 1:
        return tried[0][::-1]
    audio, text = split.valid[:]
    raw = modality_gap(audio, text, separability=False)
    rows = [
        modality_gap(
            cross(bridge, audio, seed), bridge.text_space(text), separability=False
        )
        for _, bridge in tried
    ]
    best = rows.index(choose(rows, raw, hparams["keep_recall"]))
    return tried[best][::-1]


def _train(build, hparams: Mapping, run_opts, split: Split, folder: Path) -> Bridge:
    # As many steps whatever the number of pairs: a few hundred need many passes.
    clips = len(split.train.audio)
    batches = max(1, clips // min(hparams["batch_size"], clips))
    passes = max(1, round(hparams["steps_per_epoch"] / batches))
    changes = {"bridge": build, "passes_per_epoch": passes}
    brain = train_bridge(
        {**hparams, **changes}, run_opts, split.train, split.valid, folder
    )
    bridge = brain.load_best()
    brain.close_writer()
    return bridge


def compare_once(
    names: Sequence[str],
    hparams: Mapping,
    run_opts,
    split: Split,
    folder: str | Path,
    fold: int = 0,
) -> Run:
    """Train, choose and judge bridges with one seed.

    A bridge that fails has no row, but a reason; the others are not affected.

    Arguments
    ---------
    names : sequence of str
        Bridges of ``settings``, and the controls "shuffled" and "ceiling".
    hparams : mapping
        What ``train_contender`` needs, ``seed``, and ``settings``: those to try, by
        bridge.
    run_opts : RunOptions
        SpeechBrain's.
    split : Split
        What to train, choose and test on.
    folder : str or Path
        Gets a folder for each bridge, with the chosen one exported in ``bridge``.
    fold : int
        Which of several splits it is.

    Returns
    -------
    run : Run
    """
    run = Run(hparams["seed"], fold)
    for name in names:
        try:
            if name == "ceiling":
                _judge_ceiling(run, split)
            else:
                _contend(run, name, hparams, run_opts, split, Path(folder) / name)
        except Exception as error:  # whatever it is, it takes no other bridge along
            logger.exception("%s failed", name)
            run.errors[name] = f"{type(error).__name__}: {error}"
    return run


def _contend(
    run: Run, name: str, hparams: Mapping, run_opts, split: Split, folder: Path
) -> None:
    kind, data = name, split
    if name == "shuffled":  # the same bridge in the same setting, on shuffled pairs
        kind, train = "diffusion_link", split.train.shuffled(run.seed)
        data = replace(split, train=train)
    settings = hparams["settings"][kind]
    if kind in run.chosen:
        settings = [run.chosen[kind]]
    start = time.perf_counter()
    bridge, chosen = train_contender(kind, settings, hparams, run_opts, data, folder)
    # Of the training, not of finding its checkpoints when the recipe runs again.
    seconds = _first(folder / "seconds.json", time.perf_counter() - start)
    if if_main_process():
        bridge.save_pretrained(folder / "bridge")
    _judge(run, name, bridge, *split.test[:])
    run.bridges[name], run.chosen[name], run.seconds[name] = bridge, chosen, seconds


def _judge(run: Run, name: str, bridge: Bridge, audio: Tensor, text: Tensor) -> None:
    bridged = cross(bridge, audio, run.seed)
    moved = bridge.encoder_space(bridged)
    rows = {name: (bridged, bridge.text_space(text))}
    if bridge.own_text_space:
        rows[mapped_back(name)] = moved, text
    gaps = {row: modality_gap(*pair, seed=run.seed) for row, pair in rows.items()}
    # Where a clip went can only be told in the space that it came from: the last row.
    gaps[[*rows][-1]] |= migration_criteria(audio, moved, text)
    run.spaces |= rows
    run.criteria |= gaps
    run.moved[name] = moved


def _judge_ceiling(run: Run, split: Split) -> None:
    if split.second is None:
        return
    text = split.test.text
    run.spaces["ceiling"] = split.second, text
    run.criteria["ceiling"] = modality_gap(split.second, text, seed=run.seed)


def add_captions(
    run: Run,
    hparams: Mapping,
    run_opts,
    folder: str | Path,
    texts: Sequence[str],
    embedded: Tensor,
    data: Mapping[str, Embeddings],
) -> None:
    """Caption the test clips through every bridge, and add CIDEr-D to the criteria.

    One decoder is trained on text alone and reads all bridges; those with noise or a
    text space of their own get one that is trained on that.

    Arguments
    ---------
    run : Run
        Gets "cider_d" in each row.
    hparams : mapping
        Of ``zero_shot.yaml``.
    run_opts : RunOptions
        SpeechBrain's.
    folder : str or Path
        Gets a folder for each decoder.
    texts : sequence of str
        M captions to train on.
    embedded : Tensor
        (M, d) their embeddings.
    data : mapping of str to Embeddings
        The splits "val" and "test".
    """
    plain = Identity(embedded.shape[1]).to(embedded.device)
    readers: dict[str, tuple[Bridge, list[str]]] = {}
    for name in run.spaces:
        bridge = run.bridges.get(name, plain)
        readers.setdefault(bridge.reading, (bridge, []))[1].append(name)
    references = [clip.captions for clip in data["test"].clips]
    for reading, (bridge, names) in readers.items():
        task = decoder_task(bridge, texts, embedded, data["val"])
        brain = train_decoder(hparams, run_opts, folder, task, f"decoder_{reading}")
        decoder = brain.load_best()
        brain.close_writer()
        for name in names:
            rows = run.spaces[name][0]
            written = decoder.generate(rows, **hparams["generation"])
            run.criteria[name]["cider_d"] = cider_d(written, references)


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
        rows[name] = {key: _mean_and_std([t[key] for t in tables]) for key in shared}
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


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": spread}


def _chance(sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    recalls = [key for key in CRITERIA if key.startswith("recall@")]
    k = {key: int(key.split("@")[1].split("_")[0]) for key in recalls}
    return {key: _mean_and_std([min(1, k[key] / n) for n in sizes]) for key in recalls}


def rivals(runs: Sequence[Run], draws: int) -> dict[str, dict[str, dict]]:
    """Diffusion-Link held against the other diffusion bridges, by paired bootstrap.

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
