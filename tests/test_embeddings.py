import json
import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from dlink_plugin.audio import BadAudio, load_audio
from dlink_plugin.corpora import Clip, Corpus, load_corpus
from dlink_plugin.embeddings import embed_corpus, embed_splits, embed_texts
from dlink_plugin.encoders import FrontEnd, FrozenEncoder
from dlink_plugin.files import load_tensors, save_tensors

from .conftest import write_clip
from .ranks import in_ranks

RATE = 8000


def spectrum(window):
    return torch.stack([part.std() for part in window.tensor_split(16)])


class FakeEncoder(FrozenEncoder):
    """Fast, and it counts what it encodes; fails when told to."""

    def __init__(self, seed=0, dim=6, fail_after=None, poison=None):
        torch.manual_seed(seed)
        model = torch.nn.Linear(16, dim)
        front_end = FrontEnd(spectrum, sample_rate=RATE, window=RATE, min_tail=800)
        super().__init__(model, dim, front_end, {}, batch_size=4)
        self.clips_encoded = self.texts_encoded = 0
        self.fail_after = fail_after
        self.poison = poison

    def encode_prepared(self, prepared):
        self.clips_encoded += len(prepared)
        if self.fail_after is not None and self.clips_encoded > self.fail_after:
            raise KeyboardInterrupt
        return super().encode_prepared(prepared)

    def _embed_audio(self, features):
        return self.model(features)

    def _embed_text(self, texts):
        self.texts_encoded += len(texts)
        counts = torch.tensor([[t.count(c) for c in "abcdefghiklmnopr"] for t in texts])
        rows = self.model(counts.float())
        for row, text in zip(rows, texts, strict=True):
            if self.poison and self.poison in text:
                row.fill_(float("nan"))
        return rows


@pytest.fixture
def corpus(tmp_path):
    """Ten clips of 0.2 s, one to three captions each."""
    clips = []
    for i in range(10):
        path = tmp_path / "audio" / f"clip{i}.wav"
        write_clip(path, i, 0.2, RATE)
        captions = tuple(f"sound {i} {'and rain ' * k}" for k in range(1 + i % 3))
        clips.append(Clip(path.name, str(path), captions))
    return Corpus("audiocaps", "val", tuple(clips), rows_without_audio=2)


@pytest.fixture
def embed(corpus, tmp_path):
    def embed(encoder=None, corpus=corpus, **options):
        options = {"num_workers": 0, "progressbar": False, "shard_size": 3} | options
        return embed_corpus(
            corpus, encoder or FakeEncoder(), tmp_path / "cache", **options
        )

    return embed


def cache_of(tmp_path):
    (folder,) = (tmp_path / "cache").iterdir()
    return folder


def assert_same(one, other):
    for name in ("audio", "text", "clip_of_text"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.clips, one.skipped) == (other.clips, other.skipped)


# What it holds


def test_rows_belong_to_their_clips_and_captions(corpus, embed):
    encoder = FakeEncoder()
    data = embed(encoder, batch_size=2)
    assert data.clips == corpus.clips
    assert (data.skipped, data.rows_without_audio) == ((), 2)
    assert data.clip_of_text.dtype == torch.int64
    assert data.clip_of_text.tolist() == [
        *(0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5),
        *(6, 7, 7, 8, 8, 8, 9),
    ]
    for row, clip in enumerate(data.clips):
        samples, _ = soundfile.read(clip.path, dtype="float32")
        audio = encoder.encode_audio([torch.from_numpy(samples)])[0]
        torch.testing.assert_close(data.audio[row], audio)
        text = encoder.encode_text(clip.captions)
        torch.testing.assert_close(data.text[data.clip_of_text == row], text)
        assert data.captions_of(row) == clip.captions


def test_first_and_second_captions(corpus, embed):
    data = embed()
    assert data.first_text.tolist() == [0, 1, 3, 6, 7, 9, 12, 13, 15, 18]
    assert data.second_text is None  # clip 0 has only one
    rich = tuple(clip for clip in corpus.clips if len(clip.captions) > 1)
    data = embed(corpus=replace(corpus, split="test", clips=rich))
    assert data.second_text.tolist() == [1, 3, 6, 8, 11, 13]


def test_to_moves_every_tensor(embed):
    moved = embed().to("meta")
    assert {moved.audio.device.type, moved.text.device.type} == {"meta"}
    assert moved.clip_of_text.device.type == "meta"


def test_reading_gives_what_was_encoded(embed):
    fresh = embed()
    encoder = FakeEncoder()
    assert_same(embed(encoder), fresh)
    assert encoder.clips_encoded == 0


def test_shards_batches_and_workers_do_not_matter(embed):
    whole = embed(shard_size=100)
    for options in ({"batch_size": 1}, {"num_workers": 2}, {"shard_size": 1}):
        again = embed(rebuild=True, **options)
        assert again.clips == whole.clips
        torch.testing.assert_close(again.audio, whole.audio, atol=1e-5, rtol=0)
        torch.testing.assert_close(again.text, whole.text, atol=1e-5, rtol=0)


def test_a_single_shard_is_memory_mapped(embed, tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list its memory maps")
    data = embed(shard_size=100)
    assert f"{cache_of(tmp_path).name}/shard-00000" in maps.read_text()
    assert len(data.audio) == 10


def test_a_cold_cache_leaves_the_global_seed_alone(embed):
    encoder = FakeEncoder()
    torch.manual_seed(5)
    embed(encoder)
    cold = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(cold, torch.rand(1))


# Interrupted runs


def test_a_killed_run_keeps_its_finished_shards(embed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(FakeEncoder(fail_after=7))  # in the third shard of four
    assert not (cache_of(tmp_path) / "index.json").exists()
    assert len(list(cache_of(tmp_path).glob("*.safetensors"))) == 2
    encoder = FakeEncoder()
    resumed = embed(encoder)
    assert encoder.clips_encoded == 4
    assert_same(resumed, embed(rebuild=True))


def test_a_half_written_shard_is_encoded_again(embed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(FakeEncoder(fail_after=7))
    shard = cache_of(tmp_path) / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    encoder = FakeEncoder()
    embed(encoder)
    assert encoder.clips_encoded == 7


def test_shards_of_another_clip_list_are_not_taken_over(corpus, embed):
    with pytest.raises(KeyboardInterrupt):
        embed(FakeEncoder(fail_after=7))
    encoder = FakeEncoder()
    embed(encoder, corpus=replace(corpus, clips=corpus.clips[::-1]))
    assert encoder.clips_encoded == 10


def test_skipped_clips_survive_a_kill(corpus, embed):
    soundfile.write(corpus.clips[1].path, np.zeros(800), RATE)
    with pytest.raises(KeyboardInterrupt):
        embed(FakeEncoder(fail_after=3))
    assert embed().skipped == ({"fname": "clip1.wav", "reason": "silent"},)


# A cache that does not match


def test_another_encoder_gets_its_own_folder(embed, tmp_path):
    one, other = embed(FakeEncoder(seed=0)), embed(FakeEncoder(seed=1))
    assert not torch.equal(one.audio, other.audio)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert_same(embed(FakeEncoder(seed=0)), one)


@pytest.mark.parametrize(
    "encoder, name",
    [(FakeEncoder(seed=1), "encoder"), (FakeEncoder(dim=8), "embedding dimension")],
)
def test_a_cache_of_another_encoder_is_refused(embed, tmp_path, encoder, name):
    embed()
    folder = cache_of(tmp_path)
    folder.rename(folder.with_name(f"audiocaps-val-{encoder.fingerprint[:12]}"))
    with pytest.raises(ValueError, match=f"was made with another {name}") as caught:
        embed(encoder)
    assert "--rebuild_cache True" in str(caught.value)
    assert embed(encoder, rebuild=True).audio.shape == (10, encoder.dim)


def change_caption(corpus):
    clip = replace(corpus.clips[4], captions=("something else", "and more"))
    return replace(corpus, clips=(*corpus.clips[:4], clip, *corpus.clips[5:]))


def change_order(corpus):
    return replace(corpus, clips=corpus.clips[::-1])


def change_audio(corpus):
    write_clip(Path(corpus.clips[4].path), 4, 0.3, RATE)
    return corpus


def change_number(corpus):
    return replace(corpus, clips=corpus.clips[:-1])


@pytest.mark.parametrize(
    "change, name",
    [
        (change_caption, "clip list"),
        (change_order, "clip list"),
        (change_audio, "clip list"),
        (change_number, "number of clips: 10, now 9"),
    ],
)
def test_a_cache_of_other_clips_is_refused(corpus, embed, change, name):
    embed()
    changed = change(corpus)
    with pytest.raises(ValueError, match=f"was made with another {name}"):
        embed(corpus=changed)
    encoder = FakeEncoder()
    assert embed(encoder, corpus=changed, rebuild=True).clips == changed.clips
    assert encoder.clips_encoded == len(changed.clips)


def test_moving_the_data_does_not_matter(corpus, embed, tmp_path):
    fresh = embed()
    (tmp_path / "audio").rename(tmp_path / "moved")
    clips = tuple(
        replace(c, path=c.path.replace("/audio/", "/moved/")) for c in corpus.clips
    )
    moved = embed(corpus=replace(corpus, clips=clips))
    assert torch.equal(moved.audio, fresh.audio)
    assert moved.clips == clips


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "index.json"])
def test_a_flipped_byte_anywhere_is_found(embed, tmp_path, name):
    embed()
    path = cache_of(tmp_path) / name
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        broken = bytearray(content)
        broken[place] ^= 0x04
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="run once with --rebuild_cache True"):
            embed()


@pytest.mark.parametrize(
    "change",
    [
        {"position": torch.tensor([0, 1, 99])},
        {"position": torch.tensor([0.0, 1.0, 2.0])},
        {"audio": torch.ones(3, 5)},
        {"audio": torch.ones(2, 6)},
        {"position": torch.tensor([[0], [1], [2]])},
    ],
)
def test_a_forged_shard_is_refused(embed, tmp_path, change):
    embed()
    path = cache_of(tmp_path) / "shard-00000.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(path, {k: v.clone() for k, v in tensors.items()} | change, metadata)
    with pytest.raises(ValueError, match="is damaged"):
        embed()


def _embed_here(corpus, folder, ready):
    encoder = FakeEncoder()
    ready.wait(60)
    data = embed_corpus(
        corpus, encoder, folder, num_workers=0, shard_size=3, progressbar=False
    )
    return encoder.clips_encoded, data.audio.clone()


def test_of_two_processes_one_writes_and_the_other_waits(corpus, tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(2) as pool:
        arguments = corpus, tmp_path / "cache", manager.Barrier(2)
        results = pool.starmap(_embed_here, [arguments] * 2)
    (one, first), (other, second) = results
    assert sorted([one, other]) == [0, 10]
    assert torch.equal(first, second)


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "index cut"])
def test_a_damaged_cache_is_refused(embed, tmp_path, damage):
    embed()
    shard = cache_of(tmp_path) / "shard-00002.safetensors"
    index = cache_of(tmp_path) / "index.json"
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-20])
    else:
        index.write_text(index.read_text()[:50])
    with pytest.raises(ValueError, match="is damaged .*--rebuild_cache True"):
        embed()
    assert len(embed(rebuild=True).audio) == 10


@pytest.mark.parametrize(
    "skipped", ['"abc"', "[3]", "[{}]", '[{"fname": "a", "reason": []}]', "7", "null"]
)
def test_a_shard_that_skipped_no_clips_is_refused(embed, tmp_path, skipped):
    embed()
    shard = cache_of(tmp_path) / "shard-00000.safetensors"
    tensors, metadata = load_tensors(shard)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_tensors(shard, tensors, metadata | {"skipped": skipped})
    with pytest.raises(ValueError, match="is damaged .*--rebuild_cache True"):
        embed()


def test_an_index_of_another_cache_is_told_in_short(embed, tmp_path):
    embed()
    index = cache_of(tmp_path) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"split": "a" * 9999}))
    with pytest.raises(ValueError, match="made with another split: aaa") as caught:
        embed()
    assert len(str(caught.value)) < 1000


# Bad clips


@pytest.fixture
def spoiled(corpus):
    paths = [Path(clip.path) for clip in corpus.clips]
    soundfile.write(paths[0], np.zeros(800), RATE)
    paths[3].write_text("this is text")
    soundfile.write(paths[4], np.zeros(0), RATE)
    paths[5].unlink()
    soundfile.write(paths[9], np.full(10, np.inf), RATE, subtype="FLOAT")
    return corpus


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_files_are_skipped_named_and_counted(spoiled, embed, caplog, num_workers):
    caplog.set_level(logging.INFO)
    data = embed(corpus=spoiled, num_workers=num_workers)
    assert [clip.fname for clip in data.clips] == [
        f"clip{i}.wav" for i in (1, 2, 6, 7, 8)
    ]
    assert {entry["fname"]: entry["reason"] for entry in data.skipped} == {
        "clip0.wav": "silent",
        "clip3.wav": "undecodable",
        "clip4.wav": "of zero length",
        "clip5.wav": "undecodable",
        "clip9.wav": "not finite",
    }
    assert data.clip_of_text.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4]
    clean = embed(corpus=replace(spoiled, split="test", clips=data.clips))
    torch.testing.assert_close(data.audio, clean.audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.text, clean.text, atol=1e-5, rtol=0)
    assert f"Skipped: {spoiled.clips[3].path} is undecodable" in caplog.text
    assert "5 clips, 11 captions, skipped: 1 silent, 2 undecodable" in caplog.text


def test_strict_stops_at_a_bad_file(spoiled, embed):
    with pytest.raises(BadAudio, match="clip0.wav is silent"):
        embed(corpus=spoiled, strict=True)


def test_strict_refuses_a_cache_with_skipped_clips(spoiled, embed):
    embed(corpus=spoiled)
    with pytest.raises(ValueError, match="2 undecodable.*clip0.wav"):
        embed(corpus=spoiled, strict=True)


def test_a_nan_embedding_is_a_bad_clip(embed):
    encoder = FakeEncoder(poison="sound 2 and rain and")
    data = embed(encoder)
    assert data.skipped == ({"fname": "clip2.wav", "reason": "embedded as NaN"},)
    assert data.audio.isfinite().all() and data.text.isfinite().all()
    assert len(data.text) == 16
    with pytest.raises(ValueError, match="clip2.wav is embedded as NaN"):
        embed(encoder, rebuild=True, strict=True)


def test_no_clip_left_is_an_error(corpus, embed):
    for clip in corpus.clips:
        Path(clip.path).write_text("text")
    with pytest.raises(ValueError, match="no clip is left .*10 undecodable"):
        embed()


# Several processes


def encode_as_rank(rank, world, corpus, cache):
    encoder = FakeEncoder()
    data = embed_corpus(
        corpus, encoder, cache, shard_size=3, num_workers=0, progressbar=False
    )
    return {"n": encoder.clips_encoded, "audio": data.audio.clone()}


def test_ranks_share_the_shards(corpus, embed, tmp_path):
    found = in_ranks(2, tmp_path / "ranks", encode_as_rank, corpus, tmp_path / "cache")
    assert [f["n"] for f in found] == [6, 4]  # shards 0 and 2; shards 1 and 3
    alone = embed(FakeEncoder(), rebuild=True)
    for f in found:
        torch.testing.assert_close(f["audio"], alone.audio, atol=1e-6, rtol=0)


# Captions alone

TEXTS = [f"sound {i} {'and rain ' * (i % 3)}" for i in range(1030)]


def embed_alone(tmp_path, encoder=None, texts=TEXTS):
    encoder = encoder or FakeEncoder()
    return embed_texts(texts, encoder, tmp_path / "cache", progressbar=False)


def text_files(tmp_path):
    found = (tmp_path / "cache").rglob("*.*")
    return sorted(path for path in found if path.name != ".lock")


def test_texts_are_embedded_as_the_encoder_does(tmp_path):
    rows = embed_alone(tmp_path)
    assert rows.shape == (1030, 6) and rows.device.type == "cpu"
    torch.testing.assert_close(rows, FakeEncoder().encode_text(TEXTS))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1030))


def test_texts_are_encoded_once(tmp_path):
    encoder = FakeEncoder()
    rows = embed_alone(tmp_path, encoder)
    assert encoder.texts_encoded == 1030
    assert torch.equal(embed_alone(tmp_path, encoder), rows)
    assert torch.equal(embed_alone(tmp_path, FakeEncoder(), tuple(TEXTS)), rows)
    assert encoder.texts_encoded == 1030
    assert len(text_files(tmp_path)) == 1


def embed_texts_as_rank(rank, world, folder):
    encoder = FakeEncoder()
    return embed_alone(folder, encoder), encoder.texts_encoded


def test_ranks_share_the_texts(tmp_path):
    found = in_ranks(3, tmp_path / "ranks", embed_texts_as_rank, tmp_path)
    assert [encoded for _, encoded in found] == [343, 343, 344]
    for rows, _ in found:
        torch.testing.assert_close(rows, FakeEncoder().encode_text(TEXTS))
    assert len(text_files(tmp_path)) == 1


@pytest.mark.parametrize(
    "encoder, texts",
    [
        (FakeEncoder(), TEXTS[::-1]),
        (FakeEncoder(), TEXTS[:-1]),
        (FakeEncoder(), [*TEXTS[:-1], "other"]),
        (FakeEncoder(seed=1), TEXTS),
    ],
)
def test_other_texts_and_other_encoders_have_other_files(tmp_path, encoder, texts):
    rows, first = embed_alone(tmp_path), text_files(tmp_path)
    before = encoder.texts_encoded
    torch.testing.assert_close(
        embed_alone(tmp_path, encoder, texts), encoder.encode_text(texts)
    )
    assert encoder.texts_encoded == before + 2 * len(texts)
    assert len(text_files(tmp_path)) == 2 and {*first} < {*text_files(tmp_path)}
    assert torch.equal(embed_alone(tmp_path), rows)


def test_a_killed_run_leaves_no_half_of_the_texts(tmp_path, monkeypatch):
    encoder, encode = FakeEncoder(), FakeEncoder.encode_text

    def stop_at_the_second_chunk(self, texts):
        if self.texts_encoded:
            raise KeyboardInterrupt
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEncoder, "encode_text", stop_at_the_second_chunk)
        with pytest.raises(KeyboardInterrupt):
            embed_alone(tmp_path, encoder)
    assert not text_files(tmp_path)
    assert embed_alone(tmp_path, encoder).shape == (1030, 6)


@pytest.mark.parametrize("damage", ["cut", "empty", "other tensors"])
def test_damaged_embeddings_of_texts_are_named(tmp_path, damage):
    embed_alone(tmp_path)
    (path,) = text_files(tmp_path)
    if damage == "other tensors":
        save_file({"audio": torch.ones(1)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"")
    with pytest.raises(
        ValueError, match="cannot be read .*; delete the file"
    ) as caught:
        embed_alone(tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    assert len(embed_alone(tmp_path)) == 1030


# From the tree to the cache


def test_the_splits_of_a_recipe_are_embedded(audiocaps_tree, tiny_clap, tmp_path):
    hparams = {
        "corpus": "audiocaps",
        "data_folder": audiocaps_tree,
        "cache_folder": tmp_path / "cache",
        "strict": True,
        "rebuild_cache": False,
        "encoding_batch_size": 2,
        "num_workers": 0,
    }
    data = embed_splits(hparams, tiny_clap)
    assert [*data] == ["train", "val", "test"]
    assert [len(split.audio) for split in data.values()] == [4, 3, 3]
    assert [*embed_splits(hparams, tiny_clap, ["val"])] == ["val"]
    again = embed_splits(hparams, tiny_clap)
    for split in data:
        assert_same(again[split], data[split])
        assert data[split].audio.device == tiny_clap.device


@pytest.mark.parametrize("name", ["audiocaps", "clotho"])
def test_trees_through_a_clap(request, tiny_clap, tmp_path, name):
    tree = request.getfixturevalue(f"{name}_tree")
    corpus = load_corpus(name, tree, "test", cache_folder=tmp_path)
    data = embed_corpus(corpus, tiny_clap, tmp_path / "cache", progressbar=False)
    assert data.audio.shape == (3, 32) and data.text.shape == (15, 32)
    assert torch.pdist(data.audio).min() > 1e-3
    torch.testing.assert_close(data.audio.norm(dim=1), torch.ones(3))
    index = json.loads((cache_of(tmp_path) / "index.json").read_text())
    assert index["fingerprint"] == tiny_clap.fingerprint
    assert os.listdir(tmp_path / "cache") == [
        f"{name}-test-{tiny_clap.fingerprint[:12]}"
    ]


@pytest.mark.parametrize("name, clips", [("audiocaps", 13), ("clotho", 12)])
def test_real_clips(reference_folder, tiny_clap, tmp_path, name, clips):
    corpus = load_corpus(
        name, reference_folder / "real_clips", "test", cache_folder=tmp_path
    )
    data = embed_corpus(
        corpus, tiny_clap, tmp_path / "cache", strict=True, progressbar=False
    )
    assert data.audio.shape == (clips, 32) and data.text.shape == (5 * clips, 32)
    assert torch.pdist(data.audio).min() > 1e-3


# A CLAP of another kind


def levels(window):
    return torch.stack([part.std() for part in window.tensor_split(64)])


class OtherClap(FrozenEncoder):
    """In the shape of WavCaps' HTSAT-BERT: 1024 numbers, 32 kHz."""

    def __init__(self):
        torch.manual_seed(0)
        front_end = FrontEnd(levels, 32_000, window=320_000, min_tail=3_200)
        super().__init__(torch.nn.Linear(64, 1024), 1024, front_end, {"kind": "other"})

    def _embed_audio(self, features):
        return self.model(features)

    def _embed_text(self, texts):
        counts = [[text.count(chr(i)) for i in range(64, 128)] for text in texts]
        return self.model(torch.tensor(counts).float())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_clap_of_another_size_and_rate_is_cached(clotho_tree, tmp_path, num_workers):
    corpus = load_corpus("clotho", clotho_tree, "test", cache_folder=tmp_path)
    options = {"num_workers": num_workers, "progressbar": False}
    data = embed_corpus(corpus, OtherClap(), tmp_path / "cache", **options)
    assert data.audio.shape == (3, 1024) and data.text.shape == (15, 1024)
    waveform = load_audio(corpus.clips[0].path, 32_000)
    expected = OtherClap().encode_audio([waveform])[0]
    torch.testing.assert_close(data.audio[0], expected, atol=1e-5, rtol=0)
