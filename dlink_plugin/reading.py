"""Reading files that somebody else wrote: what they should be, or one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# The bridges read JSON too, and import nothing from outside of their folder.
from .bridges.sealed import LARGEST_JSON, first_line, read_json

__all__ = ["check_files", "damage_told", "first_line", "read_json", "read_npy"]

_READ_WHOLE = {".json", ".txt", ".jinja", ".model"}  # by transformers, at any size
# What holds tokens that are added to a vocabulary. Each takes time that grows with the
# square of its length: together some seconds at this bound, a day at 64 MiB.
_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LONGEST_TOKENS = 1 << 27


def read_npy(path: str | Path) -> np.memmap:
    """The array in a ``.npy`` file, left on disk: no header can ask for memory.

    Arguments
    ---------
    path : str or Path
        The file. Pickled objects are refused.

    Returns
    -------
    array : np.memmap
        Of any type and shape, read-only.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not one array of this format.

    Example
    -------
    >>> file = getfixture("tmp_path") / "a.npy"
    >>> np.save(file, np.eye(3))
    >>> read_npy(file).shape
    (3, 3)
    """
    if not Path(path).is_file():  # opening a pipe would wait for a writer
        raise FileNotFoundError(f"{path} is missing; give the name of a .npy file.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy fails in many ways on a damaged header
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} is not a .npy file of numbers ({why}); save it with "
            "numpy.save(file, array)."
        ) from error
    if not isinstance(array, np.memmap):
        array.close()
        raise ValueError(
            f"{path} holds several arrays; give one array, saved with numpy.save."
        )
    return array


def check_files(folder: str | Path) -> None:
    """Look for what a library would read without end.

    That is pipes, devices, huge texts, and tokens that are far too long.

    Arguments
    ---------
    folder : str or Path
        What a library is about to read. Folders in it are not looked into.

    Raises
    ------
    ValueError
        If there is such a file.
    """
    for path in sorted(Path(folder).glob("*")):
        if not path.exists() or path.is_dir():
            continue
        if not path.is_file():
            raise ValueError(f"{path} is no file but a pipe or a device; remove it.")
        if path.suffix in _READ_WHOLE and path.stat().st_size > LARGEST_JSON:
            raise ValueError(
                f"{path} is larger than {LARGEST_JSON} bytes; save or download it "
                "again."
            )
        if sum(len(token) ** 2 for token in _added_tokens(path)) > _LONGEST_TOKENS:
            raise ValueError(
                f"{path} adds tokens that are too long; save or download it again."
            )


def _added_tokens(path: Path) -> Iterator[str]:
    """All texts in a file of added tokens; what cannot be read is the library's."""
    if path.name not in ("tokenizer.json", *_TOKENS):
        return
    with contextlib.suppress(ValueError):
        content = read_json(path, "")
        content.pop("chat_template", None)
        left = [content.get("added_tokens") if path.name not in _TOKENS else content]
        while left:
            each = left.pop()
            if isinstance(each, str):
                yield each
            elif isinstance(each, dict):
                left += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                left += each


@contextlib.contextmanager
def damage_told(what: str) -> Iterator[None]:
    """Tell whatever a library raises on a damaged file in one sentence.

    Arguments
    ---------
    what : str
        Begins the sentence: which file or folder is read.

    Raises
    ------
    ValueError
        For all but OSError and MemoryError, which speak for themselves.

    Example
    -------
    >>> with damage_told("The tokenizer at a/b"):
    ...     [][0]
    Traceback (most recent call last):
        ...
    ValueError: The tokenizer at a/b is damaged; save or download it again. \
The reason: list index out of range
    """
    try:
        yield
    except (OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises Exception, and panics are none
        raise ValueError(
            f"{what} is damaged; save or download it again. The reason: "
            f"{first_line(error)}"
        ) from error
