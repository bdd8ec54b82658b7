import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from dlink_plugin.bridges.sealed import SUMS, seal, unseal, verify, whole


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "export"
    (home / "lm").mkdir(parents=True)
    (home / "config.json").write_text("{}")
    (home / "model.safetensors").write_bytes(bytes(3_000_000))
    (home / "lm" / "tokenizer.json").write_text("[]")
    (home / "README.md").write_text("a card")
    seal(home, "config.json", "model.safetensors", "lm", "absent")
    return home


def test_a_file_replaces_another_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole(path) as draft:
        draft.write_text("half")
        assert path.read_text() == "old"
        draft.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError), whole(path) as draft:
        draft.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_replaces_an_empty_one_or_leaves_nothing(tmp_path):
    home = tmp_path / "model"
    home.mkdir()
    with pytest.raises(KeyError), whole(home) as draft:
        draft.mkdir()
        (draft / "half").touch()
        raise KeyError
    assert os.listdir(tmp_path) == ["model"] and not os.listdir(home)
    with whole(home) as draft:
        draft.mkdir()
        (draft / "config.json").touch()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(home) == ["config.json"]


def _torch_save(path):
    torch.save(torch.ones(9), path)


def _save_file(path):
    save_file({"a": torch.ones(9)}, path)


@pytest.mark.parametrize("save", [_torch_save, _save_file, os.mkdir])
def test_what_cannot_be_written_is_an_oserror_that_names_it(tmp_path, save):
    path = tmp_path / "absent" / "a.bin"
    with pytest.raises(OSError, match=r"a\.bin cannot be written .*; make room"):
        with whole(path) as draft:
            save(draft)


def test_an_untouched_folder_passes(folder):
    verify(folder)


def test_sha256sum_reads_the_seal(folder):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    asked = ["sha256sum", "--check", "--strict", SUMS]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count("OK") == 3


@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_a_flipped_bit_is_found(folder, place):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    verify(folder, ["config.json"])
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved"):
        verify(folder)


def test_what_is_read_must_be_sealed(folder):
    (folder / "other.json").write_text("{}")
    verify(folder)
    with pytest.raises(ValueError, match=r"other\.json is not what was saved"):
        verify(folder, ["other.json"])


def test_a_missing_file_is_found(folder):
    (folder / "lm" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        verify(folder)


def test_what_was_not_sealed_may_change(folder):
    (folder / "README.md").write_text("a better card")
    verify(folder)


def test_without_a_seal_nothing_is_checked(folder):
    unseal(folder)
    (folder / "config.json").write_text("[]")
    verify(folder)
    unseal(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "lm/../../secret"])
def test_a_seal_cannot_lead_outside(folder, name):
    (folder / SUMS).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match="outside of its folder"):
        verify(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"no checksum\n",
        b"0" * 64 + b"  " + b"a" * 1001 + b"\n",
        (b"0" * 64 + b"  a\n") * 20_000,
    ],
)
def test_a_seal_that_is_none(folder, content):
    (folder / SUMS).write_bytes(content)
    with pytest.raises(ValueError, match="no list of checksums"):
        verify(folder)
