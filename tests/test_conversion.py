import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast

from dlink_plugin.conversion import config_of, convert_clap, renamed
from dlink_plugin.encoders import ClapEncoder, blueprint

from .conftest import SENTENCES

ROOT = Path(__file__).parents[1]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = [*SENTENCES, "rain", "on and on it goes, " * 40]
SMALL = {"patches": 16, "depths": (1, 2), "heads": (2, 4), "width": 64, "layers": 2}
TINY = {"patches": 96, "depths": (2, 2, 6, 2), "heads": (4, 8, 16, 32)}
BASE = {"patches": 128, "depths": (2, 2, 12, 2), "heads": (4, 8, 16, 32)}


def write_roberta(folder):
    """A tokenizer in the shape of RoBERTa's, as it was published."""
    folder.mkdir(exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        SENTENCES * 2, 300, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    return write_roberta(tmp_path_factory.mktemp("roberta"))


# What laion_clap's models hold, written down from its source: its name, the name or
# names of transformers, the shape.


def pair(theirs, ours, rows, *columns):
    """A weight and a bias."""
    yield f"{theirs}.weight", f"{ours}.weight", (rows, *columns)
    yield f"{theirs}.bias", f"{ours}.bias", (rows,)


def same(name, rows, *columns):
    return pair(name, name.replace("text_branch", "text_model"), rows, *columns)


def running(theirs, ours, rows):
    for name in ("running_mean", "running_var"):
        yield f"{theirs}.{name}", f"{ours}.{name}", (rows,)
    name = "num_batches_tracked"
    yield f"{theirs}.{name}", f"{ours}.{name}", ()


def text_tower(words, width, layers, joint):
    where = "text_branch.embeddings"
    for name, rows in (("word", words), ("position", 514), ("token_type", 1)):
        weight = f"{where}.{name}_embeddings.weight"
        yield weight, weight.replace("text_branch", "text_model"), (rows, width)
    yield from same(f"{where}.LayerNorm", width)
    for i in range(layers):
        layer = f"text_branch.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            yield from same(f"{layer}.attention.self.{name}", width, width)
        yield from same(f"{layer}.attention.output.dense", width, width)
        yield from same(f"{layer}.attention.output.LayerNorm", width)
        yield from same(f"{layer}.intermediate.dense", 4 * width, width)
        yield from same(f"{layer}.output.dense", width, 4 * width)
        yield from same(f"{layer}.output.LayerNorm", width)
    yield from same("text_branch.pooler.dense", width, width)
    yield from projections("text", width, joint)


def projections(kind, width, joint):
    name = f"{kind}_projection"
    yield from pair(f"{name}.0", f"{name}.linear1", joint, width)
    yield from pair(f"{name}.2", f"{name}.linear2", joint, joint)


def block(theirs, ours, width, heads):
    yield from pair(f"{theirs}.norm1", f"{ours}.layernorm_before", width)
    table = "relative_position_bias_table"
    yield f"{theirs}.attn.{table}", f"{ours}.attention.self.{table}", (225, heads)
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        parts = [f"{ours}.attention.self.{n}.{kind}" for n in ("query", "key", "value")]
        yield f"{theirs}.attn.qkv.{kind}", parts, shape
    yield from pair(
        f"{theirs}.attn.proj", f"{ours}.attention.output.dense", width, width
    )
    yield from pair(f"{theirs}.norm2", f"{ours}.layernorm_after", width)
    yield from pair(f"{theirs}.mlp.fc1", f"{ours}.intermediate.dense", 4 * width, width)
    yield from pair(f"{theirs}.mlp.fc2", f"{ours}.output.dense", width, 4 * width)


def audio_tower(patches, depths, heads, fusion, joint):
    theirs, ours = "audio_branch", "audio_model.audio_encoder"
    yield from pair(f"{theirs}.bn0", f"{ours}.batch_norm", 64)
    yield from running(f"{theirs}.bn0", f"{ours}.batch_norm", 64)
    embed = f"{theirs}.patch_embed", f"{ours}.patch_embed"
    yield from pair(*(f"{e}.proj" for e in embed), patches, 1, 4, 4)
    yield from pair(*(f"{e}.norm" for e in embed), patches)
    if fusion:
        yield from pair(*(f"{e}.mel_conv2d" for e in embed), patches, 1, 4, 12)
        for kind, first in (("local_att", 0), ("global_att", 1)):
            steps = (patches // 4, patches), (patches, patches // 4)
            for i, (rows, columns) in zip((first, first + 3), steps, strict=True):
                conv = [f"{e}.fusion_model.{kind}.{i}" for e in embed]
                norm = [f"{e}.fusion_model.{kind}.{i + 1}" for e in embed]
                yield from pair(*conv, rows, columns, 1, 1)
                yield from pair(*norm, rows)
                yield from running(*norm, rows)
    for i, (depth, number) in enumerate(zip(depths, heads, strict=True)):
        width, layer = patches * 2**i, f"layers.{i}"
        for j in range(depth):
            names = [f"{t}.{layer}.blocks.{j}" for t in (theirs, ours)]
            yield from block(*names, width, number)
        if i < len(depths) - 1:
            merging = [f"{t}.{layer}.downsample" for t in (theirs, ours)]
            yield (*(f"{m}.reduction.weight" for m in merging), (2 * width, 4 * width))
            yield from pair(*(f"{m}.norm" for m in merging), 4 * width)
    last = patches * 2 ** (len(depths) - 1)
    yield from pair(f"{theirs}.norm", f"{ours}.norm", last)
    yield from projections("audio", last, joint)


def tensors(patches, depths, heads, fusion, width, layers, words, joint):
    for name in ("logit_scale_a", "logit_scale_t"):
        yield name, name, ()
    yield from text_tower(words, width, layers, joint)
    yield from audio_tower(patches, depths, heads, fusion, joint)


def left_out(joint):
    """What only laion_clap needs, its name and shape."""
    yield "audio_branch.spectrogram_extractor.stft.conv_real.weight", (513, 1, 8)
    yield "audio_branch.spectrogram_extractor.stft.conv_imag.weight", (513, 1, 8)
    yield "audio_branch.tscam_conv.weight", (527, 32, 2, 3)
    yield "audio_branch.tscam_conv.bias", (527,)
    yield "audio_branch.head.weight", (527, 527)
    yield "audio_branch.head.bias", (527,)
    yield "audio_branch.layers.0.blocks.0.attn.relative_position_index", (64, 64)
    yield "audio_branch.layers.1.blocks.1.attn_mask", (16, 64, 64)
    for kind in ("audio", "text"):
        for i in (0, 3):
            yield f"{kind}_transform.sequential.{i}.weight", (joint, joint)
            yield f"{kind}_transform.sequential.{i}.bias", (joint,)


def random_state(words, fusion=False, joint=48, **sizes):
    """A state dict of laion_clap, and what it should become."""
    draw = torch.Generator().manual_seed(0)
    state, expected = {}, {}
    for theirs, ours, shape in tensors(
        fusion=fusion, joint=joint, words=words, **{**SMALL, **sizes}
    ):
        tensor = 0.3 * torch.randn(shape, generator=draw)
        tensor = tensor.abs() + 30 if "running_var" in theirs else tensor
        tensor = tensor.long() if "num_batches" in theirs else tensor
        state[theirs] = tensor
        if isinstance(ours, str):
            expected[ours] = tensor
            continue
        third = len(tensor) // 3
        for i, name in enumerate(ours):
            expected[name] = tensor[i * third : (i + 1) * third]
    state |= {name: torch.zeros(shape) for name, shape in left_out(joint)}
    return state, expected


@pytest.fixture(scope="module")
def words(roberta):
    return len(json.loads((roberta / "vocab.json").read_text()))


@pytest.fixture
def checkpoint(tmp_path, words):
    return save(tmp_path / "small.pt", random_state(words)[0])


def save(path, state):
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def clips():
    """Three windows of 10 s whose samples are those of 16 bits."""
    draw = torch.Generator().manual_seed(1)
    time = torch.arange(480_000) / 48_000
    noise = torch.randn(480_000, generator=draw)
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time) + 0.05 * noise
    fading = 0.25 * noise.clamp(-3, 3) * torch.exp(-time)
    rising = 0.2 * torch.sin(2 * torch.pi * 500 * time * (1 + time))
    return torch.stack([tone, fading, rising])


# Names and sizes


@pytest.mark.parametrize("fusion", [False, True])
def test_every_tensor_gets_its_name(fusion):
    state, expected = random_state(300, fusion)
    weights = renamed(state)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("sizes", [TINY, BASE], ids=["tiny", "base"])
def test_the_true_sizes_are_found(sizes, fusion):
    roberta = {"words": 50265, "width": 768, "layers": 12, "joint": 512}
    state = {
        name: torch.empty(shape, device="meta")
        for name, _, shape in tensors(fusion=fusion, **roberta, **sizes)
    }
    config = config_of(state)
    text, audio = config.text_config, config.audio_config
    assert tuple(audio.depths) == sizes["depths"]
    assert audio.hidden_size == 8 * sizes["patches"]
    assert audio.enable_fusion == fusion
    assert (text.num_hidden_layers, text.num_attention_heads) == (12, 12)
    assert (text.vocab_size, config.projection_dim) == (50265, 512)
    assert text.layer_norm_eps == 1e-5  # in the config.json of roberta-base
    found = {name: weight.shape for name, weight in renamed(state).items()}
    wanted = {
        name: weight.shape
        for name, weight in blueprint(config).state_dict().items()
        if name.rpartition(".")[2]
        not in ("relative_position_index", "position_ids", "token_type_ids")
    }
    assert found == wanted


# The folder


@pytest.mark.parametrize("fusion", [False, True])
def test_a_converted_folder_is_a_clap(tmp_path, roberta, words, clips, fusion):
    state, expected = random_state(words, fusion)
    path = save(tmp_path / "small.pt", state)
    config = convert_clap(path, tmp_path / "clap", roberta)
    assert {path.name for path in tmp_path.iterdir()} == {"small.pt", "clap"}
    encoder = ClapEncoder(tmp_path / "clap")
    held = encoder.model.state_dict()
    assert all(torch.equal(held[name], expected[name]) for name in expected)
    assert encoder.dim == config.projection_dim == 48
    assert encoder.max_tokens == 77
    assert (encoder.sample_rate, encoder.front_end.window) == (48_000, 480_000)
    assert encoder.prepare_audio(clips[0]).shape == (1, 4 if fusion else 1, 1001, 64)
    for rows in (encoder.encode_audio(list(clips)), encoder.encode_text(TEXTS)):
        assert rows.isfinite().all() and torch.pdist(rows).min() > 1e-3


def test_the_extractor_is_that_of_the_model(tmp_path, roberta, words):
    for fusion, truncation in ((False, "rand_trunc"), (True, "fusion")):
        path = save(tmp_path / "a.pt", random_state(words, fusion)[0])
        convert_clap(path, tmp_path / truncation, roberta)
        written = tmp_path / truncation / "preprocessor_config.json"
        settings = json.loads(written.read_text())
        assert settings["truncation"] == truncation
        assert (settings["frequency_min"], settings["frequency_max"]) == (50, 14_000)
        assert settings["padding"] == "repeatpad"


def test_wrapped_and_cleaned_checkpoints_give_the_same(tmp_path, roberta, words):
    state, _ = random_state(words)
    positions = {"text_branch.embeddings.position_ids": torch.arange(514)[None]}
    wrapped = {f"module.{name}": each for name, each in (state | positions).items()}
    save(tmp_path / "wrapped.pt", wrapped)
    torch.save(state, tmp_path / "bare.pt")
    prints = set()
    for name in ("wrapped", "bare"):
        convert_clap(tmp_path / f"{name}.pt", tmp_path / name, roberta)
        prints.add(ClapEncoder(tmp_path / name).fingerprint)
    assert len(prints) == 1


def test_an_empty_folder_may_be_there(tmp_path, roberta, checkpoint):
    (tmp_path / "clap").mkdir()
    convert_clap(checkpoint, tmp_path / "clap", roberta)
    assert (tmp_path / "clap" / "config.json").is_file()


# What a user may get wrong: one sentence, and nothing is written


def refused(tmp_path, error, sentence, checkpoint, roberta):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=sentence) as caught:
        convert_clap(checkpoint, tmp_path / "clap", roberta)
    assert sorted(tmp_path.iterdir()) == before
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "logit_scale_a",
        "audio_branch.bn0.running_mean",
        "audio_branch.layers.1.blocks.0.mlp.fc1.bias",
        "text_branch.encoder.layer.0.output.dense.weight",
        "text_projection.0.weight",
        "audio_branch.patch_embed.proj.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, roberta, checkpoint, words, name):
    state, _ = random_state(words)
    shape = tuple(state.pop(name).shape)
    save(checkpoint, state)
    last = name.rpartition(".")[2]
    refused(tmp_path, ValueError, rf"small.pt is not .*{last}", checkpoint, roberta)
    save(checkpoint, state | {name: torch.zeros(*shape, 2)})
    refused(tmp_path, ValueError, rf"small.pt is not .*{last}", checkpoint, roberta)


@pytest.mark.parametrize(
    "name",
    [
        "audio_branch.conv_block1.conv1.weight",  # another audio tower, PANN
        "audio_branch.layers.0.blocks.0.attn.unheard",
        "text_branch.shared.weight",  # another text tower, BART
        "audio_branch.patch_embed.fusion_model.local_att2.0.weight",  # another fusion
        "weight",
    ],
)
def test_an_unknown_tensor_is_named(tmp_path, roberta, checkpoint, words, name):
    save(checkpoint, random_state(words)[0] | {name: torch.ones(2)})
    last = name.rpartition(".")[2]
    refused(tmp_path, ValueError, rf"small.pt is not .*{last}", checkpoint, roberta)


def test_a_fusion_model_that_lost_its_mark_is_refused(
    tmp_path, roberta, checkpoint, words
):
    state, _ = random_state(words, fusion=True)
    for kind in ("weight", "bias"):
        del state[f"audio_branch.patch_embed.mel_conv2d.{kind}"]
    save(checkpoint, state)
    refused(tmp_path, ValueError, "patch_embed.fusion_model", checkpoint, roberta)


def test_filters_of_other_frequencies_are_refused(tmp_path, roberta, checkpoint, words):
    filters = {"audio_branch.logmel_extractor.melW": torch.rand(513, 64)}
    save(checkpoint, random_state(words)[0] | filters)
    refused(tmp_path, ValueError, "melW is not the filters", checkpoint, roberta)


def test_a_checkpoint_that_was_cut_off(tmp_path, roberta, checkpoint):
    content = checkpoint.read_bytes()
    for part in (0, 3, 100, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:part])
        refused(tmp_path, ValueError, "small.pt is not a checkpoint of weights alone",
                checkpoint, roberta)  # fmt: skip


def test_a_checkpoint_that_is_not_there(tmp_path, roberta):
    missing = tmp_path / "no.pt"
    refused(tmp_path, FileNotFoundError, "No checkpoint at .*no.pt", missing, roberta)


@pytest.mark.parametrize("content", [{"state_dict": {"a": 3}}, {"state_dict": 3}, [1]])
def test_a_checkpoint_without_tensors(tmp_path, roberta, content):
    torch.save(content, tmp_path / "odd.pt")
    refused(tmp_path, ValueError, "odd.pt is not a checkpoint of weights",
            tmp_path / "odd.pt", roberta)  # fmt: skip


@pytest.mark.parametrize("name", ["roberta-base", "no/folder", "empty"])
def test_without_a_tokenizer(tmp_path, checkpoint, name):
    source = tmp_path / name
    source.mkdir() if name == "empty" else None
    source = source if name == "empty" else name
    sentence = f"No tokenizer of RoBERTa at .*{name}; .*--tokenizer"
    refused(tmp_path, OSError, sentence, checkpoint, source)


def test_a_tokenizer_of_another_model(tmp_path, checkpoint, roberta, tiny_clap_folder):
    sentence = "for <s>, <pad> and </s>"
    refused(tmp_path, ValueError, sentence, checkpoint, tiny_clap_folder)
    longer = RobertaTokenizerFast.from_pretrained(roberta)
    longer.add_tokens(["<more>"])
    longer.save_pretrained(tmp_path / "longer")
    refused(tmp_path, ValueError, "the checkpoint's text tower", checkpoint,
            tmp_path / "longer")  # fmt: skip


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_there_stays(tmp_path, roberta, checkpoint, name):
    target = tmp_path / "clap"
    if name == "folder":
        target.mkdir()
        target = target / "mine.txt"
    target.write_text("mine")
    sentence = "clap is there and not empty"
    refused(tmp_path, FileExistsError, sentence, checkpoint, roberta)
    assert target.read_text() == "mine"


def test_no_room(tmp_path, roberta, checkpoint, monkeypatch):
    def full(self, folder, **options):
        Path(folder).mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RobertaTokenizerFast, "save_pretrained", full)
    sentence = r"clap cannot be written \(No space left"
    refused(tmp_path, OSError, sentence, checkpoint, roberta)


# The same embeddings as laion_clap's


@pytest.mark.parametrize(
    "amodel, fusion, layers",  # of RoBERTa's twelve layers; the others are alike
    [
        ("HTSAT-tiny", "", 12),
        ("HTSAT-tiny", "fusion", 2),
        ("HTSAT-base", "", 2),
        ("HTSAT-base", "fusion", 2),
    ],
)
def test_embeddings_are_those_of_laion_clap(
    tmp_path, roberta, clips, amodel, fusion, layers
):
    if importlib.util.find_spec("laion_clap") is None:
        pytest.skip("laion_clap is not installed")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((roberta / name).read_bytes())
    np.save(tmp_path / "clips.npy", clips.numpy())
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    options = map(str, (tmp_path, amodel, fusion, layers))
    done = subprocess.run(
        [sys.executable, "-m", "tests.laion_route", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 3:
        pytest.skip(f"laion_clap cannot be imported: {done.stdout.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "embeddings.npz")
    config = convert_clap(tmp_path / "checkpoint.pt", tmp_path / "clap", roberta)
    (tmp_path / "checkpoint.pt").unlink()  # half a gigabyte
    assert config.audio_config.enable_fusion == bool(fusion)
    encoder = ClapEncoder(tmp_path / "clap")
    audio = encoder.encode_audio(list(clips)).numpy()
    text = encoder.encode_text(TEXTS).numpy()
    for rows in (theirs["audio"], theirs["text"]):  # they tell their inputs apart
        assert (rows @ rows.T - np.eye(len(rows))).max() < 0.99
    assert np.abs(theirs["audio"] - audio).max() < 1e-5
    assert np.abs(theirs["text"] - text).max() < 1e-5
    # The encoder of the file itself rounds to 16 bits, as laion_clap does with arrays.
    assert np.abs(theirs["audio_16_bit"] - theirs["encoder_audio"]).max() < 1e-6
    assert np.abs(theirs["text"] - theirs["encoder_text"]).max() < 1e-6
    assert (theirs["audio_16_bit"] * audio).sum(1).min() > 0.999
