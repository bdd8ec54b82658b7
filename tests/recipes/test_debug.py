"""Every YAML with ``--debug`` in one process and in two, with models as at full size:
small ones with random weights, a ClapModel and a LLaMA with LoRA in bfloat16.
"""

import json

import pytest

from ..conftest import SENTENCES, write_llama
from .conftest import ROOT, flags, run_in_two, run_recipe

FULL_SIZE = {
    "lm_training": "lora",
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "projector": "mlp",
    "prefix_length": 1,
    "prompt": "Describe the audio you hear.",
    "num_beams": 4,
    "max_new_tokens": 4,
}
# Recipes in the order in which they need each other, and what each leaves.
RUNS = {
    "bridge": ("AudioCaps/train.py", "gap.json"),
    "zero_shot": ("AudioCaps/caption.py", "scores.json"),
    "supervised": ("AudioCaps/caption.py", "scores.json"),
    "clotho_zero_shot": ("Clotho/zero_shot.py", "scores.json"),
    "compare": ("AudioCaps/compare.py", "compare.json"),
    "ablation": ("AudioCaps/ablate.py", "ablation.json"),
    "mini_clap": ("Mini/pretrain_clap.py", "clap/model.safetensors"),
}


@pytest.fixture(scope="module")
def given(corpus, tmp_path_factory):
    """given(yaml, folder): the options of its recipe, with full-size settings."""
    lm = write_llama(tmp_path_factory.mktemp("lm"), SENTENCES)
    cached = {**corpus, "encoding_batch_size": 8, "num_workers": 0}

    def given(yaml, folder):
        bridge, trained = folder / "bridge" / "bridge", folder / "zero_shot"
        decoder = {**cached, **FULL_SIZE, "lm": lm, "bridge": bridge, "batch_size": 4}
        decoder["grad_accumulation_factor"] = 2
        short = {"number_of_epochs": 1, "steps_per_epoch": 2, "seeds": "[1234]"}
        options = {
            "bridge": {**cached, "batch_size": 8},
            "zero_shot": decoder,
            "supervised": {**decoder, "start": "none"},
            "clotho_zero_shot": {
                **cached,
                "bridge": bridge,
                "trained": trained,
                "max_new_tokens": 4,
            },
            "compare": {**cached, **short, "bridges": "[none, ridge, diffusion_link]"},
            "ablation": {
                **cached,
                **short,
                "only": "[none, default]",
                "decoder": trained / "decoder",
                "generation": "{num_beams: 1, max_new_tokens: 4}",
            },
            "mini_clap": {
                "number_of_scenes": 8,
                "number_of_heldout": 2,
                "batch_size": 4,
            },
        }
        return flags({"output_folder": folder / yaml, **options[yaml]})

    return given


def test_every_yaml_is_here():
    assert RUNS.keys() == {path.stem for path in (ROOT / "hparams").iterdir()}


def run_all(given, folder, run, names):
    for yaml in names:
        recipe, left = RUNS[yaml]
        command = f"recipes/{recipe}", f"hparams/{yaml}.yaml", *given(yaml, folder)
        for finished in run(*command, "--debug", "--noprogressbar"):
            assert finished.returncode == 0, (yaml, finished.stderr[-3000:])
        file = folder / yaml / left
        assert file.stat().st_size
        if file.suffix == ".json":
            json.loads(file.read_text())


def test_every_yaml_runs(given, tmp_path):
    run_all(given, tmp_path, lambda *command: [run_recipe(*command)], RUNS)


def test_every_yaml_runs_in_two_processes(given, tmp_path):
    run_all(given, tmp_path, run_in_two, [name for name in RUNS if name != "mini_clap"])


def test_the_mini_clap_is_trained_in_one(given, tmp_path):
    recipe, _ = RUNS["mini_clap"]
    command = f"recipes/{recipe}", "hparams/mini_clap.yaml"
    for finished in run_in_two(*command, *given("mini_clap", tmp_path)):
        assert finished.returncode == 1 and "leave out torchrun" in finished.stderr
