import hashlib
from dataclasses import replace

import numpy as np
import pytest

from dlink_plugin.mini.scenes import UNSEEN_PAIRS, Event, Scene, draw_scene, render
from dlink_plugin.mini.scenes import _group as group
from dlink_plugin.mini.sounds import SOUNDS

NO_PACE = {"applause", "drill", "fire", "glass", "rain", "thunder", "waves", "wind"}
NO_PITCH = {
    *("applause", "fire", "glass", "rain", "thunder", "waves", "wind"),
    *("engine", "footsteps", "helicopter", "train", "typing"),
}


def drawn(count, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, **options) for _ in range(count)]


def one(event, seconds=1.0, seed=5):
    return Scene(((event,),), seconds, seed)


def level(samples):
    return 10 * np.log10(np.mean(samples.astype(float) ** 2))


def centroid(samples, rate):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(np.fft.rfftfreq(len(samples), 1 / rate) @ power / power.sum())


# Drawing


def test_the_unseen_pairs_are_the_frozen_ones():
    """The shipped CLAP has never heard these pairs; another list would void that."""
    text = ";".join(sorted("+".join(sorted(pair)) for pair in UNSEEN_PAIRS))
    assert all(len(pair) == 2 and pair <= set(SOUNDS) for pair in UNSEEN_PAIRS)
    assert len(UNSEEN_PAIRS) == 60
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest[:16] == "008bd74e79a7c1a6"


def test_every_sound_still_meets_most_others():
    for sound in SOUNDS:
        assert sum(sound in pair for pair in UNSEEN_PAIRS) < len(SOUNDS) / 3


def pairs_of(scene):
    names = [event.sound for event in scene.events]
    return {frozenset((a, b)) for a in names for b in names if a != b}


def test_unseen_pairs_never_occur_unless_asked_for():
    for scene in drawn(1500):
        assert not pairs_of(scene) & UNSEEN_PAIRS
        assert not scene.is_unseen


@pytest.mark.parametrize("events", [(1, 4), (2, 4), (3, 3)])
def test_an_unseen_pair_is_always_there_when_asked_for(events):
    scenes = drawn(200, unseen=True, events=events)
    assert all(pairs_of(scene) & UNSEEN_PAIRS for scene in scenes)
    assert all(scene.is_unseen for scene in scenes)
    met = set.union(*(pairs_of(scene) & UNSEEN_PAIRS for scene in scenes))
    assert len(met) > 40  # not always the same one


def test_an_unseen_pair_may_stand_in_different_groups():
    scenes = drawn(100, unseen=True, events=(2, 2))
    assert {len(scene.groups) for scene in scenes} == {1, 2}


@pytest.mark.parametrize("events", [(1, 1), (1, 4), (2, 4), (2, 3), (4, 4)])
def test_counts_and_lengths_cover_their_range(events):
    scenes = drawn(150, events=events, seconds=(2.0, 3.0))
    counts = {len(scene.events) for scene in scenes}
    assert counts == set(range(events[0], events[1] + 1))
    lengths = [scene.seconds for scene in scenes]
    assert 2.0 <= min(lengths) < 2.1 and 2.9 < max(lengths) <= 3.0


def test_no_sound_comes_twice_in_a_scene_and_all_come():
    scenes = drawn(500) + drawn(100, unseen=True)
    for scene in scenes:
        names = [event.sound for event in scene.events]
        assert len(set(names)) == len(names)
    assert {event.sound for scene in scenes for event in scene.events} == set(SOUNDS)


def test_groups_keep_the_order_and_hold_one_or_two():
    rng = np.random.default_rng(0)
    sizes = set()
    for count in range(1, 5):
        events = [Event(sound) for sound in sorted(SOUNDS)[:count]]
        for _ in range(30):
            groups = group(events, rng)
            assert [event for part in groups for event in part] == events
            sizes.add(tuple(len(part) for part in groups))
    assert {size for part in sizes for size in part} == {1, 2}
    assert {(2, 1), (1, 2), (1, 1, 1), (2, 2), (2,), (1, 1)} <= sizes


def test_a_sound_gets_every_attribute_it_can_have_and_no_other():
    events = [event for scene in drawn(3000) for event in scene.events]
    for sound in SOUNDS:
        mine = [event for event in events if event.sound == sound]
        paces, pitches = {"", "fast", "slow"}, {"", "high", "low"}
        assert {e.level for e in mine} == {"", "loud", "faint"}
        assert {e.pace for e in mine} == ({""} if sound in NO_PACE else paces)
        assert {e.pitch for e in mine} == ({""} if sound in NO_PITCH else pitches)


def test_scenes_follow_from_the_generator():
    assert drawn(20) == drawn(20)
    assert drawn(20) != drawn(20, seed=1)


# Rendering


def test_rendering_is_the_same_for_the_same_scene():
    scene = drawn(1, seed=3)[0]
    assert np.array_equal(render(scene, 32_000), render(scene, 32_000))
    other = render(replace(scene, seed=scene.seed + 1), 32_000)
    assert not np.allclose(other, render(scene, 32_000), atol=1e-3)


@pytest.mark.parametrize("rate", [32_000, 44_100])
def test_rendering_has_its_length_and_stays_in_range(rate):
    for scene in drawn(8, seed=4, seconds=(1.5, 2.5), events=(2, 4)):
        samples = render(scene, rate)
        assert samples.dtype == np.float32
        assert samples.shape == (int(scene.seconds * rate),)
        assert np.abs(samples).max() <= 1
        assert -40 < level(samples) < 0


def test_loud_and_faint_are_sixteen_decibels_apart():
    loud, plain, faint = (
        level(render(one(Event("siren", level=word)), 16_000))
        for word in ("loud", "", "faint")
    )
    assert loud - plain == pytest.approx(7, abs=0.3)
    assert plain - faint == pytest.approx(9, abs=0.3)


def test_pitch_and_pace_words_are_heard():
    low, high = (
        centroid(render(one(Event("siren", pitch=word)), 16_000), 16_000)
        for word in ("low", "high")
    )
    assert high > 1.4 * low
    slow, fast = (
        render(one(Event("cricket", pace=word), 4.0), 32_000)
        for word in ("slow", "fast")
    )

    def bursts(samples):
        envelope = np.convolve(np.abs(samples), np.ones(2000) / 2000, "same")
        above = envelope > envelope.mean()
        return int((above[1:] & ~above[:-1]).sum())

    assert bursts(fast) > 1.5 * bursts(slow)


def test_groups_follow_one_another_and_their_events_sound_together():
    high, low = Event("cricket"), Event("thunder")
    rate = 32_000
    in_turn = render(Scene(((high,), (low,)), 4.0, 1), rate)
    first, last = in_turn[: int(1.4 * rate)], in_turn[-int(1.4 * rate) :]
    assert centroid(first, rate) > 3000 > 500 > centroid(last, rate)
    together = render(Scene(((high, low),), 4.0, 1), rate)
    for half in np.split(together, 2):
        assert 500 < centroid(half, rate) < 4500


def test_what_is_faint_is_still_far_above_the_floor():
    faint = render(one(Event("siren", level="faint")), 16_000)
    floor = render(Scene((), 1.0, 5), 16_000)
    assert level(floor) == pytest.approx(-60, abs=0.5)
    assert level(faint) > level(floor) + 25
