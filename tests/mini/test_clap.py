"""The shipped mini CLAP has learned its world, with a gap as wide as a real one's."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import ClapModel

from dlink_plugin.encoders import MINI_CLAP, ClapEncoder
from dlink_plugin.gap import modality_gap
from dlink_plugin.judge import cross
from dlink_plugin.mini.captions import caption
from dlink_plugin.mini.scenes import draw_scene, render

CLIPS = 200
RECALLS = [f"recall@{k}_{way}" for k in (1, 5, 10)
           for way in ("audio_to_text", "text_to_audio")]  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    """Waveforms and captions of scenes from a seed that nothing else uses."""
    rng = np.random.default_rng(991)
    drawn = [draw_scene(rng) for _ in range(CLIPS)]
    waveforms = [torch.from_numpy(render(scene, 32_000)) for scene in drawn]
    return waveforms, [caption(scene, rng) for scene in drawn]


@pytest.fixture(scope="module")
def mini():
    return ClapEncoder("mini")


def embed(encoder, scenes):
    return encoder.encode_audio(scenes[0]), encoder.encode_text(scenes[1])


def test_it_retrieves_and_its_gap_is_like_a_real_one(mini, scenes):
    gap = modality_gap(*embed(mini, scenes), separability=False)
    assert gap["recall@10_audio_to_text"] >= 0.90
    assert 0.35 <= gap["centroid_distance"] <= 0.65
    assert 0.40 <= gap["paired_cosine"] <= 0.72


def test_it_is_small_and_holds_no_pickle():
    sizes = {path.name: path.stat().st_size for path in MINI_CLAP.iterdir()}
    assert sizes["model.safetensors"] < 8e6
    assert {path.suffix for path in MINI_CLAP.iterdir()} <= {".json", ".safetensors"}


def mean_shift(audio, text):
    return normalize(audio - audio.mean(0) + text.mean(0), dim=1)


def trained_bridge(audio, text):
    from dlink_plugin.bridges import DiffusionLink

    torch.manual_seed(0)
    bridge = DiffusionLink(audio.shape[1], expansion=1, start_step=50)
    optimizer = torch.optim.AdamW(bridge.parameters(), 1e-3)
    half = len(audio) // 2
    for _ in range(30):
        bridge.loss(audio[:half], text[:half])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return cross(bridge, audio[half:], seed=0)


@pytest.fixture(scope="module")
def untrained(mini, scenes, tmp_path_factory):
    """The same architecture with random weights: it hears, and understands nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untrained")
    ClapModel(ClapModel.config_class.from_pretrained(MINI_CLAP)).save_pretrained(folder)
    for path in MINI_CLAP.glob("*.json"):
        if path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return embed(ClapEncoder(folder), scenes)


@pytest.mark.parametrize("bridge", ["none", "mean_shift", "diffusion_link"])
def test_an_untrained_encoder_retrieves_by_chance_whatever_the_bridge(
    untrained, bridge
):
    audio, text = untrained
    bridges = {"none": lambda a, t: a, "mean_shift": mean_shift,
               "diffusion_link": trained_bridge}  # fmt: skip
    bridged = bridges[bridge](audio, text)
    gap = modality_gap(bridged, text[-len(bridged) :], separability=False)
    for name in RECALLS:
        chance = int(name.split("@")[1].split("_")[0]) / len(bridged)
        error = (chance * (1 - chance) / len(bridged)) ** 0.5
        assert abs(gap[name] - chance) <= 3 * error, name
