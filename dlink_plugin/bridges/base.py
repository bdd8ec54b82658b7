"""The contract of a bridge, and how one is saved and loaded."""

from __future__ import annotations

import contextlib
import inspect
import json
from abc import ABC, abstractmethod
from itertools import chain
from pathlib import Path
from reprlib import repr as shortly

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .sealed import (
    SUMS,
    check_shapes,
    first_line,
    read_json,
    seal,
    unseal,
    verify,
    whole,
)
from .share import WHOLE, Share

__all__ = ["Bridge"]

FORMAT = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_KINDS = {"int": int, "float": (int, float), "str": str, "bool": bool}
_LARGEST = 10_000_000  # number in a config: there are no longer memories of texts


class Bridge(nn.Module, ModelHubMixin, ABC, library_name="dlink-plugin", license="mit"):
    """Maps audio embeddings into the distribution of text embeddings.

    A subclass names itself (``class Shift(Bridge, name="shift")``), keeps every
    constructor argument, a plain number or string, in an attribute of the same name,
    and overrides ``forward`` and what of ``fit``, ``loss`` and ``text_space`` it needs.
    One without a name is a base of others.

    Arguments
    ---------
    dim : int
        Width d of the embeddings.

    Attributes
    ----------
    saw : str
        What it is made from: "nothing", "means" (of unpaired audio and text), "text"
        or "pairs".
    own_text_space : bool
        Whether ``text_space`` is not the encoder's: decoders are then trained in it.
    noise_variance : float
        Of each coordinate of the noise that its decoder's training text gets.
    inference_arguments : tuple of str
        Constructor arguments that may be changed after training.
    """

    registry: dict[str, type[Bridge]] = {}
    name = ""
    saw = "nothing"
    own_text_space = False
    noise_variance = 0.0
    inference_arguments: tuple[str, ...] = ()

    def __init_subclass__(cls, name: str = "", **kwargs):
        super().__init_subclass__(**kwargs)
        cls.name = name
        if name:
            Bridge.registry[name] = cls

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def fit(self, audio: Tensor, text: Tensor) -> None:
        """Set closed-form state (means, maps, memories) from training pairs.

        Arguments
        ---------
        audio : Tensor
            (N, d) L2-normalized embeddings.
        text : Tensor
            (N, d) row i is a caption of clip i.
        """

    def loss(
        self,
        audio: Tensor,
        text: Tensor,
        generator: torch.Generator | None = None,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """Training terms of one batch of pairs.

        Arguments
        ---------
        audio : Tensor
            (N, d) L2-normalized embeddings.
        text : Tensor
            (N, d) row i is a caption of clip i; no clip twice.
        generator : torch.Generator, optional
            Source of all randomness; in the same state in every process.
        share : Share
            Of the global batch: what these pairs are. The gradients of the processes'
            losses average to those of one process with the whole batch.

        Returns
        -------
        terms : dict of str to Tensor
            Named scalars; "loss" is their total. A closed-form bridge has none.
        """
        return {"loss": audio.new_zeros(())}

    @abstractmethod
    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Cross the gap.

        Arguments
        ---------
        audio : Tensor
            (N, d) L2-normalized audio embeddings.
        generator : torch.Generator, optional
            Source of all randomness.

        Returns
        -------
        bridged : Tensor
            (N, d) L2-normalized text-like embeddings.
        """

    def text_space(self, text: Tensor) -> Tensor:
        """What this bridge calls text: (N, d) to (N, d), the identity for most."""
        return text

    def encoder_space(self, bridged: Tensor) -> Tensor:
        """Maps what ``forward`` gives back among the encoder's text embeddings.

        The inverse of ``text_space``: (N, d) to (N, d), the identity for most.
        """
        return bridged

    def with_arguments(self, **changes: float | str) -> Bridge:
        """A copy that crosses in another way.

        Arguments
        ---------
        **changes : dict
            Of the ``inference_arguments``.

        Returns
        -------
        bridge : Bridge
            With weights of its own.

        Raises
        ------
        ValueError
            If an argument decides on the training.
        """
        fixed = set(changes) - set(self.inference_arguments)
        if fixed:
            raise ValueError(
                f"{self.name} cannot change {sorted(fixed)} once it is trained, only "
                f"{list(self.inference_arguments)}."
            )
        now = {key: getattr(self, key) for key in self.arguments()}
        with torch.random.fork_rng(devices=[]):  # new weights are drawn in vain
            copy = type(self)(**now | changes)
        copy.load_state_dict(self.state_dict())
        device = next(chain(self.parameters(), self.buffers(), [torch.empty(0)])).device
        return copy.to(device).train(self.training)

    @classmethod
    def arguments(cls) -> list[str]:
        """Names of the constructor's arguments, ``dim`` first."""
        return list(inspect.signature(cls.__init__).parameters)[1:]

    @property
    def reading(self) -> str:
        """Which decoder reads it: one trained on "text", on "noise", or on its own."""
        if self.own_text_space:
            return self.name
        return "noise" if self.noise_variance else "text"

    @property
    def config(self) -> dict:
        """What rebuilds this bridge: its name and constructor arguments."""
        arguments = {key: getattr(self, key) for key in self.arguments()}
        return {"format": FORMAT, "bridge": self.name, **arguments}

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {
            k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()
        }
        unseal(save_directory)
        with whole(save_directory / _WEIGHTS) as draft:
            save_file(tensors, draft, {"format": "pt"})
        with whole(save_directory / _CONFIG) as draft:
            draft.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        seal(save_directory, _CONFIG, _WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, **hub_options) -> Bridge:
        """Load what ``save_pretrained`` wrote. Nothing pickled is ever read.

        Arguments
        ---------
        folder_or_hub_id : str or Path
            A folder, or the id of a repository on the Hugging Face hub.
        **hub_options : dict
            ``revision``, ``token``, ``cache_dir``: passed to ``hf_hub_download``.

        Returns
        -------
        bridge : Bridge
            Of the class its config names, in eval mode, on the CPU.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If the config or the weights are not those of a bridge of this class.
        """
        path = _find(folder_or_hub_id, _CONFIG, hub_options)
        kind, arguments = cls._read_config(path)
        weights = _find(folder_or_hub_id, _WEIGHTS, hub_options)
        with contextlib.suppress(FileNotFoundError):  # earlier releases had no seal
            _find(folder_or_hub_id, SUMS, hub_options)
        verify(path.parent, [_CONFIG, _WEIGHTS])
        try:
            # Built without memory first: a config may ask for more than there is.
            with torch.device("meta"):
                shell = kind(**arguments).state_dict()
            check_shapes(shell, weights)
            bridge = kind(**arguments)
            bridge.load_state_dict(load_file(weights), strict=True)
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{weights} does not hold the weights its config.json describes; "
                f"export the bridge again ({first_line(error)})."
            ) from error
        return bridge.eval()

    @classmethod
    def _read_config(cls, path: Path) -> tuple[type[Bridge], dict]:
        """The class that a file names, and the arguments it has for it."""
        config = read_json(path, "export the bridge again")
        name, version = config.pop("bridge", None), config.pop("format", None)
        if version != FORMAT:
            raise ValueError(
                f"{path} has format {shortly(version)} and this dlink_plugin reads "
                f"{FORMAT}; install the release that wrote it."
            )
        kind = Bridge.registry.get(name) if isinstance(name, str) else None
        if kind is None or not issubclass(kind, cls):
            expected = [n for n, k in Bridge.registry.items() if issubclass(k, cls)]
            raise ValueError(
                f"{path} names the bridge {shortly(name)}, not one of {expected}."
            )
        wanted = inspect.signature(kind).parameters
        strange = config.keys() ^ wanted.keys()
        strange |= {
            key
            for key in config.keys() & wanted.keys()
            if not _is_a(wanted[key].annotation, config[key])
        }
        if strange:
            raise ValueError(
                f"{path} does not have the plain arguments of {kind.__name__} (see "
                f"{shortly(sorted(strange))}); export the bridge again."
            )
        return kind, config


def _find(folder_or_hub_id: str | Path, name: str, hub_options: dict) -> Path:
    if Path(folder_or_hub_id).is_dir():
        path = Path(folder_or_hub_id) / name
        if path.is_file():
            return path
        raise FileNotFoundError(
            f"{path} is missing: {folder_or_hub_id} is not a saved bridge."
        )
    try:
        return Path(hf_hub_download(str(folder_or_hub_id), name, **hub_options))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder_or_hub_id} is neither a folder nor a bridge that can be "
            "fetched from the hub; train one with recipes/AudioCaps/train.py."
        ) from error


def _is_a(kind: str, value) -> bool:
    """Whether a value is what an annotation asks for, and no absurd number."""
    if not isinstance(value, _KINDS[kind]):
        return False
    return isinstance(value, str) or abs(value) <= _LARGEST  # which NaN is not
