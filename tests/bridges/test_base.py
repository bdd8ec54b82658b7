import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlink_plugin.bridges import Bridge, DiffusionLink


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    bridge = DiffusionLink(8, start_step=123, steps=4, topology_weight=0.25)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    bridge.save_pretrained(tmp_path)
    return bridge.eval(), tmp_path


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def bridged(bridge):
    audio = torch.eye(8)[:3]
    return bridge(audio, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Bridge, DiffusionLink])
def test_a_saved_bridge_loads_as_what_it_was(saved, kind):
    bridge, folder = saved
    loaded = kind.from_pretrained(folder)
    assert type(loaded) is DiffusionLink
    assert not loaded.training
    assert loaded.config == bridge.config
    assert torch.equal(bridged(loaded), bridged(bridge))


def test_the_config_is_plain_json(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    assert config["format"] == 1
    assert config["bridge"] == "diffusion_link"
    assert (config["dim"], config["start_step"], config["steps"]) == (8, 123, 4)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"format": 2}, "format 2"),
        ({"format": ...}, "format None"),
        ({"bridge": "os.system"}, "names the bridge 'os.system'"),
        ({"bridge": ["x"]}, "names the bridge"),
        ({"surprise": 1}, "surprise"),
        ({"steps": ...}, "steps"),
        ({"steps": [1]}, "plain arguments"),
        ({"dim": 16}, "does not hold the weights"),
    ],
)
def test_an_altered_config_is_refused_with_a_sentence(saved, changes, sentence):
    edit(saved[1], **changes)
    with pytest.raises(ValueError, match=sentence):
        Bridge.from_pretrained(saved[1])


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        Bridge.from_pretrained(saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Bridge.from_pretrained(saved[1])


def test_weights_that_do_not_fit_are_refused(saved):
    path = saved[1] / "model.safetensors"
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not hold the weights"):
        Bridge.from_pretrained(saved[1])
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        Bridge.from_pretrained(saved[1])


def test_an_unknown_hub_id_offline_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="neither a folder nor a bridge"):
        Bridge.from_pretrained("nobody/no-such-bridge")


def test_a_bridge_of_another_class_is_refused(saved):
    class Other(Bridge, name="other_for_test"):
        def forward(self, audio, generator=None):
            return audio

    try:
        with pytest.raises(ValueError, match="not one of"):
            Other.from_pretrained(saved[1])
        assert float(Other(4).loss(torch.eye(4), torch.eye(4))["loss"]) == 0
        assert torch.equal(Other(4).text_space(torch.eye(4)), torch.eye(4))
    finally:
        del Bridge.registry["other_for_test"]
