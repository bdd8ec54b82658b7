import hashlib
import json
import subprocess
import sys
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import aac_datasets
import pytest
import soundfile
import yaml

from dlink_plugin.bridges.sealed import DRAFT
from dlink_plugin.mini import corpus
from dlink_plugin.mini.corpus import subsets, write_audiocaps
from dlink_plugin.mini.scenes import UNSEEN_PAIRS, Event, Scene, render

AUDIOCAPS = {"train": 4, "val": 2, "test": 8, "caption_only": 30}
CLOTHO = {"development": 2, "validation": 1, "evaluation": 4}


@pytest.fixture(scope="module")
def audiocaps(tmp_path_factory):
    root = tmp_path_factory.mktemp("audiocaps")
    corpus.write_audiocaps(root, AUDIOCAPS)
    return root


@pytest.fixture(scope="module")
def clotho(tmp_path_factory):
    root = tmp_path_factory.mktemp("clotho")
    corpus.write_clotho(root, CLOTHO)
    return root


@pytest.fixture
def small(monkeypatch):
    """What ``prepare`` writes, in little."""
    sizes = {"train": 1, "val": 1, "test": 1, "caption_only": 2}
    for split, size in sizes.items():
        monkeypatch.setitem(corpus.AUDIOCAPS_SIZES, split, size)
    for split in CLOTHO:
        monkeypatch.setitem(corpus.CLOTHO_SIZES, split, 1)


def described(root, tree):
    return json.loads((root / tree / "scenes.json").read_text(encoding="utf-8"))


def scene_of(entry):
    """A scene as far as scenes.json tells of it."""
    groups = tuple(tuple(Event(**e) for e in group) for group in entry["groups"])
    return Scene(groups, seconds=0.0, seed=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# As aac-datasets reads it


@pytest.mark.parametrize("subset, captions", [("train", 1), ("val", 5), ("test", 5)])
def test_audiocaps_loads_the_tree_unchanged(audiocaps, subset, captions):
    loaded = aac_datasets.AudioCaps(audiocaps, subset=subset, verbose=0)
    scenes = described(audiocaps, "AUDIOCAPS")[subset]
    assert len(loaded) == AUDIOCAPS[subset]
    assert list(scenes) == loaded[:, "fname"]
    for item in (loaded[i] for i in range(len(loaded))):
        assert item["sr"] == 32_000
        assert item["audio"].shape == (1, round(item["duration"] * 32_000))
        assert 4 <= item["duration"] <= 5
        assert item["audio"].abs().max() > 0.01
        assert len(item["captions"]) == captions
        assert all(said and not said.endswith(".") for said in item["captions"])


@pytest.mark.parametrize(
    "subset, split",
    [("dev", "development"), ("val", "validation"), ("eval", "evaluation")],
)
def test_clotho_loads_the_tree_unchanged(clotho, subset, split):
    loaded = aac_datasets.Clotho(clotho, subset=subset, verbose=0)
    scenes = described(clotho, "CLOTHO_v2.1")[split]
    assert len(loaded) == CLOTHO[split]
    assert list(scenes) == loaded[:, "fname"]
    for item in (loaded[i] for i in range(len(loaded))):
        assert item["sr"] == 44_100
        assert 8 <= item["audio"].shape[1] / 44_100 <= 12
        assert len(item["captions"]) == 5
        assert all(said.endswith(".") for said in item["captions"])
        scene = scene_of(scenes[item["fname"]])
        assert item["keywords"] == [event.sound for event in scene.events]
        assert 2 <= len(scene.events) <= 4


def test_a_file_holds_the_rendering_of_its_scene(audiocaps, monkeypatch):
    """Up to 16 bits, and up to the seed and length that scenes.json leaves out."""
    drawn = []

    def spy(*args):
        drawn.append(real(*args))
        return drawn[-1]

    real = corpus.draw_scene
    monkeypatch.setattr(corpus, "draw_scene", spy)
    monkeypatch.setattr(corpus, "_write_sounds", lambda *args: None)
    corpus.write_audiocaps(audiocaps.parent / "again", AUDIOCAPS)
    entries = described(audiocaps, "AUDIOCAPS")
    scenes = iter(drawn)
    for split in ("train", "val", "test"):
        folder = audiocaps / "AUDIOCAPS" / "audio_32000Hz" / split
        assert sorted(p.name for p in folder.iterdir()) == sorted(entries[split])
        for fname, entry in entries[split].items():
            scene = next(scenes)
            assert scene.groups == scene_of(entry).groups
            if fname.endswith("000001_0.flac"):
                samples, rate = soundfile.read(folder / fname, dtype="float32")
                assert rate == 32_000
                assert abs(samples - render(scene, rate)).max() < 1e-4
    texts = list(scenes)
    assert len(texts) == AUDIOCAPS["caption_only"]
    assert not any(scene.is_unseen for scene in texts)


def test_caption_only_texts_are_many_and_differ(audiocaps):
    path = audiocaps / "AUDIOCAPS" / "caption_only.txt"
    texts = path.read_text(encoding="utf-8").splitlines()
    assert len(texts) == AUDIOCAPS["caption_only"]
    assert all(texts) and len(set(texts)) > 0.9 * len(texts)


def unseen(entries):
    return [bool(scene_of(entry).is_unseen) for entry in entries.values()]


def test_unseen_pairs_are_in_a_quarter_of_test_and_nowhere_else(audiocaps, clotho):
    found = {
        **described(audiocaps, "AUDIOCAPS"),
        **described(clotho, "CLOTHO_v2.1"),
    }
    shares = {split: sum(unseen(e)) / len(e) for split, e in found.items()}
    expected = dict.fromkeys(found, 0.0) | {"test": 0.25, "evaluation": 0.25}
    assert shares == expected
    for entries in found.values():
        assert [entry["unseen"] for entry in entries.values()] == unseen(entries)


def test_full_size_splits_keep_unseen_pairs_apart():
    """Every scene of every split, drawn but not rendered."""
    options = {"name": "{}", "register": "audiocaps", "captions": 0}
    for split, size in {**corpus.AUDIOCAPS_SIZES, **corpus.CLOTHO_SIZES}.items():
        if split == "caption_only":
            continue
        clips = corpus._draw_clips(
            split, size, seconds=(4.0, 5.0), events=(1, 4), **options
        )
        share = sum(
            any(pair <= {e.sound for e in clip.scene.events} for pair in UNSEEN_PAIRS)
            for clip in clips
        )
        test = split in ("test", "evaluation")
        assert share == (size // 4 if test else 0)


def test_sizes_are_those_of_the_tables():
    assert corpus.AUDIOCAPS_SIZES == {
        "train": 1500,
        "val": 300,
        "test": 1000,
        "caption_only": 20_000,
    }
    assert corpus.CLOTHO_SIZES == {
        "development": 300,
        "validation": 100,
        "evaluation": 300,
    }


def test_no_split_shares_its_seed_with_another_or_with_the_mini_clap():
    recipe = Path(__file__).parents[2] / "hparams" / "mini_clap.yaml"
    root = yaml.compose(recipe.read_text(encoding="utf-8"), yaml.SafeLoader)
    seed = next(int(v.value) for k, v in root.value if k.value == "seed")
    seeds = list(corpus._SEEDS.values())
    assert len({*seeds, seed, seed + 1}) == len(seeds) + 2


# Writing


def test_two_writes_are_bit_identical(audiocaps, clotho, tmp_path):
    corpus.write_audiocaps(tmp_path, AUDIOCAPS)
    corpus.write_clotho(tmp_path, CLOTHO)
    assert contents(tmp_path) == {**contents(audiocaps), **contents(clotho)}


@pytest.mark.parametrize(
    "name, tree", [("audiocaps", "AUDIOCAPS"), ("clotho", "CLOTHO_v2.1")]
)
def test_prepare_writes_once(small, tmp_path, name, tree, monkeypatch):
    root = corpus.prepare(name, tmp_path, progressbar=False)
    assert root == tmp_path / "mini-v1"
    assert names(root) == [tree]
    before = contents(root)

    def fail(*args, **options):
        raise AssertionError("written a second time")

    monkeypatch.setattr(corpus, f"write_{name}", fail)
    assert corpus.prepare(name, tmp_path, progressbar=False) == root
    assert contents(root) == before


def test_both_trees_stand_side_by_side(small, tmp_path):
    roots = {corpus.prepare(n, tmp_path, False) for n in ("audiocaps", "clotho")}
    (root,) = roots
    assert names(root) == ["AUDIOCAPS", "CLOTHO_v2.1"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing_behind(
    small, tmp_path, monkeypatch, error
):
    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_scenes", fail)
        with pytest.raises(type(error)):
            corpus.prepare("audiocaps", tmp_path, False)
    assert names(tmp_path / "mini-v1") == []
    root = corpus.prepare("audiocaps", tmp_path, False)
    assert (root / "AUDIOCAPS" / "scenes.json").is_file()


def test_a_worker_that_fails_fails_the_whole(small, tmp_path, monkeypatch):
    """An error while one sound is written must not pass for a finished corpus."""
    monkeypatch.setattr(corpus, "_write_sound", _fail_to_write)
    with pytest.raises(OSError, match="no space"):
        corpus.prepare("clotho", tmp_path, False)
    assert names(tmp_path / "mini-v1") == []


def _fail_to_write(job):
    raise OSError("no space")


def test_the_draft_of_a_killed_process_is_not_taken_for_the_corpus(small, tmp_path):
    left = tmp_path / "mini-v1" / f"{DRAFT}AUDIOCAPS" / "AUDIOCAPS" / "audio_32000Hz"
    left.mkdir(parents=True)
    root = corpus.prepare("audiocaps", tmp_path, False)
    loaded = aac_datasets.AudioCaps(root, subset="val", verbose=0)
    assert len(loaded) == 1 and len(loaded[0, "captions"]) == 5


COMPETITOR = """
import sys
from dlink_plugin.mini import corpus
corpus.AUDIOCAPS_SIZES.update(train=1, val=1, test=1, caption_only=2)
real = corpus.write_audiocaps
def write(root, **options):
    print("writes", flush=True)
    real(root, **options)
corpus.write_audiocaps = write
print("begins", flush=True)
corpus.prepare("audiocaps", sys.argv[1], progressbar=False)
"""


def test_of_two_processes_one_writes_and_the_other_waits(small, tmp_path, monkeypatch):
    """Another process comes while this one has its draft almost complete."""

    def write_while_another_comes(root, **options):
        real(root, **options)
        command = [sys.executable, "-c", COMPETITOR, str(tmp_path)]
        others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert others[0].stdout.readline() == "begins\n"

    real, others = corpus.write_audiocaps, []
    monkeypatch.setattr(corpus, "write_audiocaps", write_while_another_comes)
    root = corpus.prepare("audiocaps", tmp_path, False)
    written = contents(root / "AUDIOCAPS")
    assert others[0].wait(60) == 0 and others[0].stdout.read() == ""
    assert names(root) == ["AUDIOCAPS"]
    assert contents(root / "AUDIOCAPS") == written
    assert len(written) == 3 + 3 + 1 + 1  # sounds, tables, scenes.json, texts


def test_subsets_are_those_that_the_scenes_describe(tmp_path):
    write_audiocaps(tmp_path, {"train": 4, "val": 2, "test": 12, "caption_only": 1})
    scenes = json.loads((tmp_path / "AUDIOCAPS" / "scenes.json").read_text())["test"]
    folder = tmp_path / "AUDIOCAPS" / "audio_32000Hz" / "test"
    names = sorted(scenes)
    found = subsets([folder / name for name in names])
    for row, name in enumerate(names):
        events = sum(len(group) for group in scenes[name]["groups"])
        assert (row in found["three_or_more_events"]) == (events >= 3)
        assert (row in found["unseen_combination"]) == scenes[name]["unseen"]
    assert len(found["unseen_combination"]) == 3  # one in four


def test_other_corpora_have_no_subsets(tmp_path):
    assert subsets([tmp_path / "a.wav"]) == {} and subsets([]) == {}
