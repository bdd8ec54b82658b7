"""Variants of Diffusion-Link: none by default, each knob does its part."""

import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from dlink_plugin.bridges import DiffusionLink, DiffusionLinkVariant, MeanShift
from dlink_plugin.bridges.diffusion_link import topology_loss
from dlink_plugin.bridges.normalizer import unit_variance

from .test_means import pairs

DIM = 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def variant(**options):
    """Fitted on 60 pairs, with weights that do something."""
    torch.manual_seed(0)
    bridge = DiffusionLinkVariant(DIM, **options)
    bridge.fit(*pairs(60, DIM))
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return bridge.eval()


def test_with_its_defaults_it_is_diffusion_link():
    ours = variant()
    link = DiffusionLink(DIM).eval()
    link.denoiser.load_state_dict(ours.denoiser.state_dict())
    audio, text = pairs(20, DIM, seed=1)
    theirs = link.loss(audio, text, seeded())
    for name, term in ours.loss(audio, text, seeded()).items():
        torch.testing.assert_close(term, theirs[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours(audio, seeded()), link(audio, seeded()))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_text_share_weighs_the_branches(share):
    terms = variant(text_share=share).loss(*pairs(20, DIM, seed=1), seeded())
    expected = (1 - share) * (terms["cross_audio"] + terms["topology_audio"])
    expected += share * (terms["cross_text"] + terms["topology_text"])
    torch.testing.assert_close(terms["loss"], expected)


def test_unpaired_texts_join_the_text_branch_alone():
    audio, text = pairs(20, DIM, seed=1)
    bridge = variant(unpaired=30)
    bridge.texts = pairs(50, DIM, seed=2)[1]
    terms = bridge.loss(audio, text, seeded())
    bridge.texts = -bridge.texts
    others = bridge.loss(audio, text, seeded())
    assert terms["cross_audio"] == others["cross_audio"]
    assert terms["cross_text"] != others["cross_text"]


def test_mixup_mixes_both_sides_alike():
    bridge = variant(mixup=0.5)
    audio, _ = pairs(200, DIM, seed=1)
    mixed, other = bridge._mix(audio, audio, {"generator": seeded()})
    torch.testing.assert_close(mixed, other)
    near = (mixed @ audio.T).argmax(1)
    assert (near == torch.arange(200)).float().mean() > 0.95  # the larger share is own
    assert ((mixed - audio).norm(dim=1) > 0.01).float().mean() > 0.8


def test_residual_and_mean_shift_untrained_are_mean_shift():
    audio, text = pairs(60, DIM)
    bridge = DiffusionLinkVariant(
        DIM, residual=True, mean_shift=True, noise_at_start=False, start_step=50
    )
    torch.nn.init.zeros_(bridge.denoiser.out.weight)
    shift = MeanShift(DIM)
    for each in (bridge, shift):
        each.fit(audio, text)
    torch.testing.assert_close(bridge.eval()(audio), shift(audio))


def test_without_noise_at_the_start_there_is_nothing_to_draw():
    bridge = variant(noise_at_start=False)
    audio, _ = pairs(20, DIM, seed=1)
    torch.testing.assert_close(bridge(audio, seeded(1)), bridge(audio, seeded(2)))


def test_averaged_draws_are_the_mean_of_independent_ones():
    audio, _ = pairs(20, DIM, seed=1)
    draws = variant().draws(audio, 4, seeded(3))
    averaged = variant(averaged_draws=4)(audio, seeded(3))
    torch.testing.assert_close(averaged, normalize(draws.mean(0), dim=1))


def test_the_scale_leaves_the_loss_of_a_perfect_guess_alone():
    _, text = pairs(20, DIM, seed=1)
    y = unit_variance(text)
    bridge = variant(scale=0.5)
    bridge._predict = lambda x, t: 0.5 * y.repeat(2, 1) * 0.9
    terms = bridge.loss(text, text, seeded())
    torch.testing.assert_close(terms["cross_audio"], mse_loss(0.9 * y, y))
    torch.testing.assert_close(terms["topology_audio"], topology_loss(y, y))
