import csv
import json
import os

import pytest
from aac_datasets.datasets.functional.wavcaps import WavCapsCard

from dlink_plugin.embeddings import embed_extra
from dlink_plugin.extra import load_extra

from .conftest import write_clip, write_rows
from .test_embeddings import RATE, FakeEncoder


@pytest.fixture
def table(tmp_path):
    """Three rows of two recordings, one of them named in full."""
    for seed, name in enumerate("ab"):
        write_clip(tmp_path / "sounds" / f"{name}.wav", seed, 0.2, RATE)
    rows = [("sounds/a.wav", "rain falls"), ("sounds/a.wav", " it pours ")]
    rows += [(tmp_path / "sounds" / "b.wav", "a dog barks")]
    write_rows(tmp_path / "mine.csv", ("path", "caption"), rows)
    return tmp_path / "mine.csv"


def append(table, *rows):
    with table.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_rows_of_one_path_are_one_recording(table, tmp_path):
    corpus = load_extra(table, "mini")
    assert (corpus.name, corpus.split, corpus.synthetic) == ("mine", "train", False)
    assert [clip.captions for clip in corpus.clips] == [
        ("rain falls", "it pours"),
        ("a dog barks",),
    ]
    assert corpus.clips[0].path == str(tmp_path / "sounds" / "a.wav")
    assert load_extra(table, "mini", strict=True) == corpus


def test_what_is_missing_is_counted_and_the_rest_kept(table, caplog):
    append(table, ("gone.wav", "x"), ("sounds/b.wav", " "), ("", "y"))
    corpus = load_extra(table, "mini")
    assert corpus.rows_without_audio == 2 and len(corpus.clips) == 2
    assert "2 rows have no audio: " in caplog.text and "gone.wav, " in caplog.text
    assert "1 blank captions" in caplog.text
    with pytest.raises(ValueError, match="mine.csv: 2 rows have no audio"):
        load_extra(table, "mini", strict=True)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"file,caption\na,b\n", "there is no column 'path'"),
        (b"path,text\na,b\n", "there is no column 'caption'"),
        (b"path,caption\n\xff,b\n", "it is not UTF-8"),
        (b"path,caption\n", "names no recording"),
        (b"path,caption\n,rain\n", "names no recording"),
        (b"path,caption\n,rain\n\n,x\n", "names no recording"),
        (b"path,caption\n..,rain\n", "names no recording"),
        (b"", "names no recording"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, content, sentence):
    table = tmp_path / "mine.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_extra(table, "mini")
    assert str(table) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_says_what_can_be_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="or wavcaps:SUBSET"):
        load_extra(tmp_path / "no.csv", "mini")


def test_a_link_is_called_what_it_was_called(table, tmp_path):
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    assert load_extra(link, "mini").name == "link"
    link.unlink()
    link.symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match=f"No table at {link}; "):
        load_extra(link, "mini")


# WavCaps, as aac-datasets reads it


@pytest.fixture
def wavcaps(tmp_path, monkeypatch):
    """Its smallest subset, with two sounds."""
    root = tmp_path / "WavCaps"
    rows = []
    for seed, name in enumerate(("11", "12")):
        path = root / "Audio" / "SoundBible" / f"{name}.flac"
        write_clip(path, seed, 0.2, 32_000)
        row = {"id": name, "caption": f"take {name}", "duration": 0.2}
        row |= dict.fromkeys(("title", "description", "author", "href"), "")
        rows.append({**row, "tags": [], "download_link": ""})
    home = root / "json_files" / "SoundBible"
    home.mkdir(parents=True)
    (home / "sb_final.json").write_text(json.dumps({"data": rows}))
    monkeypatch.setitem(WavCapsCard.EXPECTED_SIZES, "SoundBible", 2)
    return tmp_path


def test_wavcaps_is_read_through_aac_datasets(wavcaps):
    corpus = load_extra("wavcaps:soundbible", wavcaps)
    assert corpus.name == "wavcaps_soundbible"
    assert [clip.captions for clip in corpus.clips] == [("take 11",), ("take 12",)]
    assert all(os.path.isfile(clip.path) for clip in corpus.clips)


def test_an_incomplete_wavcaps_says_how_to_get_it(wavcaps):
    (wavcaps / "WavCaps" / "Audio" / "SoundBible" / "12.flac").unlink()
    with pytest.raises(FileNotFoundError, match="wavcaps --subsets soundbible"):
        load_extra("wavcaps:soundbible", wavcaps)
    with pytest.raises(ValueError, match="subset"):
        load_extra("wavcaps:everything", wavcaps)


# Their embeddings


def settings(folder, *sources):
    names = {"data_folder": folder, "cache_folder": folder / "cache"}
    plain = {"strict": False, "rebuild_cache": False, "num_workers": 0}
    return {**names, **plain, "extra_pairs": sources, "encoding_batch_size": 4}


def test_every_source_is_embedded_once(table, wavcaps, tmp_path):
    encoder = FakeEncoder()
    hparams = settings(tmp_path, table, "wavcaps:soundbible")
    found = embed_extra(hparams, encoder, [])
    assert [len(each.text) for each in found.values()] == [3, 2]
    again = embed_extra(hparams, encoder, [])
    assert encoder.clips_encoded == 4
    for one, other in zip(found.values(), again.values(), strict=True):
        assert one.audio.equal(other.audio) and one.text.equal(other.text)
    pairs = [each.pairs for each in found.values()]
    joined = pairs[0].joined(pairs[1])
    assert len(joined) == 5 and len(joined.audio) == 4
    for row in range(3, 5):
        audio, text = joined[row]
        assert audio.equal(pairs[1][row - 3][0]) and text.equal(pairs[1][row - 3][1])


def test_a_table_may_be_spelled_differently_and_may_grow(table, tmp_path, monkeypatch):
    encoder = FakeEncoder()
    monkeypatch.chdir(tmp_path)
    for source in (table, ["mine.csv"], f"{tmp_path}/../{tmp_path.name}/mine.csv"):
        hparams = {**settings(tmp_path), "extra_pairs": source}
        (found,) = embed_extra(hparams, encoder, []).values()
    assert encoder.clips_encoded == 2 and len(found.text) == 3
    append(table, ("sounds/b.wav", "a hound barks"))
    (found,) = embed_extra(hparams, encoder, []).values()
    assert len(found.text) == 4
    assert embed_extra({**hparams, "extra_pairs": None}, encoder, []) == {}


def test_recordings_that_are_held_out_are_refused(table, tmp_path):
    (held_out,) = embed_extra(settings(tmp_path, table), FakeEncoder(), []).values()
    other = tmp_path / "other.csv"
    write_rows(other, ("path", "caption"), [("sounds/../sounds/b.wav", "a hound")])
    with pytest.raises(ValueError, match="1 recordings of the validation or test"):
        embed_extra(settings(tmp_path, other), FakeEncoder(), [held_out])
