import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dlink_plugin import files
from dlink_plugin.bridges.sealed import DRAFT
from dlink_plugin.files import add_tensors, alone, hold, load_tensors, save_tensors

WORKER = """
import sys, time
from dlink_plugin import files
from dlink_plugin.files import alone, hold
files._GRACE = 0.5
how, folder, seconds = sys.argv[1:]
if how == "hold":
    hold(folder)
    print("in", flush=True)
    time.sleep(float(seconds))
else:
    with alone(folder):
        print("in", flush=True)
        time.sleep(float(seconds))
"""


def _worker(how, folder, seconds=600):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, how, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    return process


def _saved(tmp_path):
    path = tmp_path / "a.safetensors"
    rows = torch.arange(600, dtype=torch.float32).reshape(3, 200)
    tensors = {"rows": rows, "row": torch.tensor(3), "none": torch.empty(0, 2)}
    save_tensors(path, tensors, {"key": "k", "skipped": "[]"})
    return path, tensors


def test_tensors_come_back(tmp_path):
    path, tensors = _saved(tmp_path)
    loaded, metadata = load_tensors(path)
    assert metadata == {"key": "k", "skipped": "[]"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_every_flipped_byte_is_found(tmp_path):
    path, _ = _saved(tmp_path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        broken = bytearray(content)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            load_tensors(path)


def test_a_cut_or_missing_file_is_named(tmp_path):
    path, _ = _saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read"):
        load_tensors(path)
    with pytest.raises(ValueError, match=r"b\.safetensors cannot be read"):
        load_tensors(tmp_path / "b.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors cannot be read"):
        load_tensors(tmp_path / "a.safetensors")


def test_a_damaged_table_of_contents_is_told_in_short(tmp_path):
    table = json.dumps({"rows": "9" * 300_000}).encode()
    content = len(table).to_bytes(8, "little") + table
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="a.safetensors cannot be read") as caught:
        load_tensors(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 1000


def test_the_checksum_ignores_order_and_sees_names_types_shapes_and_numbers():
    def sum_of(tensors):
        digest = hashlib.sha256()
        add_tensors(digest, tensors)
        return digest.hexdigest()

    a, b = torch.ones(2, 3), torch.zeros(2)
    assert sum_of({"a": a, "b": b}) == sum_of({"b": b, "a": a})
    others = [{"a": a, "c": b}, {"a": a, "b": b.half()}, {"a": a.T, "b": b}]
    others += [{"a": a, "b": b + 1}, {"a": a, "b": b.to(torch.bfloat16)}]
    assert len({sum_of({"a": a, "b": b}), *map(sum_of, others)}) == 6


def test_one_waits_for_the_other(tmp_path):
    began = time.monotonic()
    worker = _worker("alone", tmp_path, seconds=1.5)
    with alone(tmp_path):
        assert worker.poll() is not None or time.monotonic() - began >= 1.4
    assert worker.wait(30) == 0


def test_a_killed_one_leaves_the_folder_and_no_drafts(tmp_path):
    worker = _worker("alone", tmp_path)
    (tmp_path / f"{DRAFT}1-a").write_text("half")
    (tmp_path / f"{DRAFT}1-b").mkdir()
    (tmp_path / "c").write_text("whole")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(30)
    with alone(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} <= {"c", ".lock"}


def test_an_error_leaves_the_folder(tmp_path):
    with pytest.raises(KeyError), alone(tmp_path):
        raise KeyError
    assert _worker("alone", tmp_path, 0).wait(30) == 0


def test_a_second_run_is_refused_while_the_first_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_GRACE", 0.2)
    worker = _worker("hold", tmp_path / "run")
    with pytest.raises(OSError, match=r"Another run is at work in .*run; wait"):
        hold(tmp_path / "run")
    hold(tmp_path / "another run")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(30)
    hold(tmp_path / "run")
    hold(tmp_path / "run")
    with pytest.raises(AssertionError):
        _worker("hold", tmp_path / "run")


def test_what_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.* cannot be written"):
        hold(tmp_path / "file")
    with (
        pytest.raises(OSError, match=r"file.* cannot be written"),
        alone(tmp_path / "file"),
    ):
        pass
