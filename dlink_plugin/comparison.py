"""Bridges side by side: the same pairs, seeds and budget, and one rule that chooses."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from .brains import train_bridge, train_decoder
from .bridges import Bridge, Identity
from .embeddings import Embeddings
from .gap import migration_criteria, modality_gap
from .judge import choose, cross
from .reading import read_json
from .report import write_json
from .scoring import cider_d
from .splits import Split
from .standings import Run, mapped_back
from .tasks import decoder_task

__all__ = [
    "add_captions",
    "check_names",
    "claim",
    "compare_once",
    "train_alone",
    "train_contender",
]

logger = logging.getLogger(__name__)

# Keys of a decoder's YAML file that say where, not what.
_PLACES = ("output_folder", "train_log", "cache_folder", "bridge", "num_workers")

CONTROLS = ("shuffled", "ceiling")


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
    names = [names] if isinstance(names, str) else names
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
    _claim(Path(folder) / "made_from.json", made_from)


def _claim(path: Path, made_from: Mapping) -> None:
    before = _first(path, dict(made_from))
    other = [key for key in made_from if made_from[key] != before.get(key)]
    if other:
        raise ValueError(
            f"{path.parent} holds what was trained with another "
            f"{' and '.join(other)}; give another --output_folder or delete it."
        )


def _first(path: Path, content: dict) -> dict:
    """What was written there first: the content, unless a file is there already."""
    if not if_main_process():
        return content
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return read_json(path, "give another --output_folder or delete it")


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
            trained[key] = train_alone(
                build, hparams, run_opts, split, Path(folder) / key
            )
        tried.append((trained[key].with_arguments(**later), dict(setting)))
    if len(tried) == 1:
        return tried[0]
    audio, text = split.valid[:]
    raw = modality_gap(audio, text, separability=False)
    rows = [
        modality_gap(
            cross(bridge, audio, seed), bridge.text_space(text), separability=False
        )
        for bridge, _ in tried
    ]
    return tried[rows.index(choose(rows, raw, hparams["keep_recall"]))]


def train_alone(
    build: Callable[..., Bridge],
    hparams: Mapping,
    run_opts,
    split: Split,
    folder: Path,
) -> Bridge:
    """Train one bridge in one setting.

    Arguments
    ---------
    build : callable
        Makes it, given ``dim``.
    hparams : mapping
        What ``train_bridge`` needs, and ``steps_per_epoch``.
    run_opts : RunOptions
        SpeechBrain's.
    split : Split
        Of which the test is not looked at.
    folder : Path
        Where checkpoints and TensorBoard events go; an earlier run there is resumed.

    Returns
    -------
    bridge : Bridge
        In eval mode.
    """
    # As many steps whatever the number of pairs: a few hundred need many passes.
    clips = len(split.train.audio)
    batches = max(1, clips // min(hparams["batch_size"], clips))
    passes = max(1, round(hparams["steps_per_epoch"] / batches))
    changes = {"bridge": build, "passes_per_epoch": passes}
    changes["run_name"] = "/".join(folder.parts[-3:])
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
    took = {"seconds": time.perf_counter() - start}
    seconds = _first(folder / "seconds.json", took)["seconds"]
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
    plain_values = {
        k: v for k, v in hparams.items() if isinstance(v, (int, float, str))
    }
    knobs = {k: v for k, v in plain_values.items() if k not in _PLACES}
    _claim(Path(folder) / "decoders_made_from.json", knobs | {"texts": len(texts)})
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
