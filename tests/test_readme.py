"""What the README shows is run."""

import re
from pathlib import Path

import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import DiffusionLink

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet(section, language):
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1)


def test_the_bridge_goes_into_a_plain_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    bridge = DiffusionLink(16).eval()
    bridge.save_pretrained(tmp_path / "results/bridge/1234/bridge")
    names = {}
    exec(snippet("Plug the bridge into your own captioner", "python"), names)
    mine = names["MyCaptioner"](torch.nn.Identity())
    audio = normalize(torch.randn(3, 16), dim=1)
    torch.manual_seed(1)
    read = mine(audio)
    torch.manual_seed(1)
    torch.testing.assert_close(read, bridge(audio))
    assert "bridge.denoiser.out.weight" in mine.state_dict()


def test_the_bridge_goes_into_a_speechbrain_yaml(tmp_path, monkeypatch):
    from hyperpyyaml import load_hyperpyyaml

    monkeypatch.chdir(tmp_path)
    DiffusionLink(16).save_pretrained(tmp_path / "results/bridge/1234/bridge")
    yaml = snippet("Plug the bridge into your own captioner", "yaml")
    bridge = load_hyperpyyaml(yaml)["bridge"]
    assert isinstance(bridge, DiffusionLink) and bridge.dim == 16


def test_files_that_are_linked_are_there():
    for page in (ROOT / "README.md", ROOT / "results" / "README.md",
                 *(ROOT / "recipes").glob("*/README.md")):  # fmt: skip
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"
