import os
import pickle
import struct

import numpy as np
import pytest
import soundfile
import torch

from dlink_plugin import audio
from dlink_plugin.audio import BadAudio, from_array, load_audio, windows

RATE = 16000


def tone(seconds, frequency=440.0, rate=RATE):
    time = torch.arange(round(seconds * rate)) / rate
    return (0.3 * torch.sin(2 * torch.pi * frequency * time)).float()


def test_load_audio_mixes_to_mono_and_resamples(tmp_path):
    time = np.arange(44100) / 44100
    left = 0.5 * np.sin(2 * np.pi * 1000 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], axis=1), 44100)
    waveform = load_audio(tmp_path / "a.wav", RATE)
    assert waveform.dtype == torch.float32
    assert waveform.shape == (RATE,)
    expected = 0.25 * torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    middle = slice(500, -500)  # the filter rings at the ends
    assert (waveform - expected)[middle].abs().max() < 2e-3


@pytest.mark.parametrize("kind", ["float64", "float32", "int16", "int32"])
@pytest.mark.parametrize("channels", [0, 1, 2])
def test_an_array_gives_what_its_file_gives(tmp_path, kind, channels):
    samples = tone(0.5, rate=44100).double().numpy()
    if channels:
        samples = np.stack([samples, 0 * samples][:channels], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="DOUBLE")
    expected = load_audio(tmp_path / "a.wav", RATE)
    if kind.startswith("int"):
        samples = samples * (np.iinfo(kind).max + 1)
    found = from_array(samples.astype(kind), 44100, RATE)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(from_array(torch.from_numpy(samples.astype(kind)), 44100, RATE),
                       found)  # fmt: skip


@pytest.mark.parametrize(
    "samples, rate, reason",
    [
        (np.zeros(0), RATE, "of zero length"),
        (np.zeros(9), RATE, "silent"),
        (np.full(9, np.nan), RATE, "not finite"),
        (np.ones((2, 2, 2)), RATE, "no sound"),
        (np.array(["a"]), RATE, "no sound"),
        (np.ones(9), 0, "no sound"),
    ],
)
def test_an_array_that_is_no_sound_is_refused(samples, rate, reason):
    with pytest.raises(BadAudio) as error:
        from_array(samples, rate, RATE)
    assert error.value.reason == reason


def test_load_audio_keeps_samples_at_the_same_rate(tmp_path):
    # Longer than one decoding block.
    samples = tone(9.0).numpy()
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "a.wav", RATE), torch.from_numpy(samples))


def bad_file(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "text":
        path = folder / "text.flac"
        path.write_text("not audio at all")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind == "silent":
        soundfile.write(path, np.zeros(RATE), RATE)
    elif kind == "canceling":
        soundfile.write(
            path, np.stack([tone(1), -tone(1)], axis=1), RATE, subtype="FLOAT"
        )
    elif kind == "nan":
        soundfile.write(path, np.array([0.1, np.nan, 0.2]), RATE, subtype="FLOAT")
    elif kind == "truncated":
        path = folder / "truncated.flac"
        soundfile.write(path, tone(1).numpy(), RATE)
        path.write_bytes(path.read_bytes()[:-3000])
    return path


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("text", "undecodable"),
        ("empty file", "undecodable"),
        ("absent", "undecodable"),
        ("truncated", "undecodable"),
        ("no samples", "of zero length"),
        ("silent", "silent"),
        ("canceling", "silent"),
        ("nan", "not finite"),
    ],
)
def test_load_audio_names_a_bad_file_and_its_reason(tmp_path, kind, reason):
    path = bad_file(tmp_path, kind)
    with pytest.raises(BadAudio, match=reason) as caught:
        load_audio(path, RATE)
    assert str(path) in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


# What a stranger may send


def wav(rate, channels, samples, promised=None):
    """A 16-bit wav file whose header says what it is told to."""
    width = 2 * channels
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * width % 2**32, width, 16)
    size = promised or 2 * len(samples)
    data = b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size)
    whole = b"RIFF" + struct.pack("<I", size + 36) + b"WAVE" + data
    return whole + samples.astype("<i2").tobytes()


LOUD = np.tile([9000, -9000], 5000)


@pytest.mark.parametrize("rate", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_rate_that_cannot_be_is_bad_audio(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(wav(rate, 1, LOUD))
    with pytest.raises(BadAudio, match="a.wav is (undecodable|of zero length)"):
        load_audio(tmp_path / "a.wav", RATE)


def test_a_header_that_promises_too_much_costs_nothing(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(RATE, 1, LOUD, promised=2**32 - 100))
    assert len(load_audio(tmp_path / "a.wav", RATE)) == len(LOUD)


def test_many_channels_are_decoded_in_small_blocks(tmp_path, monkeypatch):
    samples = np.random.default_rng(0).integers(-9000, 9000, (200, 1024))
    (tmp_path / "a.wav").write_bytes(wav(RATE, 1024, samples.ravel()))
    decoded, read = [], soundfile.SoundFile.read

    def spy(file, *args, **options):
        block = read(file, *args, **options)
        decoded.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    waveform = load_audio(tmp_path / "a.wav", RATE)
    assert max(decoded) <= audio.BLOCK
    expected = torch.from_numpy(samples.mean(axis=1) / 2**15).float()
    torch.testing.assert_close(waveform, expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_bomb_is_not_decoded_to_its_end(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(audio, "BLOCK", 1000)
    monkeypatch.setattr(audio, "LONGEST", 3999)
    sound = np.tile(tone(4).numpy()[: 4000 // channels, None], channels)
    soundfile.write(tmp_path / "a.flac", sound, RATE)
    with pytest.raises(BadAudio, match="a.flac is too long .more than 3999 samples"):
        load_audio(tmp_path / "a.flac", RATE)
    soundfile.write(tmp_path / "a.flac", sound[:-1], RATE)
    assert len(load_audio(tmp_path / "a.flac", RATE)) == len(sound) - 1


def test_a_low_rate_does_not_blow_a_sound_up(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "LONGEST", 99 * RATE)
    soundfile.write(tmp_path / "a.wav", np.tile([0.3, -0.3], 50), 1)
    with pytest.raises(BadAudio, match="too long .* at 16000 Hz, not 1"):
        load_audio(tmp_path / "a.wav", RATE)
    with pytest.raises(BadAudio, match="too long"):
        from_array(np.tile([0.3, -0.3], 50), 1, RATE)


def test_longer_than_wanted_is_too_long(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate=8000).numpy(), 8000)
    assert len(load_audio(tmp_path / "a.wav", RATE, max_seconds=1)) == RATE
    with pytest.raises(BadAudio, match="a.wav is too long .more than 0.5 seconds"):
        load_audio(tmp_path / "a.wav", RATE, max_seconds=0.5)


def test_what_the_filter_makes_infinite_is_refused(tmp_path):
    sign = np.sign(np.random.default_rng(0).normal(size=1000))
    soundfile.write(tmp_path / "a.wav", 3e38 * sign, 44100, subtype="FLOAT")
    with pytest.raises(BadAudio, match="a.wav is not finite"):
        load_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a\nb"), ValueError()])
def test_whatever_the_decoder_raises_is_bad_audio(tmp_path, monkeypatch, error):
    soundfile.write(tmp_path / "a.wav", tone(0.1).numpy(), RATE)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(BadAudio, match="a.wav is undecodable") as caught:
        load_audio(tmp_path / "a.wav", RATE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64"])
def test_damaged_files_are_read_or_bad_audio(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(0.3).numpy(), RATE)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(damaged), 200), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_audio(path, RATE, max_seconds=60).isfinite().all()
        except BadAudio as error:
            assert str(path) in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, "/dev/zero", "-"):
        with pytest.raises(BadAudio, match="is undecodable .there is no such file"):
            load_audio(path, RATE)


# Windows


@pytest.mark.parametrize(
    "samples, starts",
    [
        (7, [0]),
        (10, [0]),
        (11, [0]),  # a tail of 1 is dropped
        (12, [0, 2]),  # a tail of 2 is not
        (20, [0, 10]),
        (21, [0, 10]),
        (25, [0, 7, 15]),
        (37, [0, 9, 18, 27]),
    ],
)
def test_windows_are_evenly_spaced(samples, starts):
    cut = windows(torch.arange(samples), length=10, min_tail=2)
    assert [int(window[0]) for window in cut] == starts
    assert {len(window) for window in cut} == {min(samples, 10)}


@pytest.mark.parametrize("shape", [(0,), (2, 100)])
def test_windows_refuse_what_is_no_waveform(shape):
    with pytest.raises(ValueError, match="one row of samples"):
        windows(torch.zeros(shape), 10, 1)
