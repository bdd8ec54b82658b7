import pytest

from dlink_plugin.resumable import cosine_with_warmup


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [cosine_with_warmup(step, 5, 50) for step in range(51)]
    assert factors[4] == factors[5] == 1
    assert all(a < b for a, b in zip(factors[:4], factors[1:5], strict=True))
    assert all(a > b for a, b in zip(factors[5:], factors[6:], strict=False))
    assert factors[50] == pytest.approx(0)
