import logging

import numpy as np
import pytest
import torch

from dlink_plugin.corpora import Clip
from dlink_plugin.embeddings import Embeddings
from dlink_plugin.splits import corpus_split, fold_splits, read_arrays


def arrays(folder, audio, text):
    for name, rows in (("a.npy", audio), ("t.npy", text)):
        np.save(folder / name, rows, allow_pickle=True)
    return folder / "a.npy", folder / "t.npy"


def unit(n, d, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numbered(n, d=4):
    """Rows that carry their number, so that one can see where they went."""
    rows = torch.ones(n, d)
    rows[:, 0] = torch.arange(n)
    return rows


# A corpus


def test_a_corpus_is_tested_on_first_captions_beside_the_second():
    def split(seed):
        owner = torch.arange(4).repeat_interleave(3)
        clips = tuple(Clip(f"{i}", f"{i}", ("a", "b", "c")) for i in range(4))
        rows = [torch.from_numpy(unit(n, 5, seed)) for n in (4, 12)]
        return Embeddings(*rows, owner, clips, (), 0)

    data = {name: split(seed) for seed, name in enumerate(("train", "val", "test"))}
    its = corpus_split(data)
    assert len(its.train) == 12 and len(its.valid) == 4
    assert torch.equal(its.test.text, data["test"].text[::3])
    assert torch.equal(its.second, data["test"].text[1::3])


# Arrays


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int16"])
def test_arrays_of_any_numbers_are_normalized(tmp_path, kind):
    audio, text = (100 * unit(20, 6, seed) for seed in (0, 1))
    files = arrays(tmp_path, audio.astype(kind), text.astype(kind))
    a, t, skipped = read_arrays(*files)
    assert skipped == [] and a.dtype == t.dtype == torch.float32
    torch.testing.assert_close(a.norm(dim=1), torch.ones(20))
    cosine = (a.double().numpy() * unit(20, 6, 0)).sum(1)
    assert cosine.min() > 0.99


def test_bad_rows_are_named_and_the_others_kept(tmp_path, caplog):
    audio, text = unit(20, 6, 0), unit(20, 6, 1)
    audio[3, 2], text[7, 0], audio[11], text[12, 5] = np.nan, np.inf, 0, -np.inf
    with caplog.at_level(logging.WARNING):
        a, t, skipped = read_arrays(*arrays(tmp_path, audio, text))
    assert skipped == [3, 7, 11, 12] and len(a) == len(t) == 16
    torch.testing.assert_close(a[3], torch.from_numpy(audio[4]).float())
    torch.testing.assert_close(t[3], torch.from_numpy(text[4]).float())
    assert "4 of 20 pairs are left out" in caplog.text
    assert "[3, 7, 11, 12]" in caplog.text


@pytest.mark.parametrize(
    "audio, text, sentence",
    [
        (np.ones((4, 3)), np.ones((5, 3)), r"\(4, 3\) but .*t.npy \(5, 3\)"),
        (np.ones((4, 3)), np.ones((4, 2)), r"\(4, 3\) but .*t.npy \(4, 2\)"),
        (np.ones(4), np.ones(4), r"a.npy holds float64 \(4,\)"),
        (np.ones((0, 3)), np.ones((0, 3)), r"a.npy holds float64 \(0, 3\)"),
        (np.array([["a", "b"]]), np.ones((1, 2)), "a.npy holds <U1"),
        (np.array([[{}, 1]]), np.ones((1, 2)), "a.npy is not a .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(tmp_path, audio, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_arrays(*arrays(tmp_path, audio, text))


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "a.npy").write_text("0.5 0.5")
    with pytest.raises(ValueError, match="is not a .npy file"):
        read_arrays(tmp_path / "a.npy", tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a .npy file"):
        read_arrays(tmp_path / "a.npy", tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "b.npy", tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", a=np.ones((2, 2)))
    with pytest.raises(ValueError, match="c.npz holds several"):
        read_arrays(tmp_path / "c.npz", tmp_path / "c.npz")


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (8000000000, 1)}"
    raw = b"\x93NUMPY\x01\x00\x76\x00" + head.ljust(117).encode() + b"\n" + bytes(64)
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(ValueError, match="a.npy is not a .npy file of numbers"):
        read_arrays(tmp_path / "a.npy", tmp_path / "a.npy")


@pytest.mark.parametrize("scale", [1e-200, 1e-14, 1e60, 1e200])
def test_any_scale_is_taken(tmp_path, scale):
    rows = unit(20, 6)
    a, t, skipped = read_arrays(*arrays(tmp_path, scale * rows, rows))
    assert skipped == []
    torch.testing.assert_close(a, t)


# Folds


def rows_of(pairs):
    return pairs.audio[:, 0].int().tolist()


def test_every_pair_is_tested_once_by_a_bridge_that_never_saw_it():
    splits = fold_splits(numbered(53), numbered(53), folds=5, seed=1)
    tested = [row for split in splits for row in rows_of(split.test)]
    assert sorted(tested) == list(range(53))
    for split in splits:
        parts = [set(rows_of(p)) for p in (split.train, split.valid, split.test)]
        assert sum(map(len, parts)) == 53 and set.union(*parts) == set(range(53))
        assert len(parts[1]) == len(set.union(*parts[:2])) // 5
        assert torch.equal(split.test.audio, split.test.text)  # still paired
        assert split.second is None


def test_the_order_follows_from_the_seed():
    first, same, other = (
        rows_of(fold_splits(numbered(40), numbered(40), 2, seed)[0].test)
        for seed in (1, 1, 2)
    )
    assert first == same != other
    assert first != list(range(20))


def test_the_captions_of_one_clip_stay_together():
    """Rows of the same audio: in test and in training they would be a leak."""
    audio = numbered(40).repeat_interleave(5, dim=0)
    for split in fold_splits(audio, numbered(200), folds=4, seed=0):
        parts = [set(rows_of(p)) for p in (split.train, split.valid, split.test)]
        assert sum(map(len, parts)) == 40 and len(parts[2]) == 10
        assert len(split.test) == 50


def test_one_fold_is_one_split():
    (split,) = fold_splits(numbered(100), numbered(100), folds=1, seed=0)
    sizes = len(split.train), len(split.valid), len(split.test)
    assert sizes == (64, 16, 20)


@pytest.mark.parametrize(
    "pairs, folds, sentence",
    [
        (49, 5, "49 pairs cannot be compared with --folds 5, which takes 50 .* 1 to 4"),
        (49, 1, "--folds 1, which takes 50"),
        (60, 0, "--folds 0"),
    ],
)
def test_folds_that_cannot_be_are_refused(pairs, folds, sentence):
    with pytest.raises(ValueError, match=sentence):
        fold_splits(numbered(pairs), numbered(pairs), folds, seed=0)
