"""Feeds hostile files to everything that reads files of strangers.

Whatever is in a file, its reader has to give something back or to say in a short
sentence, as one of the errors it documents, which file is bad; to write nowhere but in
the folder it was given, start no program and connect to nobody; and to end soon,
without taking the machine's memory.

Each function below that ``READERS`` names writes what is whole, one folder for each
variant, and gives the function that reads such a folder. Input number i of a reader
follows from the seed, the reader's name and i alone.
"""

import contextlib
import csv
import functools
import json
import logging
import os
import pickle
import random
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from dlink_plugin.audio import load_audio
from dlink_plugin.bridges import Bridge
from dlink_plugin.bridges.sealed import SUMS, seal, unseal
from dlink_plugin.captioner import Captioner
from dlink_plugin.cli import describe
from dlink_plugin.corpora import Clip, Corpus, load_corpus, load_texts
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.embeddings import embed_corpus, embed_texts
from dlink_plugin.encoders import ClapEncoder, read_checkpoint
from dlink_plugin.extra import load_extra
from dlink_plugin.files import load_tensors, save_tensors
from dlink_plugin.pairs import MappedRows
from dlink_plugin.reading import read_json, read_npy
from dlink_plugin.report import over_seeds
from dlink_plugin.scoring import write_predictions
from dlink_plugin.splits import read_arrays

from ..conftest import SENTENCES, write_captioner, write_clap, write_clip, write_rows
from ..test_embeddings import RATE, FakeEncoder
from ..test_encoders import save_checkpoint
from . import hostile
from .watch import Stopped, bounded_memory, watched

DOCUMENTED = (ValueError, OSError)
LONGEST = 2000  # characters of a sentence, without the names of files


# How files are damaged


def spoil_folder(rng, folder, wholes):
    """Damage a file or two; spliced in is what other variants have in their place."""
    files = _files(folder)
    for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
        other = rng.choice(wholes) / path.relative_to(folder)
        other = other if other.is_file() else path
        hostile.spoil_file(rng, path, other.read_bytes())


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def spoil_sealed(rng, folder, wholes):
    """As above; mostly the checksums are gone or right again, so that it is read."""
    spoil_folder(rng, folder, wholes)
    sealed = [path.parent for path in folder.rglob(SUMS) if path.is_file()]
    what = rng.random()
    if any(path.stat().st_size >= hostile.LONG for path in _files(folder)):
        what = min(what, 0.3)  # nobody seals a file of a TiB
    for home in sealed:
        if what < 0.4:
            unseal(home)
        elif what < 0.8:
            with contextlib.suppress(OSError):  # a link into itself
                seal(home, *(p.name for p in home.iterdir() if p.name != SUMS))


def spoil_cache(rng, folder, wholes):
    """As the first; half of the time a shard is wrong and its checksum right."""
    shards = sorted(folder.rglob("*.safetensors"))
    if rng.random() < 0.5:
        return spoil_folder(rng, folder, wholes)
    path = rng.choice(shards)
    tensors, metadata = load_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for _ in range(rng.randint(1, 2)):
        _spoil_tensors(rng, tensors, metadata)
    save_tensors(path, tensors, {k: str(v)[:10_000] for k, v in metadata.items()})


def _spoil_tensors(rng, tensors, metadata):
    """Other names, types, shapes and numbers; or what is said of them."""
    if (metadata and rng.random() < 0.4) or not tensors:
        said = json.dumps(hostile.value(rng))
        metadata[rng.choice(["skipped", "skipped", "key", "x"])] = said
        return
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    what = rng.random()
    if what < 0.1:
        name = rng.choice(["audio", "text", "position", "", "x" * 300])
    elif what < 0.3:
        tensor = tensor.to(rng.choice(_TYPES))
    elif what < 0.6:
        shapes = [(), (0,), (1,), (3, 0), (1, 1, 3), (2, 6), (10_000,), (6, 1)]
        tensor = torch.zeros(rng.choice(shapes), dtype=tensor.dtype)
    elif what < 0.9:
        numbers = [0, -1, 0.5, 3, 100, 2**31, 1e300, float("nan"), float("inf")]
        full = torch.full(tensor.shape, rng.choice(numbers), dtype=torch.float64)
        tensor = full.to(tensor.dtype)
    else:
        return
    tensors[name] = tensor


_TYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
_TYPES += [torch.bool, torch.int32, torch.float8_e4m3fn]


class RunsCode:
    """Unpickled, it writes a file, starts a program or makes a folder."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _bomb(rng, folder):
    made = str(folder.parent / "outside" / "made")
    calls = [(os.mkdir, made), (os.system, f"touch {made}"), (open, made, "w")]
    calls += [(exec, f"open({made!r}, 'w').write('x')"), (Path.touch, Path(made))]
    return RunsCode(*rng.choice(calls))


def spoil_arrays(rng, folder, wholes):
    """As the first; now and then an array of objects that would run code."""
    if rng.random() < 0.85:
        return spoil_folder(rng, folder, wholes)
    path = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.3:
        path.write_bytes(pickle.dumps(_bomb(rng, folder)))
    else:
        objects = np.array([[_bomb(rng, folder)] * 2] * 3, dtype=object)
        np.save(path, objects, allow_pickle=True)


def spoil_checkpoint(rng, folder, wholes):
    """As the first; now and then a pickle that would run code."""
    path, chance = folder / "a.pt", rng.random()
    if chance < 0.75:
        return spoil_folder(rng, folder, wholes)
    bomb = _bomb(rng, folder)
    if chance < 0.8:
        return path.write_bytes(pickle.dumps({"state_dict": bomb}))
    weight = {"module.weight": torch.ones(3)}
    deep = hostile.nested(rng.choice([2, 200]), rng.choice([list, dict]))
    strange = [bomb, deep, rng.choice(hostile.NUMBERS), rng.choice(hostile.TEXTS)]
    strange += [None, [1], {1: 2}, {"a": bomb}]
    content = rng.choice(
        [
            {"state_dict": rng.choice(strange)},
            {"state_dict": weight, "optimizer": bomb},
            rng.choice(strange),
        ]
    )
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)


def draw_captions(rng, folder, wholes):
    """Names and captions that a spreadsheet program may take for formulas."""

    def text():
        parts = rng.choices([*hostile.TEXTS, *hostile.QUOTED, "-", "-a", " "], k=3)
        return "".join(parts) + "dog"

    rows = range(rng.randint(1, 4))
    content = {
        "names": [text() for _ in rows],
        "said": [text() for _ in rows],
        "references": [[text() for _ in range(rng.randint(1, 3))] for _ in rows],
    }
    (folder / "drawn.json").write_text(json.dumps(content))


# What is read


def audio(whole):
    """Sounds in each format that libsndfile writes here."""
    samples = np.random.default_rng(0).normal(scale=0.1, size=(2000, 2))
    kinds = [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "IMA_ADPCM"), ("au", None)]
    kinds += [("flac", "PCM_16"), ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", None)]
    kinds += [("aiff", "PCM_24"), ("caf", "ALAC_16"), ("w64", None), ("rf64", None)]
    for kind, coding in kinds:
        if kind.upper() in soundfile.available_formats():
            rate = 48_000 if coding == "OPUS" else 16_000
            file = _folder(whole, f"{kind}_{coding}") / "sound"
            soundfile.write(file, samples, rate, coding, format=kind)
    return lambda folder: load_audio(folder / "sound", 16_000)


def audiocaps(whole, version="v1"):
    """A tree of AudioCaps; its sounds are not opened."""
    tree = whole / "a" / "AUDIOCAPS"
    sounds, names = tree / "audio_32000Hz" / "val", [f"clip{i}" for i in range(3)]
    rows = [(f"{i}{j}", name, i, f"a dog barks {j}")
            for i, name in enumerate(names) for j in range(5)]  # fmt: skip
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    write_rows(tree / f"csv_files_{version}" / "val.csv", header, rows)
    for i, name in enumerate(names):
        _touch(sounds / f"{name}_{i}.flac")
    name = "audiocaps" if version == "v1" else "audiocaps_v2"
    return functools.partial(_read_corpus, name)


def clotho(whole):
    """A tree of Clotho; its sounds are not opened."""
    tree, names = whole / "a" / "CLOTHO_v2.1", [f"clip {i}.wav" for i in range(3)]
    tables = tree / "clotho_csv_files"
    header = ("file_name", *(f"caption_{i}" for i in range(1, 6)))
    rows = [(name, *[f"rain falls {j}" for j in range(5)]) for name in names]
    write_rows(tables / "clotho_captions_validation.csv", header, rows)
    header = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples",
              "manufacturer", "license")  # fmt: skip
    rows = [(name, *[""] * 6) for name in names]
    write_rows(tables / "clotho_metadata_validation.csv", header, rows)
    for name in names:
        _touch(tree / "clotho_audio_files" / "validation" / name)
    return functools.partial(_read_corpus, "clotho")


def _read_corpus(name, folder):
    load_corpus(name, folder, "val", cache_folder=folder)


def texts(whole):
    """Captions alone."""
    rows = [(i, f"a dog barks {i}", "rain") for i in range(4)]
    header = ("id", "caption", "caption_2")
    write_rows(whole / "csv" / "texts.csv", header, rows)
    (_folder(whole, "txt") / "texts.txt").write_text("a dog barks\nrain falls\n")

    def read(folder):
        kind = "csv" if (folder / "texts.csv").is_symlink() or any(
            folder.glob("*.csv")) else "txt"  # fmt: skip
        load_texts(folder / f"texts.{kind}", folder, cache_folder=folder)

    return read


def tables(whole):
    """Paths and captions; the sounds are not opened."""
    home = _folder(whole, "a")
    _touch(home / "a.wav")
    rows = [("a.wav", "a dog barks"), ("a.wav", "rain"), ("gone.wav", "rain")]
    write_rows(home / "mine.csv", ("path", "caption"), rows)
    return lambda folder: load_extra(folder / "mine.csv", folder)


def bridges(whole):
    """One of every kind that is registered."""
    a, t = torch.nn.functional.normalize(torch.randn(2, 20, 8), dim=-1)
    for name, kind in sorted(Bridge.registry.items()):
        bridge = kind(8)
        bridge.fit(a, t)
        bridge.save_pretrained(whole / name)
    return Bridge.from_pretrained


def decoders(whole):
    """One with a language model of its own."""
    _write_captioner(whole.parent / "parts")
    shutil.move(whole.parent / "parts" / "captioner" / "decoder", whole / "a")
    shutil.rmtree(whole.parent / "parts")
    return PrefixDecoder.from_pretrained


def captioners(whole):
    """One that holds all it needs."""
    _write_captioner(whole.parent / "parts")
    shutil.move(whole.parent / "parts" / "captioner", whole / "a")
    shutil.rmtree(whole.parent / "parts")
    return Captioner.from_pretrained


def claps(whole):
    """A small one, and one with fusion."""
    write_clap(whole / "a")
    write_clap(whole / "b", fusion=True)
    return ClapEncoder


def _write_captioner(folder):
    clap = write_clap(folder / "clap")
    write_captioner(folder, ClapEncoder(clap), clap)


def caches(whole):
    """Embeddings of six clips in two shards."""
    encoder, clips = FakeEncoder(), []
    for i in range(6):
        path = whole.parent / "sounds" / f"clip{i}.wav"
        write_clip(path, i, 0.2, RATE)
        clips.append(Clip(path.name, str(path), tuple(SENTENCES[: 1 + i % 3])))
    corpus = Corpus("audiocaps", "val", tuple(clips), rows_without_audio=2)
    options = {"num_workers": 0, "progressbar": False, "shard_size": 3}
    read = functools.partial(embed_corpus, corpus, encoder, **options)
    read(whole / "a")
    return read


def cached_texts(whole):
    """Embeddings of captions."""
    read = functools.partial(embed_texts, SENTENCES, FakeEncoder(), progressbar=False)
    read(whole / "a")
    return read


def tensors(whole):
    """Tensors with their checksum."""
    rows = {"rows": torch.ones(3, 2), "text": torch.arange(3)}
    save_tensors(_folder(whole, "a") / "a.safetensors", rows, {"skipped": "[]"})
    return lambda folder: load_tensors(folder / "a.safetensors")


def npy(whole):
    """An array."""
    _write_arrays(whole)
    return lambda folder: read_npy(folder / "a.npy")


def paired_npy(whole):
    """Two arrays that belong together."""
    _write_arrays(whole)
    return lambda folder: read_arrays(folder / "a.npy", folder / "t.npy")


def mapped_npy(whole):
    """Arrays that are read row by row."""
    _write_arrays(whole)

    def read(folder):
        for name in ("a", "t"):
            rows = MappedRows(folder / f"{name}.npy")
            rows[torch.arange(min(2, len(rows)))], rows[:2]

    return read


def _write_arrays(whole):
    for kind in ("float32", "float16"):
        for order in "CF":
            home = _folder(whole, f"{kind}{order}")
            for seed, name in enumerate("at"):
                rows = np.random.default_rng(seed).normal(size=(99, 3)).astype(kind)
                np.save(home / f"{name}.npy", np.asarray(rows, order=order))


def objects(whole):
    """JSON."""
    content = {"clips": 3, "é": [1, None, {"a": "\n"}], "b": -0.5, "c": True}
    (_folder(whole, "a") / "a.json").write_text(json.dumps(content))
    return lambda folder: read_json(folder / "a.json", "save it again")


def runs(whole):
    """What two runs of an experiment ended with: gaps, and scores."""
    row = {"paired_cosine": 0.5, "topology_error": 0.25}
    gap = {"data": "toy", "clips": 3, "captions": 9, "none": row, "bridged": row}
    gap["bridged_minus_none"] = {"paired_cosine": [0.1, 0.0, 0.2]}
    systems = {"none": {"cider_d": 0.5, "vocab": 9}, "link": {"cider_d": 1, "vocab": 8}}
    scores = {"data": "toy", "clips": 3, "tokenizer": "plain", "systems": systems}
    scores |= {"relative_gain": {"cider_d": 1.0}, "recovered": {}, "skipped": {}}
    for name, content in (("gap", gap), ("scores", scores)):
        for run in "ab":
            file = _folder(whole, name) / f"{run}.json"
            file.write_text(json.dumps(content))
    return lambda folder: over_seeds([folder / "a.json", folder / "b.json"])


def descriptions(whole):
    """The configurations of what can be saved, without the rest of it."""
    _write_captioner(whole.parent / "parts")
    saved = whole.parent / "parts" / "captioner"
    for path in saved.rglob("config.json"):
        if path.parent.name == "lm":
            continue
        for home in {saved, path.parent}:
            place = whole / home.name / path.relative_to(home)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    shutil.rmtree(whole.parent / "parts")
    return describe


def checkpoints(whole):
    """As laion_clap left them, in both of torch's formats."""
    save_checkpoint(_folder(whole, "zip") / "a.pt", 0)
    content = torch.load(whole / "zip" / "a.pt", weights_only=False)
    content["state_dict"] = {"module.a.b": torch.ones(2, 3)}
    old = _folder(whole, "old") / "a.pt"
    torch.save(content, old, _use_new_zipfile_serialization=False)

    return lambda folder: read_checkpoint(folder / "a.pt")


def written_captions(whole):
    """Not read but written: no cell of the table may be a formula."""
    _folder(whole, "a")

    def write(folder):
        drawn = json.loads((folder / "drawn.json").read_text())
        write_predictions(folder / "x.csv", *drawn.values())
        with open(folder / "x.csv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert len(rows) == len(drawn["names"]), "a row too many or too few"
        for row in rows:
            assert len(header) == len(row), "a cell too many or too few"
            formulas = [cell for cell in row if _is_formula(cell)]
            assert not formulas, f"{formulas} are formulas"

    return write


def _is_formula(cell):
    """A dash before a name of letters, digits, dots and dashes alone is none."""
    name = cell[1:].replace(".", "").replace("-", "").replace("_", "")
    dash = cell.startswith("-") and not (name.isalnum() or not name)
    return dash or cell.startswith(("=", "+", "@", "\t", "\r", "\n"))


def _folder(whole, name):
    (whole / name).mkdir(parents=True, exist_ok=True)
    return whole / name


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@dataclass(frozen=True)
class Reader:
    """Share of the inputs; what makes whole files and their reader; what damages."""

    share: int
    make: Callable
    spoil: Callable = spoil_folder


READERS = {
    "load_audio": Reader(1600, audio),
    "load_corpus audiocaps": Reader(500, audiocaps),
    "load_corpus audiocaps_v2": Reader(300, functools.partial(audiocaps, version="v2")),
    "load_corpus clotho": Reader(800, clotho),
    "load_texts": Reader(700, texts),
    "load_extra": Reader(300, tables),
    "Bridge.from_pretrained": Reader(1500, bridges, spoil_sealed),
    "PrefixDecoder.from_pretrained": Reader(500, decoders, spoil_sealed),
    "Captioner.from_pretrained": Reader(300, captioners, spoil_sealed),
    "ClapEncoder": Reader(300, claps),
    "embed_corpus": Reader(700, caches, spoil_cache),
    "embed_texts": Reader(400, cached_texts, spoil_cache),
    "load_tensors": Reader(500, tensors, spoil_cache),
    "read_npy": Reader(400, npy, spoil_arrays),
    "read_arrays": Reader(400, paired_npy, spoil_arrays),
    "MappedRows": Reader(400, mapped_npy, spoil_arrays),
    "read_json": Reader(300, objects),
    "over_seeds": Reader(300, runs),
    "describe": Reader(300, descriptions),
    "read_checkpoint": Reader(300, checkpoints, spoil_checkpoint),
    "write_predictions": Reader(200, written_captions, draw_captions),
}


# Feeding them


def feed(name, reader, home, inputs, seed, progressbar=False, terminal=None):
    """Damaged inputs to one reader; how many it read and how many it refused."""
    whole, folder = home / "whole", home / "input"
    read = reader.make(whole)
    wholes, found = sorted(whole.iterdir()), Counter(read=0, refused=0)
    outside = home / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("a dog barks\n")
    before = _state(home)
    numbers = tqdm(range(inputs), name, disable=not progressbar, file=terminal)
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        hostile.fresh(rng.choice(wholes), folder)
        reader.spoil(rng, folder, wholes)
        try:
            found[outcome(read, folder, terminal)] += 1
            assert _state(home) == before, "something was changed outside of its folder"
        except AssertionError as error:
            raise AssertionError(
                f"{name}, input {number} of seed {seed}: {error}; see {folder}"
            ) from error
    return {"inputs": sum(found.values()), **found}


def outcome(read, folder, terminal=None):
    """Whether a folder is read or refused as it should be; else an AssertionError."""
    try:
        with watched(folder, terminal or sys.stderr):
            read(folder)
    except DOCUMENTED as error:
        told = str(error)
        assert not _out_of_memory(error), f"it asked for too much memory: {told[:300]}"
        assert str(folder) in told, f"it does not say which file is bad: {told[:300]}"
        length = len(told.replace(str(folder), ""))
        assert length < LONGEST, f"what it says has {length} characters: {told[:300]}"
        return "refused"
    except (AssertionError, KeyboardInterrupt):
        raise
    except Stopped as error:
        raise AssertionError(f"it was stopped: {error}") from error
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"[:300]
        raise AssertionError(f"it raised {raised}") from error
    return "read"


def _out_of_memory(error):
    """Whether an error came from an array that was too large for this machine.

    On a larger one it would have been made. What torch and numpy say then is looked
    for; Python's ``file.read(n)`` also asks for n bytes, but uses what the file holds.
    """
    if error is None:
        return False
    asked = re.search("llocate (memory|.* for an array)", str(error))
    return bool(asked) or _out_of_memory(error.__cause__ or error.__context__)


def _state(home):
    """What lies beside the input, and when it was changed."""
    beside = [*home.iterdir(), *(home / "outside").iterdir()]
    return {
        path.name: path.stat().st_mtime_ns for path in beside if path.name != "input"
    }


@contextlib.contextmanager
def _quiet():
    """Nothing that readers log, warn of or print; gives the stream they no longer have.

    Damaged files make thousands of lines, of libraries of C as well.
    """
    sys.stdout.flush()
    logging.disable(logging.CRITICAL)
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nothing:
            warnings.simplefilter("ignore")
            for stream in kept:
                os.dup2(nothing.fileno(), stream)
            with open(kept[2], "w", closefd=False) as terminal:
                yield terminal
    finally:
        sys.stdout.flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        logging.disable(logging.NOTSET)


def shares(inputs):
    """How many of the inputs each reader gets; one or more, and all together."""
    total, left = sum(r.share for r in READERS.values()), inputs - len(READERS)
    assert left >= 0, f"{inputs} inputs are not one for each of {len(READERS)} readers"
    found = {}
    for name, reader in READERS.items():
        more = round(left * reader.share / total)
        found[name] = 1 + more
        left, total = left - more, total - reader.share
    return found


def main(folder, inputs=11_000, seed=0, progressbar=True, only=None):
    """Feed them all, or only those that are named; what became of the inputs."""
    result = {}
    torch.manual_seed(seed)
    with _quiet() as terminal, bounded_memory():
        for place, (name, number) in enumerate(shares(inputs).items()):
            if only and name not in only:
                continue
            home = Path(folder).resolve() / f"{place:02d}"
            options = number, seed, progressbar, terminal
            result[name] = feed(name, READERS[name], home, *options)
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=2))
