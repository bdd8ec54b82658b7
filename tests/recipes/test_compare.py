import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlink_plugin.bridges import Bridge
from dlink_plugin.gap import CRITERIA

from .conftest import flags, run_in_two, run_recipe
from .test_caption import SMALL_LM

RECIPE = ("recipes/AudioCaps/compare.py", "hparams/compare.yaml")
ROWS = {
    *("none", "mean_shift", "c3", "capdec", "decap", "ridge", "procrustes", "mlp"),
    *("diffusion_bridge", "diffusion_prior", "diffgap", "rectified_flow"),
    *("diffusion_link", "shuffled", "ceiling", "chance"),
    *("c3_mapped_back", "diffusion_bridge_mapped_back"),
}
NETWORK = "{blocks: 1, expansion: 1, dropout: 0.1}"


def options(output, **changes):
    values = {
        "output_folder": output,
        "number_of_epochs": 1,
        "steps_per_epoch": 3,
        "batch_size": 8,
        "network": NETWORK,
        "bootstrap_draws": 5,
        "num_workers": 0,
        **changes,
    }
    return flags(values)


@pytest.fixture(scope="module")
def finished_run(corpus, tmp_path_factory):
    """All bridges with two seeds, captions included."""
    folder = tmp_path_factory.mktemp("compare")
    decoding = (
        f"{{mini_lm: {SMALL_LM}, number_of_epochs: 1, batch_size: 8, num_beams: 1, "
        "max_new_tokens: 5}"
    )
    changes = {"captions": True, "decoder_overrides": decoding, "seeds": "[7, 8]"}
    finished = run_recipe(*RECIPE, *options(folder, **corpus, **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout


@pytest.fixture
def arrays(tmp_path):
    """60 pairs of 8 numbers, row i paired."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(60, 8))
    np.save(tmp_path / "t.npy", text)
    np.save(tmp_path / "a.npy", text + 0.3 * rng.normal(size=(60, 8)) + 1.0)
    return {
        "audio_embeddings": tmp_path / "a.npy",
        "text_embeddings": tmp_path / "t.npy",
        "seeds": "[1]",
    }


def test_every_row_stands_in_the_table(finished_run):
    folder, printed = finished_run
    result = json.loads((folder / "compare.json").read_text())
    assert (result["clips"], result["seeds"]) == (12, [7, 8])
    assert result["skipped"] == [] and result["rows_without_audio"] == 0
    assert set(result["bridges"]) == ROWS
    for name, row in result["bridges"].items():
        if name == "chance":
            continue
        assert {*CRITERIA, "cider_d", "saw", "seconds"} <= set(row)
        assert row["cider_d"].keys() == {"mean", "std"}
    assert set(result["diffusion_link_against"]) == {
        *("diffusion_bridge", "diffusion_bridge_mapped_back", "diffusion_prior"),
        *("diffgap", "rectified_flow", "mlp"),
    }
    tried = result["settings_tried"]
    assert len(tried["mlp"]) == len(tried["diffusion_link"]) == 4
    assert all(chosen in tried["mlp"] for chosen in result["settings_chosen"]["mlp"])
    page = (folder / "compare.md").read_text()
    assert page.strip() in printed
    for name in ROWS:
        assert f"| `{name}` |" in page
    assert "12 clips, 2 seed(s)" in page and "cider d" in page


def test_decoders_are_shared_where_the_text_is_the_same(finished_run):
    decoders = {path.name for path in (finished_run[0] / "7").glob("decoder_*")}
    assert decoders == {
        *("decoder_text", "decoder_noise", "decoder_c3", "decoder_diffusion_bridge"),
    }


def test_figures_and_tensorboard_show_each_criterion(finished_run):
    folder, _ = finished_run
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    criteria = {*CRITERIA, "cider_d", "displacement_cosine", "nearest_text_nearer"}
    assert pictures == {name.replace("@", "_at_") for name in criteria} | {"migration"}
    tags = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload().Tags()
    assert {f"figures/{name}" for name in pictures} == set(tags["images"])
    assert "compare/text_summary" in tags["tensors"]
    logged = {path.name for path in (folder / "tensorboard").iterdir() if path.is_dir()}
    assert logged == ROWS


def test_every_bridge_is_exported(finished_run):
    for name in ROWS & set(Bridge.registry):
        bridge = Bridge.from_pretrained(finished_run[0] / "8" / name / "bridge")
        assert (bridge.name, bridge.dim) == (name, 32)


def test_arrays_are_compared_in_folds(arrays, tmp_path):
    names = "[none, ridge, diffusion_link, shuffled, ceiling]"
    changes = {"folds": 3, "bridges": names, **arrays}
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert (result["clips"], result["folds"]) == (60, 3)
    assert set(result["bridges"]) == {
        *("none", "ridge", "diffusion_link", "shuffled", "chance"),
    }  # a second text for the ceiling does not exist
    chance = result["bridges"]["chance"]["recall@5_audio_to_text"]
    assert chance == {"mean": 0.25, "std": 0.0}
    assert result["bridges"]["none"]["paired_cosine"]["std"] > 0  # over folds
    assert "a.npy and t.npy, 3 folds: 60 clips" in finished.stdout


def test_a_bridge_that_fails_is_reported_beside_the_others(arrays, tmp_path):
    settings = "{none: [{}], ridge: [{alpha: -1.0}], procrustes: [{}]}"
    changes = {"bridges": "[none, ridge, procrustes]", "settings": settings, **arrays}
    changes["seeds"] = 1
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **changes))
    assert finished.returncode == 1
    assert "error: 1 of 3 bridges failed" in finished.stderr
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())["bridges"]
    assert rows["ridge"] == {
        "saw": "pairs",
        "error": "ValueError: alpha is -1.0; ridge needs a penalty above 0.",
    }
    assert {"none", "procrustes"} <= set(rows) and "paired_cosine" in rows["none"]
    assert "| `ridge` | pairs | failed: ValueError: alpha" in finished.stdout


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bridges": "[none, unet]"}, "'unet'; choose from none"),
        ({"text_embeddings": "null"}, "two files, --audio_embeddings"),
        ({"captions": True}, "come without captions"),
        ({"seeds": "[]"}, "--seeds is empty"),
        ({"folds": 30}, "60 pairs cannot be compared with --folds 30"),
        ({"audio_embeddings": "/no/such.npy"}, "/no/such.npy"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(arrays, tmp_path, changes, words):
    finished = run_recipe(*RECIPE, *options(tmp_path / "run", **arrays | changes))
    assert finished.returncode == 1
    assert words in finished.stderr[finished.stderr.index("error: ") :]
    assert "Traceback" not in finished.stderr


def test_two_processes_compare_as_one(arrays, tmp_path):
    given = options(tmp_path / "run", bridges="[none, mlp]", folds=2, **arrays)
    for finished in run_in_two(*RECIPE, *given):
        assert finished.returncode == 0, finished.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())["bridges"]
    assert set(rows) == {"none", "mlp", "chance"}
