"""Writes the mini corpus to disk as the trees that aac-datasets reads.

``prepare`` makes ``AUDIOCAPS`` or ``CLOTHO_v2.1`` below a folder, once. A tree is
written under another name and renamed when it is complete, so that an interrupted run
leaves nothing that could be mistaken for a corpus. Beside the captions stand
``scenes.json`` (which events each clip holds, whether their combination is unseen) and,
for AudioCaps, ``caption_only.txt`` (texts without audio, for text-only training).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..bridges.sealed import DRAFT, told_as_oserror
from ..files import alone
from .captions import caption
from .scenes import Scene, draw_scene, render

__all__ = [
    "AUDIOCAPS_SIZES",
    "CLOTHO_SIZES",
    "prepare",
    "subsets",
    "write_audiocaps",
    "write_clotho",
]

VERSION = 1  # part of the folder's name: another corpus is another folder
AUDIOCAPS_SIZES = {"train": 1500, "val": 300, "test": 1000, "caption_only": 20_000}
CLOTHO_SIZES = {"development": 300, "validation": 100, "evaluation": 300}
_SEEDS = {
    split: seed
    for seed, split in enumerate((*AUDIOCAPS_SIZES, *CLOTHO_SIZES), start=2510)
}
_TEST_SPLITS = ("test", "evaluation")
_UNSEEN_EVERY = 4  # one test clip of four holds an unseen pair of sounds


@dataclass(frozen=True)
class _Clip:
    """One file to write, with all that is said of it."""

    fname: str
    scene: Scene
    captions: tuple[str, ...]


def prepare(corpus: str, folder: str | Path, progressbar: bool = True) -> Path:
    """Write a mini corpus unless it is there, and say where.

    Arguments
    ---------
    corpus : str
        "audiocaps" or "clotho".
    folder : str or Path
        Cache folder; the corpus goes to ``<folder>/mini-v1``.
    progressbar : bool
        Whether to show progress on the terminal.

    Returns
    -------
    root : Path
        What ``aac_datasets.AudioCaps(root=...)`` and ``Clotho(root=...)`` take.

    Raises
    ------
    ValueError
        If there is no such corpus.
    """
    kinds = {
        "audiocaps": (write_audiocaps, "AUDIOCAPS"),
        "clotho": (write_clotho, "CLOTHO_v2.1"),
    }
    if corpus not in kinds:
        raise ValueError(f"No mini corpus '{corpus}'; choose {' or '.join(kinds)}.")
    write, tree = kinds[corpus]
    root = Path(folder) / f"mini-v{VERSION}"
    if (root / tree).is_dir():
        return root
    with alone(root):
        if not (root / tree).is_dir():  # nobody wrote it while this process waited
            draft = root / f"{DRAFT}{tree}"
            with told_as_oserror(root / tree):
                write(draft, progressbar=progressbar)
                (draft / tree).rename(root / tree)
                draft.rmdir()
    return root


def write_audiocaps(
    root: str | Path,
    sizes: Mapping[str, int] = AUDIOCAPS_SIZES,
    progressbar: bool = False,
) -> None:
    """Write an AudioCaps tree: 4 to 5 s, 32 kHz flac, terse captions.

    Arguments
    ---------
    root : str or Path
        Gets the folder ``AUDIOCAPS``.
    sizes : mapping of str to int
        Clips of train, val and test, and the number of caption-only texts. One
        caption for each training clip, five for the others.
    progressbar : bool
        Whether to show progress.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> write_audiocaps(root, {"train": 2, "val": 1, "test": 1, "caption_only": 3})
    >>> len((root / "AUDIOCAPS" / "caption_only.txt").read_text().splitlines())
    3
    """
    tree = Path(root) / "AUDIOCAPS"
    splits = {
        split: _draw_clips(
            split,
            sizes[split],
            name=f"mini{split}{{:06d}}_0.flac",
            seconds=(4.0, 5.0),
            events=(1, 4),
            register="audiocaps",
            captions=1 if split == "train" else 5,
        )
        for split in ("train", "val", "test")
    }
    _write_sounds(tree / "audio_32000Hz", splits, 32_000, progressbar)
    _write_csv(tree / "csv_files_v1", splits, "{}.csv", _audiocaps_rows)
    _write_scenes(tree, splits)
    texts = _draw_texts(sizes["caption_only"])
    (tree / "caption_only.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def write_clotho(
    root: str | Path,
    sizes: Mapping[str, int] = CLOTHO_SIZES,
    progressbar: bool = False,
) -> None:
    """Write a Clotho tree: 8 to 12 s, 44.1 kHz wav, five longer captions a clip.

    Arguments
    ---------
    root : str or Path
        Gets the folder ``CLOTHO_v2.1``.
    sizes : mapping of str to int
        Clips of development, validation and evaluation.
    progressbar : bool
        Whether to show progress.
    """
    tree = Path(root) / "CLOTHO_v2.1"
    splits = {
        split: _draw_clips(
            split,
            size,
            name=f"mini {split} {{:06d}}.wav",
            seconds=(8.0, 12.0),
            events=(2, 4),
            register="clotho",
            captions=5,
        )
        for split, size in sizes.items()
    }
    _write_sounds(tree / "clotho_audio_files", splits, 44_100, progressbar)
    texts = tree / "clotho_csv_files"
    _write_csv(texts, splits, "clotho_captions_{}.csv", _clotho_caption_rows)
    _write_csv(texts, splits, "clotho_metadata_{}.csv", _clotho_metadata_rows)
    _write_scenes(tree, splits)


def _draw_clips(split, size, *, name, seconds, events, register, captions):
    clips = []
    for i in range(size):
        rng = np.random.default_rng((_SEEDS[split], i))
        unseen = split in _TEST_SPLITS and i % _UNSEEN_EVERY == 0
        scene = draw_scene(rng, seconds, events, unseen)
        said = tuple(caption(scene, rng, register) for _ in range(captions))
        clips.append(_Clip(name.format(i), scene, said))
    return clips


def _draw_texts(size: int) -> Iterator[str]:
    rng = np.random.default_rng(_SEEDS["caption_only"])
    for _ in range(size):
        yield caption(draw_scene(rng), rng)


def _write_sounds(folder: Path, splits, rate: int, progressbar: bool) -> None:
    jobs = []
    for split, clips in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        jobs += [(folder / split / clip.fname, clip.scene, rate) for clip in clips]
    # Workers of a DataLoader end with a process that is killed; those of a pool do not.
    writing = DataLoader(
        _Sounds(jobs),
        batch_size=None,
        num_workers=os.cpu_count() or 1,
        generator=torch.Generator(),  # else writing would shift the global seed
    )
    label = "writing the mini corpus"
    for _ in tqdm(writing, label, len(jobs), unit="clip", disable=not progressbar):
        pass


class _Sounds(Dataset):
    """Renders a scene to its file when it is asked for it."""

    def __init__(self, jobs: list[tuple[Path, Scene, int]]):
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, job: int) -> int:
        _write_sound(self.jobs[job])
        return job


def _write_sound(job: tuple[Path, Scene, int]) -> None:
    path, scene, rate = job
    # By way of memory: libsndfile does not tell of a disk that fills as it closes.
    sound, kind = io.BytesIO(), path.suffix[1:]
    soundfile.write(sound, render(scene, rate), rate, subtype="PCM_16", format=kind)
    path.write_bytes(sound.getvalue())


def _write_csv(folder: Path, splits, name: str, rows: Callable) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, clips in splits.items():
        path = folder / name.format(split)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows(clips))


def _audiocaps_rows(clips: list[_Clip]) -> Iterator[tuple]:
    yield "audiocap_id", "youtube_id", "start_time", "caption"
    number = 0
    for clip in clips:
        for said in clip.captions:
            yield number, clip.fname.removesuffix("_0.flac"), 0, said
            number += 1


def _clotho_caption_rows(clips: list[_Clip]) -> Iterator[tuple]:
    yield "file_name", *(f"caption_{k}" for k in range(1, 6))
    for clip in clips:
        yield clip.fname, *clip.captions


def _clotho_metadata_rows(clips: list[_Clip]) -> Iterator[tuple]:
    yield (
        *("file_name", "keywords", "sound_id", "sound_link", "start_end_samples"),
        *("manufacturer", "license"),
    )
    for number, clip in enumerate(clips):
        sounds = ";".join(event.sound for event in clip.scene.events)
        yield clip.fname, sounds, number, "", "", "synthetic", "MIT"


def _write_scenes(tree: Path, splits) -> None:
    described = {
        split: {
            clip.fname: {
                "groups": [[asdict(e) for e in group] for group in clip.scene.groups],
                "unseen": clip.scene.is_unseen,
            }
            for clip in clips
        }
        for split, clips in splits.items()
    }
    (tree / "scenes.json").write_text(json.dumps(described), encoding="utf-8")


def subsets(paths: Sequence[str | Path]) -> dict[str, list[int]]:
    """Which clips of a mini corpus are the harder ones.

    Arguments
    ---------
    paths : sequence of str or Path
        Of N clips of one split, where ``prepare`` wrote them.

    Returns
    -------
    rows : dict of str to list of int
        "three_or_more_events" and "unseen_combination": a pair of sounds that no
        training clip holds. Empty for clips of any other corpus.
    """
    folders = Path(paths[0]).parents if paths else ()
    files = (folder / "scenes.json" for folder in folders)
    described = next((file for file in files if file.is_file()), None)
    if described is None:
        return {}
    scenes: dict[str, dict] = {}
    for split in json.loads(described.read_text(encoding="utf-8")).values():
        scenes |= split
    rows: dict[str, list[int]] = {"three_or_more_events": [], "unseen_combination": []}
    for row, path in enumerate(paths):
        scene = scenes[Path(path).name]
        if sum(map(len, scene["groups"])) >= 3:
            rows["three_or_more_events"].append(row)
        if scene["unseen"]:
            rows["unseen_combination"].append(row)
    return rows
