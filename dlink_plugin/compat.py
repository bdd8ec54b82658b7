"""Makes torchaudio importable where its native library is not, and complete for
aac-datasets. Import this module before speechbrain, aac_datasets or aac_metrics.

torchaudio's Linux wheels link against CUDA. Beside a CPU build of torch ``import
torchaudio`` raises ``OSError``, beside a torch built for another CUDA ``RuntimeError``,
although everything our dependencies call of it is plain Python. And torchaudio 2.9
dropped names that aac-datasets 0.7 still imports. What is healthy is left untouched.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from types import ModuleType

__all__ = ["ensure_torchaudio"]


def ensure_torchaudio() -> ModuleType:
    """Import torchaudio, standing in for whatever this installation lacks of it.

    Returns
    -------
    torchaudio : module
        As installed where it is healthy; without its native library where that
        cannot load; with ``AudioMetaData``, ``info`` and ``load`` over soundfile
        where the release has dropped them (its own ``load`` then needs torchcodec).

    Raises
    ------
    ImportError
        If torchaudio is not installed at all.

    Example
    -------
    >>> hasattr(ensure_torchaudio(), "AudioMetaData")
    True
    """
    try:
        torchaudio = importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        torchaudio = _import_without_native_library()
    if not hasattr(torchaudio, "AudioMetaData"):
        _add_soundfile_names(torchaudio)
    return torchaudio


def _import_without_native_library() -> ModuleType:
    # A failed import leaves half-initialized submodules behind.
    for name in [n for n in sys.modules if n.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    extension = ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = extension._IS_RIR_AVAILABLE = False
    extension._check_cuda_version = lambda: None
    extension.fail_if_no_align = extension.fail_if_no_rir = _needs_native_library
    sox = ModuleType("_torchaudio_sox")  # releases up to 2.8 ask for it at import
    sox.is_available = lambda: False
    extension.lazy_import_sox_ext = lambda: sox
    sys.modules["torchaudio._extension"] = extension
    return importlib.import_module("torchaudio")


def _needs_native_library(function):
    @functools.wraps(function)
    def fail(*args, **kwargs):
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its native library, which does "
            "not load beside this build of torch; install a matching torchaudio."
        )

    return fail


@dataclasses.dataclass
class AudioMetaData:
    """What ``torchaudio.info`` returned up to release 2.8.

    Arguments
    ---------
    sample_rate : int
        In hertz.
    num_frames : int
        Samples per channel.
    num_channels : int
    bits_per_sample : int
        0 where the format does not tell.
    encoding : str
        soundfile's subtype, "PCM_16" for instance.
    """

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int = 0
    encoding: str = ""


def _info(uri, *args, **kwargs) -> AudioMetaData:
    import soundfile

    found = soundfile.info(str(uri))
    return AudioMetaData(
        found.samplerate, found.frames, found.channels, encoding=found.subtype
    )


def _load(
    uri,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    *args,
    **kwargs,
):
    import soundfile
    import torch

    samples, rate = soundfile.read(
        str(uri), num_frames, frame_offset, dtype="float32", always_2d=True
    )
    waveform = torch.from_numpy(samples)
    return (waveform.T.contiguous() if channels_first else waveform), rate


def _add_soundfile_names(torchaudio: ModuleType) -> None:
    torchaudio.AudioMetaData = AudioMetaData
    torchaudio.info = _info
    torchaudio.load = _load


ensure_torchaudio()
