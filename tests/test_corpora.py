import csv
import logging
import os
import shutil
import sys
import types

import pytest

from dlink_plugin.corpora import load_corpus, load_texts

from .conftest import write_rows


@pytest.fixture
def load(tmp_path):
    def load(corpus, split, folder=tmp_path / "data", **options):
        return load_corpus(corpus, folder, split, cache_folder=tmp_path, **options)

    return load


def edit(table, change):
    """Rewrite a csv file; change(rows) gets the header as its first row."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    change(rows)
    write_rows(table, rows[0], rows[1:])


# What is read


def test_audiocaps_gathers_the_captions_of_a_clip(audiocaps_tree, load):
    corpus = load("audiocaps", "val")
    assert (corpus.name, corpus.split, corpus.rows_without_audio) == (
        "audiocaps",
        "val",
        0,
    )
    assert [clip.fname for clip in corpus.clips] == [
        "clip4_4.flac",
        "clip5_5.flac",
        "clip6_6.flac",
    ]
    folder = audiocaps_tree / "AUDIOCAPS" / "audio_32000Hz" / "val"
    assert corpus.clips[1].path == str(folder / "clip5_5.flac")
    assert [len(clip.captions) for clip in corpus.clips] == [5, 5, 5]
    assert corpus.clips[0].captions[0] == "a dog barks twice while rain falls, take 4"


def test_audiocaps_has_one_caption_per_training_clip(audiocaps_tree, load):
    assert [len(clip.captions) for clip in load("audiocaps", "train").clips] == [1] * 4


@pytest.mark.parametrize(
    "split, folder, clips",
    [("train", "development", 3), ("val", "validation", 2), ("test", "evaluation", 3)],
)
def test_clotho_splits(clotho_tree, load, split, folder, clips):
    corpus = load("clotho", split)
    assert len(corpus.clips) == clips
    assert {len(clip.captions) for clip in corpus.clips} == {5}
    assert all(f"/{folder}/" in clip.path for clip in corpus.clips)


def test_captions_are_stripped_and_blank_ones_left_out(audiocaps_tree, load, caplog):
    def change(rows):
        rows[1][3] = "  rain \n"
        rows[2][3] = "   "
        rows[6][3] = ""

    edit(audiocaps_tree / "AUDIOCAPS" / "csv_files_v1" / "val.csv", change)
    clips = load("audiocaps", "val").clips
    assert clips[0].captions[0] == "rain"
    assert [len(clip.captions) for clip in clips] == [4, 4, 5]
    assert "2 blank captions" in caplog.text
    with pytest.raises(ValueError, match="2 blank captions"):
        load("audiocaps", "val", strict=True)


def test_mini_is_prepared_in_the_cache_folder(
    audiocaps_tree, load, tmp_path, monkeypatch
):
    asked = []
    stub = types.ModuleType("dlink_plugin.mini.corpus")
    stub.prepare = lambda corpus, folder: (
        asked.append((corpus, folder)) or audiocaps_tree
    )
    monkeypatch.setitem(sys.modules, "dlink_plugin.mini.corpus", stub)
    assert len(load("audiocaps", "test", folder="mini").clips) == 3
    assert asked == [("audiocaps", tmp_path)]


# What may be missing


def test_audiocaps_rows_without_audio_are_counted(audiocaps_tree, load, caplog):
    (audiocaps_tree / "AUDIOCAPS/audio_32000Hz/val/clip5_5.flac").unlink()
    corpus = load("audiocaps", "val")
    assert [clip.fname for clip in corpus.clips] == ["clip4_4.flac", "clip6_6.flac"]
    assert corpus.rows_without_audio == 5
    assert "5 caption rows (1 clips) have no audio" in caplog.text
    assert "clip5_5.flac" in caplog.text
    with pytest.raises(ValueError, match="clip5_5.flac"):
        load("audiocaps", "val", strict=True)


@pytest.mark.parametrize("case", ["missing", "stray", "missing and stray"])
def test_clotho_survives_missing_and_stray_files(clotho_tree, load, caplog, case):
    # aac-datasets counts files: each of these alone makes it refuse the split, and
    # both together make it return a clip that is not there.
    folder = clotho_tree / "CLOTHO_v2.1" / "clotho_audio_files" / "evaluation"
    missing = "missing" in case
    if missing:
        (folder / "clip 26.wav").unlink()
    if "stray" in case:
        (folder / ".DS_Store").touch()
    corpus = load("clotho", "test")
    names = ["clip 25.wav", "clip 27.wav"]
    assert [c.fname for c in corpus.clips if c.fname != "clip 26.wav"] == names
    assert len(corpus.clips) == 3 - missing
    assert corpus.rows_without_audio == int(missing)
    assert corpus.clips[0].captions[0] == "an engine idles and a bell rings, take 25"
    assert ("1 caption rows (1 clips) have no audio" in caplog.text) == missing
    if missing:
        with pytest.raises(ValueError, match="clip 26.wav"):
            load("clotho", "test", strict=True)


def test_clotho_reads_the_same_with_and_without_aac_datasets(clotho_tree, load):
    whole = load("clotho", "train").clips
    folder = clotho_tree / "CLOTHO_v2.1" / "clotho_audio_files" / "development"
    (folder / "Thumbs.db").touch()
    assert load("clotho", "train").clips == whole


@pytest.mark.parametrize("corpus", ["audiocaps", "clotho"])
def test_a_missing_tree_is_described(tmp_path, load, corpus):
    with pytest.raises(FileNotFoundError) as caught:
        load(corpus, "val", folder=tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    assert "(missing)" in message and "(folder missing)" in message
    assert f"dlink download --root {tmp_path}/nowhere {corpus}" in message
    assert "--data_folder mini" in message


def test_only_what_is_missing_is_called_missing(audiocaps_tree, load):
    (audiocaps_tree / "AUDIOCAPS" / "csv_files_v1" / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.csv   \(missing\)") as caught:
        load("audiocaps", "val")
    assert "(folder missing)" not in str(caught.value)


def test_a_split_without_audio_is_empty(audiocaps_tree, load):
    for path in (audiocaps_tree / "AUDIOCAPS/audio_32000Hz/val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="The val split of audiocaps is empty"):
        load("audiocaps", "val")


@pytest.mark.parametrize(
    "corpus, table",
    [
        ("audiocaps", "AUDIOCAPS/csv_files_v1/test.csv"),
        ("clotho", "CLOTHO_v2.1/clotho_csv_files/clotho_captions_evaluation.csv"),
    ],
)
def test_a_split_without_rows_is_empty(
    audiocaps_tree, clotho_tree, load, corpus, table
):
    edit(clotho_tree / table, lambda rows: rows.__delitem__(slice(1, None)))
    with pytest.raises(ValueError, match=f"The test split of {corpus} is empty"):
        load(corpus, "test")


@pytest.mark.parametrize(
    "corpus, table",
    [
        ("audiocaps", "AUDIOCAPS/csv_files_v1/test.csv"),
        ("clotho", "CLOTHO_v2.1/clotho_csv_files/clotho_captions_evaluation.csv"),
    ],
)
def test_an_unreadable_table_is_named(audiocaps_tree, clotho_tree, load, corpus, table):
    edit(clotho_tree / table, lambda rows: rows[0].__setitem__(-1, "speech"))
    with pytest.raises(ValueError, match="cannot be read as captions") as caught:
        load(corpus, "test")
    assert table in str(caught.value)


AUDIOCAPS_VAL = "AUDIOCAPS/csv_files_v1/val.csv"
CLOTHO_VAL = "CLOTHO_v2.1/clotho_csv_files/clotho_captions_validation.csv"
TABLES = pytest.mark.parametrize(
    "corpus, table", [("audiocaps", AUDIOCAPS_VAL), ("clotho", CLOTHO_VAL)]
)
ONE_CELL_TOO_LONG = b'"' + b"x, " * 3_000_000 + b'"'


@TABLES
@pytest.mark.parametrize(
    "row, sentence",
    [
        (ONE_CELL_TOO_LONG, "more than 131072 characters: is a quotation mark left"),
        (b"M\xf6we", "it is not UTF-8: invalid start byte at byte"),
        ("Möwe".encode("utf-16"), "it is not UTF-8"),
    ],
)
def test_a_hostile_table_is_one_short_sentence(
    audiocaps_tree, clotho_tree, load, texts, corpus, table, row, sentence
):
    file = clotho_tree / table
    with file.open("ab") as tail:
        tail.write(row + b"\r\n")
    for read in (lambda: load(corpus, "val"), lambda: texts(file)):
        with pytest.raises(ValueError, match=sentence) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(str(file)) and "\n" not in message
        assert len(message) < len(str(file)) + 200


@TABLES
def test_a_huge_table_is_not_read(
    audiocaps_tree, clotho_tree, load, texts, corpus, table
):
    file = clotho_tree / table
    os.truncate(file, 1 << 40)  # zeros, of which the disk keeps nothing
    for read in (lambda: load(corpus, "val"), lambda: texts(file)):
        with pytest.raises(ValueError, match=f"{file} is larger than 1073741824 bytes"):
            read()


def test_a_huge_table_of_metadata_is_not_read(clotho_tree, load):
    file = clotho_tree / CLOTHO_VAL.replace("captions", "metadata")
    os.truncate(file, 1 << 40)
    with pytest.raises(ValueError, match=f"{file} is larger than"):
        load("clotho", "val")


def test_what_csv_refuses_is_told_with_the_file(clotho_tree, load, texts, monkeypatch):
    def refuse(*_):
        raise csv.Error("line contains NUL")  # Python 3.10

    monkeypatch.setattr(csv, "DictReader", refuse)
    with pytest.raises(ValueError, match=f"{CLOTHO_VAL} cannot .*contains NUL"):
        load("clotho", "val")
    with pytest.raises(ValueError, match=f"{CLOTHO_VAL} cannot .*contains NUL"):
        texts(clotho_tree / CLOTHO_VAL)


def test_a_row_with_too_few_or_too_many_cells(audiocaps_tree, clotho_tree, load):
    edit(clotho_tree / AUDIOCAPS_VAL, lambda rows: rows.append(["9", "clip9"]))
    with pytest.raises(ValueError, match="a row has too few cells"):
        load("audiocaps", "val")
    change = lambda rows: (rows[1].extend("xyz"), rows[2].__delitem__(slice(2, 9)))  # noqa: E731
    edit(clotho_tree / CLOTHO_VAL, change)
    assert [len(clip.captions) for clip in load("clotho", "val").clips] == [5, 1]


@pytest.mark.parametrize("stray", [True, False])
def test_a_name_with_a_path_reads_nothing_outside_the_folder(clotho_tree, load, stray):
    folder = clotho_tree / "CLOTHO_v2.1" / "clotho_audio_files"
    outside = folder / "development" / "clip 20.wav"
    names = ["../development/clip 20.wav", str(outside), "..", "./clip 24.wav", ""]
    edit(
        clotho_tree / CLOTHO_VAL,
        lambda rows: rows.extend([name, *"abcde"] for name in names),
    )
    if stray:
        (folder / "validation" / "stray").touch()
    corpus = load("clotho", "val")
    assert [clip.fname for clip in corpus.clips] == ["clip 23.wav", "clip 24.wav"]
    assert corpus.rows_without_audio == len(names)


def test_unknown_names_are_refused(load):
    with pytest.raises(ValueError, match="No corpus 'macs'; choose one of audiocaps"):
        load("macs", "train")
    with pytest.raises(ValueError, match="No split 'eval'; choose one of train"):
        load("clotho", "eval")


# Captions alone


@pytest.fixture
def texts(tmp_path):
    def texts(source, folder=tmp_path / "data"):
        return load_texts(source, folder, cache_folder=tmp_path)

    return texts


def captions_of(corpus):
    return tuple(caption for clip in corpus.clips for caption in clip.captions)


@pytest.mark.parametrize(
    "corpus, audio, number",
    [
        ("audiocaps", "AUDIOCAPS/audio_32000Hz", 4),
        ("clotho", "CLOTHO_v2.1/clotho_audio_files", 15),
    ],
)
def test_texts_are_the_training_captions_and_need_no_audio(
    audiocaps_tree, clotho_tree, load, texts, corpus, audio, number
):
    with_audio = captions_of(load(corpus, "train"))
    shutil.rmtree(clotho_tree / audio)
    assert texts(corpus) == with_audio
    assert len(with_audio) == number


def test_texts_of_audiocaps_may_lie_where_older_releases_had_them(
    audiocaps_tree, texts
):
    tree = audiocaps_tree / "AUDIOCAPS"
    before = texts("audiocaps")
    (tree / "csv_files_v1" / "train.csv").rename(tree / "train.csv")
    assert texts("audiocaps") == before


@pytest.mark.parametrize(
    "corpus, tree", [("audiocaps", "AUDIOCAPS"), ("clotho", "CLOTHO_v2.1")]
)
def test_texts_go_on_with_those_that_never_had_audio(
    audiocaps_tree, clotho_tree, texts, corpus, tree
):
    before = texts(corpus)
    (clotho_tree / tree / "caption_only.txt").write_text("wind\nrain, far away\n")
    assert texts(corpus) == (*before, "wind", "rain, far away")


def test_texts_of_mini_come_from_its_tree(audiocaps_tree, texts, tmp_path, monkeypatch):
    stub = types.ModuleType("dlink_plugin.mini.corpus")
    stub.prepare = lambda corpus, folder: {"audiocaps": audiocaps_tree}[corpus]
    monkeypatch.setitem(sys.modules, "dlink_plugin.mini.corpus", stub)
    assert texts("audiocaps", "mini") == texts("audiocaps", audiocaps_tree)


def test_texts_are_the_lines_of_a_text_file(tmp_path, texts):
    file = tmp_path / "more.txt"
    file.write_text('caption\nrain, "loud"\r\nein Käuzchen ruft', encoding="utf-8")
    assert texts(file) == texts(str(file))
    assert texts(file) == ("caption", 'rain, "loud"', "ein Käuzchen ruft")


def test_texts_are_the_caption_columns_of_a_table(tmp_path, texts):
    file = tmp_path / "more.csv"
    header = ("caption_2", "file", "caption_10", "captions", "a caption", "caption_x")
    write_rows(file, header, [("a, b", 1, "c", *"???"), ("d", 2, "", *"???"), ("e",)])
    assert texts(file) == ("a, b", "c", "d", "", "e", "")
    write_rows(file, ("caption", "id"), [("käuzchen", 1), ("two\nlines", 2)])
    assert texts(file) == ("käuzchen", "two\nlines")


def test_a_text_file_that_holds_no_captions_is_named(tmp_path, texts):
    file = tmp_path / "more.txt"
    for content, sentence in ((b"M\xf6we", "UTF-8"), (b"x" * 10**7, "131072 char")):
        file.write_bytes(b"rain\n" + content)
        with pytest.raises(ValueError, match=f"{file} cannot be read .*{sentence}"):
            texts(file)


@pytest.mark.parametrize(
    "header, rows",
    [
        (("text", "captions"), [("rain", "wind")]),
        (("caption",), []),
        ((), []),
    ],
)
def test_a_table_without_captions_is_refused(tmp_path, texts, header, rows):
    file = tmp_path / "more.csv"
    write_rows(file, header, rows)
    with pytest.raises(
        ValueError, match="has no rows with a column 'caption'"
    ) as caught:
        texts(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("source", ["audiocaps", "clotho", "wavcaps", "/no/more.csv"])
def test_missing_texts_are_named(texts, source):
    place = {"audiocaps": "AUDIOCAPS.*train.csv", "clotho": "CLOTHO_v2.1.*development"}
    pattern = (
        f"No captions at .*{place.get(source, source)}.*; name audiocaps, audiocaps_v2"
    )
    with pytest.raises(FileNotFoundError, match=pattern):
        texts(source)


# Real recordings


@pytest.mark.parametrize("corpus, clips", [("audiocaps", 13), ("clotho", 12)])
def test_real_clips(reference_folder, load, caplog, corpus, clips):
    caplog.set_level(logging.WARNING)
    found = load(corpus, "test", folder=reference_folder / "real_clips", strict=True)
    assert len(found.clips) == clips
    assert {len(clip.captions) for clip in found.clips} == {5}
    assert not caplog.records


# AudioCaps 2.0: other tables, in the same tree


@pytest.fixture
def second_version(audiocaps_tree):
    """The tables of both versions; that of 2.0 has other captions of two clips."""
    tables = audiocaps_tree / "AUDIOCAPS"
    shutil.copytree(tables / "csv_files_v1", tables / "csv_files_v2")

    def change(rows):
        del rows[11:]
        rows[1][3] = "a second look"

    edit(tables / "csv_files_v2" / "val.csv", change)
    return tables / "csv_files_v2" / "val.csv"


def test_both_versions_of_audiocaps_are_read(second_version, load):
    first, second = load("audiocaps", "val"), load("audiocaps_v2", "val")
    assert (len(first.clips), len(second.clips)) == (3, 2)
    assert second.clips[0].captions[0] == "a second look" != first.clips[0].captions[0]
    assert second.title == "audiocaps_v2 val"


def test_captions_that_run_over_two_rows_are_joined(second_version, load, texts):
    """As in the published train.csv of AudioCaps 2.0."""
    with second_version.open("a", encoding="utf-8") as table:
        table.write("70,clip6,6,an engine chugging with muffled\r\n")
        table.write("speech in the background\r\n\r\n71,clip6,6,rain\r\n")
    joined = "an engine chugging with muffled speech in the background"
    clips = load("audiocaps_v2", "val", strict=True).clips
    assert len(clips) == 3 and clips[2].captions == (joined, "rain")
    assert texts(second_version)[-2:] == (joined, "rain")


def test_other_broken_rows_of_the_second_version_are_refused(second_version, load):
    with second_version.open("a", encoding="utf-8") as table:
        table.write("70,clip6\r\n")
    with pytest.raises(ValueError, match="a row has too few cells"):
        load("audiocaps_v2", "val")


def test_a_missing_second_version_says_how_to_get_it(audiocaps_tree, load):
    with pytest.raises(FileNotFoundError, match="audiocaps --subsets val --version v2"):
        load("audiocaps_v2", "val")


def test_two_tables_for_the_first_version_must_be_one(second_version, load):
    """aac-datasets would silently read the one that lies above."""
    first = second_version.parents[1] / "csv_files_v1" / "val.csv"
    above = shutil.copy(first, second_version.parents[1])
    assert len(load("audiocaps", "val").clips) == 3
    shutil.copy(second_version, above)
    with pytest.raises(ValueError, match="differ, and aac-datasets reads the first"):
        load("audiocaps", "val")


def test_there_is_no_mini_of_the_second_version(load):
    with pytest.raises(ValueError, match="No mini corpus 'audiocaps_v2'"):
        load("audiocaps_v2", "val", folder="mini")
