"""The memory of tensors that are alive, counted one operation at a time.

Exact and the same on every machine, which a process's resident memory is not. What an
operation takes and gives back inside is not seen.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors made inside the ``with`` block: ``now`` and ``peak``."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._ignore(args, kwargs)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _ignore(self, args, kwargs):
        """What is read but was not made here was there before."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), size=0)

    def _count(self, storage, size=None):
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes() if size is None else size
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.seen.discard(key)
        self.now -= size
