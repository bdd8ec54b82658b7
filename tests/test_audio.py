import pickle

import numpy as np
import pytest
import soundfile
import torch

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
