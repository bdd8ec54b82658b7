"""Checkpoints that a kill cannot leave half-written."""

from __future__ import annotations

import shutil

import dlink_plugin.compat  # noqa: F401

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from .bridges.sealed import told_as_oserror

__all__ = ["AtomicCheckpointer"]

_DRAFTS = ".drafts"


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, with folders that appear when they are complete.

    The original writes into the final folder, its meta file first, so that a run killed
    at that moment finds a checkpoint it cannot load. Here the folder is written
    elsewhere and renamed, and one that lacks files, as a kill in the middle of a
    deletion leaves it, is passed over.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> layer = torch.nn.Linear(1, 1)
    >>> saved = AtomicCheckpointer(folder, {"layer": layer}).save_checkpoint(name="a")
    >>> saved.path.name, sorted(path.name for path in saved.path.iterdir())
    ('CKPT+a', ['CKPT.yaml', 'layer.ckpt'])
    """

    def save_checkpoint(self, meta=None, end_of_epoch=True, name=None, **options):
        """See ``Checkpointer.save_checkpoint``."""
        final = self.checkpoints_dir
        path = (
            self._new_checkpoint_dirpath()
            if name is None
            else self._custom_checkpoint_dirpath(name)
        )
        if if_main_process():  # what a killed run left
            shutil.rmtree(final / _DRAFTS, ignore_errors=True)
        self.checkpoints_dir = final / _DRAFTS
        try:
            name = path.name.removeprefix("CKPT+")
            with told_as_oserror(path):
                saved = super().save_checkpoint(
                    meta or {}, end_of_epoch, name, **options
                )
        finally:
            self.checkpoints_dir = final
        if saved is not None:  # the main process
            saved.path.rename(path)
            files = {key: path / file.name for key, file in saved.paramfiles.items()}
            saved = Checkpoint(path, saved.meta, files)
        ddp_barrier()  # what to delete next, every process reads from the folder
        return saved

    def list_checkpoints(self):
        """See ``Checkpointer.list_checkpoints``; incomplete ones are left out."""
        needed = self.recoverables.keys()
        return [c for c in super().list_checkpoints() if needed <= c.paramfiles.keys()]
