"""Files that are whole, not there or refused; folders that know what was changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = [
    "DRAFT",
    "SUMS",
    "check_shapes",
    "first_line",
    "read_json",
    "seal",
    "told_as_oserror",
    "unseal",
    "verify",
    "whole",
]

DRAFT = ".draft-"  # what names of unfinished files and folders begin with
SUMS = "SHA256SUMS"
LARGEST_JSON = 1 << 26  # bytes: 64 MiB; what is written here is far smaller
_LARGEST = 1 << 20  # bytes of the list: ten thousand files
_LONGEST = 1000  # characters of a name in it


@contextlib.contextmanager
def told_as_oserror(path: str | Path) -> Iterator[None]:
    """Tell whatever a library raises when it cannot write in one sentence.

    Arguments
    ---------
    path : str or Path
        What is being written.

    Raises
    ------
    OSError
        Also for the errors that safetensors and torch make of a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip()
        reason = reason.splitlines()[-1]  # those of a DataLoader's workers are long
        raise OSError(
            f"{path} cannot be written ({reason}); make room or give another folder. "
            "What was there before is as it was."
        ) from error


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write a file or folder that gets its name when it is complete.

    Arguments
    ---------
    path : str or Path
        Where it belongs. A file or an empty folder that is there already is replaced
        in one step, or stays.

    Yields
    ------
    draft : Path
        Where to write it.

    Raises
    ------
    OSError
        If it cannot be written.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.txt"
    >>> with whole(path) as draft:
    ...     _ = draft.write_text("rain")
    ...     path.exists()
    False
    >>> path.read_text()
    'rain'
    """
    path = Path(path)
    draft = path.with_name(f"{DRAFT}{os.getpid()}-{path.name}")
    with told_as_oserror(path):
        try:
            yield draft
            os.replace(draft, path)
        finally:
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def seal(folder: str | Path, *names: str) -> None:
    """Write down the checksums of files, as ``sha256sum`` does.

    ``sha256sum -c SHA256SUMS`` checks them as well.

    Arguments
    ---------
    folder : str or Path
        Where they are, complete.
    *names : str
        Files, or folders whose files all count.
    """
    folder, found = Path(folder), []
    for name in names:
        inside = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        found += [folder / name] if (folder / name).is_file() else inside
    lines = [
        f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in found
    ]
    with whole(folder / SUMS) as draft:
        draft.write_text("".join(lines), encoding="utf-8")


def unseal(folder: str | Path) -> None:
    """Take the seal off a folder that is about to be written again.

    Arguments
    ---------
    folder : str or Path
        May be missing.
    """
    (Path(folder) / SUMS).unlink(missing_ok=True)


def verify(folder: str | Path, names: Sequence[str] | None = None) -> None:
    """Find what has changed since a folder was sealed.

    Arguments
    ---------
    folder : str or Path
        Without a seal nothing is checked: it was written by an earlier release.
    names : sequence of str, optional
        Of its files; None for all that were sealed.

    Raises
    ------
    ValueError
        If a file has changed or is missing, or the seal is no list of checksums.
    """
    if not (Path(folder) / SUMS).is_file():
        return
    sums = _read_sums(Path(folder) / SUMS)
    for name in sums if names is None else names:
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; fetch or export {folder} again.")
        if _digest(path) != sums.get(name):
            raise ValueError(
                f"{path} is not what was saved (its checksum differs); fetch or "
                f"export {folder} again."
            )


def check_shapes(expected: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare a file with a model that was built without memory.

    A configuration may ask for more than a machine has; nothing is read here but the
    file's table of contents.

    Arguments
    ---------
    expected : mapping of str to Tensor
        On any device, "meta" included.
    path : str or Path
        A safetensors file.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if differ := found.items() ^ wanted.items():
        name = min(name for name, _ in differ)
        raise ValueError(
            f"{name} is {found.get(name, 'missing')} instead of "
            f"{wanted.get(name, 'nothing')}"
        )


def _read_sums(path: Path) -> dict[str, str]:
    """Checksums by name, as ``sha256sum`` lists them."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        lines = path.read_text(encoding="utf-8").splitlines()
        sums = {
            name: digest for digest, name in (line.split("  ", 1) for line in lines)
        }
        if max(map(len, sums), default=0) > _LONGEST:
            raise ValueError("a name is too long")
    except ValueError as error:
        raise ValueError(f"{path} is no list of checksums; fetch it again.") from error
    for name in map(Path, sums):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path} names {name}, outside of its folder; delete it.")
    return sums


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | Path, what_to_do: str) -> dict:
    """The JSON object in a file.

    Arguments
    ---------
    path : str or Path
        The file.
    what_to_do : str
        Ends the sentence where the file is not what it should be.

    Returns
    -------
    content : dict
        Its strings can be written as UTF-8; kinds and names are the caller's to check.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON in UTF-8, no object, nested too deeply or over 64 MiB.

    Example
    -------
    >>> file = getfixture("tmp_path") / "a.json"
    >>> _ = file.write_text('{"clips": 3}')
    >>> read_json(file, "save it again")
    {'clips': 3}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {what_to_do}.")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} is larger than {LARGEST_JSON} bytes; {what_to_do}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # An escape may stand for half a character, which no tokenizer or file takes.
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON; {what_to_do}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; {what_to_do}.")
    return content


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, for a sentence of ours."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
