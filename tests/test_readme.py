"""What the README shows is run."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from speechbrain import RunOptions
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


PAGES = [ROOT / "README.md", ROOT / "results/README.md"]
PAGES += sorted((ROOT / "recipes").glob("*/README.md"))
PAGES += sorted((ROOT / "hparams").glob("*.yaml"))


def recipe_commands(page):
    """The words of each command of a page that runs a recipe; comments are none."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":  # in its header
        text = "\n".join(re.findall(r"^#(.*)", text, re.MULTILINE))
    text = re.sub(r"\\\n", " ", text)
    for line in re.findall(
        r"^.*?(recipes/\w+/\w+\.py hparams/.*)$", text, re.MULTILINE
    ):
        yield shlex.split(re.split(r"`", line)[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_commands_are_known(page):
    for recipe, hparams, *options in recipe_commands(page):
        assert (ROOT / recipe).is_file(), recipe
        known = re.findall(r"^(\w+):", (ROOT / hparams).read_text(), re.MULTILINE)
        known = {*known, *vars(RunOptions())}
        for option in options:
            if option.startswith("--"):
                name = option.removeprefix("--").split("=")[0]
                assert name in known, f"{hparams} has no {name}"


def test_commands_are_found():
    found = [command for page in PAGES for command in recipe_commands(page)]
    assert len(found) > 40 and {"hparams/bridge.yaml", "hparams/zero_shot.yaml"} <= {
        command[1] for command in found
    }
