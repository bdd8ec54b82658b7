import json
import os
import struct

import numpy as np
import pytest

from dlink_plugin import reading
from dlink_plugin.bridges import sealed
from dlink_plugin.reading import check_files, read_json, read_npy

# JSON


def test_an_object_is_read_as_it_was_written(tmp_path):
    content = {"clips": 3, "é": [1, None, {"a": "\n"}], "😀": -0.5}
    for ascii_only in (True, False):
        text = json.dumps(content, ensure_ascii=ascii_only)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "a.json", "save it again") == content
        assert read_json(str(tmp_path / "a.json"), "save it again") == content


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b'{"\\ud800": 1}', "is not JSON"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'"{}"', "is not a JSON object"),
    ],
)
def test_what_is_no_json_object_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path, "save it again")
    assert str(caught.value) == f"{path} {sentence}; save it again."


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed, "LARGEST_JSON", 10)
    (tmp_path / "a.json").write_text('{"a":   1}')
    assert read_json(tmp_path / "a.json", "") == {"a": 1}
    (tmp_path / "a.json").write_text('{"a":    1}')
    with pytest.raises(ValueError, match="a.json is larger than 10 bytes; cut it"):
        read_json(tmp_path / "a.json", "cut it")


@pytest.mark.parametrize("read", [lambda path: read_json(path, "make it"), read_npy])
def test_what_is_no_file_is_missing(tmp_path, read):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(FileNotFoundError, match=f"{path} is missing; "):
            read(path)


# Folders that a library reads


def test_what_a_library_would_read_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_JSON", 10)
    check_files(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "weights.safetensors").write_bytes(bytes(99))
    (tmp_path / "a.json").write_bytes(bytes(10))
    check_files(tmp_path)
    (tmp_path / "b.txt").write_bytes(bytes(11))
    with pytest.raises(ValueError, match=f"{tmp_path}/b.txt is larger than 10 bytes"):
        check_files(tmp_path)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{tmp_path}/c.json is no file but a pipe or"):
        check_files(tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "a" * 12_000}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"c": "a" * 12_000}}}),
        ("tokenizer_config.json", {"pad_token": "a" * 12_000}),
        ("special_tokens_map.json", {f"{i}": "a" * 4000 for i in range(9)}),
        ("added_tokens.json", {"a" * 12_000: 1}),
    ],
)
def test_tokens_that_take_hours_to_add_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path / name} adds tokens"):
        check_files(tmp_path)


def test_long_texts_that_are_no_tokens_may_be_there(tmp_path):
    template = {"chat_template": "a" * 99_000, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(template))
    vocabulary = {"model": {"vocab": {"a" * 99_000: 1}}, "added_tokens": [{"id": 1}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "added_tokens.json").write_text("no JSON, which its library will say")
    check_files(tmp_path)


# Arrays


def npy(header, version=1, data=bytes(64)):
    """A .npy file of 64 bytes of numbers with whatever header."""
    header = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def described(kind, shape):
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"
    return npy(head.encode())


def test_an_array_stays_on_disk(tmp_path):
    rows = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(rows))
    array = read_npy(tmp_path / "a.npy")
    assert isinstance(array, np.memmap) and not array.flags.writeable
    assert np.array_equal(array, rows)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"0.5 0.5",
        b"\x80\x04\x95",
        b"PK\x03\x04 no zip",
        npy(b"{'descr': "),
        npy(b"'''"),
        npy(b"[" * 9000),
        npy(b"{[]: 1}"),
        npy(b"3"),
        npy(b"9**9**9"),
        npy(b"\xff\xfe", version=3),
        npy(b"{}", version=9),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        described("'<f4'", "(1000000000000, 4)"),
        described("'<f4'", "(99999999999999999999, 4)"),
        described("'<f4'", "(-1, 4)"),
        described("'<f4'", "(True, 16)"),
        described("'<f4'", "'x'"),
        described("'<f4'", "(4, 5)"),
        described("'|O'", "(2, 4)"),
        described("'<f99'", "(4, 4)"),
        described("3", "(4, 4)"),
    ],
)
def test_a_hostile_header_is_one_short_sentence(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a .npy file of numbers") as caught:
        read_npy(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert len(message) < len(str(path)) + 300


@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_are_read_or_one_sentence(tmp_path):
    whole, rng = described("'<f4'", "(4, 4)"), np.random.default_rng(0)
    signs = list(b"'(){}[],:0123456789<>|fiOVSU \n#\\")
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, 128, rng.integers(1, 4)):
            damaged[place] = rng.choice(signs)
        (tmp_path / "a.npy").write_bytes(damaged)
        try:
            assert read_npy(tmp_path / "a.npy").nbytes < 2**20
        except ValueError as error:
            assert str(error).startswith(str(tmp_path / "a.npy"))
