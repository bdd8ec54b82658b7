import math

import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.gap import paired_bootstrap
from dlink_plugin.pairs import seeded
from dlink_plugin.standings import Run, rivals, summarize


def unit(n, seed, d=16):
    return normalize(torch.randn(n, d, generator=seeded(seed)), dim=1)


# Rows


def run(seed, value, **more):
    return Run(seed, criteria={"mlp": {"paired_cosine": value}}, **more)


def test_a_row_is_a_mean_with_n_minus_1():
    runs = [run(i, v, seconds={"mlp": 10.0 * i}) for i, v in enumerate((0.1, 0.2, 0.6))]
    row = summarize(runs)["mlp"]
    assert row["paired_cosine"]["mean"] == pytest.approx(0.3)
    assert row["paired_cosine"]["std"] == pytest.approx(math.sqrt(0.07))
    assert (row["saw"], row["seconds"]) == ("pairs", 10.0)


def test_a_criterion_that_a_run_lacks_is_left_out():
    other = run(2, 0.2)
    other.criteria["mlp"]["displacement_cosine"] = 1.0
    assert set(summarize([run(1, 0.1), other])["mlp"]) == {
        *("paired_cosine", "saw", "seconds"),
    }


def test_a_second_row_saw_what_the_first_did():
    its = Run(1, criteria={"c3": {}, "c3_mapped_back": {}}, seconds={"c3": 4.0})
    rows = summarize([its])
    assert rows["c3_mapped_back"] == rows["c3"] == {"saw": "means", "seconds": 4.0}
    its.errors["c3"] = "why"
    assert summarize([its])["c3_mapped_back"] == {"saw": "means", "error": "why"}


def test_chance_follows_from_the_number_of_candidates():
    sizes = {1: 40, 2: 20, 3: 5}
    runs = [run(s, 0.5, spaces={"mlp": (unit(n, 0),) * 2}) for s, n in sizes.items()]
    chance = summarize(runs)["chance"]
    expected = (5 / 40 + 5 / 20 + 1) / 3
    assert chance["recall@5_text_to_audio"]["mean"] == pytest.approx(expected)
    assert chance["recall@10_audio_to_text"]["std"] > 0
    assert "chance" not in summarize([run(1, 0.5)])


def test_a_bridge_that_fails_for_one_seed_has_no_mean():
    whole = Run(1, criteria={"mlp": {"paired_cosine": 0.5}})
    broken = Run(2, errors={"mlp": "ValueError: no"})
    assert summarize([whole, broken])["mlp"] == {
        "saw": "pairs",
        "error": "ValueError: no",
    }


# Diffusion-Link against its rivals


def made_up(seed, noise):
    """A run of bridges that are text with so much noise."""
    text = unit(200, 0)
    spaces = {
        name: (normalize(text + amount * unit(200, seed + i), dim=1), text)
        for i, (name, amount) in enumerate(noise.items())
    }
    return Run(seed, spaces=spaces)


def test_the_verdicts():
    noise = {"diffusion_link": 0.5, "diffusion_prior": 0.9, "diffgap": 0.2,
             "rectified_flow": 0.5}  # fmt: skip
    runs = [made_up(seed, noise) for seed in (100, 200, 300)]
    table = rivals(runs, draws=200)
    assert set(table) == set(noise) - {"diffusion_link"}
    for criterion in ("paired_cosine", "relative_modality_gap"):
        verdicts = [table[name][criterion]["verdict"] for name in table]
        assert verdicts == ["better", "worse", "level"]
    for row in table.values():
        assert len(row) == 6
        for cell in row.values():
            assert cell["low"] <= cell["difference"] <= cell["high"]


def test_the_interval_is_of_the_mean_over_seeds():
    noise = {"diffusion_link": 0.5, "diffgap": 0.6}
    runs = [made_up(seed, noise) for seed in (100, 200, 300)]
    cell = rivals(runs, draws=300)["diffgap"]["paired_cosine"]
    singles = [
        paired_bootstrap(run.spaces["diffusion_link"][0], *run.spaces["diffgap"],
                         draws=300)["paired_cosine"]
        for run in runs
    ]  # fmt: skip
    mean = sum(difference for difference, _, _ in singles) / 3
    assert cell["difference"] == pytest.approx(mean)
    widths = [high - low for _, low, high in singles]
    assert cell["high"] - cell["low"] < min(widths)


def test_without_diffusion_link_there_is_nothing_to_hold_against():
    assert rivals([made_up(1, {"diffgap": 0.5})], draws=10) == {}
