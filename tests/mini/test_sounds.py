import numpy as np
import pytest

from dlink_plugin.mini.sounds import SOUNDS, synthesize

RATE = 32_000
NAMES = sorted(SOUNDS)
# A voice is pitched by its fundamental; its formants, and so its color, stay.
VOICES = ["cow", "man", "woman", "laughter"]
PITCHED = [
    *("alarm", "baby", "bell", "bird", "cat", "clock", "cricket", "dog", "drill"),
    *("frog", "hammer", "horn", "horse", "knock", "motorcycle", "saw", "siren"),
    *("stream", "telephone", "whistle"),
]


def specimen(sound, seed=0, seconds=1.0, rate=RATE, **factors):
    return synthesize(sound, seconds, rate, np.random.default_rng(seed), **factors)


def spectrum(samples, rate=RATE):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return np.fft.rfftfreq(len(samples), 1 / rate), power / power.sum()


def centroid(samples):
    hertz, power = spectrum(samples)
    return float(hertz @ power)


def fundamental(samples, low=60, high=600):
    """Median over voiced frames of the strongest period's frequency (Hz)."""
    frames = samples[: len(samples) // 2048 * 2048].reshape(-1, 2048)
    frames = frames[(frames**2).mean(1) > 0.5 * (samples**2).mean()]
    power = np.abs(np.fft.rfft(frames, 4096)) ** 2
    correlation = np.fft.irfft(power)[:, : RATE // low]
    period = correlation[:, RATE // high :].argmax(1) + RATE // high
    return float(np.median(RATE / period))


def test_there_are_at_least_24_classes():
    assert len(SOUNDS) >= 24
    assert all(recipe.__doc__ for recipe in SOUNDS.values())


@pytest.mark.parametrize("sound", NAMES)
@pytest.mark.parametrize("rate", [8000, 32_000, 44_100])
def test_a_second_of_any_sound_has_its_length_and_unit_level(sound, rate):
    samples = specimen(sound, rate=rate)
    assert samples.shape == (rate,)
    assert np.isfinite(samples).all()
    assert np.mean(samples**2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sound", NAMES)
@pytest.mark.parametrize("rate", [32_000, 44_100])
def test_a_very_short_slot_is_filled_exactly(sound, rate):
    for seconds in (0.2, 0.3337):
        samples = specimen(sound, seconds=seconds, rate=rate)
        assert samples.shape == (int(seconds * rate),)
        assert np.isfinite(samples).all()


@pytest.mark.parametrize("sound", NAMES)
def test_no_sound_is_silent_in_the_shortest_slot_of_a_scene(sound):
    """A quarter of 4 s, less what its neighbors and its lead take: 0.72 s or so."""
    for seed in range(6):
        samples = specimen(sound, seed, seconds=0.72, pace=0.68)
        assert np.mean(samples**2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sound", NAMES)
def test_a_specimen_follows_from_its_seed_alone(sound):
    first = specimen(sound, seed=1)
    np.random.seed(7)
    assert np.array_equal(first, specimen(sound, seed=1))
    assert not np.allclose(first, specimen(sound, seed=2), atol=1e-3)


def test_specimens_begin_and_end_without_a_click():
    for sound in NAMES:
        samples = specimen(sound)
        assert samples[0] == samples[-1] == 0
        edge = int(0.0005 * RATE)  # a tenth of the fade
        middle = np.abs(samples).max()
        assert np.abs(samples[:edge]).max() <= 0.1 * middle, sound
        assert np.abs(samples[-edge:]).max() <= 0.1 * middle, sound


@pytest.mark.parametrize("sound", PITCHED)
def test_pitch_moves_the_color_of_a_sound(sound):
    low, high = (centroid(specimen(sound, 3, 2.0, pitch=p)) for p in (0.76, 1.3))
    assert high > 1.2 * low


@pytest.mark.parametrize("sound", VOICES)
def test_pitch_moves_the_fundamental_of_a_voice(sound):
    low, high = (fundamental(specimen(sound, 3, 2.0, pitch=p)) for p in (0.76, 1.3))
    assert high / low == pytest.approx(1.3 / 0.76, rel=0.25)


@pytest.mark.parametrize("sound", ["clock", "dog", "footsteps", "hammer", "typing"])
def test_pace_moves_the_number_of_strokes(sound):
    """Strokes are counted as upward crossings of the smoothed envelope."""

    def strokes(pace):
        samples = np.abs(specimen(sound, 2, 4.0, pace=pace))
        envelope = np.convolve(samples, np.ones(800) / 800, "same")
        above = envelope > 0.3 * envelope.max()
        return int((above[1:] & ~above[:-1]).sum())

    assert strokes(1.45) > 1.4 * strokes(0.68)


def test_classes_are_told_apart_by_the_nearest_mean_spectrum():
    """Log energies in 40 bands and how much they vary: chance is 1 in 36."""
    edges = np.geomspace(50, 14_000, 41)

    def features(samples):
        frames = samples[: len(samples) // 1024 * 1024].reshape(-1, 1024)
        power = np.abs(np.fft.rfft(frames * np.hanning(1024), 2048)) ** 2
        bins = np.searchsorted(np.fft.rfftfreq(2048, 1 / RATE), edges)
        bands = np.add.reduceat(power, bins[:-1], axis=1)
        logs = np.log(bands + 1e-3)
        return np.concatenate([logs.mean(0), logs.std(0)])

    drawn = np.array(
        [[features(specimen(s, seed)) for seed in range(6)] for s in NAMES]
    )
    drawn = (drawn - drawn[:, :4].mean((0, 1))) / drawn[:, :4].std((0, 1))
    means, held_out = drawn[:, :4].mean(1), drawn[:, 4:]
    distances = np.linalg.norm(held_out[:, :, None] - means, axis=-1)
    right = distances.argmin(-1) == np.arange(len(NAMES))[:, None]
    assert right.mean() > 0.8
