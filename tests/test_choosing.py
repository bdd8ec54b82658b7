"""Choosing among captions: CIDEr-D against aac-metrics, and what each way keeps."""

import numpy as np
import pytest
import torch
from aac_metrics.functional import cider_d
from torch.nn.functional import normalize

from dlink_plugin.choosing import CHOICES, Chooser, CiderUtility
from dlink_plugin.scoring import plain_tokens

BACKGROUND = [
    "a dog barks and a man speaks",
    "rain falls on a roof",
    "a man speaks while rain falls",
    "birds sing as a dog barks",
]


class Lookup:
    """Text embeddings by table."""

    def __init__(self, table):
        self.table = table

    def encode_text(self, texts):
        return normalize(torch.stack([self.table[text] for text in texts]), dim=1)


class Echo:
    """Writes the first number of an embedding."""

    def generate(self, rows, **generation):
        return [f"{row[0]:.1f}" for row in rows]


def test_the_utility_is_the_cider_d_of_aac_metrics():
    # One reference a document and no more: its document frequencies are those here.
    candidates = ["a dog barks", "a man speaks while rain falls on a dog", "a a a", "x"]
    theirs = cider_d(
        [plain_tokens(text) for text in candidates],
        [[text] for text in BACKGROUND],
    )[1]["cider_d"]
    ours = CiderUtility(BACKGROUND)([*candidates, *BACKGROUND])[:4, 4:].diagonal()
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_the_utility_of_one_caption_does_not_depend_on_the_others():
    utility = CiderUtility(BACKGROUND)
    alone = utility(["a dog barks", "birds sing"])
    among = utility(["a dog barks", "birds sing", "quite another thing", "a roof"])
    np.testing.assert_allclose(among[:2, :2], alone, atol=1e-12)


def test_consensus_keeps_what_most_agree_with():
    chooser = Chooser("cider_d", None, BACKGROUND)
    candidates = ["rain falls", "a dog barks loudly", "a dog barks", "a dog barks"]
    assert chooser.pick([candidates], None) == ["a dog barks"]
    assert chooser.pick([["rain", "a dog"]], None) == ["rain"]  # the earlier of equals


def test_similarity_keeps_the_middle_and_clap_what_is_near_the_sound():
    table = {
        "left": torch.tensor([1.0, -1.0]),
        "middle": torch.tensor([1.0, 0.0]),
        "right": torch.tensor([1.0, 1.0]),
    }
    sound = torch.tensor([[0.1, 1.0]])
    of = [["left", "middle", "right"]]
    assert Chooser("similarity", Lookup(table), []).pick(of, sound) == ["middle"]
    assert Chooser("clap", Lookup(table), []).pick(of, sound) == ["right"]


def test_each_sound_chooses_among_its_own_draws():
    draws = torch.tensor([[[1.0, 0], [3.0, 0]], [[2.0, 0], [4.0, 0]]])  # K, N, d
    table = {f"{x}.0": torch.tensor([float(x), 1.0]) for x in range(1, 5)}
    chooser = Chooser("clap", Lookup(table), [])
    sounds = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert chooser(Echo(), draws, sounds) == ["2.0", "3.0"]
    assert Chooser("average", None, [])(Echo(), draws, sounds) == ["1.0", "1.0"]


@pytest.mark.parametrize("how", CHOICES)
def test_one_draw_leaves_nothing_to_choose(how):
    chooser = Chooser(how, Lookup({"1.0": torch.ones(2)}), BACKGROUND)
    draws = torch.tensor([[[1.0, 0.0]]])
    assert chooser(Echo(), draws, torch.ones(1, 2)) == ["1.0"]


def test_unknown_ways_and_empty_backgrounds_are_refused():
    with pytest.raises(ValueError, match="choose 'best' is unknown.*average"):
        Chooser("best", None, [])
    with pytest.raises(ValueError, match="many captions, not of 1"):
        Chooser("cider_d", None, ["rain"])
