"""Recipes are run as users run them: as subprocesses, from the root of the project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlink_plugin.mini.corpus import write_audiocaps, write_clotho

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


def run_recipe(*arguments, launcher=(sys.executable,)):
    """Run to the end; returns the CompletedProcess with its output as text."""
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def start_recipe(*arguments):
    """Start and return the Popen; its output is dropped."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
