import pytest
import torch

from dlink_plugin.gap import modality_gap

from .pairs_like_clap import LAION_CLAP, MS_CLAP, draw


@pytest.mark.parametrize("space", [LAION_CLAP, MS_CLAP])
def test_the_statistics_are_the_published_ones(space):
    audio, text = draw(space, 4000, 512, torch.Generator().manual_seed(0))
    within_audio, within_text, distance, paired = space
    gap = modality_gap(audio, text)
    assert gap["centroid_distance"] == pytest.approx(distance, abs=0.02)
    assert gap["paired_cosine"] == pytest.approx(paired, abs=0.02)
    for side, cosine in ((audio, within_audio), (text, within_text)):
        assert (side[:2000] @ side[2000:].T).mean() == pytest.approx(cosine, abs=0.02)
