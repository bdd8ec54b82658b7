"""Scores captions with aac-metrics, as far as this machine allows.

CIDEr-D, BLEU, ROUGE-L and the vocabulary need nothing else. METEOR, SPICE, SPIDEr and
PTB tokenization need Java and their jars, FENSE its models: none of them is downloaded
here, and what cannot be computed is named with the reason.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import itertools
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "VOID_BELOW",
    "Scores",
    "cider_d",
    "clean",
    "compare",
    "plain_tokens",
    "safe_cell",
    "score",
    "write_predictions",
]

logger = logging.getLogger(__name__)

VOID_BELOW = 0.2  # a gain relative to a smaller CIDEr-D says nothing

_TOKENIZERS = {
    "plain": "plain: lower case, punctuation removed",
    "ptb": "PTB (Stanford CoreNLP, Java)",
    "none": "none: split at spaces",
}
# Of these more is not better, or not twice as good when there is twice as much.
_NO_RATIO = {"vocab", "vocab_ratio", "fer"}
_SPICE_SECONDS = 900
_CORENLP = "spice/lib/stanford-corenlp-3.6.0"
_CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
_TOKEN = re.compile(
    rf"\w+(?=n't\b)|n't\b|{_CLITIC}|\d+(?:[.,:]\d+)+|\w+(?:-\w+|(?!{_CLITIC})'\w+)*"
)
_FORMULA = re.compile(r"[=+@\t\r\n]|-(?![\w.-]*\Z)")
# Its own command does not start where torchaudio needs compat.
_DOWNLOAD = (
    'python -c "import dlink_plugin.compat, aac_metrics.download as d; '
    'd.download_metrics(bert_score=False, clap=False)"'
)


class _Unavailable(RuntimeError):
    """Why a metric cannot be computed here."""


@dataclass(frozen=True)
class Scores:
    """What ``score`` found.

    Arguments
    ---------
    corpus : dict of str to float
        By metric, over all clips.
    clips : dict of str to list of float
        By metric, one for each clip, where the metric is defined for one.
    skipped : dict of str to str
        Metrics that could not be computed, with the reason.
    tokenizer : str
        How captions were split into words, to be told with every score.
    """

    corpus: dict[str, float]
    clips: dict[str, list[float]]
    skipped: dict[str, str]
    tokenizer: str


def clean(caption: str) -> str:
    r"""A caption as it is trained on, scored and written.

    Without brackets, whose content stays: ``aac-metrics-eval`` runs a cell with
    brackets as Python. Whitespace, control characters and the like become one space.

    Arguments
    ---------
    caption : str

    Returns
    -------
    cleaned : str
        May be empty.

    Example
    -------
    >>> clean(" a [loud]\ndog (barks)")
    'a loud dog barks'
    """
    kept = (c if c.isprintable() else " " for c in caption if c not in "[]{}()")
    return " ".join("".join(kept).split())


def safe_cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet program takes for a formula.

    One that begins with = + - @, a tab or a line break gets an apostrophe before it. A
    dash before letters, digits, dots and dashes alone is left: YouTube's names begin
    so, and it computes nothing but numbers.

    Arguments
    ---------
    text : str

    Returns
    -------
    cell : str

    Example
    -------
    >>> safe_cell("=1+1"), safe_cell("- a dog"), safe_cell("-0dX_9_30.flac")
    ("'=1+1", "'- a dog", '-0dX_9_30.flac')
    """
    return f"'{text}" if _FORMULA.match(text) else text


@functools.lru_cache(maxsize=2**16)  # references are scored again with every system
def plain_tokens(caption: str) -> str:
    """The words of a caption as the PTB tokenizer finds them, without Java.

    Lower case, no punctuation. Compounds stay whole, contractions are split. This and
    PTB differ on one AudioCaps caption in two thousand, mostly at a slash.

    Arguments
    ---------
    caption : str

    Returns
    -------
    tokens : str
        Joined by spaces. Passing them again changes nothing.

    Example
    -------
    >>> plain_tokens("A dog's well-known bark - it isn't loud, is it?")
    "a dog 's well-known bark it is n't loud is it"
    """
    return " ".join(_TOKEN.findall(clean(caption).lower().replace("’", "'")))


def score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "auto",
    metrics: Iterable[str] | None = None,
) -> Scores:
    """Every metric that can be computed here, over all clips at once.

    Arguments
    ---------
    candidates : sequence of str
        One caption for each clip. All texts are passed through ``clean``.
    references : sequence of sequence of str
        What people said of the clips. References without a word are left out.
    tokenizer : str
        "plain" (``plain_tokens``), "ptb" (what published scores use), "auto" (PTB where
        Java and its jar are there, else plain), or "none" for tokenized captions.
    metrics : iterable of str, optional
        What to compute, of cider_d, bleu_1 to bleu_4, rouge_l, vocab (distinct words
        in the candidates), vocab_ratio (relative to those in all references), meteor,
        spider, spice, fense, fer and sbert_sim. Default: everything.

    Returns
    -------
    scores : Scores

    Raises
    ------
    ValueError
        If there are no candidates, not one for each clip, a clip without a reference,
        or an unknown tokenizer or metric.
    RuntimeError
        If ``tokenizer`` is "ptb" and that cannot run.
    """
    wanted = set(_NAMES if metrics is None else metrics)
    if unknown := wanted.difference(_NAMES):
        raise ValueError(f"No metric {sorted(unknown)}; choose of {', '.join(_NAMES)}.")
    _check(candidates, references)
    texts = itertools.chain(candidates, *references)
    words, tokenizer = _tokenize(texts, tokenizer)
    return _score(*_in_words(candidates, references, words), wanted, tokenizer)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D alone, with plain tokens: quick enough for every epoch.

    Arguments
    ---------
    candidates : sequence of str
        See ``score``.
    references : sequence of sequence of str
        See ``score``.

    Returns
    -------
    cider_d : float

    Raises
    ------
    ValueError
        As ``score``; also for a single clip, where CIDEr-D is undefined.

    Example
    -------
    >>> cider_d(["A dog barks.", "It rains."], [["a dog barks"], ["rain falls"]])
    3.75
    """
    found = score(candidates, references, tokenizer="plain", metrics=["cider_d"])
    if "cider_d" not in found.corpus:
        raise ValueError(found.skipped["cider_d"])
    return found.corpus["cider_d"]


def compare(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    base: str = "none",
    bridge: str,
    ceiling: str = "ceiling",
    tokenizer: str = "auto",
    metrics: Iterable[str] | None = None,
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> dict:
    """What scores.json says of several systems on the same clips.

    Arguments
    ---------
    systems : mapping of str to sequence of str
        Captions by system.
    references : sequence of sequence of str
        See ``score``.
    base : str
        The system without a bridge.
    bridge : str
        The system that is judged.
    ceiling : str
        The best that a bridge could do.
    tokenizer : str
        See ``score``.
    metrics : iterable of str, optional
        See ``score``.
    subsets : mapping of str to sequence of int, optional
        Some of the clips, by name. Metrics that are a mean over clips are given for
        these as well, as "<metric>_<name>".

    Returns
    -------
    result : dict
        "clips", "clips_of" (of each subset), "systems" (scores), "empty_captions" (how
        many), "skipped" and "tokenizer"; "relative_gain", (bridge - base) / base, and
        "recovered", (bridge - base) / (ceiling - base), by metric where the divisor is
        positive.
        Where ``base`` has a CIDEr-D below ``VOID_BELOW`` there is no relative gain, and
        "void" says why.

    Raises
    ------
    ValueError, RuntimeError
        As ``score``.
    """
    wanted = set(_NAMES if metrics is None else metrics)
    for written in systems.values():
        _check(written, references)
    texts = itertools.chain(*systems.values(), *references)
    words, tokenizer = _tokenize(texts, tokenizer)
    found = {
        name: _score(*_in_words(written, references, words), wanted, tokenizer)
        for name, written in systems.items()
    }
    subsets = {name: list(rows) for name, rows in (subsets or {}).items() if len(rows)}
    scores = {name: each.corpus | _of(subsets, each) for name, each in found.items()}
    return {
        "clips": len(references),
        "clips_of": {name: len(rows) for name, rows in subsets.items()},
        "systems": scores,
        **_ratios(scores, base, bridge, ceiling),
        "empty_captions": {
            name: sum(not clean(caption) for caption in written)
            for name, written in systems.items()
        },
        "skipped": {k: v for each in found.values() for k, v in each.skipped.items()},
        "tokenizer": tokenizer,
    }


def _of(subsets: Mapping[str, Sequence[int]], scores: Scores) -> dict[str, float]:
    """Means over some of the clips; that of BLEU would be another metric."""
    return {
        f"{metric}_{name}": math.fsum(each[row] for row in rows) / len(rows)
        for name, rows in subsets.items()
        for metric, each in scores.clips.items()
        if not metric.startswith("bleu")
    }


def _ratios(scores: Mapping, base: str, bridge: str, ceiling: str) -> dict:
    result = {"relative_gain": {}, "recovered": {}}
    if base == bridge or not {base, bridge} <= scores.keys():
        return result
    raw, best = scores[base], scores.get(ceiling, {})
    for metric in raw:
        if metric in _NO_RATIO or metric not in scores[bridge]:
            continue
        gain = scores[bridge][metric] - raw[metric]
        if raw[metric] > 0:
            result["relative_gain"][metric] = gain / raw[metric]
        if (room := best.get(metric, -math.inf) - raw[metric]) > 0:
            result["recovered"][metric] = gain / room
    if raw.get("cider_d", 0.0) < VOID_BELOW:
        reached = f"{raw['cider_d']:.3f}" if "cider_d" in raw else "undefined"
        result["relative_gain"] = {}
        result["void"] = (
            f"The CIDEr-D of '{base}' is {reached}, not {VOID_BELOW} or more: a gain "
            "relative to it says nothing."
        )
    return result


def write_predictions(
    path: str | Path,
    fnames: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> None:
    """Write captions as the CSV file that ``aac-metrics-eval`` reads.

    Columns ``fname``, ``caption_predicted``, ``caption_1`` to ``caption_K``, all texts
    passed through ``clean``. A clip with fewer references than the K of the richest has
    its own again, from the first: a blank cell would count as a reference that nothing
    matches. References without a word are left out. No cell is a formula to a
    spreadsheet program (see ``safe_cell``); scores are not affected.

    Arguments
    ---------
    path : str or Path
        The file; written in one go.
    fnames : sequence of str
        Names of N clips.
    predictions : sequence of str
        N captions.
    references : sequence of sequence of str
        Captions of the N clips.

    Raises
    ------
    ValueError
        If the lengths differ or a clip has no reference.
    """
    _check(predictions, references)
    if len(fnames) != len(predictions):
        raise ValueError(
            f"{len(fnames)} names do not fit {len(predictions)} predictions; give one "
            "for each."
        )
    path, width = Path(path), max(map(len, references))
    columns = [f"caption_{i}" for i in range(1, width + 1)]
    draft = path.with_name(f"{path.name}.partial")
    with open(draft, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["fname", "caption_predicted", *columns])
        for name, said, refs in zip(fnames, predictions, references, strict=True):
            told = itertools.cycle([clean(ref) for ref in refs if plain_tokens(ref)])
            cells = [name, clean(said), *itertools.islice(told, width)]
            rows.writerow(map(safe_cell, cells))
    draft.replace(path)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates or len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} captions do not fit {len(references)} clips; give one "
            "caption for each clip, and at least one clip."
        )
    for i, refs in enumerate(references):
        if not any(map(plain_tokens, refs)):
            raise ValueError(
                f"Clip {i} has no reference with a word in it; leave it out everywhere "
                "or give it a caption."
            )


def _tokenize(texts: Iterable[str], tokenizer: str) -> tuple[dict[str, str], str]:
    """Texts to their words joined by spaces, and what was done."""
    if tokenizer not in ("auto", *_TOKENIZERS):
        names = ", ".join(("auto", *_TOKENIZERS))
        raise ValueError(f"No tokenizer '{tokenizer}'; choose one of {names}.")
    texts = set(texts)
    if tokenizer in ("auto", "ptb"):
        try:
            return _ptb(texts), _TOKENIZERS["ptb"]
        except Exception as error:
            if tokenizer == "ptb":
                raise RuntimeError(f"No PTB tokenization: {_reason(error)}") from error
            logger.info("Plain tokenization, not PTB: %s", _reason(error))
            tokenizer = "plain"
    split = plain_tokens if tokenizer == "plain" else clean
    return {text: split(text) for text in texts}, _TOKENIZERS[tokenizer]


def _ptb(texts: Iterable[str]) -> dict[str, str]:
    folder = _folder_with("stanford_nlp/stanford-corenlp-3.4.1.jar")
    cleaned = {text: clean(text) for text in texts}
    lines = sorted(set(cleaned.values()) - {""})
    tokenize = _aac_metrics().utils.tokenization.preprocess_mono_sents
    words = dict(zip(lines, tokenize(lines, cache_path=folder), strict=True))
    return {text: words.get(line, "") for text, line in cleaned.items()}


def _in_words(candidates, references, words: Mapping[str, str]) -> tuple[list, list]:
    # ROUGE-L divides by a reference's number of words.
    kept = [[words[ref] for ref in refs if words[ref]] for refs in references]
    return [words[said] for said in candidates], kept


def _score(candidates, references, wanted: set[str], tokenizer: str) -> Scores:
    corpus, clips, skipped = {}, {}, {}
    for names, compute in _GROUPS.items():
        missing = [name for name in names if name in wanted and name not in corpus]
        if not missing:
            continue
        try:
            total, each = compute(candidates, references)
        except Exception as error:  # programs and models of others fail in many ways
            skipped |= dict.fromkeys(missing, _reason(error))
            continue
        for name in missing:
            if not math.isfinite(total[name]):
                skipped[name] = f"It came out as {float(total[name])}."
                continue
            corpus[name] = float(total[name])
            if name in each:
                clips[name] = each[name].tolist()
    skipped = {name: why for name, why in skipped.items() if name not in corpus}
    return Scores(corpus, clips, skipped, tokenizer)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"It did not end within {error.timeout} seconds and was stopped."
    kind = "" if isinstance(error, _Unavailable) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


def _aac_metrics():
    """The package, which takes seconds to import."""
    from . import compat  # noqa: F401, I001  (before aac_metrics)
    import aac_metrics.utils.tokenization

    return aac_metrics


def _cider_d(candidates, references):
    if len(candidates) < 2:
        raise _Unavailable("CIDEr-D of a single clip is undefined; score two or more.")
    return _aac_metrics().functional.cider_d(candidates, references)


def _bleu(candidates, references):
    bleu = _aac_metrics().functional.bleu
    found = bleu(candidates, references, return_1_to_n=True)
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    return [dict(zip(names, each["bleu_1_to_4"], strict=True)) for each in found]


def _rouge_l(candidates, references):
    return _aac_metrics().functional.rouge_l(candidates, references)


def _vocab(candidates, references):
    # That of aac-metrics divides by zero where no word is in common.
    said = {word for caption in candidates for word in caption.split()}
    heard = {word for refs in references for ref in refs for word in ref.split()}
    return {"vocab": len(said), "vocab_ratio": len(said) / len(heard)}, {}


def _meteor(candidates, references):
    folder = _folder_with("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz")
    meteor = _aac_metrics().functional.meteor
    return meteor(candidates, references, cache_path=folder)


def _spider(candidates, references):
    folder = _folder_with("spice/spice-1.0.jar", f"{_CORENLP}-models.jar")
    spider = _aac_metrics().functional.spider
    # It leaves its files behind where it fails, and now and then it never ends.
    with tempfile.TemporaryDirectory(dir=_default("tmp")) as scratch:
        options = {"tmp_path": scratch, "timeout": _SPICE_SECONDS}
        return spider(candidates, references, cache_path=folder, **options)


def _default(what: str) -> str:
    """Where aac-metrics has its cache, its temporary files, its Java."""
    return getattr(_aac_metrics().utils.globals, f"get_default_{what}_path")()


def _folder_with(*files: str) -> str:
    """The folder where aac-metrics will find these files, if Java is there to run."""
    if not shutil.which(_default("java")):
        raise _Unavailable(
            "Java is not there; install it or name it in AAC_METRICS_JAVA_PATH."
        )
    # aac-metrics turns away Java beyond 13, on which these programs run as well.
    _aac_metrics().utils.checks.MAX_JAVA_MAJOR_VERSION = 99
    folders = [_default("cache")]
    if package := importlib.util.find_spec("pycocoevalcap"):
        folders.append(_linked(package.submodule_search_locations[0]).name)
    for folder in map(os.path.abspath, folders):
        home = Path(folder, "aac-metrics")
        missing = [file for file in files if not (home / file).is_file()]
        if not missing:
            return folder
    in_extra = not files[0].startswith("spice")
    how = "pip install 'dlink-plugin[meteor]'" if in_extra else _DOWNLOAD
    raise _Unavailable(f"{Path(missing[0]).name} is not there; run: {how}")


@functools.cache
def _linked(package: str) -> tempfile.TemporaryDirectory:
    """The jars of pycocoevalcap as aac-metrics lays them out, while Python runs."""
    folder = tempfile.TemporaryDirectory(prefix="dlink_jars_")
    home = Path(folder.name, "aac-metrics")
    home.mkdir()
    for name, part in (("meteor", "meteor"), ("stanford_nlp", "tokenizer")):
        source = Path(package, part).absolute()
        try:
            (home / name).symlink_to(source, target_is_directory=True)
        except OSError:  # not allowed on every system
            shutil.copytree(source, home / name)
    return folder


def _fense(candidates, references):
    fense = _aac_metrics().functional.fense
    models = {"echecker": _fluency_model(), "sbert_model": _sentence_model()}
    return fense(candidates, references, **models)


def _sbert_sim(candidates, references):
    sbert_sim = _aac_metrics().functional.sbert_sim
    return sbert_sim(candidates, references, sbert_model=_sentence_model())


def _sentence_model():
    _aac_metrics()  # with compat, which sentence_transformers needs as well
    from sentence_transformers import SentenceTransformer

    repo = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
    return SentenceTransformer(_snapshot(repo, "modules.json"))


def _fluency_model():
    import torch

    _aac_metrics()
    from aac_metrics.functional.fer import DEFAULT_FER_MODEL, BERTFlatClassifier

    folder = os.environ.get("FENSE_DATA", f"{torch.hub.get_dir()}/fense_data")
    path = Path(folder, f"{DEFAULT_FER_MODEL}.ckpt").expanduser()
    if not path.is_file():
        raise _Unavailable(f"{path.name} is not there; run: {_DOWNLOAD}")
    # aac-metrics would ask the hub for the model's shape.
    saved = torch.load(path, map_location="cpu")
    encoder = _snapshot(saved["model_type"], "config.json")
    model = BERTFlatClassifier(encoder, saved["num_classes"])
    saved["state_dict"].pop("encoder.embeddings.position_ids", None)
    model.load_state_dict(saved["state_dict"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _snapshot(repo: str, file: str) -> str:
    """Folder of a model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    if not isinstance(found, str):
        raise _Unavailable(f"{repo} was not downloaded yet; run: {_DOWNLOAD}")
    return str(Path(found).parent)


_GROUPS = {
    ("cider_d",): _cider_d,
    ("bleu_1", "bleu_2", "bleu_3", "bleu_4"): _bleu,
    ("rouge_l",): _rouge_l,
    ("vocab", "vocab_ratio"): _vocab,
    ("meteor",): _meteor,
    ("spice", "spider"): _spider,
    ("fense", "fer", "sbert_sim"): _fense,
    ("sbert_sim",): _sbert_sim,  # where only the model for fluency is missing
}
_NAMES = tuple(dict.fromkeys(itertools.chain(*_GROUPS)))
