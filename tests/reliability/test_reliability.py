"""A short version of the harness; the long one is ``python -m tests.reliability``."""

import signal
import sys

import pytest

from dlink_plugin.mini.corpus import write_audiocaps

from . import faults, kills


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Options of the bridge's recipe: a tree of few clips."""
    tree = tmp_path_factory.mktemp("data")
    write_audiocaps(tree, {"train": 24, "val": 12, "test": 12, "caption_only": 1})
    return {"data_folder": tree}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The recipe with no embeddings there yet, not interrupted."""
    job = kills.Job(kills.TRAIN, tmp_path_factory.mktemp("jobs") / "whole", **small)
    status, told = job.start()
    assert status == 0
    return job, told


def test_a_killed_run_ends_like_an_uninterrupted_one(whole, small):
    job, told = whole
    moments = (0.15, signal.SIGKILL, False), (0.4, signal.SIGTERM, True)
    killed = kills.kill_and_restart(
        kills.Job(kills.TRAIN, job.folder.with_name("killed"), **small),
        job.figures(),
        [
            {"event": round(share * told["events"]), "signal": how, "half": half}
            for share, how, half in moments
        ],
    )
    assert [how for _, how in killed] == ["SIGKILL", "SIGTERM"]


def test_the_harness_sees_what_it_looks_for(whole):
    """Another figure, a cut file and a shard that was written again are all found."""
    job, _ = whole
    figures = job.figures()
    name = next(name for name, value in figures.items() if isinstance(value, float))
    assert not kills.differences(figures, figures | {name: figures[name] + 5e-6})
    assert kills.differences(figures, figures | {name: figures[name] + 5e-5}) == [name]
    assert len(figures) > 1_000_000  # weights as well as criteria

    bridge = job.folder / "run" / "bridge"
    content = (bridge / "model.safetensors").read_bytes()
    (bridge / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(Exception, match="header|metadata"):
        kills.check_whole(job.folder)
    (bridge / "model.safetensors").write_bytes(content)
    kills.check_whole(job.folder)

    before = kills.shards(job.folder)
    shard = next(iter(before))
    shard.write_bytes(shard.read_bytes())
    assert kills.shards(job.folder) != before


@pytest.mark.skipif(sys.platform != "linux", reason="a small tmpfs is Linux's")
def test_a_full_disk_is_one_sentence_and_costs_nothing(whole, small):
    job, _ = whole
    try:
        told = faults.full_disk(job.folder.parent, [9_000], job.figures(), **small)
    except faults.NotHere as error:
        pytest.skip(str(error))
    assert "make room or give another folder" in told[0]


def test_a_lost_process_does_not_hang_the_other(tmp_path, small):
    faults.lost_process(tmp_path, signal.SIGSTOP, **small)
