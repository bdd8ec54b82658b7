import pytest
import torch
from torch.nn.functional import normalize

from dlink_plugin.bridges import C3, Bridge, CapDec, Identity, MeanShift


def pairs(number=50, dim=6, seed=0):
    """Two clouds of unit vectors, each in a cone of its own."""
    torch.manual_seed(seed)
    audio = normalize(torch.randn(number, dim) + 2 * torch.eye(dim)[0], dim=1)
    text = normalize(torch.randn(number, dim) + 2 * torch.eye(dim)[1], dim=1)
    return audio, text


def fitted(audio, text):
    bridge = MeanShift(audio.shape[1])
    bridge.fit(audio, text)
    return bridge


def test_values_by_hand():
    # means (0.5, 0.5) and (-0.5, 0.5): the shift is (-1, 0)
    bridge = fitted(torch.eye(2), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    bridged = bridge(torch.tensor([[0.0, 1.0], [1.6, 0.8]]))
    torch.testing.assert_close(bridged, torch.tensor([[-(0.5**0.5), 0.5**0.5],
                                                      [0.6, 0.8]]))  # fmt: skip


def test_the_shifted_centroid_is_the_one_of_text():
    audio, text = pairs()
    bridge = fitted(audio, text)
    shift = bridge.text_mean - bridge.audio_mean
    torch.testing.assert_close((audio + shift).mean(0), text.mean(0))
    torch.testing.assert_close(bridge(audio), normalize(audio + shift, dim=1))
    assert (audio.mean(0) - text.mean(0)).norm() > 0.5  # there was a gap
    assert (bridge(audio).mean(0) - text.mean(0)).norm() < 0.1


def test_the_means_are_those_of_training():
    audio, text = pairs()
    bridge = fitted(audio, text)
    whole = bridge(audio)
    torch.testing.assert_close(bridge(audio[:3]), whole[:3])
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(50))


def test_the_pairing_is_not_used():
    audio, text = pairs()
    shuffled = text[torch.randperm(50)]
    torch.testing.assert_close(
        fitted(audio, shuffled)(audio), fitted(audio, text)(audio)
    )
    other = fitted(audio, text[:10])  # other texts do matter
    assert not torch.allclose(other(audio), fitted(audio, text)(audio), atol=1e-3)


def test_without_a_fit_nothing_moves():
    audio, _ = pairs()
    torch.testing.assert_close(MeanShift(6)(audio), audio)


def test_a_second_fit_replaces_the_first():
    bridge = fitted(*pairs(seed=1))
    bridge.fit(*pairs())
    audio, text = pairs()
    assert torch.equal(bridge(audio), fitted(audio, text)(audio))


def test_there_is_nothing_to_train():
    audio, text = pairs()
    bridge = fitted(audio, text)
    assert not list(bridge.parameters())
    assert bridge.loss(audio, text).keys() == {"loss"}
    assert bridge.loss(audio, text)["loss"] == 0
    assert torch.equal(bridge.text_space(text), text)


@pytest.mark.parametrize("kind", [Bridge, MeanShift])
def test_a_saved_one_loads_as_what_it_was(tmp_path, kind):
    audio, text = pairs()
    bridge = fitted(audio, text)
    bridge.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded) is MeanShift
    assert loaded.config == {"format": 1, "bridge": "mean_shift", "dim": 6}
    assert torch.equal(loaded(audio), bridge(audio))


# None, CapDec, C3


@pytest.mark.parametrize("kind", [Identity, CapDec])
def test_they_leave_the_embedding_to_the_decoder(kind):
    audio, text = pairs()
    bridge = kind(6)
    bridge.fit(audio, text)
    assert torch.equal(bridge(audio), audio)
    assert torch.equal(bridge.text_space(text), text)
    assert bridge.saw == "nothing"


def test_only_capdec_and_c3_want_noise_for_the_decoder():
    variances = {n: k(8).noise_variance for n, k in Bridge.registry.items()}
    noisy = {name for name, variance in variances.items() if variance}
    assert noisy == {"capdec", "c3"}
    assert {variances[name] for name in noisy} == {0.016}  # as published
    assert (Identity(6).reading, CapDec(6).reading) == ("text", "noise")
    assert CapDec(6, noise_variance=0.0).reading == "text"


def test_c3_centers_each_modality_by_its_own_mean():
    audio, text = pairs()
    bridge = C3(6)
    bridge.fit(audio, text)
    expected = normalize(audio - audio.mean(0), dim=1)
    torch.testing.assert_close(bridge(audio), expected)
    expected = normalize(text - text.mean(0), dim=1)
    torch.testing.assert_close(bridge.text_space(text), expected)
    # both clouds lie around the origin now, where there is no gap between them
    assert bridge(audio).mean(0).norm() < 0.1 < audio.mean(0).norm()
    assert bridge.reading == "c3" and bridge.own_text_space


def test_c3_maps_back_exactly():
    audio, text = pairs()
    bridge = C3(6)
    bridge.fit(audio, text)
    back = bridge.encoder_space(bridge.text_space(text))
    torch.testing.assert_close(back, text)
    back = bridge.encoder_space(bridge(audio))
    torch.testing.assert_close(back.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(bridge.text_space(back), bridge(audio))
