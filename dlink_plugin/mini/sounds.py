"""Synthesizers of the mini corpus: one short physical recipe for each sound class.

Every recipe has the signature ``recipe(seconds, rate, rng, pace, pitch)`` and returns
``int(seconds * rate)`` samples of any scale. ``pace`` multiplies how fast a sound
repeats, ``pitch`` its frequencies; both are 1 for a typical specimen. The recipes are
caricatures after textbook physics (pulse trains, resonators, filtered noise), not
recordings, and no recording went into them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["SOUNDS", "synthesize"]

SOUNDS: dict[str, Callable] = {}


def _sound(recipe: Callable) -> Callable:
    SOUNDS[recipe.__name__.strip("_")] = recipe
    return recipe


def synthesize(
    sound: str,
    seconds: float,
    rate: int,
    rng: np.random.Generator,
    pace: float = 1.0,
    pitch: float = 1.0,
) -> np.ndarray:
    """One specimen of a sound class.

    Arguments
    ---------
    sound : str
        A key of ``SOUNDS``.
    seconds : float
        Length.
    rate : int
        Samples per second.
    rng : numpy.random.Generator
        Source of everything that varies between specimens.
    pace : float
        Factor on the repetition rate.
    pitch : float
        Factor on the frequencies.

    Returns
    -------
    samples : numpy.ndarray
        (int(seconds * rate),), unit root mean square, 5 ms fades at both ends.

    Example
    -------
    >>> bark = synthesize("dog", 1.0, 8000, np.random.default_rng(0))
    >>> bark.shape, round(float(np.mean(bark**2)), 3)
    ((8000,), 1.0)
    """
    samples = SOUNDS[sound](seconds, rate, rng, pace, pitch)
    fade = np.minimum(1.0, np.arange(len(samples)) / (0.005 * rate))
    samples = samples * fade * fade[::-1]
    return samples / np.sqrt(np.mean(samples**2) + 1e-12)


# Building blocks


def _time(seconds: float, rate: int) -> np.ndarray:
    return np.arange(int(seconds * rate)) / rate


def _noise(size, rate, rng, low, high, tilt=0.0):
    """Noise between two frequencies (Hz) with soft edges; tilt in powers of 1/f."""
    padded = 1 << (size - 1).bit_length()
    hertz = np.fft.rfftfreq(padded, 1 / rate) + 1.0
    below, above = (low / hertz) ** 2, (hertz / high) ** 2
    gain = 1 / ((1 + below * below * below) * (1 + above * above * above))
    if tilt:
        gain *= hertz**-tilt
    spectrum = rng.standard_normal(len(hertz)) + 1j * rng.standard_normal(len(hertz))
    noise = np.fft.irfft(spectrum * gain)[:size]
    return noise / (noise.std() + 1e-12)


def _tone(hertz, rate, partials=(1.0,)):
    """Harmonic tone along a frequency curve; overtones above Nyquist are left out."""
    audible = max(1, int(0.47 * rate / float(np.max(hertz))))
    z = np.exp(2j * np.pi / rate * np.cumsum(hertz))
    total = 0.0
    for amplitude in reversed(partials[:audible]):  # Horner: sum of a_k z^k
        total = (total + amplitude) * z
    return total.imag


def _ring(seconds, rate, hertz, decays, amplitudes):
    """Struck resonator: inharmonic partials, each with its own decay (s)."""
    t = _time(seconds, rate)
    partials = (
        a * np.exp(-t / d) * np.sin(2 * np.pi * f * t)
        for f, d, a in zip(hertz, decays, amplitudes, strict=True)
        if f < 0.47 * rate
    )
    return sum(partials, np.zeros(len(t)))


def _times(seconds, per_second, rng, jitter=0.1):
    """Onsets (s) of a roughly regular repetition; at least one."""
    gap = 1.0 / per_second
    onsets = np.arange(rng.uniform(0.02, 0.3) * gap, seconds - 0.03, gap)
    onsets = onsets + jitter * gap * rng.uniform(-1, 1, len(onsets))
    return np.clip(onsets, 0, None) if len(onsets) else np.array([0.0])


def _repeat(seconds, rate, onsets, grain):
    """Overlay ``grain()`` at each onset (s)."""
    out = np.zeros(int(seconds * rate))
    for onset in onsets:
        start = int(onset * rate)
        piece = grain()[: max(0, len(out) - start)]
        out[start : start + len(piece)] += piece
    return out


def _bump(size, attack=0.2):
    """Smooth rise and fall over ``size`` samples, its peak at a share ``attack``."""
    x = np.linspace(0, 1, size)
    return np.where(
        x < attack,
        np.sin(0.5 * np.pi * x / attack) ** 2,
        np.cos(0.5 * np.pi * (x - attack) / (1 - attack)) ** 2,
    )


def _wander(size, rate, rng, per_second, low, high):
    """Slow random curve between two values."""
    knots = rng.uniform(low, high, max(3, int(size / rate * per_second) + 2))
    return np.interp(np.linspace(0, len(knots) - 1, size), np.arange(len(knots)), knots)


def _voice(seconds, rate, rng, f0, formants, breath=0.03):
    """A voiced stretch: harmonics of a gliding f0 weighted by formants (Hz)."""
    size = int(seconds * rate)
    glide = f0 * np.linspace(1, rng.uniform(0.8, 1.25), size)
    harmonics = f0 * np.arange(1, 25)
    weights = sum(np.exp(-(((harmonics - f) / (0.18 * f)) ** 2)) for f in formants)
    voiced = _tone(glide, rate, weights + 0.01)
    return (voiced + breath * rng.standard_normal(size)) * _bump(size, 0.25)


# Animals


@_sound
def dog(seconds, rate, rng, pace, pitch):
    """Barks: short harmonic bursts that fall in pitch."""
    f0 = 420 * pitch * rng.uniform(0.85, 1.15)

    def bark():
        size = int(0.16 * rate)
        fall = f0 * np.linspace(1.5, 0.8, size)
        return (
            _tone(fall, rate, 0.75 ** np.arange(8)) + 0.4 * rng.normal(size=size)
        ) * (_bump(size, 0.1))

    return _repeat(seconds, rate, _times(seconds, 2.2 * pace, rng, 0.2), bark)


@_sound
def cat(seconds, rate, rng, pace, pitch):
    """Meows: a long glide up and down, rich in harmonics."""

    def meow():
        size = int(rng.uniform(0.55, 0.75) * rate)
        arch = 520 * pitch * (1 + 0.5 * np.sin(np.linspace(0.2, np.pi, size)))
        return _tone(arch, rate, (1, 0.8, 0.9, 0.5, 0.3)) * _bump(size, 0.35)

    return _repeat(seconds, rate, _times(seconds, 0.95 * pace, rng), meow)


@_sound
def bird(seconds, rate, rng, pace, pitch):
    """Chirps: fast sine sweeps at a few kilohertz."""

    def chirp():
        size = int(rng.uniform(0.05, 0.11) * rate)
        start, stop = pitch * rng.uniform(3000, 5600, 2)
        return _tone(np.linspace(start, stop, size), rate) * _bump(size, 0.4)

    return _repeat(seconds, rate, _times(seconds, 6 * pace, rng, 0.4), chirp)


@_sound
def cow(seconds, rate, rng, pace, pitch):
    """Moos: a long low voiced tone that opens and closes."""

    def moo():
        length = min(seconds, rng.uniform(0.9, 1.3))
        return _voice(length, rate, rng, 130 * pitch, (330, 900, 1400))

    return _repeat(seconds, rate, _times(seconds, 0.75 * pace, rng), moo)


@_sound
def cricket(seconds, rate, rng, pace, pitch):
    """Stridulation: a steady high tone in bursts of three pulses."""
    t = _time(seconds, rate)
    pulses = (np.sin(2 * np.pi * 28 * t) > 0.1) * (np.mod(t * 2.6 * pace, 1) < 0.5)
    return np.sin(2 * np.pi * 4600 * pitch * rng.uniform(0.95, 1.05) * t) * pulses


@_sound
def frog(seconds, rate, rng, pace, pitch):
    """Croaks: clicks at 45 per second through a resonance near 700 Hz."""

    def croak():
        t = _time(0.3, rate)
        phase = np.mod(t * 45, 1) / 45
        return (
            np.exp(-phase / 0.006)
            * np.sin(2 * np.pi * 700 * pitch * phase)
            * _bump(len(t), 0.5)
        )

    return _repeat(seconds, rate, _times(seconds, 1.7 * pace, rng), croak)


@_sound
def horse(seconds, rate, rng, pace, pitch):
    """Gallop: hoof beats in groups of three."""
    groups = _times(seconds, 2.1 * pace, rng, 0.03)
    beats = (groups[:, None] + np.array([0, 0.11, 0.2]) / pace).ravel()

    def hoof():
        tone = 620 * pitch * rng.uniform(0.85, 1.2)
        return _ring(
            0.09, rate, (tone, 1.7 * tone, 2.9 * tone), (0.02,) * 3, (1, 0.8, 0.5)
        )

    return _repeat(seconds, rate, beats[beats < seconds - 0.02], hoof)


# Weather, water, fire


@_sound
def rain(seconds, rate, rng, pace, pitch):
    """Steady hiss with the crackle of single drops."""
    size = int(seconds * rate)
    drops = np.zeros(size)
    where = rng.integers(0, size, int(260 * pace * seconds))
    drops[where] = rng.exponential(1.0, len(where))
    kernel = np.exp(-np.arange(64) / 9.0) * np.cos(0.9 * np.arange(64))
    return _noise(size, rate, rng, 1200, 9000) + 1.6 * np.convolve(
        drops, kernel, "same"
    )


@_sound
def thunder(seconds, rate, rng, pace, pitch):
    """A crack and long rolls of very low noise."""
    size = int(seconds * rate)
    t = _time(1.2, rate)
    roll = (1 - np.exp(-t / 0.05)) * np.exp(-t / 0.45)
    onsets = _times(seconds, 1.4, rng, 0.4)
    rolls = _repeat(seconds, rate, onsets, lambda: rng.uniform(0.4, 1) * roll)
    crack = np.exp(-_time(seconds, rate) / 0.15) * _noise(
        size, rate, rng, 200, 2500, 0.5
    )
    return rolls * _noise(size, rate, rng, 25, 180 * pitch, 0.3) + 0.5 * crack


@_sound
def wind(seconds, rate, rng, pace, pitch):
    """Gusts: two noise bands that swell and give way to one another."""
    size = int(seconds * rate)
    gust = _wander(size, rate, rng, 1.6 * pace, 0.05, 1.0)
    low = _noise(size, rate, rng, 120, 420 * pitch, 0.5)
    return (1.2 - gust) * low + gust**2 * 1.5 * _noise(
        size, rate, rng, 400, 900 * pitch
    )


@_sound
def waves(seconds, rate, rng, pace, pitch):
    """Surf: broadband noise that swells, breaks and runs out."""
    size = int(seconds * rate)
    swell = np.sin(np.pi * np.mod(0.45 * pace * _time(seconds, rate) + rng.random(), 1))
    rumble = _noise(size, rate, rng, 60, 500, 0.8)
    return 0.4 * rumble + swell**4 * _noise(size, rate, rng, 300, 6000, 0.5) * 1.5


@_sound
def stream(seconds, rate, rng, pace, pitch):
    """Running water: a crowd of short rising bubbles (Minnaert resonances)."""

    def bubble():
        size = int(rng.uniform(0.012, 0.045) * rate)
        start = pitch * rng.uniform(450, 1900)
        rise = np.linspace(start, start * rng.uniform(1.1, 1.6), size)
        return (
            rng.uniform(0.3, 1)
            * _tone(rise, rate)
            * np.exp(-np.arange(size) / size * 4)
        )

    onsets = rng.uniform(0, seconds, int(70 * pace * seconds))
    return _repeat(seconds, rate, onsets, bubble)


@_sound
def fire(seconds, rate, rng, pace, pitch):
    """Crackling: sparse sharp clicks over a low roar."""
    size = int(seconds * rate)
    clicks = np.zeros(size)
    where = rng.integers(0, size, max(3, int(16 * pace * seconds)))
    clicks[where] = rng.exponential(1.0, len(where)) * rng.choice([-1, 1], len(where))
    kernel = np.exp(-np.arange(160) / 26.0) * rng.standard_normal(160)
    return _noise(size, rate, rng, 60, 350) * 0.25 + 6 * np.convolve(
        clicks, kernel, "same"
    )


# People


def _talk(seconds, rate, rng, pace, f0, stretch):
    def syllable():
        formants = stretch * np.array(
            [rng.uniform(300, 800), rng.uniform(900, 2300), 2700]
        )
        length = rng.uniform(0.12, 0.2) / min(pace, 1.3)
        return _voice(length, rate, rng, f0 * rng.uniform(0.85, 1.2), formants)

    onsets = _times(seconds, 4.2 * pace, rng, 0.15)
    said = onsets[rng.random(len(onsets)) < 0.85]
    return _repeat(seconds, rate, said if len(said) else onsets, syllable)


@_sound
def man(seconds, rate, rng, pace, pitch):
    """Speech: syllables of random vowels on a low voice."""
    return _talk(seconds, rate, rng, pace, 105 * pitch * rng.uniform(0.9, 1.1), 1.0)


@_sound
def woman(seconds, rate, rng, pace, pitch):
    """Speech: syllables of random vowels on a higher voice."""
    return _talk(seconds, rate, rng, pace, 225 * pitch * rng.uniform(0.9, 1.1), 1.17)


@_sound
def baby(seconds, rate, rng, pace, pitch):
    """Crying: long wails around 450 Hz with a break at the end."""

    def wail():
        size = int(rng.uniform(0.6, 0.85) * rate)
        arch = 450 * pitch * (1 + 0.25 * np.sin(np.linspace(0, np.pi, size)))
        arch = arch * (1 + 0.02 * np.sin(np.linspace(0, 80, size)))
        return _tone(arch, rate, (0.5, 1, 0.9, 0.7, 0.6, 0.4, 0.3)) * _bump(size, 0.15)

    return _repeat(seconds, rate, _times(seconds, 1.05 * pace, rng), wail)


@_sound
def laughter(seconds, rate, rng, pace, pitch):
    """Laughing: aspirated vowels that come fast and fall in pitch."""
    f0 = 240 * pitch * rng.uniform(0.8, 1.2)

    def ha():
        return _voice(0.11, rate, rng, f0 * rng.uniform(0.9, 1.1), (750, 1300), 0.5)

    onsets = _times(seconds, 6.0 * pace, rng, 0.05)
    return _repeat(seconds, rate, onsets[np.mod(np.arange(len(onsets)), 6) < 5], ha)


@_sound
def applause(seconds, rate, rng, pace, pitch):
    """Clapping of a crowd: dense short noise bursts."""

    def clap():
        size = int(0.02 * rate)
        return _noise(size, rate, rng, 900, 2800 * pitch) * np.exp(
            -np.arange(size) / size * 5
        )

    onsets = rng.uniform(0, seconds, int(38 * pace * seconds))
    return _repeat(seconds, rate, onsets, clap)


@_sound
def footsteps(seconds, rate, rng, pace, pitch):
    """Steps: a thump and a scrape, about two a second."""

    def step():
        size = int(0.13 * rate)
        thump = _ring(0.13, rate, (95 * pitch, 170 * pitch), (0.03, 0.02), (1.5, 1))
        scrape = _noise(size, rate, rng, 1500, 5000) * _bump(size, 0.4) * 0.18
        return thump[:size] + scrape

    return _repeat(seconds, rate, _times(seconds, 1.9 * pace, rng, 0.04), step)


@_sound
def whistle(seconds, rate, rng, pace, pitch):
    """Human whistling: a pure tone that moves from note to note."""
    size = int(seconds * rate)
    notes = pitch * 1300 * 2 ** (rng.integers(-4, 8, int(seconds * 3 * pace) + 2) / 12)
    steps = notes[
        np.minimum((np.arange(size) / rate * 3 * pace).astype(int), len(notes) - 1)
    ]
    smooth = np.convolve(steps, np.ones(400) / 400, "same")
    smooth[:400], smooth[-400:] = steps[:400], steps[-400:]
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * 5.5 * _time(seconds, rate))
    return _tone(smooth * vibrato, rate, (1, 0.06)) + 0.01 * rng.standard_normal(size)


# Engines and tools


@_sound
def engine(seconds, rate, rng, pace, pitch):
    """An idling engine: a low pulse train with rattle."""
    size = int(seconds * rate)
    firing = 38 * pace * (1 + 0.03 * _wander(size, rate, rng, 4, -1, 1))
    rattle = _noise(size, rate, rng, 300, 1500) * (1 + _tone(firing, rate)) * 0.25
    return _tone(firing, rate, 0.88 ** np.arange(14)) + rattle


@_sound
def motorcycle(seconds, rate, rng, pace, pitch):
    """Revving: a harmonic growl that climbs and falls back."""
    size = int(seconds * rate)
    rev = np.mod(0.9 * pace * _time(seconds, rate) + rng.random(), 1) ** 0.7
    firing = (85 + 190 * rev) * pitch
    return _tone(firing, rate, 0.8 ** np.arange(16)) + 0.3 * rng.standard_normal(size)


@_sound
def helicopter(seconds, rate, rng, pace, pitch):
    """Rotor: low noise chopped about twelve times a second."""
    size = int(seconds * rate)
    chop = np.exp(-np.mod(12 * pace * _time(seconds, rate), 1) * 4)
    return chop * _noise(size, rate, rng, 50, 700 * pitch) + 0.08 * rng.standard_normal(
        size
    )


@_sound
def train(seconds, rate, rng, pace, pitch):
    """A passing train: rumble, and wheels over rail joints in pairs."""
    size = int(seconds * rate)
    pairs = _times(seconds, 1.8 * pace, rng, 0.02)
    joints = np.concatenate([pairs, pairs + 0.13])

    def clack():
        burst = int(0.07 * rate)
        return _noise(burst, rate, rng, 250, 1400) * np.exp(
            -np.arange(burst) / burst * 5
        )

    clacks = _repeat(seconds, rate, joints[joints < seconds - 0.02], clack)
    return clacks + 0.35 * _noise(size, rate, rng, 40, 300, 0.3)


@_sound
def drill(seconds, rate, rng, pace, pitch):
    """A power drill: a buzzing whine with a sagging speed."""
    size = int(seconds * rate)
    speed = 310 * pitch * (1 + 0.05 * _wander(size, rate, rng, 3, -1, 1))
    return _tone(speed, rate, 0.9 ** np.arange(20)) + 0.5 * _noise(
        size, rate, rng, 2000, 9000
    )


@_sound
def saw(seconds, rate, rng, pace, pitch):
    """A hand saw: rasping noise, stroke by stroke, forth brighter than back."""
    phase = np.mod(1.5 * pace * _time(seconds, rate), 1)
    size = len(phase)
    forth = np.where(phase < 0.5, np.sin(2 * np.pi * phase), 0) ** 2
    back = np.where(phase >= 0.5, np.sin(2 * np.pi * phase), 0) ** 2
    bright = _noise(size, rate, rng, 1800 * pitch, 5000 * pitch)
    return forth * bright + 0.7 * back * _noise(size, rate, rng, 600, 1800 * pitch)


@_sound
def hammer(seconds, rate, rng, pace, pitch):
    """Hammering on metal: bright inharmonic strikes."""
    tone = 1150 * pitch * rng.uniform(0.9, 1.1)

    def strike():
        partials = tone * np.array([1, 2.3, 3.9, 5.2])
        return _ring(0.2, rate, partials, (0.05, 0.04, 0.03, 0.02), (1, 0.8, 0.7, 0.5))

    return _repeat(seconds, rate, _times(seconds, 2.4 * pace, rng, 0.08), strike)


# Signals


@_sound
def siren(seconds, rate, rng, pace, pitch):
    """A wailing siren: a tone that sweeps up and down."""
    t = _time(seconds, rate)
    wail = 0.5 + 0.5 * np.sin(2 * np.pi * (0.55 * pace * t + rng.random()))
    return _tone(pitch * (550 + 750 * wail), rate, (1, 0.4, 0.25))


@_sound
def horn(seconds, rate, rng, pace, pitch):
    """A car horn: two reedy tones a third apart, in blasts."""
    base = 400 * pitch * rng.uniform(0.95, 1.05)

    def blast():
        size = int(rng.uniform(0.3, 0.5) / pace * rate)
        chord = sum(
            _tone(np.full(size, f), rate, (1, 0.8, 0.7, 0.5, 0.4))
            for f in (base, 1.26 * base)
        )
        return chord * np.minimum(1, 12 * _bump(size, 0.5))

    return _repeat(seconds, rate, _times(seconds, 1.3 * pace, rng), blast)


@_sound
def bell(seconds, rate, rng, pace, pitch):
    """A church bell: hum, prime, tierce, quint and nominal, slowly dying."""
    prime = 520 * pitch * rng.uniform(0.93, 1.07)

    def stroke():
        partials = prime * np.array([0.5, 1, 1.2, 1.5, 2, 2.7])
        return _ring(
            1.6,
            rate,
            partials,
            (1.2, 0.9, 0.7, 0.6, 0.5, 0.3),
            (0.6, 1, 1, 0.5, 1, 0.5),
        )

    return _repeat(seconds, rate, _times(seconds, 0.9 * pace, rng, 0.03), stroke)


@_sound
def alarm(seconds, rate, rng, pace, pitch):
    """An alarm clock: groups of short pure beeps."""
    t = _time(seconds, rate)
    gate = (np.mod(3.6 * pace * t + rng.random(), 1) < 0.5).astype(float)
    gate = np.convolve(gate, np.ones(120) / 120, "same")
    return gate * np.sin(2 * np.pi * 2100 * pitch * t)


@_sound
def telephone(seconds, rate, rng, pace, pitch):
    """A telephone: two tones warbling twenty times a second, on and off."""
    t = _time(seconds, rate)
    warble = np.where(np.mod(20 * t, 1) < 0.5, 1150, 1420) * pitch
    ringing = np.mod(0.9 * pace * t + rng.uniform(0, 0.3), 1) < 0.62
    return _tone(warble, rate, (1, 0.3)) * np.convolve(
        ringing, np.ones(200) / 200, "same"
    )


# The house


@_sound
def knock(seconds, rate, rng, pace, pitch):
    """Knocking on wood: quick dull thumps in groups of three or four."""
    group = np.arange(rng.integers(3, 5)) * 0.17 / pace
    onsets = (_times(seconds, 0.8 * pace, rng)[:, None] + group).ravel()

    def thump():
        tone = 210 * pitch * rng.uniform(0.95, 1.05)
        return _ring(
            0.1,
            rate,
            (tone, 2.1 * tone, 3.3 * tone),
            (0.025, 0.015, 0.01),
            (1, 0.7, 0.4),
        )

    return _repeat(seconds, rate, onsets[onsets < seconds - 0.02], thump)


@_sound
def clock(seconds, rate, rng, pace, pitch):
    """Ticking: faint bright clicks, tick and tock apart in color."""
    turn = iter(range(10_000))

    def tick():
        tone = pitch * (2600 if next(turn) % 2 else 2000)
        return _ring(0.03, rate, (tone, 2.2 * tone), (0.005, 0.003), (1, 0.8))

    return _repeat(seconds, rate, _times(seconds, 2.6 * pace, rng, 0.0), tick)


@_sound
def typing(seconds, rate, rng, pace, pitch):
    """Keys: irregular soft clacks, some of them heavier."""

    def key():
        size = int(0.035 * rate)
        click = _noise(size, rate, rng, 1200, 4500 * pitch) * np.exp(
            -np.arange(size) / size * 7
        )
        return rng.uniform(0.4, 1) * click

    return _repeat(seconds, rate, _times(seconds, 8.5 * pace, rng, 0.6), key)


@_sound
def glass(seconds, rate, rng, pace, pitch):
    """Breaking glass: a crash, then shards that ring at many high pitches."""

    def shard():
        tone = pitch * rng.uniform(2500, 9000)
        return rng.uniform(0.2, 1) * _ring(
            0.15, rate, (tone,), (rng.uniform(0.02, 0.06),), (1,)
        )

    crash = np.exp(-_time(seconds, rate) / 0.08) * rng.standard_normal(
        int(seconds * rate)
    )
    onsets = np.minimum(rng.exponential(0.3 / pace, 55), seconds - 0.02)
    return 0.6 * crash + _repeat(seconds, rate, onsets, shard)
