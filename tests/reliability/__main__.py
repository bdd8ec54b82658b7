"""What must not be lost or let in: ``python -m tests.reliability [section]``.

Sections: kills, faults, fuzz; all of them without a name. Every number is asserted
where it is made. Writes ``results/reliability.json`` and ``results/reliability.md``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dlink_plugin.report import markdown, write_json

from . import faults, fuzz, kills, watch

RESULTS = Path("results")
SECTIONS = {"kills": kills.main, "faults": faults.main, "fuzz": fuzz.main}
LEAST = {"kills": 50, "faults": 10, "fuzz": 10_000}
ABOUT = """# Reliability

Made by `python -m tests.reliability` (a section alone: `kills`,
`faults` or `fuzz`), two cores, no GPU. Every number is asserted where it is made: a
run that ends otherwise, a cut file, an error of the wrong kind ends the harness.
"""


def total(section, result):
    """How many times something was done to the package."""
    counted = {"kills": "kills", "faults": "injected", "fuzz": "inputs"}[section]
    return sum(each[counted] for each in result.values())


def kills_table(result):
    """Kills by recipe, and by what the recipe was doing."""
    lines = [["recipe", "kills", "survived", "runs ended", "SIGKILL", "SIGTERM"]]
    phases = Counter()
    for name, row in result.items():
        signals = [row["by_signal"].get(f"SIG{s}", 0) for s in ("KILL", "TERM")]
        cells = row["kills"], row["survived"], row["runs_ended"], *signals
        lines.append([name, *map(str, cells)])
        phases.update(row["by_phase"])
    told = ", ".join(f"{phase} {number}" for phase, number in sorted(phases.items()))
    return lines, (
        "Survived: started again until it ended, with every figure, caption and weight "
        "equal to the uninterrupted run's to 1e-5 (one thread), no file cut under its "
        "own name, no finished shard of the cache written again, no draft left. What "
        f"the recipes were at: {told} (*half a file*: a file was left half-written)."
    )


def faults_table(result):
    """Faults by kind, and what the recipe said to one of them."""
    lines = [["fault", "injected", "what was said or done, for one of them"]]
    lines += [
        [kind, str(row["injected"]), row["told"][-1]] for kind, row in result.items()
    ]
    return lines, (
        "After each: one sentence and exit status 1 where the run could not go on, "
        "nothing cut, and, with room again, the end of the uninterrupted run."
    )


def fuzz_table(result):
    """Inputs by reader, and how many were read all the same."""
    columns = ["inputs", "read", "refused"]
    lines = [["reader", *columns]]
    lines += [[name, *(f"{row[c]:,}" for c in columns)] for name, row in result.items()]
    return lines, (
        "Refused: by a ValueError or OSError that names the file in a short sentence. "
        "After every input: nothing written outside of its folder, no program started, "
        f"nobody connected to, no more than {watch.SECONDS} s and "
        f"{watch.MEMORY >> 30} GiB taken. Whoever runs a YAML runs code, as in every "
        "recipe of SpeechBrain; the configs saved here are JSON and run nothing."
    )


TABLES = {
    "kills": ("Killed and started again", kills_table),
    "faults": ("Faults injected", faults_table),
    "fuzz": ("Hostile and broken files", fuzz_table),
}


def write_page(found):
    """The table of all sections that were ever run here."""
    parts = [ABOUT]
    for section, (title, table) in TABLES.items():
        if section in found:
            result = found[section]["result"]
            number = total(section, result)
            assert number >= LEAST[section], (section, number)
            minutes = found[section]["seconds"] / 60
            parts.append(f"## {title}: {number:,} in {minutes:.0f} minutes\n")
            lines, told = table(result)
            parts.append(f"{markdown(lines)}\n\n{told}\n")
    (RESULTS / "reliability.md").write_text("\n".join(parts), encoding="utf-8")


def main(argv=None):
    """Run the sections that are asked for, and write down what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="?", choices=list(SECTIONS))
    asked = parser.parse_args(argv).section
    path = RESULTS / "reliability.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for section in [asked] if asked else SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            result = SECTIONS[section](Path(folder))
        spent = round(time.monotonic() - began)
        found[section] = {"seconds": spent, "result": _without_folder(result, folder)}
        write_json(path, found)
    write_page(found)
    print((RESULTS / "reliability.md").read_text(), file=sys.stdout)


def _without_folder(result, folder):
    """Sentences name files of a temporary folder, which no reader needs."""
    return json.loads(json.dumps(result).replace(f"{folder}/", ""))


if __name__ == "__main__":
    main()
