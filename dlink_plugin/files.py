"""Tensors with checksums, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from speechbrain.utils.distributed import if_main_process

from .bridges.sealed import DRAFT, told_as_oserror, whole
from .reading import first_line

__all__ = ["add_tensors", "alone", "hold", "load_tensors", "save_tensors"]

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_SUM = "sha256"
_GRACE = 15  # seconds: workers of a killed run outlive it for a while, with its lock
_held: dict[Path, FileLock] = {}


def add_tensors(digest, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add names, types, shapes and numbers to a checksum.

    Arguments
    ---------
    digest : hashlib hash
        What to add them to.
    tensors : mapping of str to torch.Tensor
        Their order does not matter.
    """
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors with a checksum of all that is in the file.

    Arguments
    ---------
    path : str or Path
        The file (safetensors); it appears when it is complete.
    tensors : mapping of str to torch.Tensor
        What to write.
    metadata : mapping of str to str, optional
        What to say of it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    metadata = dict(metadata or {})
    with whole(path) as draft:
        save_file(dict(tensors), draft, metadata | {_SUM: _sum(tensors, metadata)})


def load_tensors(
    path: str | Path,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    tensors : dict of str to torch.Tensor
        Memory-mapped, on the CPU.
    metadata : dict of str to str

    Raises
    ------
    ValueError
        If it is missing, no such file, or not as it was written.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> save_tensors(path, {"rows": torch.ones(2)}, {"of": "rain"})
    >>> load_tensors(path)
    ({'rows': tensor([1., 1.])}, {'of': 'rain'})
    """
    if not Path(path).is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"{path} cannot be read (there is no such file).")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}).") from error
    if metadata.pop(_SUM, None) != _sum(tensors, metadata):
        raise ValueError(f"{path} is not what was written: its checksum differs.")
    return tensors, metadata


def _sum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Write in a folder while every other process that wants to waits.

    What a killed process left unfinished there is removed first.

    Arguments
    ---------
    folder : str or Path
        Created where missing.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    lock = _acquire(folder, patience=0)
    if lock is None:
        logger.warning("%s: waiting for the process that writes it.", folder)
        lock = _acquire(folder, patience=-1)
    try:
        _remove_drafts(Path(folder))
        yield
    finally:
        _remove_drafts(Path(folder))
        lock.release()


def hold(folder: str | Path) -> None:
    """Keep a run's folder to this process until it ends; a second one is refused.

    Under torchrun the main process holds it for all.

    Arguments
    ---------
    folder : str or Path
        Created where missing.

    Raises
    ------
    OSError
        If another run is at work there, or it cannot be written.
    """
    folder = Path(folder).resolve()
    if folder in _held or not if_main_process():
        return
    lock = _acquire(folder, patience=_GRACE)
    if lock is None:
        raise OSError(
            f"Another run is at work in {folder}; wait for it or give another "
            "--output_folder."
        )
    _held[folder] = lock
    _remove_drafts(folder)


def _acquire(folder: str | Path, patience: float) -> FileLock | None:
    """The lock of a folder; None if another process keeps it for so many seconds."""
    with told_as_oserror(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(folder) / _LOCK)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return None
    return lock


def _remove_drafts(folder: Path) -> None:
    for path in folder.glob(f"{DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
