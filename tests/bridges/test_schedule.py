import math

import pytest
import torch

from dlink_plugin.bridges import NoiseSchedule


@pytest.fixture
def schedule():
    return NoiseSchedule(1000)


def test_abar_falls_from_one_to_nearly_zero(schedule):
    assert schedule.abar[0] == 1.0
    assert (schedule.abar.diff() < 0).all()
    assert 0 < schedule.abar[-1] < 1e-4


def test_abar_is_the_cosine_of_nichol_and_dhariwal(schedule):
    def g(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 250, 500, 900):
        assert float(schedule.abar[t]) == pytest.approx(g(t) / g(0), rel=1e-5)


def test_noising_at_time_zero_is_the_identity(schedule):
    z = torch.randn(4, 8)
    assert torch.equal(schedule.add_noise(z, 0, torch.randn(4, 8)), z)
    times = torch.zeros(4, dtype=torch.long)
    assert torch.equal(schedule.add_noise(z, times, torch.randn(4, 8)), z)


def test_noising_keeps_unit_variance_at_every_time(schedule):
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 200_000, 1, generator=generator)
    for t in (10, 300, 700, 1000):
        assert float(schedule.add_noise(z, t, eps).var()) == pytest.approx(1, abs=0.02)


def test_each_row_gets_the_noise_of_its_own_time(schedule):
    z, eps = torch.zeros(2, 3), torch.ones(2, 3)
    noised = schedule.add_noise(z, torch.tensor([0, 500]), eps)
    assert torch.equal(noised[0], torch.zeros(3))
    assert float(noised[1, 0]) == pytest.approx(math.sqrt(1 - schedule.abar[500]))


def test_a_ddim_step_with_the_true_target_lands_on_the_same_path(schedule):
    """With z0 known, DDIM moves x_t along q(z, ., eps) with the very same eps."""
    z, eps = torch.randn(5, 8), torch.randn(5, 8)
    x = schedule.add_noise(z, 400, eps)
    stepped = schedule.ddim_step(x, z, 400, 150)
    assert torch.allclose(stepped, schedule.add_noise(z, 150, eps), atol=1e-5)


def test_a_ddim_step_to_zero_returns_the_estimate(schedule):
    z0 = torch.randn(5, 8)
    assert torch.allclose(schedule.ddim_step(torch.randn(5, 8), z0, 300, 0), z0)


@pytest.mark.parametrize("start, steps", [(0, 5), (1, 1), (1, 5), (200, 3), (3, 9)])
def test_visits_fall_strictly_from_the_start_step(start, steps):
    times = NoiseSchedule.visits(start, steps)
    assert times[0] == start
    assert all(a > b for a, b in zip(times, times[1:], strict=False))
    assert len(times) <= steps
    assert times[-1] > 0 or times == [0]


def test_nothing_of_the_schedule_is_saved(schedule):
    assert schedule.state_dict() == {}
