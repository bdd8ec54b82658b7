import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dlink_plugin.audio import BadAudio
from dlink_plugin.bridges import C3, Bridge, DiffusionLink, Identity
from dlink_plugin.bridges.sealed import unseal
from dlink_plugin.captioner import Captioner, export_captioner
from dlink_plugin.choosing import Chooser, caption_draws
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.encoders import load_encoder
from dlink_plugin.mini.language import write_lm
from dlink_plugin.pairs import seeded

SENTENCES = ["a dog barks", "rain falls on a roof", "a bell rings twice"] * 4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    sizes = {"vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "dropout": 0.0}
    lm = write_lm(tmp_path_factory.mktemp("lm"), SENTENCES, **sizes)
    torch.manual_seed(0)
    decoder = PrefixDecoder(32, lm, lm_training="scratch", prefix_length=2)
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return decoder.eval()


@pytest.fixture(scope="module")
def bridge():
    torch.manual_seed(0)
    bridge = DiffusionLink(32, start_step=300, steps=2)
    for weight in bridge.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return bridge.eval()


@pytest.fixture(scope="module")
def captioner(tiny_clap, tiny_clap_folder, bridge, decoder):
    generation = {"num_beams": 2, "max_new_tokens": 8}
    about = {"data": "a test", "clips": 3, "scores": {"cider_d": 0.25},
             "command": "python caption.py"}  # fmt: skip
    parts = tiny_clap, bridge, decoder, str(tiny_clap_folder)
    return Captioner(*parts, generation, about)


def tone(frequency, seconds=1.0, rate=16000):
    time = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * frequency * time), rate


@pytest.fixture
def files(tmp_path):
    paths = []
    for i, (rate, kind) in enumerate([(8000, "wav"), (44100, "flac"), (16000, "ogg")]):
        path = tmp_path / f"{i}.{kind}"
        samples, _ = tone(300 * (i + 1), 0.5 + i, rate)
        soundfile.write(path, np.stack([samples, samples], 1), rate)
        paths.append(path)
    return paths


# Captions


def test_files_and_arrays_are_captioned_alike(captioner, files):
    arrays = [soundfile.read(path) for path in files]
    from_files = captioner.caption(files)
    assert [result.file for result in from_files] == list(map(str, files))
    from_arrays = captioner.caption(arrays)
    assert [r.caption for r in from_arrays] == [r.caption for r in from_files]
    assert {r.file for r in from_arrays} == {"array"}
    assert all(r.error is None and r.raw_caption is None for r in from_files)


def test_a_caption_is_what_its_parts_give(captioner, tiny_clap, bridge, decoder):
    sound = tone(440)
    (result,) = captioner.caption([sound], raw=True, seed=3)
    audio = tiny_clap.encode_audio([torch.from_numpy(sound[0]).float()])
    bridged = bridge(audio, seeded(3, 0))
    settings = {"num_beams": 2, "max_new_tokens": 8}
    assert [result.caption] == decoder.generate(bridged, **settings)
    assert [result.raw_caption] == decoder.generate(audio, **settings)
    said = tiny_clap.encode_text([result.caption])
    assert result.similarity == pytest.approx(float((said * audio).sum()), abs=1e-5)


def test_the_seed_decides_on_the_noise(captioner, monkeypatch):
    read = []

    def spy(rows, **_):
        read.append(rows)
        return ["a dog barks"] * len(rows)

    monkeypatch.setattr(captioner.decoder, "generate", spy)
    sounds = [tone(f) for f in (200, 500, 900)]
    for seed in (1, 1, 2):
        torch.manual_seed(len(read))
        captioner.caption(sounds, seed=seed)
    assert torch.equal(read[0], read[1])
    assert not torch.allclose(read[0], read[2], atol=1e-3)


def test_several_draws_are_read_by_their_mean(captioner, bridge, decoder, tiny_clap):
    sound = tone(440)
    (result,) = captioner.caption([sound], draws=3)
    audio = tiny_clap.encode_audio([torch.from_numpy(sound[0]).float()])
    generator = seeded(0, 0)
    rows = torch.stack([bridge(audio, generator) for _ in range(3)])
    mean = normalize(rows.mean(0), dim=1)
    expected = decoder.generate(mean, num_beams=2, max_new_tokens=8)
    assert [result.caption] == expected


@pytest.mark.parametrize("choose", ["cider_d", "similarity", "clap"])
def test_one_caption_of_several_draws_is_kept(
    captioner, tiny_clap, choose, monkeypatch
):
    monkeypatch.setattr(captioner, "texts", SENTENCES)
    sounds = [tone(440), tone(900)]
    kept = captioner.caption(sounds, draws=4, choose=choose)
    audio = tiny_clap.encode_audio([torch.from_numpy(s).float() for s, _ in sounds])
    generator = seeded(0, 0)
    draws = torch.stack([captioner.bridge(audio, generator) for _ in range(4)])
    written = caption_draws(captioner.decoder, draws, **captioner.generation)
    expected = Chooser(choose, captioner.encoder, SENTENCES)(written, audio)
    assert [result.caption for result in kept] == expected


@pytest.mark.parametrize("draws", [1, 3])
def test_alternatives_are_others_and_ranked(captioner, tiny_clap, draws):
    sounds = [tone(440), tone(880)]
    results = captioner.caption(sounds, alternatives=3, draws=draws)
    plain = captioner.caption(sounds, draws=draws)
    assert [r.caption for r in results] == [r.caption for r in plain]
    for sound, result in zip(sounds, results, strict=True):
        texts = result.alternatives
        assert 1 <= len(texts) <= 3 and len(set(texts)) == len(texts)
        assert result.caption not in texts
        audio = tiny_clap.encode_audio([torch.from_numpy(sound[0]).float()])
        cosines = (tiny_clap.encode_text(texts) @ audio[0]).tolist()
        assert cosines == sorted(cosines, reverse=True)


def test_a_sound_is_located_before_and_after_the_bridge(
    captioner, tiny_clap, bridge, decoder, tiny_clap_folder
):
    sound = tone(440)
    audio, bridged = captioner.locate(sound, seed=2)
    expected = tiny_clap.encode_audio([torch.from_numpy(sound[0]).float()])
    torch.testing.assert_close(audio, expected[0])
    torch.testing.assert_close(bridged, bridge(expected, seeded(2, 0))[0])
    with pytest.raises(ValueError, match="silent"):
        captioner.locate((np.zeros(100), 16000))
    centered = C3(32)
    centered.fit(expected, -expected.flip(1))
    own = Captioner(tiny_clap, centered, decoder, str(tiny_clap_folder))
    back = own.locate(tone(900))[1]
    torch.testing.assert_close(back.norm(), torch.tensor(1.0))


def test_a_bad_sound_does_not_stop_the_others(captioner, files, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    bad = [text, tmp_path / "absent.wav", (np.zeros(800), 16000), (np.zeros(0), 16000)]
    results = captioner.caption([bad[0], files[0], *bad[1:], files[1]], batch_size=2)
    assert [r.error is None for r in results] == [False, True, *[False] * 3, True]
    assert results[0].error.startswith(f"{text} is undecodable")
    assert "silent" in results[3].error and "zero length" in results[4].error
    assert results[0].caption == "" and results[0].similarity is None
    assert results[0].as_dict()["alternatives"] == []
    json.dumps([result.as_dict() for result in results])


def test_nothing_to_caption_is_no_result(captioner):
    assert captioner.caption([]) == []


def test_own_text_is_not_read_raw(tiny_clap, tiny_clap_folder, decoder):
    captioner = Captioner(tiny_clap, C3(32), decoder, str(tiny_clap_folder))
    (result,) = captioner.caption([tone(440)], raw=True, max_new_tokens=4)
    assert result.caption is not None and result.raw_caption is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_array_is_heard_or_refused(captioner, data):
    """Length, rate, channels, type, NaN, clipping: features, or a reason."""
    kind = data.draw(st.sampled_from(["float32", "float64", "int16", "int32", "uint8"]))
    length = data.draw(st.integers(0, 3000))
    channels = data.draw(st.sampled_from([(), (1,), (2,), (6,)]))
    rate = data.draw(st.sampled_from([-1, 0, 1, 50, 8000, 16000, 44100, 192000]))
    seed, gain = (
        data.draw(st.integers(0, 99)),
        data.draw(st.sampled_from([0, 0.1, 1e9])),
    )
    samples = gain * np.random.default_rng(seed).normal(size=(length, *channels))
    if kind.startswith("float") and length and data.draw(st.booleans()):
        samples[data.draw(st.integers(0, length - 1))] = data.draw(
            st.sampled_from([np.nan, np.inf, -np.inf])
        )
    with np.errstate(invalid="ignore"):
        samples = samples.astype(kind)
    heard = captioner._hear((samples, rate))
    if isinstance(heard, BadAudio):
        assert "The array is" in str(heard)
    else:
        assert heard.isfinite().all() and np.isfinite(samples).all() and rate > 0


def test_clipped_short_and_long_sounds_are_captioned(captioner):
    loud = np.clip(50 * tone(440)[0], -1, 1)
    sounds = [(loud, 16000), (loud[9:10], 16000), (np.tile(loud, 90), 16000)]
    results = captioner.caption(sounds)
    assert [result.error for result in results] == [None] * 3


# Saving


def test_a_saved_captioner_writes_the_same_elsewhere(captioner, files, tmp_path):
    captioner.save_pretrained(tmp_path / "saved")
    written = captioner.caption(files, alternatives=2)
    program = (
        "import sys, json; from dlink_plugin import Captioner\n"
        "results = Captioner.from_pretrained(sys.argv[1]).caption("
        "sys.argv[2:], alternatives=2)\n"
        "print(json.dumps([r.as_dict() for r in results]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "saved", *files],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for mine, theirs in zip(written, found, strict=True):
        assert theirs["caption"] == mine.caption
        assert theirs["alternatives"] == list(mine.alternatives)
        assert theirs["similarity"] == pytest.approx(mine.similarity, abs=1e-5)


def test_the_folder_holds_json_and_safetensors_alone(captioner, tmp_path):
    captioner.save_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != "SHA256SUMS"}
    assert kinds <= {".json", ".safetensors", ".txt", ".md"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], config["clap"]) == ("captioner", "clap")
    card = (tmp_path / "README.md").read_text()
    assert "a test, 3 clips" in card and "| cider_d | 0.250 |" in card
    assert "python caption.py" in card and "license: mit" in card


def test_a_loaded_captioner_can_be_saved_elsewhere(captioner, tmp_path):
    captioner.save_pretrained(tmp_path / "one")
    Captioner.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    sound = tone(440)
    again = Captioner.from_pretrained(tmp_path / "two").caption([sound])
    assert [r.caption for r in again] == [r.caption for r in captioner.caption([sound])]


def test_the_mini_clap_is_named_not_copied(decoder, tmp_path):
    mini = load_encoder("mini")
    lm = decoder.config["lm"]
    own = PrefixDecoder(mini.dim, lm, lm_training="scratch")
    Captioner(mini, Identity(mini.dim), own, "mini").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["clap"] == "mini"
    assert not (tmp_path / "clap").exists()
    assert Captioner.from_pretrained(tmp_path).encoder.fingerprint == mini.fingerprint


def test_a_recipe_exports_without_a_bridge(tiny_clap_folder, decoder, tmp_path):
    hparams = {"clap": tiny_clap_folder, "generation": {"num_beams": 1}}
    result = {"data": "d", "clips": 3, "command": "c", "systems": {"none": {"x": 0.5}}}
    export_captioner(tmp_path, hparams, None, decoder, result, SENTENCES)
    loaded = Captioner.from_pretrained(tmp_path)
    assert type(loaded.bridge) is Identity
    assert loaded.generation == {"num_beams": 1}
    about = {"data": "d", "clips": 3, "command": "c", "scores": {"x": 0.5}}
    assert loaded.about == about
    assert loaded.texts == SENTENCES


# What goes wrong


def test_parts_of_different_widths_are_refused(tiny_clap, decoder):
    with pytest.raises(ValueError, match="gives 32 numbers, the bridge takes 16"):
        Captioner(tiny_clap, Identity(16), decoder, "x")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"kind": "bridge"}, "does not describe a captioner"),
        ({"format": 9}, "format 9"),
        ({"format": "9" * 9999}, "format '9.{1,40}' and"),
        ({"generation": None}, "no proper 'generation'"),
        ({"clap": ["a"]}, "no proper 'clap'"),
        ({"texts": ["a", 1]}, "no proper 'texts'"),
        ({"generation": {"num_beams": 10**9}}, "num_beams '1000000000'; give int from"),
        ({"generation": {"num_beams": 0}}, "num_beams '0'; give int from 1 to 100"),
        ({"generation": {"num_beams": 2.5}}, "num_beams '2.5'"),
        ({"generation": {"num_beams": True}}, "num_beams 'True'"),
        ({"generation": {"num_beams": [[3]]}}, r"num_beams '\[\[3\]\]'"),
        ({"generation": {"max_new_tokens": "9"}}, "max_new_tokens '9'; give int"),
        ({"generation": {"max_new_tokens": 1001}}, "from 1 to 1000"),
        ({"generation": {"temperature": float("nan")}}, "temperature 'nan'"),
        ({"generation": {"top_p": 2}}, "top_p '2'; give float from 0.01 to 1"),
        ({"generation": {"do_sample": "yes"}}, "do_sample 'yes'; give bool"),
        ({"generation": {"num_return_sequences": 9}}, "'num_return_sequences'.* none"),
        ({"generation": {"custom_generate": "a/b"}}, "'custom_generate'.* remove it"),
    ],
)
def test_an_altered_config_is_refused(captioner, tmp_path, changes, sentence):
    captioner.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=sentence):
        Captioner.from_pretrained(tmp_path)


def test_the_settings_of_the_recipes_can_be_loaded(captioner, tmp_path):
    generation = {
        "num_beams": 4,
        "max_new_tokens": 9,
        "repetition_penalty": 1,
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 0.9,
    }
    captioner.save_pretrained(tmp_path)
    unseal(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"generation": generation}
    path.write_text(json.dumps(config))
    loaded = Captioner.from_pretrained(tmp_path)
    assert loaded.generation == generation
    assert loaded.caption([tone(440)])[0].error is None


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "\ufeff{}", '{"a": "\\ud800"}']
)
def test_a_config_that_is_no_object_is_refused(captioner, tmp_path, content):
    captioner.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="config.json is not .*; save the captioner"):
        Captioner.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "missing",
    ["config.json", "bridge/config.json", "decoder/config.json",
     "bridge/model.safetensors"],
)  # fmt: skip
def test_a_missing_file_is_named(captioner, tmp_path, missing):
    captioner.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.split("/")[-1]):
        Captioner.from_pretrained(tmp_path)


def test_an_unknown_class_in_a_config_is_never_imported(captioner, tmp_path):
    captioner.save_pretrained(tmp_path)
    path = tmp_path / "bridge" / "config.json"
    config = json.loads(path.read_text()) | {"bridge": "os.system"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names the bridge 'os.system'"):
        Captioner.from_pretrained(tmp_path)
    assert "os.system" not in Bridge.registry


def test_a_hub_id_without_network_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="neither a folder nor a captioner"):
        Captioner.from_pretrained("nobody/no-such-captioner")
