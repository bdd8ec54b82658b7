"""Frozen CLAP encoders: a waveform or a sentence in, a unit vector out.

:class:`ClapEncoder` wraps ``transformers.ClapModel``, :class:`LaionClapEncoder` the
checkpoint files of ``laion_clap``. Both give the same vector for the same clip every
time: a clip longer than CLAP's window is cut into evenly spaced windows, whose
embeddings are averaged, instead of being cropped at random.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortly

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize
from transformers import (
    AutoTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    PretrainedConfig,
)

from .audio import windows
from .files import add_tensors
from .reading import check_files, damage_told, first_line

MINI_CLAP = Path(__file__).parent / "mini" / "clap"
_LAYERS = 1000
_WEIGHTS = 1 << 29  # of a model at most; the largest CLAPs have 200 million
_WIDEST = 1 << 12  # window of a spectrum, and number of its mel bands; CLAP: 1024, 64
CHECKPOINTS = (".pt", ".ckpt", ".pth")
FUSION = "audio_branch.patch_embed.mel_conv2d.weight"  # only fusion models have it
# What checkpoints hold beside tensors (their epoch, best score): numbers of numpy.
_NUMPY_SCALARS = [
    (np.core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np.core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
]
# What the features of one window depend on in a ClapFeatureExtractor.
FEATURE_SETTINGS = (
    *("feature_size", "fft_window_size", "hop_length"),
    *("frequency_min", "frequency_max", "padding"),
)


@dataclass(frozen=True)
class FrontEnd:
    """The part of an encoder that needs no model: waveform to features.

    It is small and picklable, so DataLoader workers carry it instead of the encoder.

    Arguments
    ---------
    extract : callable
        Features of one window, a tensor whose shape is the same for every window.
    sample_rate : int
        In hertz.
    window : int
        Samples in a window.
    min_tail : int
        See :func:`windows`.

    Example
    -------
    >>> front_end = FrontEnd(lambda w: w.mean(0), sample_rate=4, window=4, min_tail=1)
    >>> front_end(torch.tensor([0.0, 0, 2, 2, 4, 4]))
    tensor([1., 3.])
    """

    extract: Callable[[torch.Tensor], torch.Tensor]
    sample_rate: int
    window: int
    min_tail: int

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Features of all windows of a waveform (T,), stacked: (windows, ...)."""
        parts = windows(waveform, self.window, self.min_tail)
        return torch.stack([self.extract(part) for part in parts])


class FrozenEncoder(torch.nn.Module):
    """What the encoders share; subclasses embed one batch of features or of texts.

    That is ``_embed_audio`` and ``_embed_text``: one row for each, of any length.

    Arguments
    ---------
    model : torch.nn.Module
        It gets no gradient and stays in eval mode, whatever calls ``train()``.
    dim : int
        Size d of the embeddings.
    front_end : FrontEnd
        Waveform to features.
    settings : dict
        Everything beside weights and windows that the embeddings depend on, as JSON.
    batch_size : int
        Windows or texts per forward pass of the model.

    Example
    -------
    A CLAP of another kind, here of 1024 numbers and 32 kHz. (Stand-ins for the real
    one: levels of a window's parts, and the letters of a text.)

    >>> from dlink_plugin.encoders import FrontEnd, FrozenEncoder
    >>> def levels(window):  # at the top of a module, so that it can be pickled
    ...     return torch.stack([part.std() for part in window.tensor_split(64)])
    >>> class MyClap(FrozenEncoder):
    ...     def __init__(self):
    ...         front_end = FrontEnd(levels, 32_000, window=320_000, min_tail=3_200)
    ...         model, settings = torch.nn.Linear(64, 1024), {"features": "levels"}
    ...         super().__init__(model, 1024, front_end, settings)
    ...
    ...     def _embed_audio(self, features):  # (windows, 64) to (windows, 1024)
    ...         return self.model(features)
    ...
    ...     def _embed_text(self, texts):
    ...         counts = [
    ...             [text.count(chr(i)) for i in range(64, 128)] for text in texts
    ...         ]
    ...         return self.model(torch.tensor(counts).float())
    >>> MyClap().encode_audio([torch.randn(400_000)]).shape
    torch.Size([1, 1024])
    >>> MyClap().encode_text(["a dog barks", "rain"]).shape
    torch.Size([2, 1024])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dim: int,
        front_end: FrontEnd,
        settings: dict,
        batch_size: int = 32,
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.dim = dim
        self.front_end = front_end
        self.settings = settings
        self.batch_size = batch_size
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode: a Brain switches all its modules to training mode."""
        return super().train(False)

    @property
    def sample_rate(self) -> int:
        """Rate in hertz of the waveforms it takes."""
        return self.front_end.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model, and so every embedding, lives."""
        return next(self.model.parameters()).device

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, preprocessing and window policy, in hexadecimal.

        Neither the folder the weights came from nor the device matters.
        """
        policy = {"window": self.front_end.window, "min_tail": self.front_end.min_tail}
        text = json.dumps([self.settings, self.sample_rate, policy], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        add_tensors(digest, self.model.state_dict())
        return digest.hexdigest()

    def prepare_audio(self, waveform: torch.Tensor) -> torch.Tensor:
        """Features of the windows of one waveform (T,), on the CPU: (windows, ...)."""
        return self.front_end(waveform)

    def encode_prepared(self, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed what :meth:`prepare_audio` gave for each of N clips.

        Returns
        -------
        audio : torch.Tensor
            Shape (N, d), rows of length 1: the normalized mean over a clip's windows.
        """
        if not len(prepared):
            return torch.empty(0, self.dim, device=self.device)
        features = torch.cat(list(prepared))
        if self.device.type == "cuda":
            features = features.pin_memory()
        rows = self._in_batches(self._embed_audio, features)
        clips = rows.split([len(features) for features in prepared])
        return normalize(torch.stack([clip.mean(0) for clip in clips]), dim=-1)

    def encode_audio(self, waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed N waveforms (T,) at ``sample_rate``: shape (N, d), rows of length 1."""
        return self.encode_prepared([self.prepare_audio(w) for w in waveforms])

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed M sentences: shape (M, d), rows of length 1."""
        if isinstance(texts, str):
            raise TypeError(f"encode_text takes a list of sentences, not {texts!r}.")
        if not len(texts):
            return torch.empty(0, self.dim, device=self.device)
        return self._in_batches(self._embed_text, list(texts))

    @torch.no_grad()
    def _in_batches(self, embed, items) -> torch.Tensor:
        steps = range(0, len(items), self.batch_size)
        rows = [embed(items[i : i + self.batch_size]).float() for i in steps]
        return normalize(torch.cat(rows), dim=-1)

    def _embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        raise NotImplementedError


class ClapEncoder(FrozenEncoder):
    """A CLAP in the format of Hugging Face transformers, frozen.

    A fusion model (``laion/clap-htsat-fused``) works as well: no window is ever longer
    than the model's, so its fusion branch for long clips, the one that crops at
    random, stays unused.

    Arguments
    ---------
    clap : str or Path
        A folder (weights as safetensors), a Hugging Face id such as
        ``laion/clap-htsat-unfused``, or ``mini``, the one in this package.
    min_tail_s : float
        A tail of a long clip shorter than this many seconds is dropped.
    batch_size : int
        Windows or texts per forward pass of the model.

    Raises
    ------
    OSError
        If there is no complete CLAP under that name.
    ValueError
        If the model there is no CLAP or does not fit its feature extractor.
    """

    def __init__(
        self, clap: str | Path, *, min_tail_s: float = 0.1, batch_size: int = 32
    ):
        model, extractor, tokenizer = _load_clap(clap)
        _check_frames(clap, model.config.audio_config, extractor)
        with damage_told(f"The CLAP at {clap}"):  # settings of the wrong kind
            fusion = model.config.audio_config.enable_fusion
            front_end = FrontEnd(
                extract=LogMel(extractor, fusion),
                sample_rate=extractor.sampling_rate,
                window=_window(extractor),
                min_tail=round(min_tail_s * extractor.sampling_rate),
            )
            text = model.config.text_config
            # RoBERTa counts positions from its padding index on.
            positions = text.max_position_embeddings - text.pad_token_id - 1
            max_tokens = min(tokenizer.model_max_length, positions)
            settings = {
                "vocabulary": tokenizer.get_vocab(),
                "max_tokens": max_tokens,
                **{key: getattr(extractor, key) for key in FEATURE_SETTINGS},
            }
        super().__init__(
            model, model.config.projection_dim, front_end, settings, batch_size
        )
        self.extractor, self.tokenizer = extractor, tokenizer
        self.max_tokens = max_tokens

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, feature extractor and tokenizer, as transformers does."""
        for part in (self.model, self.extractor, self.tokenizer):
            part.save_pretrained(folder)

    def _embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.device)
        out = self.model.get_audio_features(
            input_features=features.to(self.device, non_blocking=True),
            is_longer=is_longer,
        )
        return getattr(out, "pooler_output", out)  # a tensor up to transformers 4

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            texts,
            padding="longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        out = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return getattr(out, "pooler_output", out)


def _load_clap(clap: str | Path):
    folder = MINI_CLAP if clap == "mini" else Path(clap)
    source = str(folder if folder.is_dir() else clap)
    check_files(folder)
    try:
        with damage_told(f"The CLAP at {clap}"):
            kind = PretrainedConfig.get_config_dict(source)[0].get("model_type")
        if kind is None:
            raise OSError("there is no config.json, or no model_type in it")
        if kind != "clap":
            raise ValueError(
                f"{clap} is a {str(kind)[:50]} model; name a CLAP, for instance "
                "laion/clap-htsat-unfused."
            )
        with damage_told(f"The CLAP at {clap}"):
            model, loading, *rest = _load_parts(source, folder.is_dir())
    except OSError as error:
        raise OSError(
            f"No complete CLAP at {clap}: give a folder with config.json, "
            "model.safetensors, preprocessor_config.json and tokenizer.json, a Hugging "
            "Face id such as laion/clap-htsat-unfused (its first use needs the "
            "network; a gated one needs its license accepted on its page and `hf auth "
            f"login`), or mini. The reason: {first_line(error)}"
        ) from error
    _check_weights(clap, model, loading)
    _check_tokenizer(clap, rest[-1], model.config.text_config)
    return model, *rest


def _check_weights(clap, model: ClapModel, loading: dict) -> None:
    needed = {name for name, _ in model.named_parameters()}
    needed |= {name for name in model.state_dict() if ".running_" in name}
    if absent := needed & set(loading["missing_keys"]):
        raise ValueError(
            f"The weights of {clap} lack {len(absent)} tensors ({min(absent)}, ...); "
            "save the whole ClapModel again."
        )
    # A model without fusion has other filters: its embeddings would be wrong.
    if any("fusion_model" in name for name in loading["unexpected_keys"]):
        raise ValueError(
            f"The weights of {clap} are those of a fusion model, its config.json is "
            "not; set enable_fusion in its audio_config, or save the ClapModel again."
        )


def _check_tokenizer(clap, tokenizer, text: ClapTextConfig) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer of {clap} has no padding token, so texts of different "
            "lengths make no batch; set pad_token in its tokenizer_config.json."
        )
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"The tokenizer of {clap} has {len(tokenizer)} tokens, its model "
            f"{text.vocab_size}; save the tokenizer that the model was trained with."
        )


def _load_parts(source: str, local: bool):
    _check_depth(PretrainedConfig.get_config_dict(source)[0])
    if local:
        blueprint(ClapConfig.from_pretrained(source))
    try:
        model, loading = ClapModel.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True if local else None,  # no pickle from a folder
            output_loading_info=True,
        )
        _check_filters(ClapFeatureExtractor.get_feature_extractor_dict(source)[0])
        extractor = ClapFeatureExtractor.from_pretrained(source)
        # Else transformers asks on the terminal whether to run a folder's own code.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (SafetensorError, TypeError) as error:  # it opens the name None
        raise OSError(error) from error
    return model, loading, extractor, tokenizer


def _check_depth(config: dict) -> None:
    """Layers are made one by one, even where they take no memory."""
    text, audio = (config.get(f"{kind}_config") or {} for kind in ("text", "audio"))
    layers = [text.get("num_hidden_layers", 0), audio.get("num_hidden_layers", 0)]
    if max(*layers, *audio.get("depths", [0])) > _LAYERS:
        raise ValueError(f"more than {_LAYERS} layers")


def blueprint(config: ClapConfig) -> ClapModel:
    """The model, without memory for its weights: a config may ask for too much.

    Arguments
    ---------
    config : ClapConfig
        Of any size.

    Returns
    -------
    model : ClapModel
        On the device "meta": names and shapes alone.

    Raises
    ------
    ValueError
        If it is larger than any CLAP.
    """
    with torch.device("meta"):
        model = ClapModel(config)
    size = sum(weights.numel() for weights in model.parameters())
    if size > _WEIGHTS:
        raise ValueError(f"{size} weights, more than {_WEIGHTS}")
    return model


def _check_filters(config: dict) -> None:
    """The extractor makes them where it is made, as many and as wide as it says."""
    sizes = config.get("feature_size", 64), config.get("fft_window_size", 1024)
    if not 1 <= min(sizes) <= max(sizes) <= _WIDEST:
        raise ValueError(f"filters of sizes {shortly(sizes)}, not 1 to {_WIDEST}")
    window = config.get("max_length_s", 10), config.get("sampling_rate", 48_000)
    if not all(isinstance(each, (int, float)) for each in window):
        raise ValueError(f"windows of {shortly(window)}")  # a text can be multiplied


def _window(extractor: ClapFeatureExtractor) -> int:
    return round(extractor.max_length_s * extractor.sampling_rate)


def _check_frames(clap, audio, extractor: ClapFeatureExtractor) -> None:
    with damage_told(f"The CLAP at {clap}"):  # settings of the wrong kind
        frames = _window(extractor) // extractor.hop_length + 1
        capacity = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
    if frames > capacity or extractor.feature_size != audio.num_mel_bins:
        raise ValueError(
            f"The feature extractor of {clap} makes windows of {frames} frames and "
            f"{extractor.feature_size} mel bands, its model takes up to {capacity} "
            f"frames of {audio.num_mel_bins}; correct preprocessor_config.json."
        )


class LogMel:
    """Log-mel spectrogram of one window, as CLAP takes it.

    The numbers of ``ClapFeatureExtractor`` in a third of its time: ``torch.stft`` in
    single precision on the extractor's own filters and padding. Without its random
    crop, because a window is never too long.

    Arguments
    ---------
    extractor : ClapFeatureExtractor
        Of the model.
    fusion : bool
        Whether the model takes four channels, which for a short clip are equal.
    """

    def __init__(self, extractor: ClapFeatureExtractor, fusion: bool):
        filters = extractor.mel_filters if fusion else extractor.mel_filters_slaney
        self.filters = torch.from_numpy(filters.T.copy()).float()
        self.hop, self.padding = extractor.hop_length, extractor.padding
        self.hann = torch.hann_window(extractor.fft_window_size)
        self.window, self.channels = _window(extractor), 4 if fusion else 1

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """A window of up to the model's samples (T,) to (channels, frames, bands)."""
        waveform = _fill(waveform, self.window, self.padding)
        spectrum = torch.stft(
            waveform, len(self.hann), self.hop, window=self.hann, return_complex=True
        )
        power = torch.view_as_real(spectrum).square().sum(-1)
        decibels = 10 * (self.filters @ power).clamp(min=1e-10).log10()
        return decibels.T.expand(self.channels, -1, -1)


def _fill(waveform: torch.Tensor, length: int, padding: str) -> torch.Tensor:
    """Whole copies and zeros, copies alone, or zeros alone up to the length."""
    copies = {
        "repeatpad": length // len(waveform),
        "repeat": -(-length // len(waveform)),
    }
    waveform = waveform.repeat(copies.get(padding, 1))[:length]
    return torch.nn.functional.pad(waveform, (0, length - len(waveform)))


class LaionClapEncoder(FrozenEncoder):
    """A checkpoint file of the ``laion_clap`` package, frozen.

    Only tensors are read from the file, no code is run. Importing ``laion_clap`` loads
    RoBERTa's tokenizer from the Hugging Face Hub; ``dlink convert-clap`` makes of the
    file a folder for :class:`ClapEncoder`, which needs no ``laion_clap``.

    Arguments
    ---------
    checkpoint : str or Path
        For instance ``630k-audioset-best.pt`` or
        ``music_speech_audioset_epoch_15_esc_89.98.pt``.
    amodel : str, optional
        Audio tower: ``HTSAT-tiny``, or ``HTSAT-base`` for the music and speech files.
        None: by the width of the file's.
    enable_fusion : bool, optional
        Whether the checkpoint is a fusion model. None: as the file is.
    min_tail_s : float
        A tail of a long clip shorter than this many seconds is dropped.
    batch_size : int
        Windows or texts per forward pass of the model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If ``laion_clap`` is not installed.
    ValueError
        If the checkpoint does not fit the audio tower.
    """

    SAMPLE_RATE = 48_000
    WINDOW = 480_000

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        amodel: str | None = None,
        enable_fusion: bool | None = None,
        min_tail_s: float = 0.1,
        batch_size: int = 32,
    ):
        model, settings = _load_laion_clap(checkpoint, amodel, enable_fusion)
        front_end = FrontEnd(
            extract=functools.partial(_as_16_bit, self.WINDOW),
            sample_rate=self.SAMPLE_RATE,
            window=self.WINDOW,
            min_tail=round(min_tail_s * self.SAMPLE_RATE),
        )
        with torch.no_grad():
            dim = model.get_text_embedding(["sound"], use_tensor=True).shape[-1]
        super().__init__(model, dim, front_end, settings, batch_size)

    def _embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.get_audio_embedding_from_data(features, use_tensor=True)

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        return self.model.get_text_embedding(texts, use_tensor=True)


def _load_laion_clap(
    checkpoint: str | Path, amodel: str | None, enable_fusion: bool | None
):
    _check_there(checkpoint)
    try:
        import laion_clap
    except ImportError as error:
        raise ImportError(
            f"{checkpoint} needs laion_clap; pip install 'dlink-plugin[clap]', or "
            f"convert it with: dlink convert-clap {checkpoint} FOLDER. The reason: "
            f"{error}"
        ) from error
    state = read_checkpoint(checkpoint)
    settings = {
        "amodel": _audio_tower(state) if amodel is None else amodel,
        "enable_fusion": FUSION in state if enable_fusion is None else enable_fusion,
    }
    model = laion_clap.CLAP_Module(device="cpu", **settings)
    try:
        model.model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} does not fit laion_clap's {settings['amodel']} with "
            f"enable_fusion={settings['enable_fusion']}; leave out amodel and "
            "enable_fusion, and they are the file's. The reason: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return model, settings


def _audio_tower(state: dict[str, torch.Tensor]) -> str:
    first = state.get("audio_branch.patch_embed.proj.weight")
    widths = {128: "HTSAT-base", 256: "HTSAT-large"}
    return widths.get(0 if first is None else len(first), "HTSAT-tiny")


def _check_there(checkpoint: str | Path) -> None:
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"No checkpoint at {checkpoint}; download one from "
            "https://huggingface.co/lukewys/laion_clap."
        )


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, by their names in a model that is not wrapped.

    laion_clap's own reader would run what a pickle says, and stops at a checkpoint that
    has no position_ids any more.

    Arguments
    ---------
    path : str or Path
        Saved by ``torch.save``: a state dict, or a dict with one as "state_dict".

    Returns
    -------
    state : dict of str to torch.Tensor
        Memory-mapped where the file can be: an optimizer's state is not read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds anything but data, or is damaged or cut off.
    """
    _check_there(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        # For a tar archive torch makes a folder elsewhere before it refuses it.
        if not start.startswith((b"PK\x03\x04", b"\x80")):
            raise ValueError("torch did not save it")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            loaded = torch.load(
                path, map_location="cpu", weights_only=True, mmap=start[:2] == b"PK"
            )
        state = loaded.get("state_dict", loaded)
        state = {name.removeprefix("module."): each for name, each in state.items()}
        if not all(isinstance(each, torch.Tensor) for each in state.values()):
            raise ValueError("there are no tensors under state_dict")
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(
            f"{path} is not a checkpoint of weights alone; fetch it again from where "
            f"you trust it, or convert it there. The reason: {first_line(error)}"
        ) from error
    state.pop("text_branch.embeddings.position_ids", None)  # older transformers had it
    return state


def _as_16_bit(length: int, waveform: torch.Tensor) -> torch.Tensor:
    # laion_clap's models were trained on 16-bit samples.
    waveform = _fill(waveform, length, "repeatpad")
    return (waveform.clamp(-1, 1) * 32767).to(torch.int16).float() / 32767


def load_encoder(clap: str | Path, **options) -> FrozenEncoder:
    """The encoder that fits a name.

    Arguments
    ---------
    clap : str or Path
        ``*.pt``, ``*.ckpt`` or ``*.pth``: a checkpoint of ``laion_clap``. Everything
        else: a folder, a Hugging Face id, or ``mini``.
    **options : dict
        Keyword arguments of :class:`LaionClapEncoder` or :class:`ClapEncoder`.

    Returns
    -------
    encoder : FrozenEncoder
        On the CPU; move it with ``.to(device)``.
    """
    if Path(clap).suffix in CHECKPOINTS:
        return LaionClapEncoder(clap, **options)
    return ClapEncoder(clap, **options)
