"""Captions of a scene, as several annotators would write them.

A caption draws its wording (synonyms, tense, connectives), its order (events that
sound together may be named either way) and its detail (how loud, how fast, how high;
faint events may go unmentioned), so that two captions of one scene agree in substance
and differ in words. Two registers: ``audiocaps`` is terse, ``clotho`` is longer and
ends with a period.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .scenes import Event, Scene

__all__ = ["REGISTERS", "caption"]

# sound: ((subject, verb, gerund), ...); a subject that starts with "+" is a plural
_WORDS = {
    "dog": (("a dog", "barks", "barking"), ("a dog", "yaps", "yapping"),
            ("an animal", "barks", "barking"), ("a puppy", "barks", "barking")),
    "cat": (("a cat", "meows", "meowing"), ("a kitten", "meows", "meowing"),
            ("a cat", "cries", "crying")),
    "bird": (("+birds", "chirp", "chirping"), ("a bird", "chirps", "chirping"),
             ("a bird", "tweets", "tweeting"), ("+birds", "sing", "singing")),
    "cow": (("a cow", "moos", "mooing"), ("a cow", "bellows", "bellowing"),
            ("+cattle", "moo", "mooing")),
    "cricket": (("+crickets", "chirp", "chirping"), ("+insects", "buzz", "buzzing"),
                ("a cricket", "chirps", "chirping")),
    "frog": (("a frog", "croaks", "croaking"), ("a toad", "croaks", "croaking"),
             ("+frogs", "croak", "croaking")),
    "horse": (("a horse", "gallops", "galloping"), ("a horse", "trots", "trotting"),
              ("+hooves", "clop", "clopping")),
    "rain": (("rain", "falls", "falling"), ("rain", "pours", "pouring"),
             ("rain", "patters", "pattering")),
    "thunder": (("thunder", "rumbles", "rumbling"), ("thunder", "roars", "roaring"),
                ("thunder", "rolls", "rolling")),
    "wind": (("wind", "blows", "blowing"), ("the wind", "howls", "howling"),
             ("wind", "gusts", "gusting")),
    "waves": (("+waves", "crash", "crashing"), ("+waves", "roll in", "rolling in"),
              ("the surf", "breaks", "breaking")),
    "stream": (("water", "flows", "flowing"), ("a stream", "gurgles", "gurgling"),
               ("water", "trickles", "trickling"), ("water", "bubbles", "bubbling")),
    "fire": (("a fire", "crackles", "crackling"), ("+flames", "crackle", "crackling"),
             ("wood", "burns", "burning")),
    "man": (("a man", "speaks", "speaking"), ("a man", "talks", "talking"),
            ("an adult male", "speaks", "speaking")),
    "woman": (("a woman", "speaks", "speaking"), ("a woman", "talks", "talking"),
              ("an adult female", "speaks", "speaking")),
    "baby": (("a baby", "cries", "crying"), ("an infant", "cries", "crying"),
             ("a baby", "wails", "wailing")),
    "laughter": (("a person", "laughs", "laughing"), ("someone", "laughs", "laughing"),
                 ("+people", "laugh", "laughing"), ("a person", "giggles", "giggling")),
    "applause": (("a crowd", "applauds", "applauding"), ("+people", "clap", "clapping"),
                 ("an audience", "claps", "clapping")),
    "footsteps": (("a person", "walks", "walking"), ("someone", "walks", "walking"),
                  ("+footsteps", "sound", "sounding")),
    "whistle": (("a person", "whistles", "whistling"),
                ("someone", "whistles", "whistling"),
                ("a man", "whistles a tune", "whistling a tune")),
    "engine": (("an engine", "idles", "idling"), ("a motor", "hums", "humming"),
               ("an engine", "runs", "running"), ("a vehicle", "idles", "idling")),
    "motorcycle": (("a motorcycle", "revs", "revving"),
                   ("an engine", "revs", "revving"),
                   ("a motorbike", "accelerates", "accelerating")),
    "helicopter": (("a helicopter", "flies by", "flying by"),
                   ("a helicopter", "hovers", "hovering"),
                   ("+rotor blades", "spin", "spinning")),
    "train": (("a train", "passes by", "passing by"),
              ("a train", "rolls along the tracks", "rolling along the tracks"),
              ("a train", "clatters", "clattering")),
    "drill": (("a drill", "buzzes", "buzzing"), ("a power tool", "whirs", "whirring"),
              ("someone", "drills", "drilling")),
    "saw": (("someone", "saws wood", "sawing wood"), ("a person", "saws", "sawing"),
            ("a hand saw", "rasps", "rasping")),
    "hammer": (("someone", "hammers", "hammering"), ("a hammer", "strikes", "striking"),
               ("metal", "clangs", "clanging")),
    "siren": (("a siren", "wails", "wailing"), ("a siren", "blares", "blaring"),
              ("an emergency siren", "sounds", "sounding")),
    "horn": (("a car horn", "honks", "honking"), ("a vehicle", "honks", "honking"),
             ("a horn", "blows", "blowing")),
    "bell": (("a bell", "rings", "ringing"), ("a church bell", "tolls", "tolling"),
             ("a bell", "chimes", "chiming")),
    "alarm": (("an alarm", "beeps", "beeping"), ("an alarm clock", "beeps", "beeping"),
              ("a device", "beeps", "beeping")),
    "telephone": (("a telephone", "rings", "ringing"), ("a phone", "rings", "ringing"),
                  ("a phone", "trills", "trilling")),
    "knock": (("someone", "knocks on a door", "knocking on a door"),
              ("a person", "knocks", "knocking"),
              ("someone", "raps on wood", "rapping on wood")),
    "clock": (("a clock", "ticks", "ticking"), ("a watch", "ticks", "ticking"),
              ("a clock", "ticktocks", "ticktocking")),
    "typing": (("someone", "types", "typing"), ("a person", "types", "typing"),
               ("a keyboard", "clacks", "clacking")),
    "glass": (("glass", "breaks", "breaking"), ("glass", "shatters", "shattering"),
              ("+dishes", "shatter", "shattering")),
}  # fmt: skip

_DETAILS = {
    "loud": ("loudly", "very loudly", "nearby"),
    "faint": ("faintly", "quietly", "in the distance", "softly"),
    "fast": ("quickly", "rapidly", "at a fast pace"),
    "slow": ("slowly", "at a slow pace", "unhurriedly"),
    "high": ("at a high pitch", "in a high tone"),
    "low": ("at a low pitch", "in a low tone"),
}

# How two phrases join. {a} and {b} are finite clauses ("a dog barks") or nominal
# phrases ("a dog barking"); {n} is the second one, always nominal.
_TOGETHER = {
    "audiocaps": {
        "finite": ("{a} while {b}", "{a} as {b}", "{a} and {b}", "{a} with {n}"),
        "nominal": (
            "{a} and {n}",
            "{a} with {n}",
            "{a} along with {n}",
            "{a} over {n}",
        ),
    },
    "clotho": {
        "finite": (
            "{a} while {b} in the background",
            "{a} at the same time as {b}",
            "{a} and all the while {b}",
            "{a} as {b} close by",
        ),
    },
}
_IN_TURN = {
    "audiocaps": {
        "finite": ("{a}, then {b}", "{a} and then {b}", "{a} before {b}",
                   "{a} followed by {n}"),
        "nominal": ("{a} followed by {n}", "{a}, then {n}", "{a} and then {n}"),
    },
    "clotho": {
        "finite": (
            "{a} and after a while {b}",
            "{a} and afterwards {b}",
            "{a} until at last {b}",
            "{a} and later on {b}",
        ),
    },
}  # fmt: skip
_TENSES = {
    "audiocaps": ("present", "progressive", "nominal", "nominal"),
    "clotho": ("progressive", "present"),
}
REGISTERS = tuple(_TENSES)


def caption(scene: Scene, rng: np.random.Generator, register: str = "audiocaps") -> str:
    """Describe a scene as one annotator would.

    Arguments
    ---------
    scene : Scene
    rng : numpy.random.Generator
        The annotator: another state writes another caption.
    register : str
        "audiocaps" or "clotho".

    Returns
    -------
    text : str

    Example
    -------
    >>> scene = Scene(((Event("dog"), Event("rain", level="loud")),), 4.0, seed=0)
    >>> caption(scene, np.random.default_rng(0))
    'Rain falling along with a puppy barking'
    """
    tense = _pick(_TENSES[register], rng)
    detail = _pick((0.15, 0.45, 0.75), rng)
    groups = [_order(group, rng) for group in _noticed(scene, rng)]
    phrases = [
        _join([_clause(e, tense, detail, rng) for e in group], _TOGETHER, register, rng)
        for group in groups
    ]
    text = _join(phrases, _IN_TURN, register, rng)(tense)
    return text[0].upper() + text[1:] + ("." if register == "clotho" else "")


def _pick(values, rng):
    return values[rng.integers(len(values))]


def _noticed(scene: Scene, rng) -> list[tuple[Event, ...]]:
    """Leave out faint events now and then, and one of many more often."""
    events = scene.events
    missed = {
        i
        for i, event in enumerate(events)
        if len(events) > 1
        and rng.random()
        < (0.25 if event.level == "faint" else 0.04 * (len(events) > 2))
    }
    kept, index = [], 0
    for group in scene.groups:
        seen = tuple(e for j, e in enumerate(group, index) if j not in missed)
        index += len(group)
        if seen:
            kept.append(seen)
    return kept or list(scene.groups)


def _order(group: tuple[Event, ...], rng) -> tuple[Event, ...]:
    return group[::-1] if rng.random() < 0.5 else group


def _clause(event: Event, tense: str, detail: float, rng) -> Callable[[str], str]:
    """One event as a function of the tense its place in the sentence asks for."""
    subject, verb, gerund = _pick(_WORDS[event.sound], rng)
    plural, subject = subject.startswith("+"), subject.lstrip("+")
    heard = [a for a in (event.level, event.pace, event.pitch) if a]
    adverb = ""
    if heard and rng.random() < detail:
        adverb = " " + _pick(_DETAILS[_pick(heard, rng)], rng)

    def say(tense: str) -> str:
        be = {"present": verb, "nominal": gerund}.get(
            tense, f"{'are' if plural else 'is'} {gerund}"
        )
        return f"{subject} {be}{adverb}"

    return say


def _join(phrases, connectives, register, rng) -> Callable[[str], str]:
    """Fold phrases into one, left to right."""
    patterns = connectives[register]
    draws = rng.random(len(phrases))

    def say(tense: str) -> str:
        kind = "nominal" if tense == "nominal" and "nominal" in patterns else "finite"
        text = phrases[0](tense)
        for phrase, draw in zip(phrases[1:], draws[1:], strict=True):
            pattern = patterns[kind][int(draw * len(patterns[kind]))]
            text = pattern.format(a=text, b=phrase(tense), n=phrase("nominal"))
        return text

    return say
