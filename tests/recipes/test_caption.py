import csv
import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlink_plugin.bridges import C3, Bridge, DiffusionLink, MeanShift
from dlink_plugin.captioner import Captioner
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.encoders import load_encoder
from dlink_plugin.mini.language import write_lm

from ..conftest import write_clip
from .conftest import ROOT, environment, flags, run_recipe, start_recipe

ZERO_SHOT = ("recipes/AudioCaps/caption.py", "hparams/zero_shot.yaml")
SUPERVISED = ("recipes/AudioCaps/caption.py", "hparams/supervised.yaml")
CLOTHO = ("recipes/Clotho/zero_shot.py", "hparams/clotho_zero_shot.yaml")
TIER_1 = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "vocab"}
SMALL_LM = "{vocab_size: 300, width: 16, layers: 1, heads: 2, dropout: 0.0}"


@pytest.fixture(scope="module")
def bridge_folder(tmp_path_factory):
    """A bridge of the right width, which is all that a recipe can see of it."""
    folder = tmp_path_factory.mktemp("bridge")
    torch.manual_seed(0)
    DiffusionLink(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(small_tree, tiny_clap_folder, bridge_folder):
    """Command-line options of a run of seconds; embeddings are cached in between."""

    def make(output, **changes):
        values = {
            "data_folder": small_tree,
            "clap": tiny_clap_folder,
            "cache_folder": small_tree / "cache",
            "output_folder": output,
            "bridge": bridge_folder,
            "mini_lm": SMALL_LM,
            "number_of_epochs": 2,
            "batch_size": 8,
            "ckpt_interval_steps": 2,
            "log_every": 1,
            "num_beams": 2,
            "max_new_tokens": 8,
            "num_workers": 0,
            **changes,
        }
        values = {k: v for k, v in values.items() if v is not None}
        return flags(values)

    return make


@pytest.fixture(scope="module")
def zero_shot_run(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    finished = run_recipe(*ZERO_SHOT, *options(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_zero_shot_leaves_everything_behind(zero_shot_run):
    folder, printed = zero_shot_run
    result = scores(folder)
    systems = {"none", "mean_shift", "diffusion_link", "ceiling", "noise_trained"}
    assert result["clips"] == 12 and set(result["systems"]) == systems
    assert all(TIER_1 <= row.keys() for row in result["systems"].values())
    assert result["tokenizer"] and result["skipped"].keys() & {"fense", "spice"}
    assert result["skipped_clips"] == [] and result["rows_without_audio"] == 0
    assert "12 clips" in printed and "| diffusion_link |" in printed

    rows = table(folder / "predictions.csv")
    assert list(rows[0]) == ["fname", "caption_predicted"] + [
        f"caption_{k}" for k in range(1, 6)
    ]
    assert len(rows) == 12 and all("minitest" in row["fname"] for row in rows)
    others = {path.stem for path in folder.glob("predictions_*.csv")}
    assert others == {f"predictions_{name}" for name in systems - {"diffusion_link"}}

    decoder = PrefixDecoder.from_pretrained(folder / "decoder")
    assert decoder.dim == 32
    captioner = Captioner.from_pretrained(folder / "captioner")
    assert captioner.bridge.name == "diffusion_link"
    assert captioner.generation["num_beams"] == 2
    assert captioner.about["scores"] == result["systems"]["diffusion_link"]
    assert "caption.py hparams/zero_shot.yaml" in captioner.about["command"]
    assert isinstance(Bridge.from_pretrained(folder / "mean_shift"), MeanShift)


def test_tensorboard_shows_captions_and_scores(zero_shot_run):
    folder, _ = zero_shot_run
    events = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/learning_rate", "valid/loss", "valid/perplexity",
            "valid/cider_d_text", "valid/cider_d_none",
            "valid/cider_d_diffusion_link"} <= set(tags["scalars"])  # fmt: skip
    texts = {"valid/captions", "run/scores", "run/captions"}
    assert {f"{text}/text_summary" for text in texts} <= set(tags["tensors"])
    log = (folder / "train_log.txt").read_text()
    assert "run: noise_trained, epoch: 2" in log and "valid perplexity: " in log


def is_inside_an_epoch(meta):
    try:
        return "intra" in meta.read_text().lower()
    except FileNotFoundError:  # a newer one took its place in between
        return False


def wait_for_checkpoint_inside_an_epoch(folder, process):
    for _ in range(4000):
        if any(map(is_inside_an_epoch, folder.glob("save/CKPT*/CKPT.yaml"))):
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("no checkpoint inside an epoch appeared")


def test_a_killed_run_ends_with_the_same_scores(zero_shot_run, options, tmp_path):
    process = start_recipe(*ZERO_SHOT, *options(tmp_path))
    try:
        wait_for_checkpoint_inside_an_epoch(tmp_path / "noise_trained", process)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "scores.json").exists()
    assert run_recipe(*ZERO_SHOT, *options(tmp_path)).returncode == 0
    whole = zero_shot_run[0]
    assert scores(tmp_path)["systems"] == scores(whole)["systems"]
    assert table(tmp_path / "predictions.csv") == table(whole / "predictions.csv")


def test_supervised_trains_one_decoder_for_each_input(options, tmp_path):
    changes = {"passes_per_epoch": 1, "patience": 1}
    finished = run_recipe(*SUPERVISED, *options(tmp_path, **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    systems = {"none", "mean_shift", "diffusion_link", "ceiling"}
    assert set(scores(tmp_path)["systems"]) == systems
    for folder in ("text", "none", "mean_shift", "ceiling", "."):
        assert any((tmp_path / folder / "save").glob("CKPT*/decoder.ckpt")), folder
    assert PrefixDecoder.from_pretrained(tmp_path / "decoder").dim == 32


def test_supervised_starts_from_a_folder(zero_shot_run, options, tmp_path):
    few = {"passes_per_epoch": 1, "number_of_epochs": 1, "controls": False}
    start = zero_shot_run[0] / "decoder"
    finished = run_recipe(*SUPERVISED, *options(tmp_path, start=start, **few))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert set(scores(tmp_path)["systems"]) == {"none", "diffusion_link"}
    assert scores(tmp_path)["recovered"] == {}
    assert not (tmp_path / "text").exists()


def test_supervised_mixes_text_and_draws_in(options, tmp_path):
    few = {"number_of_epochs": 1, "controls": False, "start": "none", "mixed_draws": 2}
    ways = {"choose": "[average, clap]", "draws": 2, "scored": "val"}
    finished = run_recipe(*SUPERVISED, *options(tmp_path, **few, **ways))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert scores(tmp_path)["data"].startswith("audiocaps val")
    assert all("minival" in row["fname"] for row in table(tmp_path / "predictions.csv"))
    chosen = {"diffusion_link_average", "diffusion_link_clap"}
    assert set(scores(tmp_path)["systems"]) == {"none", "diffusion_link"} | chosen


@pytest.mark.parametrize(
    "changes, systems",
    [
        ({"bridge": "none"}, {"none", "mean_shift", "ceiling"}),
        ({"corpus": "clotho"}, {"none", "mean_shift", "diffusion_link", "ceiling"}),
        (
            {"choose": "[cider_d]", "draws": 3},
            {"none", "mean_shift", "diffusion_link", "ceiling"}
            | {"none_cider_d", "diffusion_link_cider_d"},
        ),
    ],
)
def test_zero_shot_variants(options, tmp_path, changes, systems):
    changes = {"controls": False, "number_of_epochs": 1, **changes}
    finished = run_recipe(*ZERO_SHOT, *options(tmp_path, **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = scores(tmp_path)
    assert set(result["systems"]) == systems
    assert result["clips"] == (6 if "corpus" in changes else 12)
    assert (tmp_path / "predictions.csv").is_file()


def test_clotho_is_captioned_with_what_audiocaps_trained(
    zero_shot_run, options, tmp_path
):
    keys = ("data_folder", "clap", "cache_folder", "num_workers", "num_beams")
    values = options(tmp_path)
    pairs = zip(values[::2], values[1::2], strict=True)
    chosen = [p for k, v in pairs if k[2:] in {*keys, "bridge"} for p in (k, v)]
    finished = run_recipe(
        *CLOTHO, *chosen, "--output_folder", tmp_path, "--trained", zero_shot_run[0]
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = scores(tmp_path)
    assert result["clips"] == 6 and "clotho" in result["data"]
    assert set(result["systems"]) == {"none", "mean_shift", "diffusion_link", "ceiling"}
    assert len(table(tmp_path / "predictions.csv")) == 6
    assert not (tmp_path / "save").exists()


@pytest.fixture(scope="module")
def own_text_run(options, tmp_path_factory):
    """Zero-shot through C3, which has noise and a text space of its own."""
    folder = tmp_path_factory.mktemp("c3")
    bridge = C3(32)
    bridge.fit(*(torch.randn(9, 32, generator=torch.manual_seed(0)) for _ in "ab"))
    bridge.save_pretrained(folder / "bridge")
    changes = {"bridge": folder / "bridge", "controls": False, "number_of_epochs": 1}
    finished = run_recipe(*ZERO_SHOT, *options(folder / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def test_a_bridge_with_its_own_text_gets_its_own_decoder(own_text_run):
    run = own_text_run / "run"
    assert set(scores(run)["systems"]) == {"none", "mean_shift", "c3", "ceiling"}
    own, plain = (
        PrefixDecoder.from_pretrained(run / name).learned_state()
        for name in ("decoder", "plain_decoder")
    )
    assert any(not torch.equal(own[key], plain[key]) for key in own)
    assert any((run / "plain" / "save").glob("CKPT*/decoder.ckpt"))


def test_it_goes_on_to_supervised_and_to_clotho(
    own_text_run, zero_shot_run, options, tmp_path
):
    bridge = own_text_run / "bridge"
    few = {"passes_per_epoch": 1, "number_of_epochs": 1, "start": "none"}
    changes = {"bridge": bridge, "controls": False, **few}
    finished = run_recipe(*SUPERVISED, *options(tmp_path / "supervised", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert set(scores(tmp_path / "supervised")["systems"]) == {"none", "c3"}

    def clotho(trained, bridge):
        values = dict(zip(*[iter(options(tmp_path))] * 2, strict=True))
        keys = ("--data_folder", "--clap", "--cache_folder", "--num_workers")
        return run_recipe(
            *CLOTHO,
            *(part for key in keys for part in (key, values[key])),
            *("--output_folder", tmp_path, "--trained", trained, "--bridge", bridge),
        )

    finished = clotho(own_text_run / "run", bridge)
    assert finished.returncode == 0, finished.stderr[-3000:]
    systems = {"none", "mean_shift", "c3", "ceiling"}
    assert set(scores(tmp_path)["systems"]) == systems
    other = C3(32)
    other.fit(torch.eye(32), torch.eye(32))
    other.save_pretrained(tmp_path / "other")
    for trained, asked in (
        (zero_shot_run[0], bridge),  # a decoder of plain text
        (own_text_run / "run", tmp_path / "other"),  # one of another C3
    ):
        refused = clotho(trained, asked)
        assert refused.returncode == 1
        assert "no decoder for c3, which brings its own text" in refused.stderr
    none = clotho(own_text_run / "run", "none")
    assert none.returncode == 0, none.stderr[-3000:]
    plain = PrefixDecoder.from_pretrained(own_text_run / "run" / "plain_decoder")
    assert "none" in scores(tmp_path)["systems"] and plain.dim == 32


def test_training_texts_may_come_from_a_file_and_pass_the_bridge(options, tmp_path):
    file = tmp_path / "texts.csv"
    rows = [f"{i},a dog barks {i} times" for i in range(16)]
    file.write_text("\n".join(["id,caption", *rows, "16,[]"]) + "\n")
    changes = {
        "train_texts": file,
        "text_input": "bridged",
        "controls": False,
        "number_of_epochs": 1,
    }
    finished = run_recipe(*ZERO_SHOT, *options(tmp_path / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "texts.csv: 1 captions are empty" in log


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bridge": "/no/such/bridge"}, "python recipes/AudioCaps/train.py"),
        ({"lm": "nobody/no-such-lm"}, "No causal language model at nobody/no-such-lm"),
        ({"bridge": "none", "text_input": "bridged"}, "text_input 'bridged'"),
        ({"scored": "train"}, "scored 'train' is no split"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(options, tmp_path, changes, words):
    finished = run_recipe(*ZERO_SHOT, *options(tmp_path, controls=False, **changes))
    assert finished.returncode == 1
    sentence = finished.stderr[finished.stderr.index("error: ") :]
    assert words in sentence
    assert "Traceback" not in finished.stderr


def test_a_test_split_of_one_clip_is_scored_without_cider(
    options, tmp_path, small_tree
):
    tree = tmp_path / "data" / "AUDIOCAPS"
    shutil.copytree(small_tree / "AUDIOCAPS", tree)
    for path in sorted((tree / "audio_32000Hz" / "test").iterdir())[1:]:
        path.unlink()
    changes = {
        "data_folder": tree.parent,
        "cache_folder": tmp_path / "cache",
        "controls": False,
        "number_of_epochs": 1,
    }
    finished = run_recipe(*ZERO_SHOT, *options(tmp_path / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = scores(tmp_path / "run")
    assert result["clips"] == 1 and "cider_d" in result["skipped"]
    assert "bleu_1" in result["systems"]["none"]


@pytest.mark.parametrize("recipe", ["audiocaps", "clotho"])
def test_real_recordings_go_from_files_to_scores(
    options, tmp_path, reference_folder, zero_shot_run, recipe
):
    real = reference_folder / "real_clips"
    if recipe == "clotho":
        finished = run_recipe(
            *CLOTHO,
            *("--data_folder", real, "--clap", options(tmp_path)[3]),
            *("--cache_folder", tmp_path / "cache", "--output_folder", tmp_path),
            *("--bridge", "none", "--trained", zero_shot_run[0]),
        )
        clips = 12
    else:
        tree = tmp_path / "data" / "AUDIOCAPS"
        for split in ("train", "val", "test"):
            sounds = real / "AUDIOCAPS" / "audio_32000Hz" / "test"
            shutil.copytree(sounds, tree / "audio_32000Hz" / split)
            (tree / "csv_files_v1").mkdir(exist_ok=True)
            source = real / "AUDIOCAPS" / "csv_files_v1" / "test.csv"
            shutil.copy(source, tree / "csv_files_v1" / f"{split}.csv")
        changes = {"data_folder": tree.parent, "cache_folder": tmp_path / "cache"}
        finished = run_recipe(*ZERO_SHOT, *options(tmp_path, **changes))
        clips = 13
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert scores(tmp_path)["clips"] == clips
    assert len(table(tmp_path / "predictions.csv")) == clips


def test_the_example_plugs_the_bridge_in(tmp_path):
    """It names folders of the default runs, so it is given its own."""
    script = (ROOT / "recipes/Mini/plug_in.py").read_text(encoding="utf-8")
    mini = load_encoder("mini")
    DiffusionLink(mini.dim).save_pretrained(tmp_path / "results/bridge/1234/bridge")
    lm = write_lm(tmp_path / "lm", ["a dog barks"] * 9, **yaml.safe_load(SMALL_LM))
    decoder = PrefixDecoder(mini.dim, lm, lm_training="scratch")
    decoder.save_pretrained(tmp_path / "results/zero_shot/1234/decoder")
    (tmp_path / "plug_in.py").write_text(script)
    write_clip(tmp_path / "tone.wav", 1, 7.0, 44100)
    command = [sys.executable, "plug_in.py", "tone.wav"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "without the bridge:" in done.stdout and "with the bridge:" in done.stdout
    assert len(script.splitlines()) < 40
