import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from dlink_plugin.bridges import DiffusionLink
from dlink_plugin.bridges.diffusion_link import topology_loss


def unit(n, d, seed=0):
    return normalize(torch.randn(n, d, generator=seeded(seed)), dim=1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Oracle(torch.nn.Module):
    """A perfect denoiser: it knows the targets, and counts how often it is asked."""

    def __init__(self, targets):
        super().__init__()
        self.targets, self.times = targets, []

    def forward(self, x, t):
        self.times.append(int(t[0]))
        return self.targets.repeat(len(x) // len(self.targets), 1)


@pytest.mark.parametrize("start, steps", [(0, 1), (50, 1), (200, 3), (400, 50)])
def test_a_perfect_denoiser_recovers_the_target(start, steps):
    bridge = DiffusionLink(16, start_step=start, steps=steps)
    text = unit(5, 16, seed=1)
    bridge.denoiser = Oracle(text * 4)
    bridged = bridge(unit(5, 16), seeded(0))
    assert torch.allclose(bridged, text, atol=1e-5)
    assert bridge.denoiser.times == bridge.schedule.visits(start, steps)


def test_start_step_zero_returns_the_estimate_at_time_zero():
    bridge = DiffusionLink(16, start_step=0).eval()
    torch.nn.init.normal_(bridge.denoiser.out.weight, generator=seeded(0))
    audio = unit(5, 16)
    estimate = bridge.denoiser(audio * 4, torch.zeros(5))
    assert torch.allclose(bridge(audio), normalize(estimate, dim=1), atol=1e-6)


def test_output_is_normalized_and_follows_from_the_generator():
    bridge = DiffusionLink(16).eval()
    audio = unit(5, 16)
    first, again = bridge(audio, seeded(3)), bridge(audio, seeded(3))
    other = bridge(audio, seeded(4))
    assert torch.allclose(first.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_the_generator_is_the_only_source_of_noise():
    bridge = DiffusionLink(16).eval()
    audio = unit(5, 16)
    torch.manual_seed(0)
    first = bridge.loss(audio, unit(5, 16, 1), seeded(3))["loss"]
    torch.manual_seed(1)
    assert torch.equal(first, bridge.loss(audio, unit(5, 16, 1), seeded(3))["loss"])


def test_loss_of_a_perfect_denoiser_is_zero_and_its_parts_add_up():
    bridge = DiffusionLink(16, topology_weight=0.5)
    audio, text = unit(5, 16), unit(5, 16, 1)
    terms = bridge.loss(audio, text, seeded(0))
    cross = (terms["cross_audio"] + terms["cross_text"]) / 2
    topology = (terms["topology_audio"] + terms["topology_text"]) / 2
    torch.testing.assert_close(terms["loss"], cross + 0.5 * topology)
    bridge.denoiser = Oracle(text * 4)
    terms = bridge.loss(audio, text, seeded(0))
    assert all(float(term) < 1e-10 for term in terms.values())


def test_cross_sample_loss_by_hand():
    """m(f(q(a,t,eps),t), y) for f = 0 is the mean square of y, which is 1."""
    bridge = DiffusionLink(16)
    bridge.denoiser = Oracle(torch.zeros(5, 16))
    terms = bridge.loss(unit(5, 16), unit(5, 16, 1), seeded(0))
    assert float(terms["cross_audio"]) == pytest.approx(1.0)
    assert float(terms["cross_text"]) == pytest.approx(1.0)


def test_both_branches_share_times_but_not_noise():
    bridge = DiffusionLink(16)
    seen = {}

    def spy(x, t):
        seen["x"], seen["t"] = x, t
        return x

    bridge.denoiser.forward = spy
    same = unit(6, 16)
    bridge.loss(same, same, seeded(0))
    first, second = seen["t"].chunk(2)
    assert torch.equal(first, second)
    audio_noised, text_noised = seen["x"].chunk(2)
    assert not torch.allclose(audio_noised, text_noised, atol=0.01)


def test_training_times_stay_within_one_and_t_max():
    bridge = DiffusionLink(4, t_max=3, start_step=2)
    seen = []
    forward = bridge.denoiser.forward
    bridge.denoiser.forward = lambda x, t: seen.append(t) or forward(x, t)
    bridge.loss(unit(500, 4), unit(500, 4, 1), seeded(0))
    assert seen[0].unique().tolist() == [1, 2, 3]


def test_topology_loss_by_hand():
    y = torch.eye(2)
    yhat = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # 45 degrees instead of 90
    assert float(topology_loss(yhat, y)) == pytest.approx(0.5)


def test_topology_loss_ignores_scale_and_rotation():
    y = torch.randn(6, 8, generator=seeded(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=seeded(1))).Q
    assert float(topology_loss(3 * y @ rotation, y)) < 1e-10
    assert float(topology_loss(torch.randn(6, 8, generator=seeded(2)), y)) > 0.01


def test_draws_differ_and_their_mean_is_steadier():
    bridge = DiffusionLink(64, start_step=300).eval()
    audio = unit(4, 64)
    draws = bridge.draws(audio, 32, seeded(0))
    assert draws.shape == (32, 4, 64)
    single = cosine_similarity(draws[0], draws[1]).mean()
    means = [normalize(half.mean(0), dim=1) for half in draws.chunk(2)]
    assert cosine_similarity(*means).mean() > single + 0.05


def test_a_batch_of_one_pair_is_refused():
    with pytest.raises(ValueError, match="batches of 2 or more"):
        DiffusionLink(8).loss(unit(1, 8), unit(1, 8))


def test_inference_beyond_the_trained_times_is_refused():
    with pytest.raises(ValueError, match="training must cover"):
        DiffusionLink(8, t_max=100, start_step=200)


def test_a_short_training_moves_audio_to_its_text():
    """A gap is closed by training on pairs, and not by training on shuffled ones."""

    def trained(order):
        torch.manual_seed(0)
        bridge = DiffusionLink(16, dropout=0.0, t_max=100, start_step=50)
        optimizer = torch.optim.AdamW(bridge.parameters(), 3e-3)
        for step in range(300):
            rows = torch.randint(800, (64,), generator=seeded(step))
            bridge.loss(audio[rows], text[order[rows]], seeded(step))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            bridged = bridge.eval()(audio[800:], seeded(0))
        return float(cosine_similarity(bridged, text[800:]).mean())

    text = unit(1000, 16)
    audio = normalize(text + unit(1, 16, 5) + 0.5 * unit(1000, 16, 2), dim=1)
    raw = float(cosine_similarity(audio[800:], text[800:]).mean())
    assert trained(torch.arange(800)) > raw + 0.1
    assert trained(torch.randperm(800, generator=seeded(1))) < raw - 0.3
