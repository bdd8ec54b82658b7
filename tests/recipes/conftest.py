"""Recipes are run as users run them: as subprocesses, from the root of the project."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from dlink_plugin.mini.corpus import write_audiocaps, write_clotho

from ..ranks import as_torchrun

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """A data folder with 24 / 12 / 12 AudioCaps clips and 6 / 4 / 6 Clotho clips."""
    root = tmp_path_factory.mktemp("data")
    write_audiocaps(root, {"train": 24, "val": 12, "test": 12, "caption_only": 1})
    write_clotho(root, {"development": 6, "validation": 4, "evaluation": 6})
    return root


@pytest.fixture(scope="session")
def corpus(small_tree, tiny_clap_folder):
    """Where a recipe finds the small corpus, a CLAP, and the embeddings it left."""
    return {
        "data_folder": small_tree,
        "clap": tiny_clap_folder,
        "cache_folder": small_tree / "cache",
    }


def flags(values):
    """Options of a command line."""
    return [part for key, value in values.items() for part in (f"--{key}", value)]


def environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_recipe(*arguments, launcher=None):
    """Run to the end; returns the CompletedProcess with its output as text.

    Without a launcher the process is forked from one that has imported the libraries
    already: some forty runs need not wait for them.
    """
    arguments = list(map(str, arguments))
    if launcher is None:
        (finished,) = _fork(arguments, [{}])
        return finished
    return subprocess.run(
        [*launcher, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_in_two(*arguments):
    """The same in two processes, as torchrun starts them; what became of each."""
    gloo = "--distributed_backend=gloo"
    return _fork([*map(str, arguments), "--device=cpu", gloo], as_torchrun(2))


def _fork(arguments, environments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.libraries"])
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, environment()):  # the server's, once started
            started = []
            for rank, known in enumerate(environments):
                streams = [Path(folder) / f"{rank}{name}" for name in ("out", "err")]
                given = arguments, streams, known
                process = context.Process(target=as_a_command, args=given)
                process.start()
                started.append((process, streams))
        try:
            return [_finished(arguments, *each) for each in started]
        finally:  # of those that hang
            for process, _ in started:
                process.kill()


def _finished(arguments, process, streams):
    process.join(timeout=300)
    output = [stream.read_text() for stream in streams]
    if process.exitcode is None:
        raise AssertionError(f"{arguments} does not end:\n{output[1][-3000:]}")
    return subprocess.CompletedProcess(arguments, process.exitcode, *output)


def as_a_command(arguments, streams, known):
    """What Python does with ``python`` and these arguments, in a process of its own."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    os.environ.update({**environment(), **known})
    sys.argv, sys.stdout = arguments, open(1, "w", buffering=1)
    sys.stderr = open(2, "w", buffering=1)
    sys.path.insert(0, str(ROOT / Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def start_recipe(*arguments):
    """Start and return the Popen; its output is dropped."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
