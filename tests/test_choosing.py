"""Choosing among captions: CIDEr-D against aac-metrics, and what each way keeps."""

import numpy as np
import pytest
import torch
from aac_metrics.functional import cider_d
from torch.nn.functional import normalize

from dlink_plugin.bridges import DiffusionLink, Identity
from dlink_plugin.choosing import (
    WAYS,
    Chooser,
    CiderUtility,
    caption_draws,
    chosen_captions,
)
from dlink_plugin.encoders import load_encoder
from dlink_plugin.pairs import seeded
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
    assert chooser([candidates], None) == ["a dog barks"]
    assert chooser([["rain", "a dog"]], None) == ["rain"]  # the earlier of equals


def test_similarity_keeps_the_middle_and_clap_what_is_near_the_sound():
    table = {
        "left": torch.tensor([1.0, -1.0]),
        "middle": torch.tensor([1.0, 0.0]),
        "right": torch.tensor([1.0, 1.0]),
    }
    sound = torch.tensor([[0.1, 1.0]])
    of = [["left", "middle", "right"]]
    assert Chooser("similarity", Lookup(table), [])(of, sound) == ["middle"]
    assert Chooser("clap", Lookup(table), [])(of, sound) == ["right"]


def test_each_sound_chooses_among_its_own_draws():
    draws = torch.tensor([[[1.0, 0], [3.0, 0]], [[2.0, 0], [4.0, 0]]])  # K, N, d
    assert caption_draws(Echo(), draws) == [["1.0", "2.0"], ["3.0", "4.0"]]


@pytest.mark.parametrize("how", WAYS)
def test_one_caption_leaves_nothing_to_choose(how):
    chooser = Chooser(how, Lookup({"rain": torch.ones(2)}), BACKGROUND)
    assert chooser([["rain"]], torch.ones(1, 2)) == ["rain"]


class Recorder(Echo):
    """Remembers how it was asked."""

    def __init__(self):
        self.asked = []

    def generate(self, rows, **generation):
        self.asked.append((len(rows), generation))
        return [f"caption {i} of rain" for i in range(len(rows))]


def test_a_recipe_gets_a_row_for_each_way_and_the_control_samples(tiny_clap_folder):
    dim = load_encoder(str(tiny_clap_folder)).dim
    hparams = {
        "clap": tiny_clap_folder, "seed": 1, "draws": 4, "sample_temperature": 0.6,
        "choose": ["average", "cider_d", "clap"], "generation": {"num_beams": 3},
    }  # fmt: skip
    bridges = {"diffusion_link": DiffusionLink(dim).eval(), "none": Identity(dim)}
    audio = normalize(torch.randn(5, dim, generator=seeded(0)), dim=1)
    decoder = Recorder()
    rows = chosen_captions(decoder, bridges, audio, hparams, BACKGROUND)
    ways = {"diffusion_link_average", "diffusion_link_cider_d", "diffusion_link_clap"}
    assert set(rows) == ways | {"none_cider_d", "none_clap"}
    assert all(len(written) == 5 for written in rows.values())
    mean, drawn, sampled = decoder.asked
    assert mean == (5, {"num_beams": 3}) and drawn == (20, {"num_beams": 3})
    assert sampled[0] == 20 and sampled[1]["do_sample"]
    assert sampled[1]["num_beams"] == 1 and sampled[1]["temperature"] == 0.6


def test_unknown_ways_and_empty_backgrounds_are_refused():
    with pytest.raises(ValueError, match="choose 'best' is unknown.*cider_d"):
        Chooser("best", None, [])
    with pytest.raises(ValueError, match="many captions, not of 1"):
        Chooser("cider_d", None, ["rain"])
