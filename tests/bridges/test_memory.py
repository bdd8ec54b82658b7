import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import DeCap, memory

from .test_means import pairs

# 500,000 texts of 512 numbers are 1.02 GB by themselves.
BIG = """
import resource
import torch
from torch.nn.functional import normalize
from dlink_plugin.bridges import DeCap
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
some = normalize(torch.randn(5_000, 512, generator=torch.manual_seed(0)), dim=1)
texts = some.repeat(100, 1)
bridge = DeCap(512)
bridge.fit(texts, texts)
nearest = (bridge(some[:400]) * some[:400]).sum(1).min()
taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(float(nearest), taken * 1024 / 1e9)
"""


def fitted(text, tau=0.01):
    bridge = DeCap(text.shape[1], tau)
    bridge.fit(text, text)
    return bridge


@pytest.mark.parametrize("rows", [1, 7, 50, 2048])
@pytest.mark.parametrize("tau", [1e-4, 0.01, 1.0])
def test_the_sum_over_blocks_is_the_softmax(monkeypatch, rows, tau):
    monkeypatch.setattr(memory, "_ROWS", rows)
    audio, text = pairs()
    weights = (audio.double() @ text.double().T / tau).softmax(dim=1)
    expected = normalize(weights @ text.double(), dim=1)
    found = fitted(text, tau)(audio).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_far_texts_do_not_underflow():
    # at cosine -1 and tau 0.01 all bare weights exp(cos / tau) would be zero
    text = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    bridged = fitted(text)(torch.tensor([[-1.0, 0.0]]))
    torch.testing.assert_close(bridged, text[1:])


def test_the_temperature_goes_from_the_nearest_text_to_the_mean():
    audio, text = pairs()
    nearest = text[(audio @ text.T).argmax(1)]
    torch.testing.assert_close(fitted(text, 1e-5)(audio), nearest)
    mean = normalize(text.mean(0), dim=0).expand(50, 6)
    torch.testing.assert_close(fitted(text, 1e4)(audio), mean, atol=1e-3, rtol=0)


def test_the_audio_has_no_say_in_the_memory():
    audio, text = pairs()
    other = DeCap(6)
    other.fit(text.flip(0), text)
    assert torch.equal(other(audio), fitted(text)(audio))
    assert other.saw == "text" and other.memory_size == 50


def test_it_is_saved_with_its_memory(tmp_path):
    audio, text = pairs()
    bridge = fitted(text, tau=0.05)
    bridge.save_pretrained(tmp_path)
    loaded = DeCap.from_pretrained(tmp_path)
    assert (loaded.memory_size, loaded.tau) == (50, 0.05)
    assert torch.equal(loaded(audio), bridge(audio))
    colder = loaded.with_arguments(tau=0.001)
    torch.testing.assert_close(colder(audio), fitted(text, 0.001)(audio))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="memory of decap is empty"):
        DeCap(4)(torch.eye(4))
    with pytest.raises(ValueError, match="above 0"):
        DeCap(4, tau=0.0)


def test_half_a_million_texts_fit():
    finished = subprocess.run(
        [sys.executable, "-c", BIG], capture_output=True, text=True, timeout=300
    )
    nearest, gigabytes = map(float, finished.stdout.split())
    assert nearest > 0.999  # each found itself among all
    assert gigabytes < 1.3  # 1.02 of them are the texts, all products would be 0.8
