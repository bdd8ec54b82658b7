import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from dlink_plugin.checkpoints import AtomicCheckpointer


class Killed(BaseException):
    pass


@pytest.fixture
def layer():
    return torch.nn.Linear(2, 2)


def checkpointer(folder, layer, kind=AtomicCheckpointer, **more):
    return kind(folder, {"layer": layer, "other": torch.nn.Linear(1, 1), **more})


def kill_while_saving(monkeypatch, saver):
    def killed(obj, path):
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setitem(saver.custom_save_hooks, "other", killed)


@pytest.mark.parametrize(
    "kind, survives", [(AtomicCheckpointer, True), (Checkpointer, False)]
)
def test_a_kill_while_saving_leaves_the_last_whole_checkpoint(
    tmp_path, layer, monkeypatch, kind, survives
):
    """SpeechBrain's own is the control: it finds the half-written folder."""
    checkpointer(tmp_path, layer, kind).save_checkpoint(meta={"n": 1})
    saver = checkpointer(tmp_path, layer, kind)
    kill_while_saving(monkeypatch, saver)
    with pytest.raises(Killed):
        saver.save_checkpoint(meta={"n": 2})
    found = checkpointer(tmp_path, layer, kind).find_checkpoint()
    assert (found.meta["n"] == 1) == survives


def test_the_next_save_clears_what_the_kill_left(tmp_path, layer, monkeypatch):
    saver = checkpointer(tmp_path, layer)
    kill_while_saving(monkeypatch, saver)
    with pytest.raises(Killed):
        saver.save_checkpoint()
    checkpointer(tmp_path, layer).save_checkpoint()
    left = [path for path in tmp_path.rglob("*.ckpt") if path.read_bytes() == b"half"]
    assert left == []
    assert len(list(tmp_path.glob("CKPT*"))) == 1


def test_a_checkpoint_that_lost_a_file_is_passed_over(tmp_path, layer):
    saver = checkpointer(tmp_path, layer)
    saver.save_checkpoint(meta={"n": 1})
    newest = saver.save_checkpoint(meta={"n": 2})
    newest.paramfiles["other"].unlink()
    assert saver.find_checkpoint().meta["n"] == 1


def test_checkpoints_of_the_same_second_are_both_kept(tmp_path, layer):
    saver = checkpointer(tmp_path, layer)
    paths = {saver.save_checkpoint().path for _ in range(3)}
    assert len(paths) == 3 and all(path.is_dir() for path in paths)


def test_what_is_saved_is_recovered(tmp_path, layer):
    checkpointer(tmp_path, layer).save_checkpoint()
    fresh = torch.nn.Linear(2, 2)
    checkpointer(tmp_path, fresh).recover_if_possible()
    assert torch.equal(fresh.weight, layer.weight)


def test_keeping_the_best_and_the_latest(tmp_path, layer):
    saver = checkpointer(tmp_path, layer)
    for gap in (0.3, 0.1, 0.2):
        saver.save_and_keep_only(
            meta={"gap": gap}, min_keys=["gap"], importance_keys=[]
        )
    assert sorted(c.meta["gap"] for c in saver.list_checkpoints()) == [0.1, 0.2]
    assert saver.find_checkpoint(min_key="gap").meta["gap"] == 0.1
