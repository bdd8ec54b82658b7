import math
from dataclasses import replace
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from torch.nn.functional import normalize

from dlink_plugin import comparison
from dlink_plugin.bridges import Bridge
from dlink_plugin.comparison import (
    check_names,
    claim,
    compare_once,
    train_contender,
)
from dlink_plugin.console import load_hparams
from dlink_plugin.gap import CRITERIA, modality_gap
from dlink_plugin.pairs import Pairs, seeded
from dlink_plugin.splits import Split
from dlink_plugin.standings import summarize

YAML = Path(__file__).parents[1] / "hparams" / "compare.yaml"
DIM = 16
# The variant is Diffusion-Link again, with parts exchanged: ablate.py's.
CONTENDERS = set(Bridge.registry) - {"diffusion_link_variant"}


def unit(n, seed, d=DIM):
    return normalize(torch.randn(n, d, generator=seeded(seed)), dim=1)


def pairs(audio, text):
    return Pairs(audio, text, torch.arange(len(audio)))


@pytest.fixture(scope="module")
def related():
    """Audio is a turned, shifted and noisy copy of text."""
    turn, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=seeded(9)))

    def some(n, seed):
        text = unit(n, seed)
        audio = text @ turn + 0.4 * unit(1, 8) + 0.3 * unit(n, seed + 1)
        return pairs(normalize(audio, dim=1), text)

    return Split(some(300, 0), some(80, 2), some(120, 4), unit(120, 4))


@pytest.fixture(scope="module")
def unrelated():
    return Split(*(pairs(unit(n, n), unit(n, n + 1)) for n in (300, 80, 500)))


@pytest.fixture
def hparams(tmp_path):
    shipped = load_hparams(YAML, {
        "output_folder": str(tmp_path), "number_of_epochs": 1, "steps_per_epoch": 30,
    })  # fmt: skip
    return {**shipped, "seed": 5, "network": {"blocks": 1, "expansion": 1}}


@pytest.fixture(scope="module")
def run_opts():
    return sb.RunOptions.from_dictionary({"noprogressbar": True, "device": "cpu"})


# The shipped file


def test_the_shipped_file_compares_all_bridges_and_controls():
    hparams = load_hparams(YAML, {})
    names = check_names(hparams["bridges"], hparams["settings"])
    assert set(names) == CONTENDERS | {"shuffled", "ceiling"}
    assert set(hparams["settings"]) == CONTENDERS


def test_every_bridge_with_settings_is_given_as_many():
    hparams = load_hparams(YAML, {})
    numbers = {name: len(tried) for name, tried in hparams["settings"].items()}
    assert set(numbers.values()) == {1, 4}
    for name, tried in hparams["settings"].items():
        kind = Bridge.registry[name]
        assert len({str(setting) for setting in tried}) == len(tried)
        assert all(set(setting) <= set(kind.arguments()) for setting in tried)
        trained = any(True for _ in kind(16).parameters())
        assert numbers[name] == 4 or not trained


@pytest.mark.parametrize("names", [["mpl"], ["none", "unet"], ["mlp", "chance"]])
def test_an_unknown_bridge_is_named(names):
    with pytest.raises(ValueError, match=f"{names[-1]}.*choose from none, .*shuffled"):
        check_names(names, load_hparams(YAML, {})["settings"])


# Choosing


def test_one_of_the_settings_is_chosen_by_the_rule(
    related, hparams, run_opts, tmp_path
):
    settings = [{"alpha": alpha} for alpha in (1e3, 0.1, 30.0)]
    bridge, chosen = train_contender(
        "ridge", settings, hparams, run_opts, related, tmp_path
    )
    assert chosen == {"alpha": 0.1} and bridge.alpha == 0.1
    best = modality_gap(bridge(related.valid.audio), related.valid.text)
    for alpha in (1e3, 30.0):
        other = Bridge.registry["ridge"](DIM, alpha)
        other.fit(*related.train[:])
        gap = modality_gap(other(related.valid.audio), related.valid.text)
        assert gap["relative_modality_gap"] > best["relative_modality_gap"]


def test_settings_of_inference_share_a_training(related, hparams, run_opts, tmp_path):
    settings = [
        {"start_step": 50, "steps": 2},
        {"start_step": 200, "steps": 2},
        {"start_step": 50, "steps": 2, "topology_weight": 0.0},
    ]
    bridge, chosen = train_contender(
        "diffusion_link", settings, hparams, run_opts, related, tmp_path
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"default", "topology_weight=0.0"}
    assert len([p for p in tmp_path.iterdir() if (p / "save").is_dir()]) == 2
    assert chosen in settings
    assert all(getattr(bridge, key) == value for key, value in chosen.items())


@pytest.mark.parametrize("clips, passes", [(300, 15), (40, 30), (5000, 1)])
def test_the_budget_is_in_steps_whatever_the_number_of_pairs(
    hparams, monkeypatch, related, clips, passes
):
    given = {}

    class Stop(Exception):
        pass

    def spy(hparams, *_):
        given.update(hparams)
        raise Stop

    monkeypatch.setattr(comparison, "train_bridge", spy)
    split = replace(related, train=pairs(unit(clips, 0), unit(clips, 1)))
    with pytest.raises(Stop):
        comparison.train_alone(None, hparams, None, split, Path())
    assert given["passes_per_epoch"] == passes


# Judging


def some_training(folder):
    changes = {"number_of_epochs": 2, "steps_per_epoch": 120, "lr": 0.01}
    shipped = load_hparams(YAML, {"output_folder": str(folder), **changes})
    settings = {name: tried[-2:] for name, tried in shipped["settings"].items()}
    return {**shipped, "settings": settings, "network": {"blocks": 1, "dropout": 0.0}}


@pytest.fixture(scope="module")
def compared(related, run_opts, tmp_path_factory):
    """All bridges, for two seeds, on related pairs."""
    folder = tmp_path_factory.mktemp("compared")
    hparams = some_training(folder)
    names = check_names(hparams["bridges"], hparams["settings"])
    return [
        compare_once(names, {**hparams, "seed": seed}, run_opts, related,
                     folder / str(seed))
        for seed in (1, 2)
    ], folder  # fmt: skip


def test_every_bridge_has_its_row(compared):
    runs, _ = compared
    rows = summarize(runs)
    own_spaces = {"c3_mapped_back", "diffusion_bridge_mapped_back"}
    controls = {"shuffled", "ceiling", "chance"}
    assert set(rows) == CONTENDERS | own_spaces | controls
    assert not runs[0].errors and not runs[1].errors
    for name, row in rows.items():
        if name != "chance":
            assert set(CRITERIA) <= set(row)
            assert row["saw"] in ("nothing", "means", "text", "pairs")
            assert row["seconds"] >= 0
    moving = {name for name, row in rows.items() if "displacement_cosine" in row}
    still = {"none", "capdec", "ceiling", "chance", "c3", "diffusion_bridge"}
    assert moving == set(rows) - still


def test_rows_are_means_and_deviations_over_seeds(compared):
    runs, _ = compared
    row = summarize(runs)["diffusion_link"]["paired_cosine"]
    values = [run.criteria["diffusion_link"]["paired_cosine"] for run in runs]
    assert values[0] != values[1]
    assert row["mean"] == pytest.approx(sum(values) / 2)
    assert row["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert summarize(runs[:1])["diffusion_link"]["paired_cosine"]["std"] == 0.0


def test_a_row_is_the_gap_of_the_exported_bridge(compared, related):
    runs, folder = compared
    for name in ("c3", "mlp", "decap"):
        bridge = Bridge.from_pretrained(folder / "1" / name / "bridge")
        audio, text = related.test[:]
        gap = modality_gap(bridge(audio), bridge.text_space(text), seed=1)
        row = runs[0].criteria[name]
        assert gap == pytest.approx({key: row[key] for key in gap}, abs=1e-6)


def test_learning_from_pairs_shows_and_shuffled_pairs_do_not(compared):
    rows = summarize(compared[0])
    recall = {
        name: row["recall@10_audio_to_text"]["mean"] for name, row in rows.items()
    }
    assert recall["none"] < 0.2 and rows["chance"]["recall@10_audio_to_text"] == {
        "mean": 10 / 120,
        "std": 0.0,
    }
    for name in ("ridge", "procrustes", "mlp", "diffusion_link", "rectified_flow"):
        assert recall[name] > 2 * max(recall["shuffled"], recall["none"])


def test_finished_bridges_are_not_trained_again(compared, related, run_opts):
    runs, folder = compared
    hparams = {**some_training(folder), "seed": 1}
    again = compare_once(["mlp"], hparams, run_opts, related, folder / "1")
    assert again.criteria["mlp"] == runs[0].criteria["mlp"]
    assert again.seconds == {"mlp": runs[0].seconds["mlp"]}


def test_random_pairs_give_nobody_recall_above_chance(unrelated, hparams, run_opts):
    folder = Path(hparams["output_folder"])
    settings = {name: tried[:1] for name, tried in hparams["settings"].items()}
    names = check_names([*settings, "shuffled"], settings)
    hparams = {**hparams, "settings": settings}
    run = compare_once(names, hparams, run_opts, unrelated, folder)
    assert not run.errors and len(run.criteria) == len(CONTENDERS) + 3
    p, n = 10 / 500, 500
    for name, row in run.criteria.items():
        for way in ("audio_to_text", "text_to_audio"):
            excess = row[f"recall@10_{way}"] - p
            assert excess < 4 * math.sqrt(p * (1 - p) / n), (name, way)


def test_identical_pairs_have_no_gap(hparams, run_opts, tmp_path):
    same = [pairs(unit(n, n), unit(n, n)) for n in (60, 40, 50)]
    run = compare_once(["none"], hparams, run_opts, Split(*same), tmp_path)
    row = run.criteria["none"]
    for name in ("centroid_distance", "paired_distance", "relative_modality_gap",
                 "frechet_distance", "topology_error"):  # fmt: skip
        assert row[name] == pytest.approx(0.0, abs=1e-6)
    assert row["paired_cosine"] == pytest.approx(1.0)
    assert row["recall@1_audio_to_text"] == row["recall@1_text_to_audio"] == 1.0
    assert row["linear_separability"] == pytest.approx(0.5, abs=0.1)


# What goes wrong


@pytest.mark.parametrize("broken", ["raises", "nan"])
def test_a_bridge_that_fails_takes_no_other_along(
    broken, related, hparams, run_opts, tmp_path, monkeypatch
):
    def forward(self, audio, generator=None):
        if broken == "raises":
            raise RuntimeError("out of cheese")
        return audio * torch.nan

    monkeypatch.setattr(Bridge.registry["mean_shift"], "forward", forward)
    names = ["none", "mean_shift", "procrustes"]
    run = compare_once(names, hparams, run_opts, related, tmp_path)
    assert set(run.criteria) == {"none", "procrustes"}
    rows = summarize([run])
    assert set(rows) == {"none", "procrustes", "mean_shift", "chance"}
    assert rows["mean_shift"].keys() == {"saw", "error"}
    expected = {"raises": "RuntimeError: out of cheese", "nan": "not finite"}
    assert expected[broken] in rows["mean_shift"]["error"]


def test_a_folder_of_other_bridges_is_not_taken_for_these(related, hparams, tmp_path):
    claim(tmp_path, hparams, related)
    claim(tmp_path, hparams, related)  # the same again is fine
    claim(tmp_path, {**hparams, "settings": {}, "bridges": []}, related)
    with pytest.raises(
        ValueError, match="another number_of_epochs; give another --out"
    ):
        claim(tmp_path, {**hparams, "number_of_epochs": 9}, related)
    other = replace(related, valid=related.test)
    with pytest.raises(ValueError, match="trained with another data"):
        claim(tmp_path, hparams, other)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_damaged_note_of_what_was_trained_is_named(
    related, hparams, tmp_path, content
):
    (tmp_path / "made_from.json").write_text(content)
    sentence = "made_from.json is not .*; give another --output_folder or delete it"
    with pytest.raises(ValueError, match=sentence):
        claim(tmp_path, hparams, related)
