import pytest
import torch

from dlink_plugin.bridges import Bridge, Share

from ..ranks import in_ranks
from .test_contract import TRAINED, pairs, seeded

DIM, N = 16, 8


def test_the_shares_are_the_whole():
    drawn = torch.arange(24).view(2, 12)
    shares = [Share(rank, 3) for rank in range(3)]
    whole = torch.cat([share.of(drawn, dim=1) for share in shares], dim=1)
    torch.testing.assert_close(whole, drawn)


def test_a_single_process_holds_all():
    rows, count = torch.ones(3, 2), torch.tensor(5)
    assert Share().gather(rows) is rows and Share().weight(count) == 1.0


def gathered(rank, world):
    """Of two rows in each process: their sum of products, and its gradient."""
    own = torch.tensor([[1.0 + rank], [3.0 + rank]], requires_grad=True)
    every = Share(rank, world).gather(own)
    (every @ every.T).sum().backward()
    return every.detach(), own.grad, Share(rank, world).weight(torch.tensor(1 + rank))


def test_gradients_of_gathered_rows_come_from_all_processes(tmp_path):
    every = torch.tensor([[1.0], [3.0], [2.0], [4.0]])
    for rank, found in enumerate(in_ranks(2, tmp_path / "ranks", gathered)):
        torch.testing.assert_close(found[0], every)
        # d/dx_i sum_jk x_j x_k = 2 sum x = 20, of the loss in each of two processes
        torch.testing.assert_close(found[1], torch.full((2, 1), 40.0))
        torch.testing.assert_close(found[2], torch.tensor((2 / 3, 4 / 3)[rank]))


def built(name):
    torch.manual_seed(0)
    bridge = Bridge.registry[name](DIM, dropout=0.0)
    bridge.fit(*pairs(60, DIM))
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return bridge


def gradient(rank, world, name):
    """Of a share of the batch; mean over processes, as DDP leaves it."""
    bridge, share = built(name), Share(rank, world)
    own = [share.of(side) for side in pairs(N, DIM, seed=1)]
    bridge.loss(*own, seeded(3), share)["loss"].backward()
    flat = torch.cat([p.grad.flatten() for p in bridge.parameters()])
    if world > 1:
        torch.distributed.all_reduce(flat)
    return flat / world


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_two_processes_have_the_gradient_of_one(name, tmp_path):
    one, own_noise = gradient(0, 1, name), seeded(4)
    assert one.abs().max() > 1e-3
    for two in in_ranks(2, tmp_path / "ranks", gradient, name):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    # The comparison can fail: half of the batch with noise of its own is not the same.
    bridge = built(name)
    half = [Share(0, 2).of(side) for side in pairs(N, DIM, seed=1)]
    bridge.loss(*half, own_noise)["loss"].backward()
    other = torch.cat([p.grad.flatten() for p in bridge.parameters()])
    assert (other - one).abs().max() > 1e-3
