"""A short version of the harness, and whether it sees what it looks for."""

import contextlib
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from . import fuzz, hostile, watch


def test_every_reader_reads_or_refuses(tmp_path):
    result = fuzz.main(tmp_path, inputs=300, progressbar=False)
    assert result.keys() == fuzz.READERS.keys()
    assert sum(row["inputs"] for row in result.values()) == 300
    for row in result.values():
        assert row["read"] + row["refused"] == row["inputs"] > 0
    for name in ("load_audio", "load_texts", "Bridge.from_pretrained"):
        assert result[name]["read"] and result[name]["refused"]


def test_what_is_whole_is_read(tmp_path):
    for place, (name, reader) in enumerate(fuzz.READERS.items()):
        if reader.spoil is fuzz.draw_captions:
            continue
        whole = tmp_path / str(place) / "whole"
        read = reader.make(whole)
        for variant in whole.iterdir():
            assert fuzz.outcome(read, variant) == "read", (name, variant.name)


@pytest.mark.parametrize("inputs", [21, 300, 10_000, 11_000])
def test_inputs_are_shared_out_to_the_last(inputs):
    shares = fuzz.shares(inputs)
    assert sum(shares.values()) == inputs and min(shares.values()) >= 1


def test_an_input_can_be_drawn_again(tmp_path):
    fuzz.texts(tmp_path / "whole")
    wholes = sorted((tmp_path / "whole").iterdir())

    def draw(seed):
        hostile.fresh(wholes[0], tmp_path / "input")
        fuzz.spoil_folder(random.Random(seed), tmp_path / "input", wholes)
        return [content(path) for path in (tmp_path / "input").iterdir()]

    def content(path):
        small = path.is_file() and path.stat().st_size < hostile.LONG
        return path.read_bytes() if small else os.lstat(path).st_mode

    assert [draw(seed) for seed in range(40)] == [draw(seed) for seed in range(40)]
    assert draw(1) != draw(2)


# What a careless reader does


def connect(folder):
    with socket.socket() as here:
        here.connect(("127.0.0.1", 9))


def swallow(folder):
    """As a library does that catches all there is."""
    with contextlib.suppress(BaseException):
        (folder.parent / "made").mkdir()


def fail(error):
    def read(folder):
        raise error

    return read


def through_a_link(folder):
    (folder / "link").symlink_to(folder.parent)
    (folder / "link" / "made").write_text("rain")


CARELESS = {
    "raised KeyError": lambda folder: {}["caption"],
    "raised MemoryError": fail(MemoryError()),
    "raised RecursionError": fail(RecursionError()),
    "raised SystemExit": fail(SystemExit(1)),
    "does not say which file": fail(ValueError("bad")),
    "stopped: open": lambda folder: (folder.parent / "made").write_text("rain"),
    "stopped: os.mkdir": lambda folder: (folder.parent / "made").mkdir(),
    "stopped: os.remove": lambda folder: (folder.parent / "precious").unlink(),
    "stopped: os.rename": lambda f: (f / "a").rename(f.parent / "precious"),
    "stopped: os.symlink": lambda f: (f.parent / "made").symlink_to(f),
    "stopped: os.system": lambda folder: os.system("true"),
    "stopped: subprocess.Popen": lambda folder: subprocess.run(["true"]),
    "stopped: socket.connect": connect,
    "must not: .*os.mkdir": swallow,
    "stopped: open .*made": through_a_link,
}


@pytest.mark.parametrize("sentence, read", CARELESS.items())
def test_a_careless_reader_is_caught(tmp_path, sentence, read):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a").touch()
    (tmp_path / "precious").write_text("a dog barks")
    with pytest.raises(AssertionError, match=sentence):
        fuzz.outcome(read, folder)
    assert (tmp_path / "precious").read_text() == "a dog barks"
    assert not (tmp_path / "made").exists()


def test_a_sentence_that_is_too_long_is_caught(tmp_path):
    with pytest.raises(AssertionError, match="has 3000 characters"):
        fuzz.outcome(fail(ValueError(f"{tmp_path}{'a' * 3000}")), tmp_path)


@pytest.mark.parametrize("make", [torch.empty, np.empty])
def test_a_refusal_for_want_of_memory_is_caught(tmp_path, make):
    def read(folder):
        try:
            make(1 << 50)
        except (MemoryError, RuntimeError) as error:
            raise ValueError(f"{folder} is damaged") from error

    with pytest.raises(AssertionError, match="too much memory"):
        fuzz.outcome(read, tmp_path)


def test_what_takes_too_long_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 1)
    with pytest.raises(AssertionError, match="takes more than 1 s"):
        fuzz.outcome(lambda folder: time.sleep(5), tmp_path)


def test_what_takes_too_much_memory_is_caught(monkeypatch):
    peaks = iter([1 << 30, 3 << 30])
    monkeypatch.setattr(watch, "_peak", lambda: next(peaks))
    with pytest.raises(AssertionError, match="memory grew by 2048 MiB"):
        with watch.bounded_memory(1 << 30):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="others keep no such limit")
def test_memory_has_a_limit_for_as_long_as_it_is_bounded():
    with watch.bounded_memory(1 << 28):
        with pytest.raises(MemoryError):
            bytearray(1 << 30)
    assert len(bytearray(1 << 30)) == 1 << 30


def test_a_reader_of_pickles_is_caught(tmp_path):
    """The input stays, and the sentence says which it is."""

    def arrays(whole):
        fuzz.npy(whole)

        def read(folder):
            try:
                np.load(folder / "a.npy", allow_pickle=True)
            except (pickle.UnpicklingError, EOFError, SyntaxError) as error:
                raise ValueError(f"{folder} is damaged") from error

        return read

    careless = fuzz.Reader(1, arrays, fuzz.spoil_arrays)
    with pytest.raises(AssertionError, match="careless, input .* of seed 3.* see "):
        fuzz.feed("careless", careless, tmp_path / "home", 400, seed=3)
    assert (tmp_path / "home" / "input").is_dir()
    assert not (tmp_path / "home" / "outside" / "made").exists()


def test_what_lies_beside_the_input_may_not_change(tmp_path):
    """Also where no audit hook sees it: a library of C writes without one."""

    def careless(whole):
        (whole / "a").mkdir(parents=True)
        (whole / "a" / "a.json").write_text("{}")
        precious = whole.parent / "outside" / "precious.txt"

        def read(folder):
            with open(precious) as file:
                os.utime(file.fileno(), (1, 1))

        return read

    with pytest.raises(AssertionError, match="changed outside of its folder"):
        fuzz.feed("c", fuzz.Reader(1, careless), tmp_path / "home", 1, seed=0)


def test_reading_and_writing_within_the_folder_is_allowed(tmp_path):
    def read(folder):
        (folder / "cache").mkdir()
        (folder / "cache" / "a").write_text("rain")
        (folder / "cache" / "a").rename(folder / "b")
        (folder / "b").unlink()
        Path(__file__).read_text()

    assert fuzz.outcome(read, tmp_path) == "read"
