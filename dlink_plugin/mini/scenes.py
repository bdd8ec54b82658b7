"""Sound scenes: which events sound, when, how loud; and their rendering to samples.

A scene is a row of *groups*. Groups follow one another; the one or two events of a
group sound together. Some pairs of sounds never meet outside the test splits, so that
a test split can also ask for combinations nobody was trained on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .sounds import SOUNDS, synthesize

__all__ = ["UNSEEN_PAIRS", "Event", "Scene", "draw_scene", "render"]

_LEVELS_DB = {"loud": -14.0, "": -21.0, "faint": -30.0}
_FACTORS = {"fast": 1.45, "slow": 0.68, "high": 1.3, "low": 0.76, "": 1.0}
# Sounds whose recipe has no pace, or no pitch, worth a word
_NO_PACE = {"applause", "drill", "fire", "glass", "rain", "thunder", "waves", "wind"}
_NO_PITCH = _NO_PACE - {"drill"} | {
    "engine",
    "footsteps",
    "helicopter",
    "train",
    "typing",
}
_NAMES = sorted(SOUNDS)
_COUNT_OF_EVENTS = ((1, 0.2), (2, 0.4), (3, 0.25), (4, 0.15))


def _unseen_pairs(count: int = 60) -> frozenset[frozenset[str]]:
    pairs = list(itertools.combinations(sorted(SOUNDS), 2))
    chosen = np.random.default_rng(2510).choice(len(pairs), count, replace=False)
    return frozenset(frozenset(pairs[i]) for i in chosen)


UNSEEN_PAIRS = _unseen_pairs()
_UNSEEN = sorted(UNSEEN_PAIRS, key=sorted)


@dataclass(frozen=True)
class Event:
    """One sound in a scene.

    Arguments
    ---------
    sound : str
        A key of ``SOUNDS``.
    level : str
        "loud", "faint" or "" for neither.
    pace : str
        "fast", "slow" or "".
    pitch : str
        "high", "low" or "".
    """

    sound: str
    level: str = ""
    pace: str = ""
    pitch: str = ""


@dataclass(frozen=True)
class Scene:
    """Groups of events that follow one another.

    Arguments
    ---------
    groups : tuple of tuples of Event
        The events of one group sound together.
    seconds : float
        Length of the whole scene.
    seed : int
        Seed of the rendering.
    """

    groups: tuple[tuple[Event, ...], ...]
    seconds: float
    seed: int

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in order."""
        return tuple(itertools.chain(*self.groups))

    @property
    def is_unseen(self) -> bool:
        """Whether it holds a pair that never meets outside the test splits."""
        sounds = {event.sound for event in self.events}
        return any(pair <= sounds for pair in UNSEEN_PAIRS)


def draw_scene(
    rng: np.random.Generator,
    seconds: tuple[float, float] = (4.0, 5.0),
    events: tuple[int, int] = (1, 4),
    unseen: bool = False,
) -> Scene:
    """Draw a random scene.

    Arguments
    ---------
    rng : numpy.random.Generator
        Source of randomness.
    seconds : (float, float)
        Shortest and longest scene.
    events : (int, int)
        Fewest and most events.
    unseen : bool
        Whether it must hold a pair of ``UNSEEN_PAIRS``; otherwise it holds none.

    Returns
    -------
    scene : Scene

    Example
    -------
    >>> scene = draw_scene(np.random.default_rng(1), events=(2, 2))
    >>> len(scene.events), scene.is_unseen
    (2, False)
    """
    counts = [(n, p) for n, p in _COUNT_OF_EVENTS if events[0] <= n <= events[1]]
    numbers, shares = zip(*counts, strict=True)
    count = int(rng.choice(numbers, p=np.array(shares) / sum(shares)))
    sounds = _draw_sounds(rng, max(count, 2) if unseen else count, unseen)
    return Scene(
        groups=_group([_draw_event(rng, sound) for sound in sounds], rng),
        seconds=float(rng.uniform(*seconds)),
        seed=int(rng.integers(2**31)),
    )


def _draw_sounds(rng, count: int, unseen: bool) -> list[str]:
    while True:
        sounds = [_NAMES[i] for i in rng.permutation(len(_NAMES))[:count]]
        if unseen:
            pair = sorted(_UNSEEN[rng.integers(len(_UNSEEN))])
            rest = [sound for sound in sounds if sound not in pair]
            sounds = [str(s) for s in rng.permutation(pair + rest[: count - 2])]
        if unseen or not any(pair <= set(sounds) for pair in UNSEEN_PAIRS):
            return sounds


def _draw_event(rng, sound: str) -> Event:
    def half_of_the_time(*values: str) -> str:
        return (*values, "", "")[rng.integers(4)]

    level = half_of_the_time("loud", "faint")
    pace = half_of_the_time("fast", "slow")
    pitch = half_of_the_time("high", "low")
    return Event(
        sound,
        level,
        pace="" if sound in _NO_PACE else pace,
        pitch="" if sound in _NO_PITCH else pitch,
    )


def _group(events: list[Event], rng) -> tuple[tuple[Event, ...], ...]:
    groups, left = [], events
    while left:
        size = 2 if len(left) > 1 and rng.random() < 0.5 else 1
        groups.append(tuple(left[:size]))
        left = left[size:]
    return tuple(groups)


def render(scene: Scene, rate: int) -> np.ndarray:
    """Turn a scene into samples.

    Arguments
    ---------
    scene : Scene
    rate : int
        Samples per second.

    Returns
    -------
    samples : numpy.ndarray
        (int(scene.seconds * rate),) float32 within [-1, 1]; the same for the same
        scene and rate.

    Example
    -------
    >>> scene = Scene(((Event("dog"),), (Event("rain", level="loud"),)), 2.0, seed=3)
    >>> render(scene, 8000).shape
    (16000,)
    """
    rng = np.random.default_rng(scene.seed)
    size = int(scene.seconds * rate)
    mix = 10 ** (-60 / 20) * rng.standard_normal(size)
    shares = rng.uniform(0.8, 1.2, len(scene.groups))
    edges = np.concatenate([[0], np.cumsum(shares / shares.sum())]) * size
    for group, start, stop in zip(scene.groups, edges[:-1], edges[1:], strict=True):
        for event in group:
            lead = int((stop - start) * rng.uniform(0.0, 0.12))
            first, last = int(start) + lead, int(stop)
            mix[first:last] += _render_event(event, (last - first) / rate, rate, rng)[
                : last - first
            ]
    return np.clip(mix, -1, 1).astype(np.float32)


def _render_event(event: Event, seconds: float, rate: int, rng) -> np.ndarray:
    gain = 10 ** ((_LEVELS_DB[event.level] + rng.uniform(-1.5, 1.5)) / 20)
    pace, pitch = (
        _FACTORS[factor] * 2 ** rng.uniform(-0.12, 0.12)
        for factor in (event.pace, event.pitch)
    )
    # One sample more than the slot, against rounding of seconds * rate.
    return gain * synthesize(event.sound, seconds + 1 / rate, rate, rng, pace, pitch)
