import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import DiffusionLink, MLPRegressor, RectifiedFlow
from dlink_plugin.bridges.diffusion_link import topology_loss
from dlink_plugin.bridges.normalizer import Centering, unit_variance

from .test_means import pairs


def with_network(bridge, answer):
    bridge.network = torch.nn.Identity()
    bridge.network.forward = answer
    return bridge


# Rectified flow


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_constant_velocity_arrives_in_any_number_of_steps(steps):
    audio, text = pairs(5, 8)
    v = unit_variance(text) - unit_variance(audio)
    bridge = with_network(RectifiedFlow(8, steps=steps), lambda z, t: v)
    torch.testing.assert_close(bridge(audio), text)


def test_the_network_is_asked_along_the_way():
    asked = []

    def spy(z, t):
        asked.append((z, t))
        return torch.ones_like(z)

    audio, _ = pairs(3, 8)
    bridged = with_network(RectifiedFlow(8, steps=4), spy)(audio)
    assert [t.tolist() for _, t in asked] == [[0.0], [250.0], [500.0], [750.0]]
    torch.testing.assert_close(asked[2][0], unit_variance(audio) + 0.5)
    torch.testing.assert_close(bridged, normalize(unit_variance(audio) + 1, dim=1))


def test_the_velocity_that_leads_to_the_pair_has_no_loss():
    audio, text = pairs(50, 8)
    a, y = unit_variance(audio), unit_variance(text)

    def right(z_t, t):
        expected = a + t[:, None] / 1000 * (y - a)  # on the straight line
        torch.testing.assert_close(z_t, expected, atol=1e-5, rtol=0)
        return y - a

    assert with_network(RectifiedFlow(8), right).loss(audio, text)["loss"] == 0
    still = with_network(RectifiedFlow(8), lambda z, t: torch.zeros_like(z))
    expected = (y - a).square().mean()
    torch.testing.assert_close(still.loss(audio, text)["loss"], expected)


def test_a_flow_without_steps_is_refused():
    with pytest.raises(ValueError, match="1 Euler step or more"):
        RectifiedFlow(8, steps=0)


# The regressor


def test_it_is_the_network_of_diffusion_link_without_noise():
    link, mlp = DiffusionLink(8, dropout=0.3), MLPRegressor(8, dropout=0.3)
    shapes = [
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (link.denoiser, mlp.network)
    ]
    assert shapes[0] == shapes[1]
    torch.manual_seed(0)
    for parameter in mlp.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    link.denoiser.load_state_dict(mlp.network.state_dict())
    audio, _ = pairs(5, 8)
    regressor = link.eval().with_arguments(start_step=0)
    torch.testing.assert_close(mlp.eval()(audio), regressor(audio))


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_the_loss_by_hand(weight):
    audio, text = pairs(20, 8)
    bridge = MLPRegressor(8, topology_weight=weight)
    with_network(bridge, lambda x, t: 2 * x)
    terms = bridge.loss(audio, text)
    a, y = unit_variance(audio), unit_variance(text)
    torch.testing.assert_close(terms["cross"], (2 * a - y).square().mean())
    torch.testing.assert_close(terms["topology"], topology_loss(audio, text))
    expected = terms["cross"] + weight * terms["topology"]
    torch.testing.assert_close(terms["loss"], expected)


# What they share


def test_scaled_unit_vectors_have_unit_mean_square():
    audio, _ = pairs(20, 8)
    torch.testing.assert_close(unit_variance(audio).square().mean(), torch.tensor(1.0))


def test_centering_has_an_inverse_on_the_unit_sphere():
    audio, _ = pairs(50, 8)
    centering = Centering(8)
    centering.fit(audio)
    assert centering.mean.norm() > 0.5  # far from the origin, where it could fail
    torch.testing.assert_close(centering.inverse(centering(audio)), audio)
    z = normalize(torch.randn(50, 8, generator=torch.manual_seed(1)), dim=1)
    torch.testing.assert_close(centering(centering.inverse(z)), z)
