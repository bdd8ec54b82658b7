import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn import linear_model
from torch.nn.functional import normalize

from dlink_plugin.bridges import Procrustes, Ridge

from .test_means import pairs


def fitted(bridge, audio, text):
    bridge.fit(audio, text)
    return bridge


@pytest.mark.parametrize("number, dim", [(200, 12), (20, 32)])  # fewer pairs than d
@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
def test_ridge_agrees_with_scikit_learn(number, dim, alpha):
    audio, text = pairs(number, dim)
    other, _ = pairs(30, dim, seed=1)
    model = linear_model.Ridge(alpha).fit(audio.double(), text.double())
    expected = torch.from_numpy(model.predict(other.double()))
    bridge = fitted(Ridge(dim, alpha), audio, text)
    assert np.abs(bridge.W.numpy() - model.coef_.T).max() < 1e-5
    found = bridge(other).double()
    torch.testing.assert_close(found, normalize(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("number, dim", [(200, 12), (50, 8)])
def test_procrustes_agrees_with_scipy(number, dim):
    audio, text = pairs(number, dim)
    A, Y = ((x - x.mean(0)).double().numpy() for x in (audio, text))
    W, _ = orthogonal_procrustes(A, Y)
    bridge = fitted(Procrustes(dim), audio, text)
    assert np.abs(bridge.W.numpy() - W).max() < 1e-5
    expected = normalize(torch.from_numpy(A @ W) + text.mean(0), dim=1)
    torch.testing.assert_close(bridge(audio).double(), expected, atol=1e-5, rtol=0)


def test_procrustes_is_orthogonal_with_fewer_pairs_than_dimensions():
    bridge = fitted(Procrustes(32), *pairs(10, 32))
    torch.testing.assert_close(bridge.W @ bridge.W.T, torch.eye(32))


def test_a_rotation_is_found_again():
    text, _ = pairs(300, 8)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.manual_seed(0)))
    for bridge in (Procrustes(8), Ridge(8, alpha=1e-8)):
        fitted(bridge, text @ turn, text)
        torch.testing.assert_close(bridge(text @ turn), text, atol=1e-4, rtol=0)


def test_a_strong_penalty_leaves_the_mean_of_text():
    audio, text = pairs()
    bridge = fitted(Ridge(6, alpha=1e9), audio, text)
    mean = normalize(text.mean(0), dim=0).expand(50, 6)
    torch.testing.assert_close(bridge(audio), mean, atol=1e-4, rtol=0)


def test_both_need_the_pairing():
    audio, text = pairs()
    text = normalize(text + audio.roll(1, 1), dim=1)
    shuffled = text[torch.randperm(50, generator=torch.manual_seed(0))]
    for bridge in (Procrustes(6), Ridge(6)):
        right = (fitted(bridge, audio, text)(audio) * text).sum(1).mean()
        wrong = (fitted(bridge, audio, shuffled)(audio) * text).sum(1).mean()
        assert wrong < right - 0.05
        assert not list(bridge.parameters())


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_no_penalty_is_refused(alpha):
    with pytest.raises(ValueError, match="above 0"):
        Ridge(4, alpha=alpha)
