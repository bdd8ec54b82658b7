import csv
import json
import shutil
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlink_plugin.bridges import DiffusionLink
from dlink_plugin.gap import CRITERIA

from ..conftest import write_rows
from .conftest import flags, run_recipe

RECIPE = ("recipes/AudioCaps/train.py", "hparams/bridge.yaml")
ROWS = {"none", "diffusion_link", "diffusion_link_s0", "shuffled", "ceiling"}


@pytest.fixture(scope="module")
def options(small_tree, tiny_clap_folder):
    """Command-line options of a run of seconds; embeddings are cached in between."""

    def make(output, **changes):
        values = {
            "data_folder": small_tree,
            "clap": tiny_clap_folder,
            "cache_folder": small_tree / "cache",
            "output_folder": output,
            "number_of_epochs": 2,
            "passes_per_epoch": 2,
            "batch_size": 8,
            "ckpt_interval_steps": 2,
            "log_every": 1,
            "num_workers": 0,
            **changes,
        }
        return flags(values)

    return make


@pytest.fixture(scope="module")
def finished_run(options, tmp_path_factory):
    """The folder of one whole run, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    finished = run_recipe(*RECIPE, *options(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout


def numbers(folder):
    result = json.loads((folder / "gap.json").read_text())
    rows = ROWS & result.keys()
    return {(row, k): value for row in rows for k, value in result[row].items()}


def test_a_run_leaves_everything_behind(finished_run):
    tmp_path, printed = finished_run
    result = json.loads((tmp_path / "gap.json").read_text())
    assert result["clips"] == 12 and result["captions"] == 60
    assert result["skipped"] == [] and result["rows_without_audio"] == 0
    for row in ROWS:
        assert list(result[row]) == list(CRITERIA)
    assert "| diffusion_link |" in printed
    assert "12 clips" in printed

    bridge = DiffusionLink.from_pretrained(tmp_path / "bridge")
    assert (bridge.start_step, bridge.steps) == (result["start_step"], result["steps"])
    assert bridge.start_step >= 50 and bridge.steps >= 2

    for name in ("hyperparams.yaml", "log.txt", "train_log.txt", "migration.png",
                 "cosines.png", "start_step_sweep.png"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0
    saved = torch.load(next(tmp_path.glob("save/CKPT*/bridge.ckpt")), weights_only=True)
    assert saved.keys() == bridge.state_dict().keys()  # no CLAP among them


def test_tensorboard_shows_all_of_it(finished_run):
    tmp_path, _ = finished_run
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0}).Reload()
    tags = events.Tags()
    wanted = {"train/loss", "train/cross_audio", "train/cross_text",
              "train/topology_audio", "train/topology_text", "train/learning_rate",
              "valid/loss"}  # fmt: skip
    wanted |= {f"gap_{n}/{c}" for n in ("none", "diffusion_link") for c in CRITERIA}
    assert wanted <= set(tags["scalars"])
    pictures = {f"figures/{n}" for n in ("migration", "cosines", "start_step_sweep")}
    assert pictures <= set(tags["images"])
    assert {"run/gap/text_summary", "run/hparams/text_summary"} <= set(tags["tensors"])
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
        events.summary_metadata
    )
    projector = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    assert "embeddings" in projector
    metadata = next((tmp_path / "tensorboard").rglob("metadata.tsv"))
    with open(metadata, encoding="utf-8") as file:
        kinds = [row["kind"] for row in csv.DictReader(file, delimiter="\t")]
    assert kinds == ["audio"] * 12 + ["text"] * 12 + ["bridged"] * 12


def test_two_processes_do_the_work_of_one(options, tmp_path):
    torchrun = sys.executable, "-m", "torch.distributed.run", "--standalone"
    changes = {"shuffled_control": False, "dropout": 0}  # masks differ by process
    for name, launcher in {
        "one": None,
        "two": (*torchrun, "--nproc_per_node=2"),
    }.items():
        backend = ["--distributed_backend=gloo"] * (name == "two")
        flags = *options(tmp_path / name, **changes), "--device=cpu", *backend
        finished = run_recipe(*RECIPE, *flags, launcher=launcher)
        assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert two == pytest.approx(one, abs=1e-3)
    # 24 clips in global batches of 8, 2 passes, 2 epochs: as many steps as alone
    events = EventAccumulator(str(tmp_path / "two" / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[-1].step == 12


def test_debug_is_a_dry_run_of_everything(options, tmp_path, small_tree):
    """Further pairs included."""
    sound = next((small_tree / "AUDIOCAPS/audio_32000Hz/train").iterdir())
    rows = [(sound, "something sounds"), (sound, "a noise")]
    write_rows(tmp_path / "more.csv", ("path", "caption"), rows)
    more = {"extra_pairs": f"[{tmp_path}/more.csv]", "number_of_epochs": 9}
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **more), "--debug")
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "gap.json").read_text())
    assert result["clips"] == 12
    assert result["extra_pairs"] == {f"{tmp_path}/more.csv": 2}


def test_clotho_trains_with_the_same_file(options, tmp_path):
    changes = {"corpus": "clotho", "batch_size": 4, "shuffled_control": False}
    finished = run_recipe(*RECIPE, *options(tmp_path, **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "gap.json").read_text())
    assert (result["clips"], result["captions"]) == (6, 30)


def test_bad_files_are_counted_and_the_rest_is_kept(options, tmp_path, small_tree):
    tree = tmp_path / "data"
    shutil.copytree(small_tree / "AUDIOCAPS", tree / "AUDIOCAPS")
    audio = sorted((tree / "AUDIOCAPS" / "audio_32000Hz" / "test").iterdir())
    audio[0].write_text("no audio at all")
    audio[1].unlink()
    changes = {
        "data_folder": tree,
        "cache_folder": tmp_path / "cache",
        "shuffled_control": False,
    }
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "gap.json").read_text())
    assert result["clips"] == 10 and result["rows_without_audio"] == 5
    assert [entry["fname"] for entry in result["skipped"]] == [audio[0].name]
    strict = {**changes, "strict": True}
    refused = run_recipe(*RECIPE, *options(tmp_path / "strict", **strict))
    assert refused.returncode == 1
    assert "test.csv: 5 caption rows (1 clips) have no audio" in refused.stderr


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data_folder": "/no/such/folder"}, "/no/such/folder"),
        ({"clap": "/no/such/clap"}, "/no/such/clap"),
        ({"batchsize": 4}, "no key 'batchsize'"),
        ({"batch_size": 1}, "--batch_size"),
        ({"start_steps": "[0]"}, "start_steps"),
        ({"corpus": "wavcaps"}, "wavcaps"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(options, tmp_path, changes, words):
    finished = run_recipe(*RECIPE, *options(tmp_path, **changes))
    assert finished.returncode == 1
    sentence = finished.stderr[finished.stderr.index("error: ") :]
    assert words in sentence
    assert "Traceback" not in finished.stderr


def test_real_recordings_go_from_flac_to_gap_json(options, tmp_path, reference_folder):
    """13 real clips stand in as train, val and test."""
    real = reference_folder / "real_clips" / "AUDIOCAPS"
    tree = tmp_path / "data" / "AUDIOCAPS"
    for split in ("train", "val", "test"):
        sounds = tree / "audio_32000Hz" / split
        shutil.copytree(real / "audio_32000Hz" / "test", sounds)
        (tree / "csv_files_v1").mkdir(exist_ok=True)
        shutil.copy(
            real / "csv_files_v1" / "test.csv", tree / "csv_files_v1" / f"{split}.csv"
        )
    changes = {"data_folder": tree.parent, "cache_folder": tmp_path / "cache"}
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "gap.json").read_text())
    assert (result["clips"], result["captions"]) == (13, 65)
