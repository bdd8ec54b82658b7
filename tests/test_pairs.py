import numpy as np
import pytest
import torch

from dlink_plugin.pairs import Captioned, ClipBatches, MappedRows, Pairs, seeded

CLIP_OF_TEXT = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6])  # 7 clips, 10 captions


def batches(**options):
    options = {"batch_size": 2, "passes": 3, "seed": 1, **options}
    sampler = ClipBatches(CLIP_OF_TEXT, **options)
    sampler.set_epoch(options.pop("epoch", 1))
    return sampler


def test_no_clip_comes_twice_in_a_batch_or_a_pass():
    sampler = ClipBatches(CLIP_OF_TEXT, batch_size=3, passes=4, seed=0)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 8
    for start in range(0, 8, 2):
        clips = CLIP_OF_TEXT[sum(rows[start : start + 2], [])]
        assert len(clips.unique()) == 6


def test_every_caption_gets_its_turn():
    sampler = ClipBatches(CLIP_OF_TEXT, batch_size=7, passes=60, seed=0)
    seen = torch.tensor(sum(sampler, [])).bincount(minlength=10)
    assert (seen > 0).all()
    assert (seen[[2, 6, 7, 8, 9]] == 60).all()
    assert 10 < seen[3] < 30  # one of three


def test_batches_follow_from_seed_and_epoch():
    first = list(batches())
    assert first == list(batches())
    other = batches()
    other.set_epoch(2)
    assert first != list(other)
    assert first != list(batches(seed=2))


def test_ranks_share_the_batches_of_one_process():
    whole = list(batches(batch_size=4))
    parts = [list(batches(batch_size=4, rank=r, world_size=2)) for r in (0, 1)]
    assert whole == [a + b for a, b in zip(*parts, strict=True)]


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert sorted(len(rows) for rows in batches(batch_size=128)) == [7, 7, 7]
    shares = list(batches(batch_size=128, rank=1, world_size=2))
    assert [len(rows) for rows in shares] == [3, 3, 3]


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 3, "world_size": 2},
                {"batch_size": 2, "world_size": 2}]
)  # fmt: skip
def test_batches_without_two_clips_for_each_process_are_refused(options):
    with pytest.raises(ValueError, match="--batch_size"):
        batches(**options)


def test_pairs_match_audio_to_caption():
    audio, text = torch.randn(7, 3), torch.randn(10, 3)
    pairs = Pairs(audio, text, CLIP_OF_TEXT)
    assert len(pairs) == 10
    batch_audio, batch_text = pairs.__getitems__([4, 9, 0])
    assert torch.equal(batch_audio, audio[[2, 6, 0]])
    assert torch.equal(batch_text, text[[4, 9, 0]])
    assert torch.equal(pairs[4][0], audio[2])


# Batches of captions about equally long

OWNER = torch.arange(100).repeat_interleave(2)  # 100 clips of two captions
LENGTHS = torch.randint(5, 200, (200,), generator=seeded(3))


def sorted_batches(lengths=LENGTHS, epoch=1, **options):
    options = {"batch_size": 8, "passes": 2, "seed": 1, **options}
    sampler = ClipBatches(OWNER, lengths=lengths, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_batches_by_length_still_hold_every_clip_at_most_once_a_pass():
    rows = sorted_batches()
    assert [len(batch) for batch in rows] == [8] * 24
    for start in (0, 12):
        clips = OWNER[sum(rows[start : start + 12], [])]
        assert len(clips.unique()) == 96


def test_batches_by_length_hold_the_captions_of_those_that_are_not():
    plain, by_length = sorted_batches(None), sorted_batches()
    for start in (0, 12):
        one, other = (sum(b[start : start + 12], []) for b in (plain, by_length))
        assert one != other
        assert sorted(one) == sorted(other)


def spread(batches):
    lengths = [LENGTHS[batch] for batch in batches]
    return sum(int(each.max() - each.min()) for each in lengths) / len(lengths)


def test_batches_by_length_leave_little_to_pad():
    assert spread(sorted_batches()) < 0.2 * spread(sorted_batches(None))
    other = LENGTHS[torch.randperm(200, generator=seeded(4))]  # control: of others
    assert spread(sorted_batches(other)) > 0.8 * spread(sorted_batches(None))


def test_batches_by_length_come_in_a_random_order():
    means = torch.tensor([LENGTHS[b].float().mean() for b in sorted_batches(passes=1)])
    assert not torch.equal(means, means.sort().values)
    assert not torch.equal(means, means.sort(descending=True).values)


def test_batches_by_length_are_drawn_from_32_batches_at_a_time():
    clips = torch.arange(2 * 64)  # batches of 2: the first 64 clips are one pool
    rows = list(ClipBatches(clips, batch_size=2, seed=0, lengths=clips))
    plain = sum(ClipBatches(clips, batch_size=2, seed=0), [])
    pools = [set(plain[:64]), set(plain[64:])]
    assert sum(set(batch) <= pools[0] for batch in rows) == 32
    for pool in pools:
        order = sorted(pool)
        neighbors = {tuple(order[i : i + 2]) for i in range(0, 64, 2)}
        assert neighbors <= {tuple(sorted(batch)) for batch in rows}


def test_batches_by_length_follow_from_seed_and_epoch():
    first = sorted_batches()
    assert first == sorted_batches()
    assert first != sorted_batches(epoch=2)
    assert first != sorted_batches(seed=2)
    assert first[:12] != first[12:]


def test_ranks_share_the_batches_by_length():
    parts = [sorted_batches(rank=r, world_size=2) for r in (0, 1)]
    assert sorted_batches() == [a + b for a, b in zip(*parts, strict=True)]


# Captioned


def test_captions_come_with_the_embedding_of_their_clip():
    source = torch.randn(7, 3)
    captions = [f"caption {i} {'long ' * i}" for i in range(10)]
    data = Captioned(source, CLIP_OF_TEXT, captions)
    assert len(data) == 10
    rows, said = data.__getitems__([9, 0, 4, 1])
    assert torch.equal(rows, source[[6, 0, 2, 0]])
    assert said == [captions[9], captions[0], captions[4], captions[1]]
    assert data.lengths.tolist() == [len(caption) for caption in captions]


def test_captioned_goes_through_a_data_loader():
    source, captions = torch.arange(7.0)[:, None], [f"caption {i}" for i in range(10)]
    data = Captioned(source, CLIP_OF_TEXT, captions)
    sampler = ClipBatches(CLIP_OF_TEXT, batch_size=3, lengths=data.lengths)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=sampler, collate_fn=data.collate
    )
    assert len(loader) == 2
    for rows, said in loader:
        places = [captions.index(caption) for caption in said]
        assert rows[:, 0].tolist() == CLIP_OF_TEXT[places].tolist()


def test_seeds_that_are_neighbors_give_unrelated_noise():
    noise = torch.stack(
        [torch.randn(2000, generator=seeded(1, 1, step)) for step in range(8)]
    )
    off_diagonal = torch.corrcoef(noise) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.1


def test_a_subset_keeps_whole_clips_and_fewer_are_among_more():
    audio, text = torch.eye(6), torch.arange(18.0).view(18, 1).expand(18, 6)
    pairs = Pairs(audio, text, torch.arange(6).repeat_interleave(3))
    small, large = pairs.subset(2, seed=3), pairs.subset(4, seed=3)
    assert len(small.audio) == 2 and len(small) == 6
    torch.testing.assert_close(large.audio[:2], small.audio)
    for row in range(len(large)):
        sound, caption = large[row]
        clip = int(sound.argmax())
        assert caption[0] in (3 * clip, 3 * clip + 1, 3 * clip + 2)
    with pytest.raises(ValueError, match="There are 6 clips to choose 7 from"):
        pairs.subset(7, seed=3)


# Pairs on disk


def test_rows_on_disk_are_those_in_memory(tmp_path):
    arrays = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    for name, array in zip(("a", "t"), arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    audio, text = (MappedRows(tmp_path / f"{name}.npy") for name in "at")
    owner, rows = torch.arange(9), [7, 0, 3]
    there = Pairs(audio, text, owner).__getitems__(rows)
    here = Pairs(*map(torch.from_numpy, arrays), owner).__getitems__(rows)
    for mapped, held in zip(there, here, strict=True):
        torch.testing.assert_close(mapped, held, atol=0, rtol=0)
    assert audio.shape == (9, 4) and len(audio) == 9
    torch.testing.assert_close(audio[2:4], torch.from_numpy(arrays[0, 2:4]))


def test_half_precision_on_disk_is_single_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float16))
    assert torch.equal(MappedRows(tmp_path / "a.npy")[torch.tensor([1])][0],
                       torch.tensor([0.0, 1.0, 0.0]))  # fmt: skip


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros((3, 2), int)])
def test_what_is_no_table_of_embeddings_is_refused(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match="a.npy holds .* give one array"):
        MappedRows(tmp_path / "a.npy")


# Rows on disk


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_mapped_rows_are_those_of_the_file(tmp_path, kind, order):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(kind)
    np.save(tmp_path / "a.npy", np.asarray(rows, order=order))
    mapped = MappedRows(tmp_path / "a.npy")
    expected = torch.from_numpy(rows.astype(np.float32))
    assert len(mapped) == 5
    assert torch.equal(mapped[torch.tensor([4, 0])], expected[[4, 0]])
    assert torch.equal(mapped[1:4], expected[1:4])


def test_a_file_that_cannot_be_mapped_is_named(tmp_path):
    file = tmp_path / "a.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00\x05\x00{'''\n")
    with pytest.raises(ValueError, match=f"{file} is not a .npy file"):
        MappedRows(file)
    for strange in (np.ones(3), np.ones((2, 2)), np.array([["a"]])):
        np.save(file, strange)
        with pytest.raises(ValueError, match=f"{file} holds {strange.dtype}"):
            MappedRows(file)
