"""One change at a time: what each part of Diffusion-Link and of its recipe is for."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from .bridges import Bridge
from .comparison import train_alone
from .decoder import PrefixDecoder
from .embeddings import Embeddings
from .gap import modality_gap
from .judge import cross
from .mini.corpus import subsets
from .reading import read_json
from .report import write_json
from .scoring import compare
from .splits import Split
from .standings import Run, summarize

__all__ = ["PLAIN", "ablate_once", "check_variants", "few_pairs", "rows_of"]

logger = logging.getLogger(__name__)

PLAIN = "diffusion_link_variant"
_OWN = ("bridge", "pairs")  # keys of a variant that are no arguments


def check_variants(variants: Mapping[str, Mapping], hparams: Mapping) -> None:
    """Find what no training could use, before the first one.

    Arguments
    ---------
    variants : mapping of str to mapping
        By the name of its row: "bridge" (which one, else Diffusion-Link), "pairs" (how
        many clips to train on), and what else differs: constructor arguments of the
        bridge or training knobs of the YAML file.
    hparams : mapping
        Of the YAML file.

    Raises
    ------
    ValueError
        If a variant names a bridge, an argument or a knob that does not exist.

    Example
    -------
    >>> check_variants({"narrow": {"expansion": 1}, "fast": {"lr": 0.1}}, {"lr": 0.001})
    """
    for name, variant in variants.items():
        bridge = variant.get("bridge", PLAIN)
        if bridge not in Bridge.registry:
            raise ValueError(
                f"variants: {name!r} names the bridge {bridge!r}; choose one of "
                f"{', '.join(Bridge.registry)}."
            )
        known = {*_OWN, *Bridge.registry[bridge].arguments(), *hparams}
        if strange := sorted(set(variant) - known):
            raise ValueError(
                f"variants: {name!r} changes {', '.join(strange)}, which is neither an "
                f"argument of {bridge} nor a value of the YAML file."
            )


def few_pairs(variants: Mapping[str, Mapping], clips: int) -> dict[str, dict[int, str]]:
    """Rows that differ in the number of training clips alone.

    Arguments
    ---------
    variants : mapping of str to mapping
        See ``check_variants``.
    clips : int
        How many there are: rows with all of them belong to each curve.

    Returns
    -------
    rows : dict of str to dict
        Bridge to number of clips to the row's name, for bridges with several.

    Example
    -------
    >>> few_pairs(
    ...     {"default": {}, "400": {"pairs": 400}, "wide": {"expansion": 8}}, 1500
    ... )
    {'diffusion_link': {1500: 'default', 400: '400'}}
    """
    curves: dict[str, dict[int, str]] = {}
    for name, variant in variants.items():
        if set(variant) <= set(_OWN):
            bridge = variant.get("bridge", PLAIN).removesuffix("_variant")
            curves.setdefault(bridge, {})[variant.get("pairs", clips)] = name
    return {bridge: of for bridge, of in curves.items() if len(of) > 1}


def ablate_once(
    variants: Mapping[str, Mapping],
    hparams: Mapping,
    run_opts,
    data: Mapping[str, Embeddings],
    split: Split,
    texts: Tensor,
    decoder: PrefixDecoder,
    folder: str | Path,
) -> Run:
    """Train and judge every variant with one seed.

    One that fails has no row, but a reason; the others are not affected.

    Arguments
    ---------
    variants : mapping of str to mapping
        See ``check_variants``.
    hparams : mapping
        What ``train_bridge`` needs, ``seed``, ``steps_per_epoch``, ``generation``,
        ``network`` (constructor arguments of every bridge that takes them) and
        ``inference`` (the same, of those that may change after training).
    run_opts : RunOptions
        SpeechBrain's.
    data : mapping of str to Embeddings
        The splits "val" and "test", to caption.
    split : Split
        The same corpus, to train, validate and test on.
    texts : Tensor
        (M, d) texts without audio, for variants that take some.
    decoder : PrefixDecoder
        Trained on text alone; writes all captions.
    folder : str or Path
        Gets a folder for each training.

    Returns
    -------
    run : Run
        Criteria on test; those on validation begin with "valid_".
    """
    run = Run(hparams["seed"])
    made = {"generation": dict(hparams["generation"]), "decoder": _digest(decoder)}
    judge = partial(_judge, decoder=decoder, hparams=hparams, data=data, split=split)
    for name, variant in variants.items():
        try:
            plan = _plan(variant, hparams)
            known = _Known(Path(folder) / "rows" / f"{_slug(name)}.json", plan | made)
            if known.criteria is None:
                bridge = _train(plan, hparams, run_opts, split, texts, Path(folder))
                audio = [cross(bridge, side, run.seed) for side in _audio(split)]
                known.keep(judge(*audio))
            run.criteria[name] = known.criteria
        except Exception as error:  # whatever it is, it takes no other variant along
            logger.exception("%s failed", name)
            run.errors[name] = f"{type(error).__name__}: {error}"
    if split.second is not None:
        second = data["val"].text[data["val"].second_text]
        run.criteria["ceiling"] = judge(second, split.second)
    return run


def rows_of(runs: Sequence[Run], variants: Mapping[str, Mapping]) -> dict[str, dict]:
    """The rows of ablation.json, from one run of each seed; see ``summarize``."""
    rows = {k: row for k, row in summarize(runs).items() if k != "chance"}
    for name, variant in variants.items():
        rows[name]["saw"] = Bridge.registry[variant.get("bridge", PLAIN)].saw
    return rows


def _plan(variant: Mapping, hparams: Mapping) -> dict:
    """What a variant comes to: a bridge, its arguments, training knobs, pairs."""
    name = variant.get("bridge", PLAIN)
    takes = Bridge.registry[name].arguments()
    given = hparams["network"] | hparams["inference"] | variant
    return {
        "bridge": name,
        "arguments": {k: v for k, v in given.items() if k in takes},
        "knobs": {k: v for k, v in variant.items() if k in hparams and k not in takes},
        "pairs": variant.get("pairs"),
    }


def _train(
    plan: Mapping, hparams: Mapping, run_opts, split: Split, texts, folder: Path
) -> Bridge:
    kind, arguments = Bridge.registry[plan["bridge"]], plan["arguments"]
    if plan["pairs"]:
        train = split.train.subset(plan["pairs"], hparams["seed"])
        split = replace(split, train=train)

    def build(dim: int) -> Bridge:
        bridge = kind(dim=dim, **arguments)
        bridge.texts = texts
        return bridge

    # Variants that differ only in how the bridge is crossed share one training.
    later = {k: v for k, v in arguments.items() if k in kind.inference_arguments}
    fixed = {k: v for k, v in arguments.items() if k not in later}
    key = json.dumps([plan["bridge"], fixed, plan["knobs"], plan["pairs"]])
    path = folder / f"{kind.name}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    knobs = {**hparams, **plan["knobs"]}
    return train_alone(build, knobs, run_opts, split, path).with_arguments(**later)


class _Known:
    """The criteria of a row in a file, so that a stopped run need not judge again.

    Arguments
    ---------
    path : Path
        Of the file.
    made_from : mapping
        Plain values; a file made from others is not used.
    """

    def __init__(self, path: Path, made_from: Mapping):
        self.path, self.made_from = path, json.loads(json.dumps(made_from))
        found = read_json(path, "delete it") if path.exists() else {}
        same = found.get("made_from") == self.made_from
        self.criteria = found.get("criteria") if same else None

    def keep(self, criteria: dict[str, float]) -> None:
        """Write them down."""
        self.criteria = criteria
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"made_from": self.made_from, "criteria": criteria})


def _digest(decoder: PrefixDecoder) -> str:
    digest = hashlib.sha256()
    for tensor in decoder.learned_state().values():
        digest.update(tensor.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name)


def _audio(split: Split) -> tuple[Tensor, Tensor]:
    return split.valid[:][0], split.test[:][0]


def _judge(
    valid: Tensor,
    test: Tensor,
    *,
    decoder: PrefixDecoder,
    hparams: Mapping,
    data: Mapping[str, Embeddings],
    split: Split,
) -> dict[str, float]:
    """Criteria and CIDEr-D of what stands for the validation and the test clips."""
    seed = hparams["seed"]
    rows = modality_gap(test, split.test[:][1], seed=seed)
    before = modality_gap(valid, split.valid[:][1], separability=False)
    rows |= {f"valid_{key}": value for key, value in before.items()}
    for prefix, embedded, clips in (
        ("valid_", valid, data["val"].clips),
        ("", test, data["test"].clips),
    ):
        written = decoder.generate(embedded, **hparams["generation"])
        harder = subsets([clip.path for clip in clips])
        scores = compare(
            {"it": written},
            [clip.captions for clip in clips],
            bridge="it",
            tokenizer="plain",
            metrics=["cider_d"],
            subsets=harder,
        )["systems"]["it"]
        rows |= {f"{prefix}{key}": value for key, value in scores.items()}
    return rows
