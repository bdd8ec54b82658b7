"""Faults that are injected into recipes: a full disk, a lost process, two at once.

Each function injects faults of one kind, asserts what has to hold after each of them,
and gives their number.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

from ..ranks import as_torchrun
from .kills import ALONE, ROOT, TRAIN, Job, check_whole, differences, shards

PATIENCE = 10  # seconds, for a process that is lost


class NotHere(RuntimeError):
    """This machine cannot inject the fault."""


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A file system of that size at a folder; gives a function that changes it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise NotHere("a small tmpfs cannot be mounted; that takes root on Linux")

    def remount(options):
        command = ["mount", "-o", f"remount,{options}", str(folder)]
        subprocess.run(command, check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder, sizes, expected, name="disk", **options):
    """The bridge's recipe on disks of some kilobytes; then with room.

    It has to end with one sentence that names a file, leave nothing that is cut, and go
    on when there is room.
    """
    job = Job(TRAIN, folder / name, **options)
    with small_disk(job.folder, sizes[0]) as remount:
        told = []
        for size in sizes:
            remount(f"size={size}k")
            told.append(_sentence(job))
            check_whole(job.folder)
        remount("size=400000k")
        finished = shards(job.folder)
        assert job.start()[0] == 0
        assert finished.items() <= shards(job.folder).items()
        assert not (differ := differences(job.figures(), expected)), differ[:5]
    return told


def read_only(folder, expected, name="sealed"):
    """The recipe where it may not write: a sentence; where only the cache is, a run."""
    job = Job(TRAIN, folder / name)
    with small_disk(job.folder, 400_000) as remount:
        remount("ro")
        told = [_sentence(job)]
        remount("rw")
        assert job.start()[0] == 0
        remount("ro")
        told.append(_sentence(job))
        other = Job(TRAIN, folder / f"{name}_run")
        other.options["cache_folder"] = job.folder / "cache"
        assert other.start()[0] == 0
        assert not (differ := differences(other.figures(), expected)), differ[:5]
    return told


def _sentence(job):
    """What a recipe says that cannot go on."""
    done = subprocess.run(
        job.command(), cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=600
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr[-2000:]
    assert str(job.folder) in lines[0], lines[0]
    return lines[0]


def lost_process(folder, how, name="ranks", **options):
    """One of two processes is killed, or stops; the other has to end by itself."""
    options |= {"number_of_epochs": 400, "distributed_timeout": PATIENCE}
    job = Job(TRAIN, folder / f"{name}_{how.name}", **options)
    ranks = _start_ranks(job, 2)
    try:
        _wait_for(job.folder / "run" / "save")
        os.kill(ranks[1].pid, how)
        began = time.monotonic()
        _, said = ranks[0].communicate(timeout=PATIENCE + 60)
        waited = time.monotonic() - began
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 1, said[-2000:]
    check_whole(job.folder)
    return [f"the other ended after {waited:.0f} s"]


def _start_ranks(job, world):
    return [
        subprocess.Popen(
            [*job.command(), "--distributed_backend", "gloo"],
            cwd=ROOT,
            env={**ALONE, **known},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for known in as_torchrun(world)
    ]


def _wait_for(path, seconds=120):
    ends = time.monotonic() + seconds
    while not any(path.glob("CKPT*")):
        assert time.monotonic() < ends, f"no checkpoint in {path}"
        time.sleep(0.2)


def two_at_once(folder, name="two"):
    """The recipe twice on one cache and one run folder, and once more beside them.

    Of the first two one works and the other says so; the third, with a run folder of
    its own, waits for the cache.
    """
    job, beside = Job(TRAIN, folder / name), Job(TRAIN, folder / f"{name}_beside")
    job.options |= {
        "number_of_epochs": 40,
        "ckpt_interval_steps": 1000,
    }  # 30 s
    beside.options |= {k: v for k, v in job.options.items() if k != "output_folder"}
    logs = [folder / f"{name}_{i}.log" for i in range(3)]
    together = [
        subprocess.Popen(each.command(), cwd=ROOT, env=ALONE, stderr=log.open("w"))
        for each, log in zip((job, job, beside), logs, strict=True)
    ]
    for each in together:
        each.wait(600)
    said = [log.read_text() for log in logs]
    status = [each.returncode for each in together]
    assert sorted(status[:2]) == [0, 1] and status[2] == 0, (status, said)
    assert "Another run is at work in" in said[status.index(1)]
    figures = job.figures()
    assert figures and not (differ := differences(figures, beside.figures())), differ
    check_whole(job.folder)
    return ["one worked, one said so, one waited for the cache"]


def main(folder, progressbar=True):
    """Every fault once or more; how many, by kind."""
    whole = Job(TRAIN, folder / "whole")
    assert whole.start()[0] == 0
    expected = whole.figures()
    found = {}
    sizes = [200, 2_000, 8_000, 12_000, 14_000, 16_000]
    for kind, inject in {
        "disk full": lambda: full_disk(folder, sizes, expected),
        "folder read-only": lambda: read_only(folder, expected),
        "process of a group killed": lambda: lost_process(folder, signal.SIGKILL),
        "process of a group stopped": lambda: lost_process(folder, signal.SIGSTOP),
        "two runs at once": lambda: two_at_once(folder),
    }.items():
        told = inject()
        found[kind] = {"injected": len(told), "told": told}
        if progressbar:
            print(kind, told, file=sys.stderr, flush=True)
    return found
