import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import DiffusionBridge, NoiseSchedule
from dlink_plugin.bridges.unet import UNet1d

from .test_means import pairs


def fitted(dim=8, **arguments):
    torch.manual_seed(0)
    bridge = DiffusionBridge(dim, **arguments)
    bridge.fit(*pairs(60, dim))
    return bridge.eval()


def test_the_defaults_are_the_published_ones():
    bridge = DiffusionBridge(8)
    assert (bridge.timesteps, bridge.scale) == (1000, 5.0)
    assert (bridge.start_step, bridge.steps) == (600, 5)


def test_audio_enters_as_x_t_without_noise():
    bridge = fitted(start_step=600, steps=3)
    audio, _ = pairs(5, 8, seed=1)
    seen = []

    def spy(x, t):
        seen.append((x.clone(), t))
        return 0.5 * x

    bridge.network = torch.nn.Identity()
    bridge.network.forward = spy
    bridged = bridge(audio)
    means = pairs(60, 8)[0].mean(0)
    torch.testing.assert_close(seen[0][0], 5 * normalize(audio - means, dim=1))
    assert [int(t[0]) for _, t in seen] == [600, 400, 200]
    schedule, x = NoiseSchedule(1000), seen[0][0]
    for t, t_next in ((600, 400), (400, 200)):
        x = schedule.ddim_step(x, 0.5 * x, t, t_next)
    torch.testing.assert_close(bridged, normalize(x, dim=1))


def test_the_loss_is_of_text_alone():
    bridge = fitted()
    audio, text = pairs(20, 8, seed=1)
    loss = [
        bridge.loss(a, text, torch.Generator().manual_seed(0))["loss"]
        for a in (audio, -audio)
    ]
    assert loss[0] == loss[1]


def test_the_loss_by_hand_of_a_network_that_says_zero():
    bridge = fitted(scale=3.0)
    _, text = pairs(20, 8, seed=1)
    bridge.network = torch.nn.Identity()
    bridge.network.forward = lambda x, t: torch.zeros_like(x)
    # |z|^2 = 9 spread over 8 coordinates, whatever t and the noise
    assert bridge.loss(text, text)["loss"] == pytest.approx(9 / 8, abs=1e-5)


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
def test_it_learns_to_denoise_text(denoiser):
    bridge = fitted(16, denoiser=denoiser, unet_width=8, dropout=0.0).train()
    _, text = pairs(64, 16)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(bridge.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = bridge.loss(text, text, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"start_step": 0}, "not in 1..1000"),
        ({"start_step": 1001}, "not in 1..1000"),
        ({"denoiser": "transformer"}, "neither 'mlp' nor 'unet'"),
        ({"denoiser": "unet", "dim": 12}, "multiples of 8"),
    ],
)
def test_what_cannot_work_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        DiffusionBridge(**{"dim": 8} | arguments)


def test_the_u_net_sees_neighbors_and_the_time():
    torch.manual_seed(0)
    f = UNet1d(32, 8)
    x = torch.randn(2, 32)
    now, later = (f(x, torch.tensor([t, t])) for t in (1, 500))
    assert not torch.allclose(now, later, atol=1e-3)
    changed = x.clone()
    changed[:, 3] += 1.0
    moved = (f(changed, torch.tensor([1, 1])) - now).abs().amax(0)
    assert moved[3] > 1e-3 and moved[4] > 1e-4
