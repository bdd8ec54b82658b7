import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import Bridge, DiffusionLink
from dlink_plugin.corpora import Clip
from dlink_plugin.embeddings import Embeddings
from dlink_plugin.gap import CRITERIA, modality_gap
from dlink_plugin.judge import (
    choose,
    cross,
    load_bridge,
    load_bridges,
    stand_ins,
    sweep,
    tune,
)
from dlink_plugin.pairs import Pairs, seeded

RECALL, GAP = "recall@1_audio_to_text", "relative_modality_gap"


def unit(n, d, seed=0):
    return normalize(torch.randn(n, d, generator=seeded(seed)), dim=1)


@pytest.fixture
def bridge():
    bridge = DiffusionLink(16, t_max=300, start_step=120, steps=4, dropout=0.5)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=seeded(1))
    return bridge


@pytest.fixture
def valid():
    text = unit(40, 16)
    audio = normalize(text + 0.5 * unit(1, 16, 5) + 0.2 * unit(40, 16, 2), dim=1)
    return Pairs(audio, text, torch.arange(40))


def row(start, steps, recall, gap):
    return {"start_step": start, "steps": steps, RECALL: recall, GAP: gap}


# cross


def test_crossing_follows_from_its_seed(bridge):
    audio = unit(20, 16)
    first = cross(bridge, audio, seed=3)
    torch.manual_seed(9)
    assert torch.equal(first, cross(bridge, audio, seed=3))
    assert not torch.allclose(first, cross(bridge, audio, seed=4), atol=1e-2)
    assert torch.allclose(first.norm(dim=1), torch.ones(20), atol=1e-5)


def test_crossing_is_without_dropout_and_gradient(bridge):
    bridge.train()
    bridged = cross(bridge, unit(20, 16), seed=0)
    assert not bridged.requires_grad
    assert torch.equal(bridged, cross(bridge.eval(), unit(20, 16), seed=0))


def test_crossing_in_batches_keeps_rows_and_order(bridge):
    audio = unit(50, 16)
    whole = cross(bridge, audio, seed=0)
    parts = cross(bridge, audio, seed=0, batch_size=16)
    assert torch.allclose(parts, whole, atol=1e-5)
    seen = []
    bridge.forward = lambda rows, generator: seen.append(len(rows)) or rows
    assert torch.equal(cross(bridge, audio, seed=0, batch_size=16), audio)
    assert seen == [16, 16, 16, 2]


def test_batches_do_not_get_the_same_noise(bridge):
    same = unit(1, 16).repeat(32, 1)
    first, second = cross(bridge, same, seed=0, batch_size=16).split(16)
    assert not torch.allclose(first, second, atol=1e-2)


# sweep


def test_a_sweep_tries_every_setting_once(bridge, valid):
    starts, counts = [0, 50, 300, 301, 400], [2, 5]
    rows = sweep(bridge, valid.audio, valid.text, starts, counts, seed=0)
    tried = [(r["start_step"], r["steps"]) for r in rows]
    assert tried == [(0, 1), (50, 2), (50, 5), (300, 2), (300, 5)]
    names = {"start_step", "steps", *CRITERIA} - {"linear_separability"}
    assert all(set(r) == names for r in rows)


def test_a_row_of_a_sweep_is_the_gap_at_its_setting(bridge, valid):
    rows = sweep(bridge, valid.audio, valid.text, [0, 200], [3], seed=7)
    for r in rows:
        bridge.start_step, bridge.steps = r["start_step"], r["steps"]
        bridged = cross(bridge, valid.audio, seed=7)
        expected = modality_gap(bridged, valid.text, separability=False)
        assert {name: r[name] for name in expected} == expected


def test_a_sweep_leaves_the_settings_alone(bridge, valid):
    sweep(bridge, valid.audio, valid.text, [0, 50], [2], seed=0)
    assert (bridge.start_step, bridge.steps) == (120, 4)


def test_a_sweep_that_fails_leaves_the_settings_alone(bridge, valid):
    with pytest.raises(ValueError, match="not finite"):
        sweep(bridge, valid.audio, valid.text * torch.nan, [50], [2], seed=0)
    assert (bridge.start_step, bridge.steps) == (120, 4)


def test_a_sweep_takes_any_iterable(bridge, valid):
    settings = iter([50, 100]), iter([2, 3])
    assert len(sweep(bridge, valid.audio, valid.text, *settings, seed=0)) == 4


# choose


def test_the_lowest_gap_that_keeps_retrieval_is_chosen():
    rows = [
        row(50, 2, 0.50, 0.30),
        row(100, 2, 0.485, 0.20),  # exactly 0.97 of the raw recall
        row(200, 2, 0.48, 0.10),  # loses retrieval
    ]
    assert choose(rows, {RECALL: 0.5}) is rows[1]
    assert choose(rows, {RECALL: 0.5}, keep_recall=0.9) is rows[2]


def test_the_best_retrieval_is_chosen_where_none_keeps_it():
    rows = [
        row(50, 2, 0.40, 0.30),
        row(100, 2, 0.41, 0.25),
        row(150, 3, 0.41, 0.20),
        row(200, 2, 0.30, 0.10),
    ]
    assert choose(rows, {RECALL: 0.5}) is rows[2]


# tune


def test_tuning_sets_what_the_rule_chooses(bridge, valid):
    rows, none = tune(bridge, valid, [0, 50, 250], [2, 3], keep_recall=0.0, seed=0)
    assert none == modality_gap(valid.audio, valid.text, separability=False)
    diffused = [r for r in rows if r["start_step"]]
    chosen = choose(diffused, none, 0.0)
    assert chosen == min(diffused, key=lambda r: r[GAP])
    assert (bridge.start_step, bridge.steps) == (chosen["start_step"], chosen["steps"])
    assert (bridge.start_step, bridge.steps) != (120, 4)
    config = bridge.config
    assert (config["start_step"], config["steps"]) == (bridge.start_step, bridge.steps)


class Steps(DiffusionLink):
    """Moves audio as near to its text as its number of steps is worth."""

    def __init__(self, dim, worth, text, t_max=100, start_step=50, steps=9):
        super().__init__(dim, t_max=t_max, start_step=start_step, steps=steps)
        self.worth, self.text = worth, text

    def forward(self, audio, generator=None):
        return normalize(audio + self.worth[self.steps] * self.text, dim=1)


@pytest.mark.parametrize(
    ("worth", "steps"),
    [
        ({2: 0.5, 3: 1.0, 5: 1 + 0.1 * unit(1, 40).T}, 3),  # to some clips' good
        ({2: 1.0, 3: 1.0, 5: 1.0}, 2),
        ({2: 0.2, 3: 0.5, 5: 1.0}, 5),
    ],
)
def test_more_steps_have_to_be_worth_it(valid, worth, steps):
    bridge = Steps(16, worth, valid.text)
    tune(bridge, valid, [50], [5, 3, 2], keep_recall=0.0, seed=0)
    assert bridge.steps == steps


@pytest.mark.parametrize("starts, counts", [([0, 49], [2]), ([50, 300], [1])])
def test_only_diffusion_can_be_chosen(bridge, valid, starts, counts):
    with pytest.raises(ValueError, match="start_steps of 50 or more"):
        tune(bridge, valid, starts, counts, keep_recall=0.0, seed=0)


# Bridges for recipes


def clips(captions=2, dim=16):
    owner = torch.arange(5).repeat_interleave(captions)
    several = tuple(Clip(f"{i}", f"{i}", ("a",) * captions) for i in range(5))
    return Embeddings(unit(5, dim), unit(5 * captions, dim, 3), owner, several, (), 0)


def test_raw_bridged_and_another_caption_stand_in_for_text(bridge):
    test = clips()
    rows = stand_ins({"link": bridge}, test, seed=3)
    assert list(rows) == ["none", "link", "ceiling"]
    assert torch.equal(rows["none"], test.audio)
    assert torch.equal(rows["link"], cross(bridge, test.audio, 3))
    assert torch.equal(rows["ceiling"], test.text[1::2])
    assert "ceiling" not in stand_ins({}, clips(captions=1), seed=3)


def test_mean_shift_is_fitted_and_the_trained_bridge_comes_last(bridge, tmp_path):
    bridge.save_pretrained(tmp_path)
    train = clips()
    bridges, name = load_bridges(tmp_path, train, seed=1)
    assert (list(bridges), name) == (["mean_shift", "diffusion_link"], "diffusion_link")
    shift = bridges["mean_shift"]
    assert torch.allclose(shift.text_mean, train.text.mean(0))
    assert torch.allclose(shift.audio_mean, train.audio.mean(0))
    assert load_bridges("none", train, seed=1)[1] == "none"


def test_a_missing_bridge_is_answered_with_the_command_that_makes_it():
    with pytest.raises(FileNotFoundError, match=r"train\.py .*--seed 7,"):
        load_bridge("/no/such/folder", 16, seed=7)


def test_a_bridge_of_another_width_is_refused(bridge, tmp_path):
    bridge.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of 16 coordinates and this encoder gives 32"):
        load_bridge(tmp_path, 32, seed=1)


@pytest.mark.parametrize("name", sorted(Bridge.registry))
def test_any_exported_bridge_is_taken(name, tmp_path):
    train = clips()
    exported = Bridge.registry[name](16)
    exported.fit(train.audio[train.clip_of_text], train.text)
    exported.save_pretrained(tmp_path)
    bridges, trained = load_bridges(tmp_path, train, seed=1)
    assert trained == name and type(bridges[name]) is type(exported)
    rows = stand_ins(bridges, clips(), seed=3)
    assert torch.allclose(rows[name], cross(exported, train.audio, 3), atol=1e-6)
