import pytest
import torch

from dlink_plugin.pairs import ClipBatches, Pairs, seeded

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


def test_seeds_that_are_neighbors_give_unrelated_noise():
    noise = torch.stack(
        [torch.randn(2000, generator=seeded(1, 1, step)) for step in range(8)]
    )
    off_diagonal = torch.corrcoef(noise) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.1
