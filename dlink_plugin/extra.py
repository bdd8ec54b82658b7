"""Further recordings with captions, to train a bridge on: any table, and WavCaps."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from .corpora import Clip, Corpus, check_table, complain, first_names, why

__all__ = ["load_extra"]

_WAVCAPS = "wavcaps:"  # what names of its subsets begin with


def load_extra(
    source: str | Path, data_folder: str | Path, *, strict: bool = False
) -> Corpus:
    r"""Recordings and their captions from a table, or a subset of WavCaps.

    Arguments
    ---------
    source : str or Path
        A .csv file with the columns ``path`` (absolute, or from the table's folder) and
        ``caption``; rows of one path are captions of one recording. Or ``wavcaps:`` and
        a subset that aac-datasets knows: ``audioset_no_audiocaps_v1``, ``bbc``,
        ``freesound_no_clotho_v2``, ``soundbible``.
    data_folder : str or Path
        Folder that holds ``WavCaps``.
    strict : bool
        Whether a row without audio or a blank caption is an error; otherwise both are
        left out, counted and logged.

    Returns
    -------
    corpus : Corpus
        Its split is "train".

    Raises
    ------
    FileNotFoundError
        If the table or WavCaps is not there.
    ValueError
        If it cannot be read or names no recording that is there; with ``strict`` also
        for a row without audio or a blank caption.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "rain.flac").touch()
    >>> table = folder / "mine.csv"
    >>> _ = table.write_text("path,caption\nrain.flac,rain falls\nrain.flac,it pours\n")
    >>> load_extra(table, folder).clips[0].captions
    ('rain falls', 'it pours')
    """
    if str(source).startswith(_WAVCAPS):
        subset = str(source).removeprefix(_WAVCAPS)
        return _gather(f"wavcaps_{subset}", _read_wavcaps(data_folder, subset), strict)
    table = _absolute(source)
    return _gather(str(table), _read_table(table), strict)


def _absolute(path: str | Path) -> Path:
    """One spelling of a path; links stay, as sentences name what was given."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _read_table(table: Path) -> list[tuple[str, str | None]]:
    if not table.is_file():
        raise FileNotFoundError(
            f"No table at {table}; give a .csv file with the columns path and caption, "
            "or wavcaps:SUBSET."
        )
    check_table(table)
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [(row["path"], row["caption"]) for row in csv.DictReader(file)]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{table} cannot be read as a table of path and caption ({why(error)}); "
            "correct it or save it again as UTF-8."
        ) from error
    return [(str(table.parent / path) if path else "", text) for path, text in rows]


def _read_wavcaps(data_folder: str | Path, subset: str) -> list[tuple[str, str]]:
    from . import compat  # noqa: F401, I001  (before aac_datasets)
    from aac_datasets import WavCaps

    root = _absolute(data_folder)
    try:
        data = WavCaps(root, subset, verbose=-1)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"No complete WavCaps '{subset}' in the data folder {root} ({error}); get "
            f"it with: dlink download --root {root} wavcaps --subsets {subset}, "
            "or make a table of path and caption of what is there."
        ) from error
    columns = zip(data[:, "fpath"], data[:, "captions"], strict=True)
    return [(path, text) for path, texts in columns for text in texts]


def _gather(
    source: str, rows: Iterable[tuple[str, str | None]], strict: bool
) -> Corpus:
    captions, absent, blank = {}, [], 0
    for path, text in rows:
        if not Path(path).is_file():
            absent.append(path)
        elif not (text and text.strip()):
            blank += 1
        else:
            captions.setdefault(path, []).append(text.strip())
    if absent:
        named = first_names(list(dict.fromkeys(absent)))
        complain(f"{source}: {len(absent)} rows have no audio: {named}", strict)
    if blank:
        complain(f"{source}: {blank} blank captions left out.", strict)
    if not captions:
        raise ValueError(
            f"{source} names no recording that is there and has a caption; paths are "
            "absolute or from the table's folder."
        )
    clips = tuple(Clip(path, path, tuple(texts)) for path, texts in captions.items())
    return Corpus(Path(source).stem, "train", clips, len(absent))
