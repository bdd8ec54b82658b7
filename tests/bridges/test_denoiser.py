import torch

from dlink_plugin.bridges import ResidualMLP
from dlink_plugin.bridges.denoiser import time_features


def test_a_new_denoiser_says_next_to_nothing_at_every_time():
    f = ResidualMLP(dim=16)
    x = torch.randn(4, 16)
    new = f(x, torch.tensor([0, 1, 500, 1000]))
    assert 0 < new.abs().max() < 0.05
    assert torch.equal(new, f.out(x))  # new blocks are the identity


def test_it_has_three_blocks_of_two_linear_layers_by_default():
    f = ResidualMLP(dim=16)
    assert len(f.blocks) == 3
    shapes = [m.weight.shape for m in f.blocks[0].mlp if hasattr(m, "weight")]
    assert shapes == [(64, 16), (16, 64)]


def test_time_matters_once_the_modulation_is_trained():
    torch.manual_seed(0)
    f = ResidualMLP(dim=16)
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 16).expand(2, 16)
    early, late = f(x, torch.tensor([5, 400]))
    assert (early - late).abs().max() > 1e-3


def test_time_features_tell_neighboring_times_apart():
    features = time_features(torch.arange(1001), 128)
    nearest = torch.pdist(features).min()
    assert features.abs().max() <= 1
    assert nearest > 0.1


def test_every_parameter_gets_a_gradient():
    f = ResidualMLP(dim=8)
    # One step away from zero init, or the blocks hide each other's gradients.
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    f(torch.randn(4, 8), torch.tensor([1, 2, 3, 4])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in f.parameters())


def test_one_time_for_all_is_that_time_for_each():
    f = ResidualMLP(16, dropout=0.0)
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(5, 16)
    each, together = f(x, torch.full((5,), 300)), f(x, torch.tensor([300]))
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, f(x, torch.tensor([200])), atol=1e-2)
