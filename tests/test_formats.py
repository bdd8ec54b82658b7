"""What earlier releases saved is read for ever; what later ones will save is refused.

``formats/captioner_1`` was saved before there were checksums, with random weights;
``formats/expected.json`` holds what it gave then.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dlink_plugin import Captioner
from dlink_plugin.bridges import Bridge
from dlink_plugin.decoder import PrefixDecoder

FORMATS = Path(__file__).parent / "formats"
OLD = FORMATS / "captioner_1"
EXPECTED = json.loads((FORMATS / "expected.json").read_text())
TIME = np.arange(16_000) / 16_000
TONES = [(0.4 * np.sin(2 * np.pi * hertz * TIME), 16_000) for hertz in (150, 700)]


def resaved(folder):
    """The same in the format of today."""
    Captioner.from_pretrained(OLD).save_pretrained(folder)
    assert (folder / "SHA256SUMS").is_file() and not (OLD / "SHA256SUMS").exists()
    return folder


@pytest.fixture(params=["as it was", "saved again"])
def captioner(request, tmp_path):
    return OLD if request.param == "as it was" else resaved(tmp_path / "again")


def test_a_bridge_of_format_1(captioner):
    bridge = Bridge.from_pretrained(captioner / "bridge")
    rows = bridge(torch.eye(8)[:3], torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows, torch.tensor(EXPECTED["bridged"]))


def test_a_captioner_of_format_1(captioner):
    results = Captioner.from_pretrained(captioner).caption(TONES)
    assert [each.caption for each in results] == EXPECTED["captions"]
    similarities = [each.similarity for each in results]
    assert similarities == pytest.approx(EXPECTED["similarities"], abs=1e-5)


@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("bridge", Bridge.from_pretrained),
        ("decoder", PrefixDecoder.from_pretrained),
        (".", Captioner.from_pretrained),
    ],
)
@pytest.mark.parametrize("number", [2, 99, "1", None])
def test_another_format_is_one_sentence(tmp_path, part, load, number):
    shutil.copytree(OLD / part, tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    with pytest.raises(ValueError, match="config.json") as told:
        load(tmp_path / "new")
    assert number is None or f"has format {number!r}" in str(told.value)
    assert "\n" not in str(told.value)
