"""What every bridge keeps, whatever it does."""

import json

import pytest
import torch

from dlink_plugin.bridges import Bridge

from .test_means import pairs

DIM = 16
NAMES = [
    *("none", "mean_shift", "c3", "capdec", "decap", "ridge", "procrustes", "mlp"),
    *("diffusion_bridge", "diffusion_prior", "diffgap", "rectified_flow"),
    *("diffusion_link", "diffusion_link_variant"),
]
LINKS = {"diffusion_link", "diffusion_link_variant"}
DRAWN = {"diffusion_prior", "diffgap"} | LINKS  # noise at inference
TRAINED = {"mlp", "diffusion_bridge", "rectified_flow"} | DRAWN


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=NAMES)
def bridge(request):
    """Fitted, and with weights that do something where there are any."""
    torch.manual_seed(0)
    bridge = Bridge.registry[request.param](DIM)
    bridge.fit(*pairs(60, DIM))
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return bridge.eval()


def test_the_registry_is_the_list_of_bridges():
    assert set(NAMES) == set(Bridge.registry)
    saw = {name: Bridge.registry[name].saw for name in NAMES}
    assert {n for n in NAMES if saw[n] == "nothing"} == {"none", "capdec"}
    assert {n for n in NAMES if saw[n] == "means"} == {"mean_shift", "c3"}
    assert {n for n in NAMES if saw[n] == "text"} == {"decap", "diffusion_bridge"}
    assert set(saw.values()) == {"nothing", "means", "text", "pairs"}


def test_unit_vectors_in_unit_vectors_out(bridge):
    audio, text = pairs(20, DIM, seed=1)
    bridged = bridge(audio, seeded(0))
    assert bridged.shape == audio.shape and bridged.dtype == audio.dtype
    for rows in (bridged, bridge.text_space(text), bridge.encoder_space(bridged)):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(20))


def test_rows_do_not_depend_on_one_another(bridge):
    audio, _ = pairs(20, DIM, seed=1)
    if bridge.name in DRAWN:
        return  # the noise of a row depends on the rows before it
    torch.testing.assert_close(bridge(audio)[5:9], bridge(audio[5:9]))


def test_randomness_follows_from_the_generator(bridge):
    audio, _ = pairs(20, DIM, seed=1)
    first = bridge(audio, seeded(0))
    torch.manual_seed(9)
    assert torch.equal(first, bridge(audio, seeded(0)))
    same = torch.equal(first, bridge(audio, seeded(1)))
    assert same == (bridge.name not in DRAWN)


def test_what_can_be_trained_has_a_loss(bridge):
    audio, text = pairs(20, DIM, seed=1)
    bridge.train()
    terms = bridge.loss(audio, text, seeded(0))
    trained = [each for each in bridge.parameters() if each.requires_grad]
    assert bool(trained) == (bridge.name in TRAINED)
    if not trained:
        assert terms["loss"] == 0
        return
    terms["loss"].backward()
    assert all(each.grad is not None for each in trained)  # DDP would wait for it
    bridge.eval()
    again = [bridge.loss(audio, text, seeded(s))["loss"] for s in (0, 0, 1)]
    assert again[0] == again[1]
    assert (again[0] == again[2]) == (bridge.name == "mlp")


def test_a_saved_bridge_loads_as_what_it_was(bridge, tmp_path):
    bridge.save_pretrained(tmp_path)
    loaded = Bridge.from_pretrained(tmp_path)
    assert type(loaded) is type(bridge) and loaded.config == bridge.config
    assert json.loads((tmp_path / "config.json").read_text()) == bridge.config
    audio, text = pairs(20, DIM, seed=1)
    assert torch.equal(loaded(audio, seeded(0)), bridge(audio, seeded(0)))
    assert torch.equal(loaded.text_space(text), bridge.text_space(text))


def test_a_text_space_is_left_as_it_was_entered(bridge):
    _, text = pairs(20, DIM, seed=1)
    entered = bridge.text_space(text)
    torch.testing.assert_close(bridge.encoder_space(entered), text)
    assert torch.equal(entered, text) == (not bridge.own_text_space)


def test_inference_arguments_change_a_copy(bridge):
    audio, _ = pairs(20, DIM, seed=1)
    before, state = bridge(audio, seeded(0)), torch.random.get_rng_state()
    copy = bridge.with_arguments()
    assert torch.equal(copy(audio, seeded(0)), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in bridge.inference_arguments:
        value = getattr(bridge, name)
        value = value // 2 if isinstance(value, int) else value / 2
        changed = bridge.with_arguments(**{name: value})
        assert getattr(changed, name) == value
        assert not torch.allclose(changed(audio, seeded(0)), before, atol=1e-4)
    assert torch.equal(bridge(audio, seeded(0)), before)
    with pytest.raises(ValueError, match="cannot change \\['dim'\\]"):
        bridge.with_arguments(dim=8)
