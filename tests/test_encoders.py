import json
import os
import pickle
import shutil
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import ClapModel

from dlink_plugin.encoders import (
    ClapEncoder,
    LaionClapEncoder,
    LogMel,
    load_encoder,
)

from .conftest import SENTENCES, make_extractor

RATE = 16000  # of the tiny CLAP, whose window is 2 s


def tone(seconds, frequency=440.0, rate=RATE):
    time = torch.arange(round(seconds * rate)) / rate
    return (0.3 * torch.sin(2 * torch.pi * frequency * time)).float()


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    lengths = (0.4, 2.0, 2.05, 3.1, 5.0)
    return [
        tone(seconds, 200 * (i + 1))
        + 0.05 * torch.randn(round(seconds * RATE), generator=generator)
        for i, seconds in enumerate(lengths)
    ]


# The transformers CLAP


def test_embeddings_are_unit_vectors_that_tell_inputs_apart(tiny_clap, clips):
    for rows in (tiny_clap.encode_audio(clips), tiny_clap.encode_text(SENTENCES)):
        assert rows.shape[1] == tiny_clap.dim == 32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert torch.pdist(rows).min() > 0.01
        assert not rows.requires_grad


def test_a_long_clip_gives_the_same_vector_every_time(tiny_clap, clips):
    torch.manual_seed(1)
    np.random.seed(1)
    once = tiny_clap.encode_audio(clips)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(once, tiny_clap.encode_audio(clips))


def test_a_long_clip_is_the_mean_of_its_windows(tiny_clap, clips):
    clip = clips[4]  # 5 s: windows from 0, 1.5 and 3 s
    starts = (0, 24000, 48000)
    parts = tiny_clap.encode_audio([clip[start : start + 32000] for start in starts])
    expected = normalize(parts.mean(0), dim=0)
    assert torch.pdist(parts).min() > 1e-3
    torch.testing.assert_close(
        tiny_clap.encode_audio([clip])[0], expected, atol=1e-5, rtol=0
    )


def test_a_tail_under_a_tenth_of_a_second_is_dropped(tiny_clap, clips):
    clip = clips[2]  # 2.05 s
    torch.testing.assert_close(
        tiny_clap.encode_audio([clip]), tiny_clap.encode_audio([clip[:32000]])
    )
    assert len(tiny_clap.prepare_audio(tone(2.09))) == 1
    assert len(tiny_clap.prepare_audio(tone(2.1))) == 2


def test_results_do_not_depend_on_batches(tiny_clap_folder, clips):
    texts = [*SENTENCES, "x", "", "a very long caption, and on it goes " * 20]
    together = ClapEncoder(tiny_clap_folder, batch_size=32)
    alone = ClapEncoder(tiny_clap_folder, batch_size=1)
    for rows, single in (
        (together.encode_audio(clips), alone.encode_audio(clips)),
        (together.encode_text(texts), alone.encode_text(texts)),
        (
            together.encode_text(texts),
            torch.cat([together.encode_text([text]) for text in texts]),
        ),
    ):
        torch.testing.assert_close(rows, single, atol=1e-5, rtol=0)


def test_nothing_in_gives_nothing_out(tiny_clap):
    assert tiny_clap.encode_audio([]).shape == (0, 32)
    assert tiny_clap.encode_text([]).shape == (0, 32)


def test_a_bare_sentence_is_refused(tiny_clap):
    with pytest.raises(TypeError, match="list of sentences"):
        tiny_clap.encode_text("a dog barks")


def test_a_fusion_model_is_deterministic_too(make_clap, clips):
    encoder = ClapEncoder(make_clap(fusion=True))
    once = encoder.encode_audio(clips)
    assert encoder.prepare_audio(clips[4]).shape == (3, 4, 101, 32)
    assert torch.equal(once, encoder.encode_audio(clips))
    alone = torch.cat([encoder.encode_audio([clip]) for clip in clips])
    torch.testing.assert_close(once, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("fusion", [False, True])
def test_features_are_those_of_transformers(clips, fusion, padding):
    extractor = make_extractor(padding=padding)
    ours = LogMel(extractor, fusion)
    truncation = "fusion" if fusion else "rand_trunc"
    for clip in (*clips[:2], clips[0][:700]):
        theirs = extractor(
            clip.numpy(), truncation, max_length=32000, sampling_rate=RATE
        )["input_features"][0]
        expected = torch.as_tensor(np.asarray(theirs))
        torch.testing.assert_close(ours(clip), expected, atol=0.01, rtol=0)


def test_the_front_end_travels_without_the_model(tiny_clap, clips):
    packed = pickle.dumps(tiny_clap.front_end)
    assert len(packed) < 300_000
    features = pickle.loads(packed)(clips[4])
    assert torch.equal(features, tiny_clap.prepare_audio(clips[4]))


def test_half_precision_weights_run_in_single_precision(
    tiny_clap_folder, tmp_path, clips
):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    ClapModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["audio_projection.linear1.weight"].dtype == torch.float16
    encoder = ClapEncoder(tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    full = ClapEncoder(tiny_clap_folder).encode_audio(clips)
    assert (encoder.encode_audio(clips) * full).sum(1).min() > 0.999


# Fingerprint


def test_fingerprint_ignores_the_folder(tiny_clap_folder, tiny_clap, tmp_path):
    shutil.copytree(tiny_clap_folder, tmp_path / "elsewhere")
    moved = ClapEncoder(tmp_path / "elsewhere", batch_size=7)
    moved.encode_text(["a", "bb"])
    assert moved.fingerprint == tiny_clap.fingerprint
    assert len(moved.fingerprint) == 64


@pytest.mark.parametrize("what", ["weight", "windows", "features", "tokens"])
def test_fingerprint_tells_encoders_apart(tiny_clap_folder, tiny_clap, tmp_path, what):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    options = {}
    if what == "weight":
        weights = load_file(tmp_path / "model.safetensors")
        weights["audio_projection.linear1.bias"][0] += 1e-3
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    elif what == "windows":
        options = {"min_tail_s": 0.2}
    elif what == "features":
        replace_in(tmp_path / "preprocessor_config.json", "8000", "7000")
    elif what == "tokens":
        replace_in(tmp_path / "tokenizer_config.json", "64", "20")
    assert ClapEncoder(tmp_path, **options).fingerprint != tiny_clap.fingerprint


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# Frozen


def test_train_leaves_it_in_eval_mode(tiny_clap_folder):
    encoder = ClapEncoder(tiny_clap_folder)
    encoder.train()
    torch.nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_brain_that_holds_it_leaves_it_alone(tiny_clap_folder, clips):
    import speechbrain

    encoder = ClapEncoder(tiny_clap_folder)
    before = encoder.encode_audio(clips)

    class Brain(speechbrain.Brain):
        def compute_forward(self, batch, stage):
            assert not any(m.training for m in self.modules.encoder.modules())
            return self.modules.head(self.modules.encoder.encode_audio(clips))

        def compute_objectives(self, predictions, batch, stage):
            return predictions.square().mean()

    head = torch.nn.Linear(32, 2)
    start = head.weight.detach().clone()
    brain = Brain(
        {"encoder": encoder, "head": head},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    brain.fit(range(1), torch.utils.data.DataLoader([0, 0]), None)
    assert not torch.equal(head.weight, start)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(encoder.encode_audio(clips), before)


# What a user may get wrong


@pytest.mark.parametrize("name", ["no/such folder", "nobody/no-such-clap"])
def test_a_missing_clap_is_named(name):
    with pytest.raises(OSError, match="No complete CLAP at") as caught:
        ClapEncoder(name)
    assert name in str(caught.value)
    assert "mini" in str(caught.value)
    assert "license accepted on its page and `hf auth login`" in str(caught.value)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "preprocessor_config.json", "token"]
)
def test_an_incomplete_folder_is_named(tiny_clap_folder, tmp_path, file):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob(f"{file}*"):
        path.unlink()
    with pytest.raises(OSError, match=f"No complete CLAP at {tmp_path}"):
        ClapEncoder(tmp_path)


def test_pickled_weights_in_a_folder_are_not_read(tiny_clap_folder, tmp_path):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    torch.save(
        load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin"
    )
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        ClapEncoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"text_config": {"num_hidden_layers": 10**9}}),
        ("config.json", {"audio_config": {"depths": [10**9]}}),
        ("config.json", {"text_config": {"hidden_size": 10**7}}),
        ("config.json", {"projection_dim": "many"}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": 3}}),
        ("preprocessor_config.json", {"feature_size": -1}),
        ("preprocessor_config.json", {"feature_size": 2**31}),
        ("preprocessor_config.json", {"fft_window_size": 2**40}),
        ("preprocessor_config.json", {"hop_length": "many"}),
        ("preprocessor_config.json", {"hop_length": 0}),
        ("preprocessor_config.json", {"max_length_s": "a" * 9999}),
        ("preprocessor_config.json", {"max_length_s": 1, "sampling_rate": [[]]}),
        ("config.json", {"model_type": "a" * 9999}),
        ("config.json", {"text_config": {"vocab_size": 2**32}}),
    ],
)
def test_absurd_settings_are_one_sentence(tiny_clap_folder, tmp_path, name, changes):
    folder = shutil.copytree(tiny_clap_folder, tmp_path / "clap")
    content = json.loads((folder / name).read_text())
    for key, value in changes.items():
        old = content.get(key)
        content[key] = old | value if isinstance(old, dict) else value
    (folder / name).write_text(json.dumps(content))
    with pytest.raises((ValueError, OSError), match=str(folder)) as caught:
        load_encoder(folder)
    assert len(str(caught.value)) < 1000 + len(str(folder))


def test_a_model_larger_than_any_is_not_built(tiny_clap_folder, tmp_path):
    folder = shutil.copytree(tiny_clap_folder, tmp_path / "clap")
    replace_in(folder / "config.json", '"vocab_size": 300', f'"vocab_size": {2**25}')
    with pytest.raises(ValueError, match=f"{folder} is damaged; .* weights, more than"):
        load_encoder(folder)  # 4 GiB if it were built


def test_a_config_that_is_nested_too_deeply_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=f"The CLAP at {tmp_path} is damaged"):
        load_encoder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_pipe_is_not_waited_for(tiny_clap_folder, tmp_path, name):
    folder = shutil.copytree(tiny_clap_folder, tmp_path / "clap")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=f"{folder / name} is no file but a pipe"):
        ClapEncoder(folder)


def test_damaged_weights_are_named(tiny_clap_folder, tmp_path):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(OSError, match=str(tmp_path)):
        ClapEncoder(tmp_path)


def test_missing_tensors_are_refused(tiny_clap_folder, tmp_path):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.linear1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="text_projection.linear1.weight"):
        ClapEncoder(tmp_path)


@pytest.fixture
def clap_copy(tiny_clap_folder, tmp_path):
    return shutil.copytree(tiny_clap_folder, tmp_path / "clap")


def test_missing_statistics_are_refused(clap_copy):
    weights = load_file(clap_copy / "model.safetensors")
    del weights["audio_model.audio_encoder.batch_norm.running_mean"]
    save_file(weights, clap_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors .*batch_norm.running_mean"):
        ClapEncoder(clap_copy)


@pytest.mark.parametrize("damage", ["missing", "cut", "index"])
def test_half_downloaded_shards(clap_copy, damage):
    model = ClapModel.from_pretrained(clap_copy)
    (clap_copy / "model.safetensors").unlink()
    model.save_pretrained(clap_copy, max_shard_size="100KB")
    first, *more = sorted(clap_copy.glob("model-*.safetensors"))
    assert more
    whole = ClapEncoder(clap_copy)
    assert torch.equal(whole.model.logit_scale_a, model.logit_scale_a)
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-100])
    else:
        (clap_copy / "model.safetensors.index.json").write_text('{"weight_map"')
    with pytest.raises((OSError, ValueError), match=f"CLAP at {clap_copy}"):
        ClapEncoder(clap_copy)


def test_fusion_weights_and_a_config_without(make_clap, tmp_path):
    for fusion, sentence in (
        (True, "those of a fusion model, its config.json is not"),
        (False, "lack .* tensors .*fusion_model"),
    ):
        folder = shutil.copytree(make_clap(fusion=fusion), tmp_path / str(fusion))
        old, new = str(fusion).lower(), str(not fusion).lower()
        mark = '"enable_fusion": '
        replace_in(folder / "config.json", mark + old, mark + new)
        with pytest.raises(ValueError, match=f"The weights of {folder} .*{sentence}"):
            ClapEncoder(folder)


def test_a_tokenizer_without_a_padding_token_is_refused(clap_copy):
    content = json.loads((clap_copy / "tokenizer_config.json").read_text())
    del content["pad_token"]
    (clap_copy / "tokenizer_config.json").write_text(json.dumps(content))
    (clap_copy / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match="has no padding token, .*set pad_token"):
        ClapEncoder(clap_copy)


def test_a_tokenizer_of_a_larger_model_is_refused(clap_copy):
    tokenizer = ClapEncoder(clap_copy).tokenizer
    tokenizer.add_tokens([f"<new{i}>" for i in range(300)])
    tokenizer.save_pretrained(clap_copy)
    with pytest.raises(ValueError, match="tokens, its model 300; save the tokenizer"):
        ClapEncoder(clap_copy)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="is a gpt2 model; name a CLAP"):
        ClapEncoder(tmp_path)


def test_windows_that_do_not_fit_the_model_are_refused(tiny_clap_folder, tmp_path):
    shutil.copytree(tiny_clap_folder, tmp_path, dirs_exist_ok=True)
    replace_in(
        tmp_path / "preprocessor_config.json", '"hop_length": 320', '"hop_length": 160'
    )
    with pytest.raises(ValueError, match="201 frames and 32 mel bands"):
        ClapEncoder(tmp_path)


# The checkpoints of laion_clap


class StubModule(torch.nn.Module):
    """As laion_clap.CLAP_Module: random crops, embeddings that carry a gradient."""

    def __init__(self, enable_fusion=False, device=None, amodel="HTSAT-tiny"):
        super().__init__()
        assert device == "cpu"
        generator = torch.Generator().manual_seed(0)
        self.amodel, self.enable_fusion = amodel, enable_fusion
        width, patches = {"HTSAT-tiny": (8, 96), "HTSAT-base": (16, 128)}[amodel]
        self.model = torch.nn.Module()
        weight = torch.randn(480, width, generator=generator)
        self.model.weight = torch.nn.Parameter(weight)
        embed = {"proj": torch.nn.Conv2d(1, patches, 4)}
        if enable_fusion:
            embed["mel_conv2d"] = torch.nn.Conv2d(1, patches, (4, 12))
        embed = torch.nn.ModuleDict(embed)
        self.model.audio_branch = torch.nn.ModuleDict({"patch_embed": embed})
        self.dropout = torch.nn.Dropout(0.5)

    def load_ckpt(self, ckpt, verbose=True):
        raise AssertionError("laion_clap's own reader runs what a pickle says")

    def get_audio_embedding_from_data(self, x, use_tensor=False):
        assert use_tensor
        assert x.shape[1:] == (480_000,)  # whole windows: nothing to crop at random
        assert torch.equal((x * 32767).round() / 32767, x)  # 16-bit samples
        frames = self.dropout(x.reshape(len(x), -1, 480).abs().mean(1))
        return normalize(frames @ self.model.weight, dim=-1)

    def get_text_embedding(self, x, use_tensor=False):
        assert use_tensor and isinstance(x, list)
        counts = torch.tensor([[text.count(c) for c in "abcdefgh"] for text in x])
        return normalize(counts.float() @ self.model.weight[:8] + 0.1, dim=-1)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    stub = types.ModuleType("laion_clap")
    stub.CLAP_Module = StubModule
    monkeypatch.setitem(sys.modules, "laion_clap", stub)
    return save_checkpoint(tmp_path / "630k-audioset-best.pt", 0)


def save_checkpoint(path, seed, prefix="module.", model=None, **beside):
    """As laion_clap's training left them: with an epoch, a score, an optimizer."""
    torch.manual_seed(seed)
    held = {k: torch.randn_like(v) for k, v in stub_state(**(model or {})).items()}
    held["text_branch.embeddings.position_ids"] = torch.arange(3)
    state = {f"{prefix}{name}": tensor for name, tensor in held.items()}
    score = np.float64(0.5), np.float32(0.5), np.int64(3)
    whole = {"epoch": 3, "score": score, "state_dict": state, "name": "a", **beside}
    torch.save(whole, path)
    return path


def stub_state(**options):
    return StubModule(device="cpu", **options).model.state_dict()


class MakesAFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_laion_clap_checkpoint_runs_no_code(checkpoint, tmp_path):
    made = tmp_path / "made"
    path = save_checkpoint(tmp_path / "hostile.pt", 0, optimizer=MakesAFolder(made))
    with pytest.raises(ValueError, match="is not a checkpoint of weights alone"):
        load_encoder(path)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # what laion_clap's own reader would have done


def test_laion_clap_checkpoint_that_was_cut_off(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(ValueError, match="is not a checkpoint of weights alone; fetch"):
        load_encoder(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"no checkpoint" * 100, b"\x80\x02.", bytes(10_240)],
    ids=["empty", "zip", "text", "pickle", "zeros"],
)
def test_laion_clap_checkpoint_that_is_none(checkpoint, content):
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of weights alone"):
        load_encoder(checkpoint)


def test_laion_clap_checkpoint_that_is_a_tar_archive_makes_no_folder(
    checkpoint, monkeypatch
):
    monkeypatch.setattr(tempfile, "mkdtemp", None)
    checkpoint.write_bytes(bytes(10_240))  # the end of an archive, and nothing before
    with pytest.raises(ValueError, match="torch did not save it"):
        load_encoder(checkpoint)


def test_laion_clap_checkpoint_with_and_without_wrapping(checkpoint, tmp_path):
    plain = save_checkpoint(tmp_path / "plain.pt", 0, prefix="")
    torch.save(load_encoder(plain).model.model.state_dict(), tmp_path / "bare.pt")
    prints = {load_encoder(tmp_path / n).fingerprint for n in ("plain.pt", "bare.pt")}
    assert prints == {load_encoder(checkpoint).fingerprint}


def test_laion_clap_keeps_the_contract(checkpoint):
    encoder = load_encoder(checkpoint)
    assert isinstance(encoder, LaionClapEncoder)
    assert (encoder.dim, encoder.sample_rate) == (8, 48000)
    encoder.train()
    clips = [tone(seconds, 300 * seconds, 48000) for seconds in (1, 10, 10.05, 23)]
    assert [len(encoder.prepare_audio(clip)) for clip in clips] == [1, 1, 1, 3]
    audio = encoder.encode_audio(clips)
    assert not audio.requires_grad
    assert torch.equal(audio, encoder.encode_audio(clips))
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(4))
    text = encoder.encode_text(["a dog barks", "rain", "bees"])
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    assert not text.requires_grad


def test_laion_clap_repeats_a_short_clip_to_fill_the_window(checkpoint):
    encoder = LaionClapEncoder(checkpoint)
    clip = torch.tensor([0.5, -0.25, 2.0]).repeat(70_000)  # 2.0 is clipped
    window = encoder.prepare_audio(clip)[0]
    expected = torch.tensor([0.5, -0.25, 1.0]).repeat(140_000)
    torch.testing.assert_close(window[:420_000], expected, atol=1 / 32767, rtol=0)
    assert not window[420_000:].any()


def test_laion_clap_fingerprint_follows_the_checkpoint(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "other.ckpt", 1)
    prints = {
        load_encoder(checkpoint).fingerprint,
        load_encoder(checkpoint, min_tail_s=0.5).fingerprint,
        load_encoder(tmp_path / "other.ckpt").fingerprint,
    }
    assert len(prints) == 3
    assert load_encoder(str(checkpoint)).fingerprint in prints


@pytest.mark.parametrize("amodel", ["HTSAT-tiny", "HTSAT-base"])
@pytest.mark.parametrize("fusion", [False, True])
def test_laion_clap_takes_the_architecture_from_the_file(checkpoint, amodel, fusion):
    model = {"amodel": amodel, "enable_fusion": fusion}
    encoder = load_encoder(save_checkpoint(checkpoint, 0, model=model))
    assert encoder.settings == model
    told = LaionClapEncoder(checkpoint, **model)
    assert told.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("fusion", [False, True])
def test_laion_clap_names_a_checkpoint_that_does_not_fit(checkpoint, fusion):
    save_checkpoint(checkpoint, 0, model={"enable_fusion": fusion})
    with pytest.raises(ValueError, match="does not fit laion_clap's HTSAT-base"):
        LaionClapEncoder(checkpoint, amodel="HTSAT-base")
    with pytest.raises(
        ValueError, match=f"enable_fusion={not fusion}; .*mel_conv2d"
    ) as e:
        LaionClapEncoder(checkpoint, enable_fusion=not fusion)
    assert "\n" not in str(e.value)


def test_laion_clap_checkpoint_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pt; download"):
        load_encoder(tmp_path / "missing.pt")


def test_laion_clap_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "laion_clap", None)
    (tmp_path / "a.pt").touch()
    with pytest.raises(ImportError, match=r"pip install 'dlink-plugin\[clap\]'"):
        load_encoder(tmp_path / "a.pt")


def test_everything_else_is_a_transformers_clap(tiny_clap_folder, tiny_clap):
    encoder = load_encoder(str(tiny_clap_folder), min_tail_s=0.1)
    assert encoder.fingerprint == tiny_clap.fingerprint
