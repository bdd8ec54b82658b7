import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from dlink_plugin.bridges import DiffGAP, DiffusionPrior
from dlink_plugin.bridges.normalizer import unit_variance

from .test_means import pairs


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spied(bridge, answer):
    """The denoiser is replaced; what it was asked is returned."""
    asked = []

    def spy(x, t, condition):
        asked.append((x, t, condition))
        return answer(x, t, condition)

    bridge.denoiser = torch.nn.Identity()
    bridge.denoiser.forward = spy
    return asked


# The prior


def test_the_prior_starts_from_noise_alone():
    bridge = DiffusionPrior(8, steps=2)
    asked = spied(bridge, lambda x, t, c: c)
    audio, _ = pairs(5, 8)
    torch.testing.assert_close(bridge(audio, seeded()), audio)
    x, t, c = asked[0]
    assert torch.equal(x, torch.randn(5, 8, generator=seeded()))
    assert torch.equal(c, unit_variance(audio))
    assert [int(t[0]) for _, t, _ in asked] == [1000, 500]


def test_guidance_goes_beyond_the_condition():
    bridge = DiffusionPrior(8, steps=1, guidance=3.0)
    audio, text = pairs(5, 8)
    spied(bridge, lambda x, t, c: torch.where(c == 0, unit_variance(text), c))
    expected = normalize(text + 3 * (audio - text), dim=1)
    torch.testing.assert_close(bridge(audio, seeded()), expected)


def test_the_condition_is_dropped_as_often_as_said():
    audio, text = pairs(4000, 8)
    for p in (0.0, 0.25, 1.0):
        bridge = DiffusionPrior(8, condition_dropout=p)
        asked = spied(bridge, lambda x, t, c: x)
        bridge.loss(audio, text, seeded())
        dropped = (asked[0][2] == 0).all(1).float().mean()
        assert dropped == pytest.approx(p, abs=0.03)


# DiffGAP


def test_both_ways_are_trained_under_the_other_modality():
    bridge = DiffGAP(8)
    asked = spied(bridge, lambda x, t, c: c[:, :8])
    audio, text = pairs(40, 8)
    terms = bridge.loss(audio, text, seeded())
    a, y = unit_variance(audio), unit_variance(text)
    (y_t, t, under_a), (a_t, t_too, under_y) = asked
    assert torch.equal(t, t_too) and 1 <= t.min() and t.max() <= 1000
    torch.testing.assert_close(under_a, torch.cat([a, torch.zeros(40, 1)], dim=1))
    torch.testing.assert_close(under_y, torch.cat([y, torch.ones(40, 1)], dim=1))
    abar = bridge.schedule.abar[t][:, None]
    noise = [(z_t - abar.sqrt() * z) / (1 - abar).sqrt() for z_t, z in
             ((y_t, y), (a_t, a))]  # fmt: skip
    assert all(abs(float(eps.std()) - 1) < 0.15 for eps in noise)
    assert not torch.allclose(*noise, atol=0.1)  # independent
    assert terms["to_text"] == pytest.approx(float(mse_loss(a, y)), rel=1e-4)
    assert terms["loss"] == (terms["to_text"] + terms["to_audio"]) / 2


def test_audio_is_noised_to_the_start_step_and_denoised_as_text():
    bridge = DiffGAP(8, start_step=300, steps=1)
    asked = spied(bridge, lambda x, t, c: x)
    audio, _ = pairs(5, 8)
    bridged = bridge(audio, seeded())
    x, t, c = asked[0]
    eps = torch.randn(5, 8, generator=seeded())
    expected = bridge.schedule.add_noise(unit_variance(audio), 300, eps)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(bridged, normalize(expected, dim=1))
    assert t.tolist() == [300] and c[:, -1].tolist() == [0.0] * 5


@pytest.mark.parametrize("start_step", [0, 1001])
def test_a_start_outside_the_schedule_is_refused(start_step):
    with pytest.raises(ValueError, match="not in 1..1000"):
        DiffGAP(8, start_step=start_step)
