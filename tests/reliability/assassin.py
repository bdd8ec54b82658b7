"""Runs a recipe as ``python`` would and kills it at a moment that can be told again.

    python -m tests.reliability.assassin ORDER recipe.py hparams.yaml --key value ...

ORDER is JSON: ``event`` is the number of the event to die at, 0 for none; ``delay`` the
seconds to live on after it; ``signal`` 9 or 15; ``half`` whether a file that is being
written then is left half-written; ``trace`` a file that gets what happened, by phase.
The corpus is small, and so are the shards: what is slow at full size is not what can
break.
"""

import io
import json
import os
import runpy
import sys
import threading
import time
from collections import Counter
from functools import wraps
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import safetensors.torch
import torch

SIZES = {"train": 24, "val": 12, "test": 12, "caption_only": 40}
# The event's file tells the phase; the first name that its path holds.
PHASES = {
    "mini-v1": "corpus",
    "texts": "text embeddings",
    "embeddings": "embeddings",
    "save": "checkpoints",
    "tensorboard": "tensorboard",
    "bridge": "export",
    "decoder": "export",
    "captioner": "export",
    "mean_shift": "export",
    "lm": "language model",
}


class Events:
    """Counts what happens in this process, and kills it when its time has come."""

    def __init__(self, order, watched):
        self.order, self.watched, self.pid = order, watched, os.getpid()
        self.seen, self.phases = 0, Counter()

    def happen(self, phase, what, write_half=None):
        if os.getpid() != self.pid:  # a worker
            return
        self.seen += 1
        self.phases[phase] += 1
        if self.seen != self.order["event"]:
            return
        self.tell({"phase": phase, "what": what, "event": self.seen})
        if write_half is not None and self.order["half"]:
            write_half()
        elif self.order["delay"]:
            threading.Thread(target=self.die_later, daemon=True).start()
            return
        self.die()

    def die_later(self):
        time.sleep(self.order["delay"])
        self.die()

    def die(self):
        os.kill(self.pid, self.order["signal"])
        time.sleep(60)

    def tell(self, content):
        Path(self.order["trace"]).write_text(json.dumps(content))

    def audit(self, name, arguments):
        changes = name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        writes = name == "open" and isinstance(arguments[1], str)
        if not (changes or (writes and set(arguments[1]) & set("wax+"))):
            return
        path = str(arguments[1] if name == "os.rename" else arguments[0])
        if path.startswith(self.watched):
            parts = Path(path).relative_to(self.watched).parts
            known = (PHASES[part] for part in parts if part in PHASES)
            self.happen(next(known, "report"), f"{name} {'/'.join(parts)}")


def watch_saving(events, module, name):
    """Make ``save(content, path)`` an event that can leave half a file."""
    save = getattr(module, name)

    @wraps(save)
    def watched(content, path, *rest, **options):
        def write_half():
            save(content, path, *rest, **options)
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])

        if not isinstance(path, io.IOBase):
            events.happen("half a file", f"{name} {Path(path).name}", write_half)
        return save(content, path, *rest, **options)

    setattr(module, name, watched)


def watch_calls(events, owner, name, phase):
    """Make every call of a function an event."""
    called = getattr(owner, name)

    @wraps(called)
    def watched(*arguments, **options):
        events.happen(phase, name)
        return called(*arguments, **options)

    setattr(owner, name, watched)


def main():
    order, script, *arguments = sys.argv[1:]
    order = json.loads(order)
    events = Events(order, order["watched"])
    # Before the package is imported, which takes these functions by name.
    watch_saving(events, torch, "save")
    watch_saving(events, safetensors.torch, "save_file")

    from dlink_plugin import brains, decoder, embeddings, encoders, resumable, scoring
    from dlink_plugin.mini import corpus

    corpus.AUDIOCAPS_SIZES.update(SIZES)
    embeddings.embed_corpus.__kwdefaults__["shard_size"] = 8
    watch_calls(events, encoders.FrozenEncoder, "encode_prepared", "embeddings")
    watch_calls(events, encoders.FrozenEncoder, "encode_text", "embeddings")
    watch_calls(events, resumable.ResumableBrain, "fit_batch", "training")
    watch_calls(events, resumable.ResumableBrain, "log_validation", "validation")
    watch_calls(events, brains.BridgeBrain, "evaluate_batch", "validation")
    watch_calls(events, decoder.PrefixDecoder, "generate", "captioning")
    watch_calls(events, scoring, "_score", "scoring")
    sys.addaudithook(events.audit)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    events.tell({"events": events.seen, **events.phases})


if __name__ == "__main__":
    main()
