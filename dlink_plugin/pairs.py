"""What is trained on, and in which batches: one caption of a clip, no clip twice."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .reading import read_npy

__all__ = ["Captioned", "ClipBatches", "MappedRows", "Pairs", "seeded"]

_POOL = 32  # batches whose captions are sorted by length together


class MappedRows:
    """Rows of a .npy file, read from disk when they are asked for.

    Stands for a tensor in ``Pairs`` where the embeddings do not fit into memory.

    Arguments
    ---------
    file : str or Path
        (N, d) float32 or float16, from ``numpy.save`` or ``numpy.lib.format``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds something else.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/audio.npy", np.eye(3, dtype=np.float32))
    ...     MappedRows(f"{folder}/audio.npy")[torch.tensor([2, 0])]
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    device = torch.device("cpu")

    def __init__(self, file: str | Path):
        self.file = file
        whole = read_npy(file)
        if whole.ndim != 2 or whole.dtype not in (np.float32, np.float16):
            raise ValueError(
                f"{file} holds {whole.dtype} {whole.shape}; give one array (N, d) of "
                "float32 or float16."
            )
        self.shape = torch.Size(whole.shape)
        self._layout = {"dtype": whole.dtype, "offset": whole.offset}
        self._layout |= {"shape": whole.shape, "mode": "r"}
        self._layout["order"] = "C" if whole.flags.c_contiguous else "F"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The rows, float32."""
        # A map of its own for each batch: what a map has touched counts as memory.
        mapped = np.memmap(self.file, **self._layout)
        if isinstance(rows, Tensor):
            mapped._mmap.madvise(mmap.MADV_RANDOM)  # no reading of what is around
            rows = rows.numpy()
        return torch.from_numpy(mapped[rows].astype(np.float32))


class Pairs(Dataset):
    """One item a caption: its clip's audio embedding and its own.

    Arguments
    ---------
    audio : Tensor or MappedRows
        (N, d).
    text : Tensor or MappedRows
        (M, d).
    clip_of_text : Tensor
        (M,) the clip each caption belongs to.

    Example
    -------
    >>> pairs = Pairs(torch.eye(2), torch.ones(3, 2), torch.tensor([0, 0, 1]))
    >>> audio, text = pairs.__getitems__([1, 2])
    >>> audio
    tensor([[1., 0.],
            [0., 1.]])
    """

    def __init__(
        self,
        audio: Tensor | MappedRows,
        text: Tensor | MappedRows,
        clip_of_text: Tensor,
    ):
        self.audio, self.text = audio, text
        self.clip_of_text = clip_of_text

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, row: int | slice) -> tuple[Tensor, Tensor]:
        return self.audio[self.clip_of_text[row]], self.text[row]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch by two gathers, instead of item by item."""
        rows = torch.as_tensor(rows)
        here = self.audio.device
        return self.audio[self.clip_of_text[rows].to(here)], self.text[rows.to(here)]

    def joined(self, *others: Pairs) -> Pairs:
        """These pairs and those of others, all held in memory on one device.

        Example
        -------
        >>> pairs = Pairs(torch.eye(2), torch.ones(3, 2), torch.tensor([0, 0, 1]))
        >>> pairs.joined(pairs).clip_of_text
        tensor([0, 0, 1, 2, 2, 3])
        """
        if not others:
            return self
        everyone = (self, *others)
        ends = torch.tensor([len(pairs.audio) for pairs in everyone]).cumsum(0)
        starts = [0, *ends.tolist()]
        owners = [p.clip_of_text + at for p, at in zip(everyone, starts, strict=False)]
        audio, text = (
            torch.cat([getattr(pairs, name) for pairs in everyone])
            for name in ("audio", "text")
        )
        return Pairs(audio, text, torch.cat(owners))

    def shuffled(self, seed: int) -> Pairs:
        """The control: the same, but every caption goes with another clip's audio."""
        order = torch.randperm(len(self.audio), generator=seeded(seed))
        audio = self.audio[order.to(self.audio.device)]
        return Pairs(audio, self.text, self.clip_of_text)

    def subset(self, clips: int, seed: int) -> Pairs:
        """Some of the clips at random, each with all its captions.

        Arguments
        ---------
        clips : int
            How many, 1 to N.
        seed : int
            Of the choice. Fewer clips with the same seed are among the more.

        Returns
        -------
        pairs : Pairs

        Raises
        ------
        ValueError
            If there are not so many.

        Example
        -------
        >>> pairs = Pairs(
        ...     torch.eye(3), torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
        ... )
        >>> len(pairs.subset(2, seed=0))
        4
        """
        if not 1 <= clips <= len(self.audio):
            raise ValueError(
                f"There are {len(self.audio)} clips to choose {clips} from; give a "
                "number between 1 and that."
            )
        order = torch.randperm(len(self.audio), generator=seeded(seed))
        new = torch.full((len(self.audio),), -1)
        new[order[:clips]] = torch.arange(clips)
        owner = new[self.clip_of_text.cpu()]
        audio = self.audio[order[:clips].to(self.audio.device)]
        text = self.text[(owner >= 0).to(self.text.device)]
        return Pairs(audio, text, owner[owner >= 0].to(self.clip_of_text.device))

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch as ``__getitems__`` made it."""
        return batch


class Captioned(Dataset):
    """One item a caption, with the embedding that it is written from.

    Arguments
    ---------
    source : Tensor
        (N, d) embeddings: of clips, or of the captions themselves.
    clip_of_text : Tensor
        (M,) the row of ``source`` that each caption belongs to.
    captions : sequence of str
        M captions.

    Example
    -------
    >>> data = Captioned(torch.eye(2), torch.tensor([0, 0, 1]), ["a", "b", "c"])
    >>> data.__getitems__([1])
    (tensor([[1., 0.]]), ['b'])
    """

    def __init__(self, source: Tensor, clip_of_text: Tensor, captions: Sequence[str]):
        self.source, self.clip_of_text = source, clip_of_text
        self.captions = list(captions)
        self.lengths = torch.tensor([len(caption) for caption in self.captions])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, list[str]]:
        """A whole batch by one gather."""
        here = self.clip_of_text[torch.as_tensor(rows)].to(self.source.device)
        return self.source[here], [self.captions[row] for row in rows]

    @staticmethod
    def collate(batch: tuple[Tensor, list[str]]) -> tuple[Tensor, list[str]]:
        """The batch as ``__getitems__`` made it."""
        return batch


class ClipBatches(Sampler[list[int]]):
    """Batches of caption rows for ``Pairs`` or ``Captioned``, split evenly over ranks.

    Each pass visits every clip once, in a random order, with a random one of its
    captions; the remainder that fills no batch is left out of that pass. Order and
    captions follow from seed, epoch and pass alone, so a resumed run sees the same
    batches, and so do several ranks: each takes its share of the same global batch.

    Arguments
    ---------
    clip_of_text : Tensor
        (M,) the clip of each caption; every clip 0..N-1 has one.
    batch_size : int
        Clips of a global batch; all clips where there are fewer.
    passes : int
        Passes over the clips in one epoch.
    seed : int
        Seed of order and captions.
    rank : int
        Which share of each batch to yield.
    world_size : int
        The number of shares.
    lengths : Tensor, optional
        (M,) of the captions; batches are then of captions about equally long, which
        leaves little to pad.

    Raises
    ------
    ValueError
        If a rank would get fewer than two clips, or the shares would be uneven.

    Example
    -------
    >>> batches = ClipBatches(torch.tensor([0, 0, 1, 2, 3]), batch_size=2, seed=0)
    >>> len(batches), [len(rows) for rows in batches]
    (2, [2, 2])
    """

    def __init__(
        self,
        clip_of_text: Tensor,
        batch_size: int,
        passes: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lengths: Tensor | None = None,
    ):
        self.by_clip = clip_of_text.argsort(stable=True)
        self.captions = clip_of_text.bincount()
        self.first = self.captions.cumsum(0) - self.captions
        clips = len(self.captions)
        self.batch_size = min(batch_size, clips - clips % world_size)
        self.passes, self.seed, self.epoch = passes, seed, 0
        self.rank, self.world_size, self.lengths = rank, world_size, lengths
        if self.batch_size < 2 * world_size or self.batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} with {clips} clips on {world_size} "
                "process(es) does not give each an equal share of 2 clips or more; "
                "set --batch_size to a larger multiple of the number of processes."
            )

    def set_epoch(self, epoch: int) -> None:
        """Called by ``Brain.fit`` before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.passes * (len(self.captions) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for number in range(self.passes):
            for batch in self._draw_batches(number):
                yield batch[self.rank * share :][:share].tolist()

    def _draw_batches(self, number: int) -> Tensor:
        """Caption rows of all batches of one pass: (batches, batch_size)."""
        generator = seeded(self.seed, self.epoch, number)
        clips = torch.randperm(len(self.captions), generator=generator)
        draw = torch.rand(len(clips), generator=generator)
        nth = (draw * self.captions[clips]).long()
        rows = self.by_clip[self.first[clips] + nth]
        rows = rows[: len(rows) - len(rows) % self.batch_size]
        if self.lengths is None:
            return rows.view(-1, self.batch_size)
        pools = rows.split(_POOL * self.batch_size)
        rows = torch.cat([pool[self.lengths[pool].argsort()] for pool in pools])
        batches = rows.view(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator)]


def seeded(*numbers: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that follows from several numbers: seed, epoch, step, rank.

    Example
    -------
    >>> seeded(1, 2).initial_seed() == seeded(1, 2).initial_seed()
    True
    >>> seeded(1, 2).initial_seed() == seeded(2, 1).initial_seed()
    False
    """
    mixed = 0
    for number in numbers:
        # A 63-bit linear congruential step spreads neighboring numbers apart.
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(mixed)
