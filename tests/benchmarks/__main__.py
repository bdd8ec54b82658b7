"""Speed and memory, measured: ``python -m tests.benchmarks [SECTION ...]``.

Each section runs in a process of its own, whose memory is watched. Adds what it found
to ``results/benchmarks.json`` and prints a Markdown table. A share compares two things
timed in turns in one run; seconds and bytes depend on the machine, whose size is
written down with them. Two run only when they are named: ``scale`` writes 20 GB to the
temporary folder, ``full_size`` holds 8 GB in memory for a quarter of an hour.
"""

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import threading

import psutil
import torch

from .main_job import ROOT

SECTIONS = ("main_job", "training", "bridging", "encoding", "cache", "gap_criteria")
SECTIONS = (*SECTIONS, "captioning", "gpu")
NAMED = ("scale", "full_size")
FILE = ROOT / "results" / "benchmarks.json"


def watch_memory(process, peak, stop):
    """The resident memory of a process and its children, summed, at its highest."""
    root = psutil.Process(process.pid)
    while not stop.wait(0.1):
        try:
            family = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(p.memory_info().rss for p in family))
        except psutil.NoSuchProcess:
            pass


def run_section(name: str) -> dict:
    """What a section measures, and its peak memory."""
    command = [sys.executable, "-m", "tests.benchmarks", "--alone", name]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peak, stop = [0], threading.Event()
    watch = threading.Thread(target=watch_memory, args=(process, peak, stop))
    watch.start()
    output = process.communicate()[0]
    stop.set()
    watch.join()
    if process.returncode:
        raise SystemExit(f"{name} failed, so there is nothing to write down")
    found = json.loads(output.splitlines()[-1])
    measured = any(value is not None for value in found.values())
    return {**found, "peak_gb": peak[0] / 1e9 if measured else None}


def machine() -> dict:
    """What the figures were measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def rounded(value):
    """Three or four digits that mean something."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(sections: dict) -> str:
    """Markdown: a line for each figure, with the range where it was repeated."""
    lines = ["| section | what | median | range |", "| --- | --- | --- | --- |"]
    for section, found in sections.items():
        for name, value in found["figures"].items():
            what, spread = name.replace("_", " "), ""
            if isinstance(value, dict):
                spread = f"{value['low']:.4g} to {value['high']:.4g}"
                value = value["median"]
            value = f"{value:.4g}" if isinstance(value, float) else value
            value = "not measured" if value is None else value
            lines.append(f"| {section} | {what} | {value} | {spread} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("sections", nargs="*", help=", ".join((*SECTIONS, *NAMED)))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        module = importlib.import_module(f"tests.benchmarks.{arguments.alone}")
        print(json.dumps(module.measure()))
        return
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    sections = written.get("sections", {})
    for name in arguments.sections or SECTIONS:
        figures = rounded(run_section(name))
        sections[name] = {"machine": machine(), "figures": figures}
        content = {"sections": sections}
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(sections))


if __name__ == "__main__":
    main()
