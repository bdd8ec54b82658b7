import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlink_plugin.bridges import Bridge, DiffusionLink
from dlink_plugin.bridges.sealed import SUMS, unseal


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    bridge = DiffusionLink(8, start_step=123, steps=4, topology_weight=0.25)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    bridge.save_pretrained(tmp_path)
    return bridge.eval(), tmp_path


def edit(folder, **changes):
    unseal(folder)
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
        ({"steps": "many"}, r"plain arguments of DiffusionLink \(see \['steps'\]\)"),
        ({"dim": 16}, r"does not hold the weights .* is \(32,\) instead of \(64,\)"),
        ({"dim": 8.5}, "plain arguments"),
        ({"dim": -8}, "does not hold the weights"),
        ({"dim": 10**6}, "does not hold the weights"),  # 60 TB if it were built
        ({"blocks": 10**6}, "does not hold the weights .*too many"),
        ({"timesteps": 10**12}, "plain arguments"),
        ({"dropout": float("nan")}, "plain arguments"),
    ],
)
def test_an_altered_config_is_refused_with_a_sentence(saved, changes, sentence):
    edit(saved[1], **changes)
    with pytest.raises(ValueError, match=sentence):
        Bridge.from_pretrained(saved[1])


@pytest.mark.parametrize(
    "changes", [{"format": "9" * 9999}, {"bridge": "a" * 9999}, {"a" * 9999: 1}]
)
def test_a_long_config_is_told_in_short(saved, changes):
    edit(saved[1], **changes)
    with pytest.raises(ValueError, match="config.json") as caught:
        Bridge.from_pretrained(saved[1])
    assert len(str(caught.value)) < 1000


def test_long_weights_are_told_in_short(saved):
    unseal(saved[1])
    table = json.dumps({"rows": "9" * 300_000}).encode()
    content = len(table).to_bytes(8, "little") + table
    (saved[1] / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="does not hold the weights") as caught:
        Bridge.from_pretrained(saved[1])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        Bridge.from_pretrained(saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Bridge.from_pretrained(saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_every_flipped_byte_is_found(saved, name):
    path = saved[1] / name
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        broken = bytearray(content)
        broken[place] ^= 0x02
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=name):
            Bridge.from_pretrained(saved[1])


def test_an_export_without_a_seal_still_loads(saved):
    bridge, folder = saved
    (folder / SUMS).unlink()
    assert torch.equal(bridged(Bridge.from_pretrained(folder)), bridged(bridge))


def test_saving_over_another_bridge(saved):
    _, folder = saved
    other = DiffusionLink(4).eval()
    other.save_pretrained(folder)
    assert Bridge.from_pretrained(folder).config == other.config


@pytest.mark.parametrize("kind", Bridge.registry.values(), ids=Bridge.registry.keys())
def test_every_bridge_can_be_built_without_memory(kind):
    with torch.device("meta"):
        shell = kind(8).state_dict()
    real = kind(8).state_dict()
    assert {k: v.shape for k, v in shell.items()} == {
        k: v.shape for k, v in real.items()
    }


def test_weights_that_do_not_fit_are_refused(saved):
    path = saved[1] / "model.safetensors"
    unseal(saved[1])
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
