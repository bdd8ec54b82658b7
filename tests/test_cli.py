import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import RobertaTokenizerFast

from dlink_plugin import cli
from dlink_plugin.bridges import DiffusionLink, MeanShift
from dlink_plugin.captioner import Captioner, Result
from dlink_plugin.gap import modality_gap
from dlink_plugin.judge import cross


@pytest.fixture(scope="module")
def model(saved_captioner):
    return saved_captioner


@pytest.fixture
def sounds(tmp_path):
    """A folder with two sounds in a folder, a text, and a false wav beside them."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    time = np.arange(8000) / 16000
    for i, name in enumerate(("b.wav", "deep/a.flac")):
        tone = 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time)
        soundfile.write(folder / name, tone, 16000)
    (folder / "notes.txt").write_text("not a sound")
    (tmp_path / "false.wav").write_text("not a sound either")
    return folder


@pytest.fixture
def dlink(monkeypatch, capsys):
    """dlink(*arguments): exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlink", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        code = stop.value.code
        if isinstance(code, str):  # as Python does on the way out
            return 1, printed.out, printed.err + code
        return code or 0, printed.out, printed.err

    return run


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(40, 32))
    np.save(tmp_path / "t.npy", text)
    np.save(tmp_path / "a.npy", text + rng.normal(size=(40, 32)) + 1)
    return tmp_path / "a.npy", tmp_path / "t.npy"


# caption


def test_json_is_a_list_with_a_row_for_each_file(dlink, model, sounds):
    code, out, _ = dlink("caption", sounds, "--model", model, "--json", "--top", 3)
    rows = json.loads(out)
    assert code == 0
    names = [sounds / "b.wav", sounds / "deep" / "a.flac"]
    assert [row["file"] for row in rows] == list(map(str, names))
    for row in rows:
        assert {"file", "caption", "alternatives", "similarity", "error"} <= set(row)
        assert row["error"] is None and 1 <= len(row["alternatives"]) <= 2
    captions = Captioner.from_pretrained(model).caption(names)
    assert [row["caption"] for row in rows] == [c.caption for c in captions]


def test_one_bad_file_is_told_and_the_others_are_captioned(dlink, model, sounds):
    bad = sounds.parent / "false.wav"
    code, out, err = dlink("caption", bad, sounds / "b.wav", "--model", model, "--json")
    rows = json.loads(out)
    assert code == 1 and "1 of 2 sounds could not be captioned" in err
    assert "undecodable" in rows[0]["error"] and rows[0]["caption"] == ""
    assert rows[1]["error"] is None


def test_files_of_one_and_of_no_sample(dlink, model, tmp_path):
    soundfile.write(tmp_path / "one.wav", np.array([0.5]), 16000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 44100)
    (tmp_path / "empty.flac").touch()
    files = [tmp_path / name for name in ("one.wav", "none.wav", "empty.flac")]
    code, out, _ = dlink("caption", *files, tmp_path / "no.wav", "--model", model,
                         "--json")  # fmt: skip
    errors = [row["error"] for row in json.loads(out)]
    assert code == 1 and errors[0] is None
    assert "of zero length" in errors[1]
    assert all("undecodable" in error for error in errors[2:])


def test_csv_can_be_read_back(dlink, model, sounds):
    arguments = ("--model", model, "--csv", "--explain", "--top", 2)
    code, out, _ = dlink("caption", sounds / "b.wav", *arguments)
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0 and row["file"].endswith("b.wav")
    assert row["raw_caption"] != "" or row["caption"] != ""
    assert -1 <= float(row["similarity"]) <= 1


def test_csv_holds_no_formula(capsys):
    texts = ("=cmd|' /C calc'!A0", "@SUM(A1)", "+1+1", "-2+3", "\t=1", "\r=1")
    for text in texts:
        result = Result(text, text, (text, text), -0.25, text, text)
        cli._write_csv([result])
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
        assert row.pop("similarity") == "-0.25"
        alternatives = row.pop("alternatives")
        assert alternatives == f"'{text} | {text}"
        assert set(row.values()) == {f"'{text}"}


def test_the_table_shows_captions_and_errors(dlink, model, sounds):
    bad = sounds.parent / "false.wav"
    arguments = ("--model", model, "--explain", "--top", 2)
    code, out, _ = dlink("caption", sounds / "b.wav", bad, *arguments)
    assert code == 1
    assert "without the bridge" in out and "undecodable" in out.replace("\n", " ")


def test_the_newest_captioner_is_taken(dlink, model, sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = dlink("caption", sounds)
    assert code == 1 and "make one with: python recipes/AudioCaps/train.py" in err
    for age, name in ((100, "new"), (200, "old")):
        folder = tmp_path / "results" / "zero_shot" / name / "captioner"
        Captioner.from_pretrained(model).save_pretrained(folder)
        then = folder.stat().st_mtime - age
        os.utime(folder / "config.json", (then, then))
    code, out, err = dlink("caption", sounds, "--json")
    assert code == 0 and "zero_shot/new/captioner" in err
    assert len(json.loads(out)) == 2


@pytest.mark.parametrize(
    "path, sentence",
    [("empty", "holds no sound file"), ("sounds", "no-such-model is neither")],
)
def test_a_mistake_is_one_sentence(dlink, sounds, tmp_path, path, sentence):
    (tmp_path / "empty").mkdir()
    code, out, err = dlink("caption", tmp_path / path, "--model", "no-such-model")
    assert code == 1 and out == ""
    assert err.splitlines()[-1].startswith("error: ") and sentence in err


# gap, bridge, embed


def test_gap_prints_the_criteria(dlink, arrays, tmp_path):
    plot = tmp_path / "gap.png"
    code, out, _ = dlink("gap", *arrays, "--json", "--plot", plot)
    result = json.loads(out)
    expected = modality_gap(*(np.load(file) for file in arrays))
    assert code == 0 and result.pop("pairs") == 40 and result.pop("skipped") == []
    assert result == pytest.approx(expected, abs=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, out, _ = dlink("gap", *arrays)
    assert out.startswith("40 pairs, 0 left out\n")
    assert f"{expected['paired_cosine']:.4f}" in out


def test_gap_refuses_what_is_no_pair(dlink, arrays, tmp_path):
    np.save(tmp_path / "short.npy", np.ones((3, 32)))
    code, _, err = dlink("gap", arrays[0], tmp_path / "short.npy")
    assert code == 1 and "(40, 32)" in err and "(3, 32)" in err


def test_bridge_takes_an_array_across(dlink, arrays, tmp_path):
    torch.manual_seed(0)
    trained = DiffusionLink(32)
    for weight in trained.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    trained.save_pretrained(tmp_path / "bridge")
    out = tmp_path / "out.npy"
    arguments = ("--bridge", tmp_path / "bridge", "--seed", 4)
    code, _, _ = dlink("bridge", arrays[0], out, *arguments)
    audio = torch.nn.functional.normalize(torch.from_numpy(np.load(arrays[0])), dim=1)
    expected = cross(trained, audio.float(), 4).numpy()
    assert code == 0 and np.abs(np.load(out) - expected).max() < 1e-5
    MeanShift(8).save_pretrained(tmp_path / "narrow")
    code, _, err = dlink("bridge", arrays[0], out, "--bridge", tmp_path / "narrow")
    assert code == 1 and "32 numbers a row" in err and "takes 8" in err


def test_embed_writes_rows_and_names(
    dlink, sounds, tiny_clap, tiny_clap_folder, tmp_path
):
    out = tmp_path / "out.npz"
    bad = tmp_path / "false.wav"
    code, _, err = dlink("embed", sounds, bad, out, "--clap", tiny_clap_folder)
    assert code == 1 and "Skipped: " in err and "1 of 3 sounds" in err
    saved = np.load(out, allow_pickle=False)
    assert saved["files"].tolist() == [
        str(sounds / "b.wav"),
        str(sounds / "deep" / "a.flac"),
    ]
    samples, _ = soundfile.read(sounds / "b.wav", dtype="float32")
    expected = tiny_clap.encode_audio([torch.from_numpy(samples)])[0].numpy()
    assert np.abs(saved["audio"][0] - expected).max() < 1e-5


# convert-clap


def test_convert_clap_makes_a_folder_for_clap(dlink, sounds, tmp_path):
    from .test_conversion import random_state, save, write_roberta

    roberta = write_roberta(tmp_path / "roberta")
    state, _ = random_state(len(RobertaTokenizerFast.from_pretrained(roberta)))
    path, clap = save(tmp_path / "small.pt", state), tmp_path / "clap"
    code, out, _ = dlink("convert-clap", path, clap, "--tokenizer", roberta)
    assert code == 0 and "HTSAT of 1-2 blocks, no fusion, 48 numbers" in out
    code, _, _ = dlink("embed", sounds, tmp_path / "out.npz", "--clap", clap)
    assert code == 0 and np.load(tmp_path / "out.npz")["audio"].shape == (2, 48)
    code, _, err = dlink("convert-clap", path, clap, "--tokenizer", roberta)
    assert code == 1 and f"error: {clap} is there and not empty" in err
    code, _, err = dlink("convert-clap", path, tmp_path / "new")
    assert code == 1 and "No tokenizer of RoBERTa at roberta-base" in err
    assert not (tmp_path / "new").exists()


# info


def test_info_says_what_a_folder_is(dlink, model):
    code, out, _ = dlink("info", model, "--json")
    described = json.loads(out)
    assert code == 0 and described["kind"] == "captioner"
    assert described["needs"] == "its own folder"
    assert described["bridge"]["kind"] == "bridge"
    assert described["bridge"]["needs"] == "audio embeddings of 32 numbers"
    assert described["decoder"]["needs"] == "its own folder"
    _, out, _ = dlink("info", model / "clap")
    assert out.split() == ["kind", "clap", "needs", "its", "own", "folder"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "nothing is saved in"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "describes no bridge"),
        ('{"kind": "captioner"}', "nothing is saved in"),
    ],
)
def test_info_on_something_else_is_one_sentence(dlink, tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    code, _, err = dlink("info", tmp_path)
    assert code == 1 and sentence in err


def test_info_is_not_led_in_circles(dlink, tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "captioner"}')
    for part in ("bridge", "decoder"):
        (tmp_path / part).symlink_to(tmp_path)
    code, _, err = dlink("info", tmp_path)
    assert code == 1 and "describes no bridge" in err


def test_info_shows_what_a_terminal_would_obey(dlink, tmp_path):
    hostile = {"bridge": "x", "dim": 3, "needs": "nothing", "a": "\x1b[2J"}
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    code, out, _ = dlink("info", tmp_path)
    assert code == 0 and "\x1b" not in out and '"\\u001b[2J"' in out
    assert "audio embeddings of 3 numbers" in out and "nothing" not in out


def test_download_is_that_of_aac_datasets(dlink, monkeypatch):
    """Its own command cannot be started beside a torch without CUDA."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, out, _ = dlink("download", "audiocaps", "--help")
    assert code == 0 and "aac-datasets-download audiocaps" in out
    assert "--version {v1,v2}" in out
    code, _, err = dlink("download", "nothing")
    assert code == 2 and "invalid choice: 'nothing'" in err
    code, _, err = dlink("download", "--root", "/no/such", "clotho", "--subsets", "val")
    assert code == 1 and "error: aac-datasets-download failed: " in err
    assert "/no/such" in err and "Traceback" not in err


def test_help_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['dlink', '--help']\n"
        "from dlink_plugin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'speechbrain', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
    assert "caption" in done.stdout
