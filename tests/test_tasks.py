import logging
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import C3, CapDec, MeanShift
from dlink_plugin.corpora import Clip
from dlink_plugin.embeddings import Embeddings
from dlink_plugin.pairs import seeded
from dlink_plugin.tasks import (
    add_noise,
    as_they_are,
    audio_task,
    clean_captions,
    decoder_task,
    mix_text,
    text_task,
)


def embeddings(captions, seed=0):
    clips = tuple(Clip(f"{i}.wav", f"{i}.wav", c) for i, c in enumerate(captions))
    owner = torch.tensor([i for i, c in enumerate(captions) for _ in c])
    generator = seeded(seed)
    audio = normalize(torch.randn(len(clips), 4, generator=generator), dim=1)
    text = normalize(torch.randn(len(owner), 4, generator=generator), dim=1)
    return Embeddings(audio, text, owner, clips, (), 0, "a small corpus")


@pytest.fixture
def valid():
    return embeddings([("one", "two", "three"), ("four", "five", "six")], seed=1)


def test_a_text_task_pairs_each_text_with_itself(valid):
    texts = ["a", "b", "c"]
    task = text_task(texts, torch.eye(3), valid)
    rows, captions = task.train.__getitems__([2, 0])
    assert captions == ["c", "a"]
    assert torch.equal(rows, torch.eye(3)[[2, 0]])
    assert task.inputs is as_they_are


def test_a_text_task_validates_on_captions_alone(valid):
    task = text_task(["a"], torch.eye(1), valid, probes={"none": valid.audio})
    assert task.valid.captions == ["one", "four"]
    assert torch.equal(task.valid.source, valid.text[[0, 3]])
    assert list(task.probes) == ["text", "none"]
    assert torch.equal(task.probes["text"], valid.text[[1, 4]])
    assert task.references == [("one", "two", "three"), ("four", "five", "six")]


def test_a_text_task_reads_the_only_caption_where_there_is_one():
    valid = embeddings([("one",), ("two",)])
    assert torch.equal(text_task(["a"], torch.eye(1), valid).probes["text"], valid.text)


def test_an_audio_task_pairs_each_caption_with_its_clip(valid):
    train = embeddings([("a", "b"), ("c",)])
    task = audio_task(train, valid, "none", seed=0)
    rows, captions = task.train.__getitems__([0, 1, 2])
    assert captions == ["a", "b", "c"]
    assert torch.equal(rows, train.audio[[0, 0, 1]])
    assert torch.equal(task.probes["none"], valid.audio)
    assert torch.equal(task.valid.source, valid.audio)


def test_an_audio_task_probes_what_the_decoder_reads(valid):
    train = embeddings([("a",), ("b",)])
    task = audio_task(train, valid, "flipped", lambda rows, _: -rows, seed=0)
    assert list(task.probes) == ["flipped"]
    assert torch.equal(task.probes["flipped"], -valid.audio)
    assert torch.equal(task.train.source, train.audio)  # inputs come batch by batch


def test_mixed_text_stands_for_itself_and_audio_for_several_draws(valid):
    train = embeddings([("a", "b"), ("c",)])
    noisy = partial(add_noise, variance=0.01)
    task = audio_task(train, valid, "noisy", noisy, seed=0)
    texts, embedded = ["x", "y"], torch.eye(4)[:2]
    mixed = mix_text(task, texts, embedded, draws=2, seed=5)
    rows, captions = mixed.train.__getitems__(list(range(len(mixed.train))))
    assert captions == ["x", "y", "a", "b", "c", "a", "b", "c"]
    assert torch.equal(rows[:2], embedded)
    assert torch.equal(rows[2], rows[3]) and not torch.equal(rows[2], rows[5])
    for row, clip in zip(rows[2:], [0, 0, 1, 0, 0, 1], strict=True):
        assert row @ train.audio[clip] > 0.9  # near its clip, and not the clip itself
        assert not torch.equal(row, train.audio[clip])
    assert torch.equal(mixed.valid.source, task.probes["noisy"])
    assert mixed.inputs is as_they_are


def test_empty_captions_are_counted_and_their_neighbors_kept(valid, caplog):
    train = embeddings([("a", "[]"), ("  ", "d")])
    with caplog.at_level(logging.WARNING):
        task = audio_task(train, valid, "none", seed=0)
    assert "a small corpus: 2 captions are empty" in caplog.text
    rows, captions = task.train.__getitems__([0, 1])
    assert captions == ["a", "d"]
    assert torch.equal(rows, train.audio)


def test_a_clip_that_loses_its_captions_is_left_out(valid):
    train = embeddings([("a",), ("[]",), ("c", "d")])
    task = audio_task(train, valid, "none", seed=0)
    assert task.train.clip_of_text.tolist() == [0, 1, 1]
    assert torch.equal(task.train.source, train.audio[[0, 2]])


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="texts.csv holds no caption"):
        clean_captions(["[]", ""], "texts.csv")


def test_noise_has_the_asked_variance_and_keeps_the_length():
    rows = normalize(torch.ones(2000, 16), dim=1)
    noisy = add_noise(rows, seeded(1), variance=0.016)
    assert torch.allclose(noisy.norm(dim=1), torch.ones(2000))
    # E cos = E (1 + n1) / |y + n| with n ~ N(0, v I), by Monte Carlo in float64
    n = torch.randn(200_000, 16, generator=seeded(2), dtype=torch.float64) * 0.016**0.5
    n[:, 0] += 1
    expected = float((n[:, 0] / n.norm(dim=1)).mean())
    assert float((rows * noisy).sum(1).mean()) == pytest.approx(expected, abs=0.01)
    assert torch.equal(noisy, add_noise(rows, seeded(1), variance=0.016))
    assert not torch.equal(noisy, add_noise(rows, seeded(3), variance=0.016))
    assert torch.allclose(add_noise(rows, seeded(1), variance=0.0), rows)


# The text of a bridge


def test_a_decoder_is_trained_in_the_text_space_of_its_bridge(valid):
    bridge, embedded = C3(4), normalize(torch.randn(9, 4, generator=seeded(3)), dim=1)
    bridge.fit(embedded, embedded)
    task = decoder_task(bridge, list("abcdefghi"), embedded, valid)
    assert torch.equal(task.train.source, bridge.text_space(embedded))
    assert torch.equal(task.valid.source, bridge.text_space(valid.text[[0, 3]]))
    assert torch.equal(task.probes["text"], bridge.text_space(valid.text[[1, 4]]))
    rows = task.train.source
    noisy = add_noise(rows, seeded(1), variance=0.016)
    assert torch.equal(task.inputs(rows, seeded(1)), noisy)


def test_capdec_wants_noise_on_plain_text_and_most_want_nothing(valid):
    embedded = torch.eye(4)
    task = decoder_task(CapDec(4, noise_variance=0.5), list("abcd"), embedded, valid)
    assert torch.equal(task.train.source, embedded)
    noisy = add_noise(embedded, seeded(1), variance=0.5)
    assert torch.equal(task.inputs(embedded, seeded(1)), noisy)
    plain = decoder_task(MeanShift(4), list("abcd"), embedded, valid)
    assert plain.inputs is as_they_are
    assert torch.equal(plain.train.source, embedded)
