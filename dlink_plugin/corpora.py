"""AudioCaps and Clotho, read through aac-datasets: which clips, which captions.

Only file names and captions are read here; the audio is decoded elsewhere.
"""

from __future__ import annotations

import csv
import filecmp
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

_AUDIOCAPS = {"train": "train", "val": "val", "test": "test"}
SUBSETS = {
    "audiocaps": _AUDIOCAPS,
    "audiocaps_v2": _AUDIOCAPS,  # other captions, in the same tree
    "clotho": {"train": "dev", "val": "val", "test": "eval"},
}
LARGEST_TABLE = 1 << 30  # bytes; the captions of AudioCaps are 4 MB
_CAPTION = re.compile(r"caption(_\d+)?")
CLOTHO_FOLDERS = {"dev": "development", "val": "validation", "eval": "evaluation"}


@dataclass(frozen=True)
class Clip:
    """One recording.

    Arguments
    ---------
    fname : str
        Name of the file, unique in its split.
    path : str
        Where the file is.
    captions : tuple of str
        At least one.
    """

    fname: str
    path: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """One split of a corpus.

    Arguments
    ---------
    name : str
        "audiocaps", "audiocaps_v2" or "clotho".
    split : str
        "train", "val" or "test".
    clips : tuple of Clip
        In the order of the caption file.
    rows_without_audio : int
        Rows of the caption file whose recording is not on disk.
    synthetic : bool
        Whether it is a mini corpus, which every table made with it must say.
    """

    name: str
    split: str
    clips: tuple[Clip, ...]
    rows_without_audio: int
    synthetic: bool = False

    @property
    def title(self) -> str:
        """What to call it above a table."""
        return f"{'synthetic mini ' * self.synthetic}{self.name} {self.split}"


def load_corpus(
    corpus: str,
    data_folder: str | Path,
    split: str,
    *,
    cache_folder: str | Path,
    strict: bool = False,
) -> Corpus:
    """The clips of a split that have audio and captions.

    Arguments
    ---------
    corpus : str
        "audiocaps", "audiocaps_v2" (AudioCaps 2.0) or "clotho".
    data_folder : str or Path
        Folder that holds ``AUDIOCAPS`` or ``CLOTHO_v2.1``, or "mini", the synthetic
        corpora of this package.
    split : str
        "train", "val" or "test" (Clotho's development, validation and evaluation).
    cache_folder : str or Path
        Where a mini corpus is written on first use.
    strict : bool
        Whether a caption row without audio or a blank caption is an error; otherwise
        both are left out, counted and logged.

    Returns
    -------
    corpus : Corpus

    Raises
    ------
    FileNotFoundError
        If the tree is not there.
    ValueError
        If the corpus or split is unknown, the captions are unreadable or no clip is
        left; with ``strict`` also for a row without audio or a blank caption.
    """
    subset = _subset(corpus, split)
    root = _root(corpus, data_folder, cache_folder)
    table, audio_folder = _places(corpus, root, subset)
    if not (table.is_file() and audio_folder.is_dir()):
        raise FileNotFoundError(_how_to_get(corpus, root, subset, table, audio_folder))
    for each in table.parent.glob("*.csv"):  # Clotho has one of metadata as well
        check_table(each)
    try:
        if corpus == "clotho":
            rows = _read_clotho(root, subset, table)
        else:
            rows = _read_audiocaps(root, subset, table, _version(corpus))
    except (KeyError, TypeError, ValueError, AssertionError, csv.Error) as error:
        raise ValueError(
            f"{table} cannot be read as captions of {corpus} ({why(error)}); download "
            "it again or correct it."
        ) from error
    found = _gather(corpus, split, table, audio_folder, rows, strict)
    return replace(found, synthetic=str(data_folder) == "mini")


def load_texts(
    source: str | Path, data_folder: str | Path, *, cache_folder: str | Path
) -> tuple[str, ...]:
    r"""Captions alone, for training on text: no audio has to be there.

    Arguments
    ---------
    source : str or Path
        A corpus as in ``load_corpus``: all captions of the training split and, where
        the tree has one, the lines of ``caption_only.txt`` beside it. Or a file:
        ``.txt`` with a caption on each line, or ``.csv`` with a column ``caption`` or
        ``caption_1``, ``caption_2``, ...
    data_folder : str or Path
        See ``load_corpus``.
    cache_folder : str or Path
        See ``load_corpus``.

    Returns
    -------
    texts : tuple of str

    Raises
    ------
    FileNotFoundError
        If there is no such corpus or file.
    ValueError
        If the file is unreadable or holds no captions.

    Example
    -------
    >>> file = getfixture("tmp_path") / "texts.csv"
    >>> _ = file.write_text("id,caption\n1,a dog barks\n2,rain falls\n")
    >>> load_texts(file, "mini", cache_folder="results/cache")
    ('a dog barks', 'rain falls')
    """
    files = [Path(source).expanduser()]
    if str(source) in SUBSETS:
        root = _root(str(source), data_folder, cache_folder)
        table, audio = _places(str(source), root, SUBSETS[str(source)]["train"])
        extra = audio.parents[1] / "caption_only.txt"
        files = [table, *([extra] if extra.is_file() else [])]
    return tuple(text for file in files for text in _read_texts(file))


def _read_texts(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"No captions at {path}; name audiocaps, audiocaps_v2, clotho, a .txt "
            "file with a caption on each line or a .csv file with a column 'caption' "
            "or 'caption_1', 'caption_2', ..."
        )
    check_table(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            texts = _cells(file) if path.suffix == ".csv" else _lines(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as captions ({why(error)}); correct it or save it "
            "again as UTF-8."
        ) from error
    if not texts and path.suffix == ".csv":
        raise ValueError(
            f"{path} has no rows with a column 'caption' or 'caption_1', ...; name the "
            "column so, or give a .txt file with a caption on each line."
        )
    return texts


def check_table(path: Path) -> None:
    """Refuse what is too large: it may be a single line, which is read at once."""
    if path.is_file() and path.stat().st_size > LARGEST_TABLE:
        raise ValueError(
            f"{path} is larger than {LARGEST_TABLE} bytes; split it or correct it."
        )


def _lines(file: TextIO) -> list[str]:
    lines = file.read().splitlines()
    if max(map(len, lines), default=0) > csv.field_size_limit():
        raise csv.Error("field larger than field limit")
    return lines


def _cells(file: TextIO) -> list[str]:
    table = csv.DictReader(file)
    heads = [k for k in (table.fieldnames or ()) if _CAPTION.fullmatch(k)]
    return [row[head] or "" for row in _whole_rows(table) for head in heads]


def why(error: Exception) -> str:
    """What is wrong with a table, without the whole of its content."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: {error.reason} at byte {error.start}"
    if "field limit" in str(error):  # csv's own bound; far more than any caption
        return (
            f"a caption has more than {csv.field_size_limit()} characters: is a "
            "quotation mark left open?"
        )
    if isinstance(error, KeyError):
        return f"there is no column {error}"
    if "NoneType" in str(error):
        return "a row has too few cells"
    return " ".join(str(error).split()) or type(error).__name__


def _root(corpus: str, data_folder: str | Path, cache_folder: str | Path) -> Path:
    if str(data_folder) != "mini":
        return Path(data_folder).expanduser()
    from .mini.corpus import prepare

    return Path(prepare(corpus, Path(cache_folder)))


def _subset(corpus: str, split: str) -> str:
    if corpus not in SUBSETS:
        raise ValueError(f"No corpus '{corpus}'; choose one of {', '.join(SUBSETS)}.")
    if split not in SUBSETS[corpus]:
        raise ValueError(f"No split '{split}'; choose one of train, val, test.")
    return SUBSETS[corpus][split]


def _places(corpus: str, root: Path, subset: str) -> tuple[Path, Path]:
    """Caption file and audio folder of a subset."""
    if corpus != "clotho":
        tree, version = root / "AUDIOCAPS", _version(corpus)
        table = tree / f"csv_files_{version}" / f"{subset}.csv"
        old = tree / table.name  # goes first in aac-datasets, for version 1
        if version == "v1" and old.is_file():
            if table.is_file() and not filecmp.cmp(table, old, shallow=False):
                raise ValueError(
                    f"{old} and {table} differ, and aac-datasets reads the first; "
                    "remove the one that is not AudioCaps 1."
                )
            table = old
        return table, tree / "audio_32000Hz" / subset
    tree, part = root / "CLOTHO_v2.1", CLOTHO_FOLDERS[subset]
    table = tree / "clotho_csv_files" / f"clotho_captions_{part}.csv"
    return table, tree / "clotho_audio_files" / part


def _version(corpus: str) -> str:
    return "v2" if corpus == "audiocaps_v2" else "v1"


def _how_to_get(corpus: str, root: Path, subset: str, table: Path, audio: Path) -> str:
    name = "<name>.wav" if corpus == "clotho" else "<youtube_id>_<start_time>.flac"
    command = f"{corpus} --subsets {subset}"
    if corpus == "audiocaps_v2":
        command = f"audiocaps --subsets {subset} --version v2"
    return (
        f"No {corpus} for '{subset}' in the data folder {root}: expected\n"
        f"  {table}{'' if table.is_file() else '   (missing)'}\n"
        f"  {audio / name}{'' if audio.is_dir() else '   (folder missing)'}\n"
        f"Get it with: dlink download --root {root} {command}"
        "\nor run with --data_folder mini, which needs no data."
    )


def _read_audiocaps(
    root: Path, subset: str, table: Path, version: str
) -> list[tuple[str, list]]:
    from . import compat  # noqa: F401, I001  (before aac_datasets)
    from aac_datasets.datasets.functional.audiocaps import load_audiocaps_dataset

    try:
        # Not AudioCaps(version="v2"): in 0.7 that reads the captions of version 1.
        # Clips that are not on disk stay in, to be counted.
        data, _ = load_audiocaps_dataset(
            root, subset, verbose=-1, exclude_removed_audio=False, version=version
        )
    except RuntimeError:  # no flac file at all
        return []
    except (TypeError, ValueError):
        if version == "v1":
            raise
        return _read_broken(table)
    return list(zip(data["fname"], data["captions"], strict=True))


def _read_broken(table: Path) -> list[tuple[str, list]]:
    """What aac-datasets refuses: AudioCaps 2.0 as it was first published."""
    captions = {}
    with open(table, newline="", encoding="utf-8") as file:
        for row in _whole_rows(csv.DictReader(file)):
            if None in row.values():
                raise ValueError("a row has too few cells")
            name = f"{row['youtube_id']}_{row['start_time']}.flac"
            captions.setdefault(name, []).append(row["caption"])
    return list(captions.items())


def _whole_rows(table: csv.DictReader) -> Iterator[dict]:
    """Rows; where a caption of AudioCaps 2.0 runs over two of them, it is joined."""
    last = None
    for row in table:
        first, *others = row.values()
        if last and last.get("caption") and "audiocap_id" in row and not any(others):
            last["caption"] += f" {first}"
            continue
        if last:
            yield last
        last = row
    if last:
        yield last


def _read_clotho(root: Path, subset: str, table: Path) -> list[tuple[str, list]]:
    from . import compat  # noqa: F401, I001  (before aac_datasets)
    from aac_datasets import Clotho

    try:
        data = Clotho(root, subset, verbose=-1)
    except RuntimeError:
        # aac-datasets refuses a split with one file too few or too many, or without
        # its metadata. The caption file alone says all that is needed.
        with open(table, newline="", encoding="utf-8") as file:
            keys = [f"caption_{i}" for i in range(1, 6)]
            return [
                (row["file_name"], [row[key] for key in keys])
                for row in csv.DictReader(file)
            ]
    return list(zip(data[:, "fname"], data[:, "captions"], strict=True))


def _gather(corpus, split, table, audio_folder, rows, strict: bool) -> Corpus:
    on_disk = set(os.listdir(audio_folder))
    clips, absent, rows_without_audio, blank = [], [], 0, 0
    for fname, captions in dict(rows).items():  # a name given twice is one clip
        if fname not in on_disk:
            absent.append(fname)
            rows_without_audio += 1 if corpus == "clotho" else len(captions)
            continue
        kept = tuple(c.strip() for c in captions if c and c.strip())
        blank += len(captions) - len(kept)
        if kept:
            clips.append(Clip(fname, str(audio_folder / fname), kept))
    if absent:
        complain(
            f"{table}: {rows_without_audio} caption rows ({len(absent)} clips) have no "
            f"audio in {audio_folder}: {first_names(absent)}",
            strict,
        )
    if blank:
        complain(f"{table}: {blank} blank captions left out.", strict)
    if not clips:
        raise ValueError(
            f"The {split} split of {corpus} is empty: no clip that {table} names has "
            f"both a caption and audio in {audio_folder}; complete the data or choose "
            "another split."
        )
    return Corpus(corpus, split, tuple(clips), rows_without_audio)


def complain(message: str, strict: bool) -> None:
    """Log what is left out; with ``strict`` it is an error."""
    if strict:
        raise ValueError(message)
    logger.warning(message)


def first_names(names: list[str], number: int = 3) -> str:
    """The beginning of a list, for a sentence that ends with it."""
    return ", ".join(names[:number]) + (", ..." if len(names) > number else ".")
