"""Reading sound files: any rate, any number of channels, cut into windows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

__all__ = ["BadAudio", "from_array", "load_audio", "windows"]

SILENCE = 1e-6  # peak amplitude, full scale being 1
BLOCK = 1 << 16  # samples decoded at a time, all channels together
# Samples of a file, all channels together, and of what it is resampled to: 3 hours of
# mono at 48 kHz, 2 GiB in memory. A compressed file of a few MB may hold far more.
LONGEST = 1 << 29


class BadAudio(ValueError):
    """An audio file that cannot be embedded.

    Arguments
    ---------
    path : str or Path
        The file.
    reason : str
        What it is: "undecodable", "silent", "too long", ...
    detail : str
        What the decoder says.

    Example
    -------
    >>> print(BadAudio("rain.wav", "silent"))
    rain.wav is silent; replace the file or remove it.
    """

    def __init__(self, path: str | Path, reason: str, detail: str = ""):
        super().__init__(path, reason, detail)
        self.reason = reason

    def __str__(self) -> str:
        path, reason, detail = self.args
        detail = f" ({detail})" if detail else ""
        return f"{path} is {reason}{detail}; replace the file or remove it."


def load_audio(
    path: str | Path, sample_rate: int, max_seconds: float = math.inf
) -> torch.Tensor:
    """Decode a file of any rate and number of channels.

    Arguments
    ---------
    path : str or Path
        Whatever libsndfile reads: flac, wav, ogg, mp3, ...
    sample_rate : int
        Wanted rate in hertz. Other rates are resampled (soxr, quality "HQ").
    max_seconds : float
        What is longer is refused, before all of it is decoded.

    Returns
    -------
    waveform : torch.Tensor
        Mono float32 samples, shape (T,); the mean over the channels.

    Raises
    ------
    BadAudio
        If the file is undecodable, of zero length, silent, not finite or too long: more
        than ``max_seconds``, or than ``LONGEST`` samples.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    >>> soundfile.write(path, np.stack([tone, tone], axis=1), 8000)
    >>> load_audio(path, 16000).shape
    torch.Size([16000])
    """
    try:
        samples, rate = _decode(path, max_seconds)
    except BadAudio:
        raise
    except Exception as error:  # a damaged file makes the decoder fail in many ways
        detail = " ".join(str(error).split()) or type(error).__name__
        raise BadAudio(path, "undecodable", detail) from error
    return _resample(samples, rate, sample_rate, path)


def from_array(
    samples: np.ndarray | torch.Tensor, rate: int, sample_rate: int
) -> torch.Tensor:
    """What ``load_audio`` gives, of samples that are in memory already.

    Arguments
    ---------
    samples : np.ndarray or torch.Tensor
        (T,) or (T, channels): numbers of full scale 1, or integers of their type's
        full scale.
    rate : int
        Their rate in hertz.
    sample_rate : int
        Wanted rate in hertz.

    Returns
    -------
    waveform : torch.Tensor
        Mono float32 samples, shape (T,).

    Raises
    ------
    BadAudio
        If the samples are not such an array, of zero length, silent, not finite or
        too long.

    Example
    -------
    >>> from_array(np.array([[16384, 0], [-16384, 0]], dtype=np.int16), 8, 8)
    tensor([ 0.2500, -0.2500])
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi" or rate <= 0:
        what = f"{samples.dtype} {samples.shape} at {rate} Hz"
        raise BadAudio("The array", "no sound", f"{what}; give (T,) or (T, channels)")
    if samples.dtype.kind == "i":
        samples = samples / (np.iinfo(samples.dtype).max + 1)
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return _resample(mono.astype(np.float32), rate, sample_rate, "The array")


def _resample(
    samples: np.ndarray, rate: int, sample_rate: int, path: str | Path
) -> torch.Tensor:
    if not len(samples):
        raise BadAudio(path, "of zero length")
    if not np.isfinite(samples).all():
        raise BadAudio(path, "not finite", "some samples are NaN or infinite")
    if np.abs(samples).max() < SILENCE:
        raise BadAudio(path, "silent")
    if len(samples) * sample_rate / rate > LONGEST:  # a header may say 1 Hz
        what = f"more than {LONGEST} samples at {sample_rate} Hz, not {rate}"
        raise BadAudio(path, "too long", what)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    if not len(samples):
        raise BadAudio(path, "of zero length", f"at {sample_rate} Hz")
    if not np.isfinite(samples).all():  # the filter overflows near float32's end
        raise BadAudio(path, "not finite", f"too loud to be taken to {sample_rate} Hz")
    return torch.from_numpy(samples)


def _decode(path: str | Path, max_seconds: float) -> tuple[np.ndarray, int]:
    if not Path(path).is_file():  # opening a pipe would wait for a writer
        raise FileNotFoundError("there is no such file")
    # Block by block: a damaged header may promise more samples than memory holds.
    blocks, frames = [np.empty(0, dtype=np.float32)], 0
    with soundfile.SoundFile(str(path)) as file:
        few = max(1, BLOCK // file.channels)
        while len(block := file.read(few, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
            frames += len(block)
            if frames > max_seconds * file.samplerate:
                raise BadAudio(path, "too long", f"more than {max_seconds:g} seconds")
            if frames * file.channels > LONGEST:
                raise BadAudio(path, "too long", f"more than {LONGEST} samples")
        return np.concatenate(blocks), file.samplerate


def windows(waveform: torch.Tensor, length: int, min_tail: int) -> list[torch.Tensor]:
    """Cut a clip into evenly spaced windows that cover it from end to end.

    Arguments
    ---------
    waveform : torch.Tensor
        Samples, shape (T,).
    length : int
        Samples in a window. A clip of at most this length is one window, as it is.
    min_tail : int
        A remainder of fewer samples than this beyond whole windows is dropped.

    Returns
    -------
    windows : list of torch.Tensor
        As few windows as cover the clip; neighbors overlap by equal amounts.

    Raises
    ------
    ValueError
        If the waveform is empty or not one-dimensional.

    Example
    -------
    >>> [w.tolist() for w in windows(torch.arange(7), length=4, min_tail=2)]
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    >>> [w.tolist() for w in windows(torch.arange(5), length=4, min_tail=2)]
    [[0, 1, 2, 3]]
    """
    if waveform.ndim != 1 or not len(waveform):
        shape = tuple(waveform.shape)
        raise ValueError(
            f"A waveform is one row of samples; this one has shape {shape}."
        )
    whole, tail = divmod(len(waveform), length)
    if whole and tail < min_tail:
        waveform, tail = waveform[: whole * length], 0
    count = whole + (tail > 0)
    if count == 1:
        return [waveform]
    spare = len(waveform) - length
    starts = [i * spare // (count - 1) for i in range(count)]
    return [waveform[start : start + length] for start in starts]
