"""The cache of CLAP embeddings: each clip and each caption is encoded once.

A folder ``<corpus>-<split>-<encoder fingerprint>`` holds shards of some hundred clips
(safetensors with checksums) and, once all of them are there, ``index.json``, which says
what they were made from. Every file appears under its name only when it is complete, so
a run that is killed loses at most the shard it was working on; of two runs that need
the same cache one writes it and the other waits.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import numpy as np
import torch
from speechbrain.utils.distributed import run_on_main
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .audio import BadAudio, load_audio
from .bridges.sealed import DRAFT, whole
from .corpora import Clip, Corpus, load_corpus
from .encoders import FrontEnd, FrozenEncoder
from .extra import load_extra
from .files import alone, load_tensors, save_tensors
from .mini.corpus import prepare
from .pairs import Pairs
from .reading import read_json

logger = logging.getLogger(__name__)

INDEX = "index.json"
ADVICE = "run once with --rebuild_cache True or give another cache folder."
# What a cache must have in common with the run that opens it, and what to call it.
IDENTITY = {
    "format": "cache format",
    "corpus": "corpus",
    "split": "split",
    "dim": "embedding dimension",
    "fingerprint": "encoder (its fingerprint)",
    "clip_count": "number of clips",
    "clip_list": "clip list (file names, captions, file sizes)",
}


@dataclass(frozen=True)
class Embeddings:
    """A split as CLAP sees it: N clips, M captions.

    Arguments
    ---------
    audio : torch.Tensor
        Shape (N, d), rows of length 1.
    text : torch.Tensor
        Shape (M, d), rows of length 1; the captions of clip 0, then of clip 1, ...
    clip_of_text : torch.Tensor
        Shape (M,), int64: the row of ``audio`` that a caption belongs to.
    clips : tuple of Clip
        The N clips.
    skipped : tuple of dict
        "fname" and "reason" of every clip whose audio is unusable.
    rows_without_audio : int
        Caption rows whose recording is not on disk.
    title : str
        What to call the split above a table.

    Example
    -------
    >>> pair = (Clip("a", "a.wav", ("rain", "wind")), Clip("b", "b.wav", ("a dog", "")))
    >>> owner = torch.tensor([0, 0, 1, 1])
    >>> data = Embeddings(torch.eye(2), torch.ones(4, 2), owner, pair, (), 0)
    >>> data.first_text, data.second_text
    (tensor([0, 2]), tensor([1, 3]))
    """

    audio: torch.Tensor
    text: torch.Tensor
    clip_of_text: torch.Tensor
    clips: tuple[Clip, ...]
    skipped: tuple[dict, ...]
    rows_without_audio: int
    title: str = ""

    @property
    def first_text(self) -> torch.Tensor:
        """Row of ``text`` that holds caption 1 of each clip: (N,), int64."""
        counts = torch.bincount(self.clip_of_text, minlength=len(self.clips))
        return counts.cumsum(0) - counts

    @property
    def second_text(self) -> torch.Tensor | None:
        """Row of caption 2 of each clip, (N,); None where a clip has only one."""
        if any(len(clip.captions) < 2 for clip in self.clips):
            return None
        return self.first_text + 1

    @property
    def pairs(self) -> Pairs:
        """Every caption with its clip, for training."""
        return Pairs(self.audio, self.text, self.clip_of_text)

    @property
    def first_pairs(self) -> Pairs:
        """Every clip with its caption 1, which all criteria are measured on."""
        rows = torch.arange(len(self.audio))
        return Pairs(self.audio, self.text[self.first_text], rows)

    def captions_of(self, clip: int) -> tuple[str, ...]:
        """The captions of the clip in one row of ``audio``."""
        return self.clips[clip].captions

    def to(self, device: str | torch.device) -> Embeddings:
        """The same on another device."""
        moved = {
            k: getattr(self, k).to(device) for k in ("audio", "text", "clip_of_text")
        }
        return replace(self, **moved)


def embed_corpus(
    corpus: Corpus,
    encoder: FrozenEncoder,
    cache_folder: str | Path,
    *,
    batch_size: int = 32,
    shard_size: int = 512,
    num_workers: int | None = None,
    strict: bool = False,
    rebuild: bool = False,
    progressbar: bool = True,
) -> Embeddings:
    """Embed a split, or read what was embedded before.

    Under torchrun all ranks call this; rank r of W encodes shards r, r + W, ...

    Arguments
    ---------
    corpus : Corpus
        From :func:`~dlink_plugin.corpora.load_corpus`.
    encoder : FrozenEncoder
        Its device does the encoding.
    cache_folder : str or Path
        Gets one folder for each corpus, split and encoder.
    batch_size : int
        Clips that are encoded together.
    shard_size : int
        Clips in one file.
    num_workers : int, optional
        Processes that decode audio and compute features while the model runs; None for
        one on each core, eight at most.
    strict : bool
        Whether an unusable file is an error instead of being skipped.
    rebuild : bool
        Whether to encode again whatever is there.
    progressbar : bool
        Whether to show progress (main process only).

    Returns
    -------
    embeddings : Embeddings
        On the CPU, memory-mapped when they are one shard.

    Raises
    ------
    ValueError
        If the cache was made from something else, is damaged, holds no clip; with
        ``strict``, if a clip is unusable.
    """
    name = f"{corpus.name}-{corpus.split}-{encoder.fingerprint[:12]}"
    folder = Path(cache_folder).expanduser() / name
    identity = _identity(corpus, encoder)
    if rebuild or not _is_there(folder / INDEX):
        with _alone(folder):
            if rebuild:
                _clear(folder)
            if not _is_there(folder / INDEX):  # nobody wrote it while this one waited
                options = batch_size, num_workers, strict, progressbar
                _write(folder, identity, corpus, encoder, shard_size, options)
    return _read(folder, identity, corpus, strict)


def embed_splits(
    hparams: Mapping,
    encoder: FrozenEncoder,
    splits: Sequence[str] = ("train", "val", "test"),
) -> dict[str, Embeddings]:
    """The splits a recipe's YAML file names, embedded and on the encoder's device.

    Arguments
    ---------
    hparams : mapping
        ``corpus``, ``data_folder``, ``cache_folder``, ``strict``, ``rebuild_cache``,
        ``encoding_batch_size`` and ``num_workers``.
    encoder : FrozenEncoder
        From ``load_encoder``.
    splits : sequence of str
        Of "train", "val", "test".

    Returns
    -------
    embeddings : dict of str to Embeddings
        By split.
    """
    data_folder, cache = hparams["data_folder"], Path(hparams["cache_folder"])
    if data_folder == "mini":  # one process writes it, the others wait
        run_on_main(prepare, [hparams["corpus"], cache])
        home = "mini"
    else:  # trees of one name may differ, so each has a cache of its own
        home = _digest(str(Path(data_folder).expanduser().resolve()))[:8]
    read = functools.partial(
        load_corpus,
        hparams["corpus"],
        data_folder,
        cache_folder=cache,
        strict=hparams["strict"],
    )
    return {split: _embed(hparams, encoder, read(split), home) for split in splits}


def embed_extra(
    hparams: Mapping, encoder: FrozenEncoder, held_out: Sequence[Embeddings]
) -> dict[str, Embeddings]:
    """The further recordings that a recipe's YAML file names, to train on.

    Arguments
    ---------
    hparams : mapping
        As for ``embed_splits``, and ``extra_pairs``: what ``load_extra`` takes, one or
        a list.
    encoder : FrozenEncoder
        From ``load_encoder``.
    held_out : sequence of Embeddings
        Splits whose files must not be among them.

    Returns
    -------
    embeddings : dict of str to Embeddings
        By source.

    Raises
    ------
    ValueError
        If a file is in a split that is held out.
    """
    sources, found = hparams["extra_pairs"], {}
    if not sources:
        return found
    forbidden = {os.path.realpath(c.path) for split in held_out for c in split.clips}
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        corpus = load_extra(source, hparams["data_folder"], strict=hparams["strict"])
        both = [c.path for c in corpus.clips if os.path.realpath(c.path) in forbidden]
        if both:
            raise ValueError(
                f"{source} has {len(both)} recordings of the validation or test split, "
                f"the first of them {both[0]}; take them out."
            )
        # A table that has changed gets another cache.
        home = _digest([[clip.path, clip.captions] for clip in corpus.clips])[:8]
        found[str(source)] = _embed(hparams, encoder, corpus, home)
    return found


def _embed(hparams: Mapping, encoder, corpus: Corpus, home: str) -> Embeddings:
    return embed_corpus(
        corpus,
        encoder,
        Path(hparams["cache_folder"], "embeddings", home),
        batch_size=hparams["encoding_batch_size"],
        num_workers=hparams["num_workers"],
        strict=hparams["strict"],
        rebuild=hparams["rebuild_cache"],
    ).to(encoder.device)


def embed_texts(
    texts: Sequence[str],
    encoder: FrozenEncoder,
    cache_folder: str | Path,
    *,
    progressbar: bool = True,
) -> torch.Tensor:
    """Embed captions that have no audio, or read what was embedded before.

    Under torchrun all ranks call this, and each encodes its share.

    Arguments
    ---------
    texts : sequence of str
        M captions.
    encoder : FrozenEncoder
        Its device does the encoding.
    cache_folder : str or Path
        Gets one file for these texts and this encoder.
    progressbar : bool
        Whether to show progress (main process only).

    Returns
    -------
    text : torch.Tensor
        (M, d) rows of length 1, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    folder = Path(cache_folder).expanduser() / "texts"
    key = f"{encoder.fingerprint[:12]}-{_digest(list(texts))[:12]}"
    path = folder / f"{key}.safetensors"
    if not _is_there(path):
        with _alone(folder):
            if not _is_there(path):
                _encode_texts(texts, encoder, path, not progressbar or _rank() > 0)
    try:
        rows = load_tensors(path)[0]["text"]
        _check_rows(rows, len(texts), encoder.dim)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"The embedded captions {path} cannot be read ({error}); delete the file."
        ) from error
    return rows


def _encode_texts(
    texts: Sequence[str], encoder: FrozenEncoder, path: Path, hidden: bool
) -> None:
    """Each rank writes its part of the rows; the first joins the parts."""
    names = [f"{DRAFT}{path.stem}-{rank}of{_world()}" for rank in range(_world())]
    parts = [path.with_name(name) for name in names]
    bounds = np.linspace(0, len(texts), _world() + 1).astype(int)
    mine = texts[bounds[_rank()] : bounds[_rank() + 1]]
    chunks = [mine[i : i + 1024] for i in range(0, len(mine), 1024)]
    bar = tqdm(chunks, "encoding captions", disable=hidden)
    rows = [encoder.encode_text(chunk).cpu() for chunk in bar]
    rows = torch.cat([torch.empty(0, encoder.dim), *rows])
    save_tensors(parts[_rank()], {"text": rows})
    _barrier()
    if _rank() == 0:
        rows = torch.cat([load_tensors(part)[0]["text"] for part in parts])
        save_tensors(path, {"text": rows})
        for part in parts:
            part.unlink()
    _barrier()


def _identity(corpus: Corpus, encoder: FrozenEncoder) -> dict:
    clips = [[c.fname, c.captions, _file_size(c.path)] for c in corpus.clips]
    return {
        "format": 2,  # 1 had no checksums
        "corpus": corpus.name,
        "split": corpus.split,
        "dim": encoder.dim,
        "fingerprint": encoder.fingerprint,
        "clip_count": len(clips),
        "clip_list": _digest(clips),
    }


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a dangling link; decoding will name it
        return -1


def _write(folder, identity, corpus, encoder, shard_size: int, options) -> None:
    """Each rank encodes its shards, but those that are there; the first lists all."""
    key = _digest([identity, shard_size])
    starts = range(0, len(corpus.clips), shard_size)
    shards = {
        _shard(folder, number): range(start, min(start + shard_size, len(corpus.clips)))
        for number, start in enumerate(starts)
    }
    mine = list(shards.items())[_rank() :: _world()]
    todo = {path: clips for path, clips in mine if not _is_shard(path, key)}
    with contextlib.closing(_encode(corpus, encoder, todo, *options)) as encoded:
        for path, (tensors, skipped) in zip(todo, encoded, strict=True):
            save_tensors(path, tensors, {"key": key, "skipped": json.dumps(skipped)})
    _barrier()
    if _rank() == 0:
        content = {**identity, "shards": len(shards), "key": key}
        with whole(folder / INDEX) as draft:
            draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _barrier()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _is_shard(path: Path, key: str) -> bool:
    try:
        return load_tensors(path)[1].get("key") == key
    except ValueError:
        return False


class _Features(Dataset):
    """Features of clips, by path. Workers get this, and no model with it."""

    def __init__(self, paths: list[str], front_end: FrontEnd):
        self.paths = paths
        self.front_end = front_end

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, clip: int) -> np.ndarray | BadAudio:
        # numpy arrays travel through a pipe; tensors would fill a small /dev/shm.
        try:
            waveform = load_audio(self.paths[clip], self.front_end.sample_rate)
            return self.front_end(waveform).numpy()
        except BadAudio as error:
            return error


def _cores() -> int:
    """Of this process, where several share the machine under torchrun."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _give_way(worker: int) -> None:
    """Decoding takes what the encoder leaves of the cores they share."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(19)


def _encode(
    corpus: Corpus,
    encoder: FrozenEncoder,
    todo: dict[Path, range],
    batch_size: int,
    num_workers: int | None,
    strict: bool,
    progressbar: bool,
) -> Iterator[tuple[dict[str, torch.Tensor], list[dict]]]:
    """Tensors and skipped clips of one shard after another."""
    batches = {
        path: [clips[i : i + batch_size] for i in range(0, len(clips), batch_size)]
        for path, clips in todo.items()
    }
    workers = min(8, _cores()) if num_workers is None else num_workers
    loader = DataLoader(
        _Features([clip.path for clip in corpus.clips], encoder.front_end),
        batch_sampler=[batch for shard in batches.values() for batch in shard],
        collate_fn=list,
        num_workers=workers if todo else 0,
        worker_init_fn=_give_way,
        generator=torch.Generator(),  # else a cold cache would shift the global seed
    )
    features = iter(loader)
    total = sum(len(clips) for clips in todo.values())
    hidden = not (progressbar and todo and _rank() == 0)
    with tqdm(total=total, unit="clip", desc="encoding", disable=hidden) as bar:
        for shard in batches.values():
            rows, skipped = [], []
            for batch in shard:
                for row in _encode_batch(corpus, encoder, batch, next(features)):
                    if not isinstance(row, BadAudio):
                        rows.append(row)
                    elif strict:
                        raise row
                    else:
                        logger.warning("Skipped: %s", row)
                        fname = os.path.basename(row.args[0])
                        skipped.append({"fname": fname, "reason": row.reason})
                bar.update(len(batch))
            yield _stack(rows, encoder.dim), skipped


def _encode_batch(corpus: Corpus, encoder: FrozenEncoder, batch, features) -> Iterator:
    """(position, audio, texts) of each clip, or the BadAudio that it is."""
    yield from (f for f in features if isinstance(f, BadAudio))
    good = {
        position: torch.from_numpy(f)
        for position, f in zip(batch, features, strict=True)
        if not isinstance(f, BadAudio)
    }
    captions = [corpus.clips[position].captions for position in good]
    audio = encoder.encode_prepared(list(good.values())).cpu()
    text = encoder.encode_text([c for several in captions for c in several]).cpu()
    texts = text.split([len(several) for several in captions])
    for position, heard, said in zip(good, audio, texts, strict=True):
        if heard.isfinite().all() and said.isfinite().all():
            yield position, heard, said
        else:
            yield BadAudio(corpus.clips[position].path, "embedded as NaN")


def _stack(rows: list[tuple], dim: int) -> dict[str, torch.Tensor]:
    none = torch.empty(0, dim)  # a shard may hold nothing but unusable files
    return {
        "position": torch.tensor([i for i, _, _ in rows], dtype=torch.int64),
        "audio": torch.cat([none, *(heard[None] for _, heard, _ in rows)]),
        "text": torch.cat([none, *(said for _, _, said in rows)]),
    }


def _read(folder: Path, identity: dict, corpus: Corpus, strict: bool) -> Embeddings:
    index = _read_index(folder, identity)
    try:
        shards = [
            _read_shard(_shard(folder, number), index["key"])
            for number in range(index["shards"])
        ]
        tensors, skipped = zip(*shards, strict=True)
        position, audio, text = (
            _join([shard[name] for shard in tensors])
            for name in ("position", "audio", "text")
        )
        clips = tuple(corpus.clips[i] for i in position.tolist())
        counts = torch.tensor([len(clip.captions) for clip in clips], dtype=torch.int64)
        _check_rows(audio, len(clips), identity["dim"])
        _check_rows(text, int(counts.sum()), identity["dim"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(_damaged(folder, error)) from error
    owner = torch.repeat_interleave(torch.arange(len(clips)), counts)
    skipped = tuple(entry for entries in skipped for entry in entries)
    _report(folder, clips, owner, skipped, strict)
    lost, title = corpus.rows_without_audio, corpus.title
    return Embeddings(audio, text, owner, clips, skipped, lost, title)


def _read_index(folder: Path, identity: dict) -> dict:
    try:
        index = read_json(folder / INDEX, "it was cut")
    except (OSError, ValueError) as error:
        raise ValueError(_damaged(folder, error)) from error
    for key, name in IDENTITY.items():
        if index.get(key) != identity[key]:
            raise ValueError(
                f"The embedding cache {folder} was made with another {name}: "
                f"{str(index.get(key))[:100]}, now {identity[key]}; {ADVICE}"
            )
    return index


def _read_shard(path: Path, key: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    tensors, metadata = load_tensors(path)
    if metadata["key"] != key:
        raise ValueError(f"{path} is of another cache")
    skipped = json.loads(metadata["skipped"])
    for entry in skipped:
        if not {type(entry["fname"]), type(entry["reason"])} <= {str}:
            raise ValueError(f"{path} does not say which clips were skipped")
    return tensors, skipped


def _check_rows(rows: torch.Tensor, number: int, dim: int) -> None:
    if rows.shape != (number, dim) or rows.dtype != torch.float32:
        found = f"{rows.dtype} {tuple(rows.shape)}"
        raise ValueError(f"its rows are {found}, not float32 {(number, dim)}")


def _damaged(folder: Path, error: Exception | str) -> str:
    return f"The embedding cache {folder} is damaged ({error}); {ADVICE}"


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    # One part stays a view of its file; several have to be copied into memory.
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _report(
    folder: Path, clips, owner, skipped: tuple[dict, ...], strict: bool
) -> None:
    reasons = Counter(entry["reason"] for entry in skipped)
    counted = ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none"
    summary = f"{len(clips)} clips, {len(owner)} captions, skipped: {counted}"
    if strict and skipped:
        raise ValueError(
            f"{folder.name}: {summary}, the first of them {skipped[0]['fname']}; "
            "replace these files, remove them, or run without --strict True."
        )
    if not clips:
        raise ValueError(
            f"{folder.name}: no clip is left ({summary}); check the audio files."
        )
    if _rank() == 0:
        logger.info("%s: %s", folder.name, summary)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """``alone`` for all ranks of this run."""
    with alone(folder) if _rank() == 0 else contextlib.nullcontext():
        _barrier()
        yield
        _barrier()


def _is_there(path: Path) -> bool:
    """Whether the first rank sees a file, so that all ranks do the same."""
    seen = [path.is_file()]
    if distributed.is_initialized():
        distributed.broadcast_object_list(seen)
    return seen[0]


def _clear(folder: Path) -> None:
    if _rank() == 0:
        for path in (folder / INDEX, *folder.glob("shard-*")):
            path.unlink(missing_ok=True)
    _barrier()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _barrier() -> None:
    if distributed.is_initialized():
        distributed.barrier()
