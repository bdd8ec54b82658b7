import json

import pytest

from .conftest import flags, run_recipe
from .test_caption import SMALL_LM

RECIPE = ("recipes/AudioCaps/ablate.py", "hparams/ablation.yaml")
# Those of the file stay; these join them.
VARIANTS = (
    "{later: {start_step: 100}, half: {pairs: 12}, half mlp: {pairs: 12, bridge: mlp}, "
    "unpaired: {unpaired: 5}}"
)
ONLY = "[none, default, later, half, half mlp, mlp, no EMA, unpaired]"


def options(output, **changes):
    values = {
        "output_folder": output,
        "number_of_epochs": 1,
        "steps_per_epoch": 3,
        "batch_size": 8,
        "num_workers": 0,
        "variants": VARIANTS,
        "only": ONLY,
        "generation": "{num_beams: 1, max_new_tokens: 5}",
        **changes,
    }
    return flags(values)


@pytest.fixture(scope="module")
def finished_run(corpus, tmp_path_factory):
    """All variants with two seeds, behind the decoders of two zero-shot runs."""
    folder = tmp_path_factory.mktemp("ablation")
    small = {"mini_lm": SMALL_LM, "number_of_epochs": 1, "batch_size": 8}
    small |= {"num_beams": 1, "max_new_tokens": 5, "bridge": "none", "num_workers": 0}
    for seed in (7, 8):
        own = {"seed": seed, "output_folder": folder / "zero_shot" / str(seed)}
        given = {**corpus, **small, **own, "controls": False}
        done = run_recipe(
            "recipes/AudioCaps/caption.py", "hparams/zero_shot.yaml", *flags(given)
        )
        assert done.returncode == 0, done.stderr[-3000:]
    changes = {"seeds": "[7, 8]", "decoder": f"{folder}/zero_shot/{{seed}}/decoder"}
    command = *RECIPE, *options(folder / "run", **corpus, **changes)
    finished = run_recipe(*command)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder / "run", command, finished


def test_every_variant_has_a_row_and_those_with_all_clips_join_the_curves(finished_run):
    folder, _, finished = finished_run
    result = json.loads((folder / "ablation.json").read_text())
    rows = result["bridges"]
    assert set(rows) == {*ONLY.strip("[]").split(", "), "ceiling"}
    for row in rows.values():
        assert {"cider_d", "valid_cider_d", "recall@10_audio_to_text"} <= set(row)
        assert row["cider_d"]["std"] >= 0
    assert rows["none"]["saw"] == "nothing" and rows["mlp"]["saw"] == "pairs"
    gaps = {name: row["relative_modality_gap"]["mean"] for name, row in rows.items()}
    changed = {name: gap for name, gap in gaps.items() if name != "default"}
    assert gaps["default"] not in changed.values()
    assert (folder / "figures" / "few_pairs.png").stat().st_size > 5000
    table = (folder / "ablation.md").read_text()
    assert "| half mlp |" in table and table.strip() in finished.stdout


def test_variants_that_differ_in_the_crossing_share_a_training(finished_run):
    folder, _, _ = finished_run
    trained = [path.name for path in (folder / "7").glob("diffusion_link_variant_*")]
    assert len(trained) == 4  # default and later, half, no EMA, unpaired


def test_a_second_start_finds_every_row_judged(finished_run):
    folder, command, _ = finished_run
    before = (folder / "ablation.json").read_text()
    checkpoints = {path: path.stat().st_mtime_ns for path in folder.rglob("CKPT.yaml")}
    assert run_recipe(*command).returncode == 0
    assert (folder / "ablation.json").read_text() == before
    assert checkpoints == {path: path.stat().st_mtime_ns for path in checkpoints}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"only": "[defautl]"}, "--only names ['defautl']; choose from ['none',"),
        (
            {"variants": "{a: {bridge: mlpp}}", "only": "a"},
            "names the bridge 'mlpp'; choose one of",
        ),
        (
            {"variants": "{a: {topolgy: 1}}", "only": "[a]"},
            "'a' changes topolgy, which is neither",
        ),
        ({"seeds": "[]"}, "--seeds is empty"),
        ({"decoder": "nowhere/{seed}"}, "is not a saved decoder; make one with"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(corpus, tmp_path, change, sentence):
    finished = run_recipe(*RECIPE, *options(tmp_path, **corpus | change))
    assert finished.returncode == 1
    assert sentence in finished.stderr and "Traceback" not in finished.stderr
