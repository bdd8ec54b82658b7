import collections
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlink_plugin.console import load_hparams, load_recipe, plain_errors

KNOBS = (
    *("encoding_batch_size", "gradient_checkpointing", "dtype", "batch_size"),
    *("generation_batch_size", "num_beams"),
)
RECIPE = """
seed: 1234
__hidden: 3
lr: 0.001
twice: !ref <seed> * 2
data_folder: !PLACEHOLDER
counter: !new:collections.Counter
    words: !ref <seed>
steps: [1, 2]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def run_log(tmp_path):
    """A root logger that writes to log.txt, as a started run has it."""
    path = tmp_path / "log.txt"
    handler = logging.FileHandler(path)
    logging.getLogger().addHandler(handler)
    yield path
    logging.getLogger().removeHandler(handler)
    handler.close()


# load_recipe


def test_a_flag_takes_no_value(recipe):
    """SpeechBrain would read the value as a part of the one before it."""
    options = ["--data_folder", "/d", "--noprogressbar"]
    assert load_recipe([recipe, *options])[3]["data_folder"] == "/d"
    with pytest.raises(ValueError, match="--noprogressbar takes no value; leave 'Tru"):
        load_recipe([recipe, *options, "True"])


def test_a_second_file_is_read_with_changes(recipe):
    changes = {"seed": 7, "data_folder": "/x: y", "steps": [3]}
    hparams = load_hparams(recipe, changes)
    assert (hparams["seed"], hparams["twice"]) == (7, 14)
    assert (hparams["data_folder"], hparams["steps"]) == ("/x: y", [3])
    with pytest.raises(ValueError, match=f"{recipe} has no key 'sed'"):
        load_hparams(recipe, {"sed": 7})
    with pytest.raises(ValueError, match="no key 'beams', which the recipe needs"):
        hparams["beams"]
    with pytest.raises(FileNotFoundError):
        load_hparams(f"{recipe}.old", {})


def test_overrides_take_their_place(recipe):
    argv = [recipe, "--seed", "7", "--data_folder=/x y", "--steps", "[3]"]
    file, run_opts, overrides, hparams = load_recipe(argv)
    assert file == recipe
    assert (hparams["seed"], hparams["twice"]) == (7, 14)
    assert hparams["counter"] == collections.Counter(words=7)
    assert (hparams["data_folder"], hparams["steps"]) == ("/x y", [3])
    assert hparams["lr"] == 0.001
    assert overrides.splitlines()[0] == "seed: 7"


def test_options_of_speechbrain_are_no_overrides(recipe):
    argv = [recipe, "--device", "cpu", "--data_folder", "x", "--debug"]
    _, run_opts, overrides, hparams = load_recipe(argv)
    assert (run_opts.device, run_opts.debug) == ("cpu", True)
    assert overrides == "data_folder: x"
    assert "device" not in hparams


def test_no_override_at_all_is_fine(recipe, tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("seed: 1\n")
    assert load_recipe([str(path)])[3] == {"seed": 1}


def test_unknown_keys_are_named_with_the_known_ones(recipe):
    argv = [recipe, "--sed", "7", "--data_folder", "x", "--learn=1"]
    with pytest.raises(ValueError) as raised:
        load_recipe(argv)
    sentence = str(raised.value)
    assert "no key 'learn', 'sed';" in sentence
    assert "seed, lr, twice, data_folder, counter, steps." in sentence
    assert "hidden" not in sentence


def test_a_value_that_has_to_be_given_is_asked_for(recipe):
    with pytest.raises(ValueError, match="data_folder.*PLACEHOLDER"):
        load_recipe([recipe])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_recipe([str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize(
    "text, argv",
    [("", []), ("- 1\n", []), ("seed: [1\n", []), ("seed: 1\n", ["--seed", "[1"])],
    ids=["empty", "list", "syntax", "override"],
)
def test_what_is_no_mapping_in_yaml_is_a_sentence(tmp_path, text, argv):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError):
        load_recipe([str(path), *argv])


# plain_errors


@pytest.mark.parametrize(
    "error",
    [ValueError("No 50 % split."), FileNotFoundError("No x."), ImportError("No y.")],
)
def test_a_mistake_ends_in_one_sentence(error):
    with pytest.raises(SystemExit) as raised, plain_errors():
        raise error
    assert raised.value.code == f"error: {error}"


def test_a_key_that_a_recipe_needs_is_named(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("seed: 1\n")
    *_, hparams = load_recipe([str(path)])
    assert hparams["seed"] == 1
    with pytest.raises(ValueError, match="short.yaml has no key 'start_steps'"):
        _ = hparams["start_steps"]


@pytest.mark.parametrize(
    "error", [TypeError, RuntimeError, AttributeError, KeyboardInterrupt, MemoryError]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(error, match="a bug"), plain_errors():
        raise error("a bug")


def test_a_full_gpu_ends_in_a_sentence_with_the_knobs(run_log):
    reason = "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it."
    with pytest.raises(SystemExit) as raised, plain_errors():
        raise torch.OutOfMemoryError(reason)
    sentence = raised.value.code
    assert sentence.startswith("error: The memory of the GPU is full. Set a smaller")
    assert sentence.endswith("Tried to allocate 2.00 GiB.")
    for knob in KNOBS:
        assert knob in sentence
    assert "More about it." in run_log.read_text()


def test_a_full_machine_ends_in_a_sentence():
    with pytest.raises(SystemExit) as raised, plain_errors():
        torch.empty(1 << 60, dtype=torch.uint8)
    assert raised.value.code.startswith("error: The memory of the machine is full.")


def test_the_knobs_of_a_full_memory_are_those_of_the_recipes():
    recipe = Path(__file__).parents[1] / "hparams" / "zero_shot.yaml"
    text = recipe.read_text(encoding="utf-8")
    keys = {line.partition(":")[0] for line in text.splitlines()}
    assert set(KNOBS) <= keys


def test_nothing_happens_without_an_error(run_log):
    with plain_errors():
        value = 1
    assert value == 1 and run_log.read_text() == ""


def test_the_traceback_goes_to_the_log_of_the_run(run_log):
    def stumble():
        raise ValueError("No 50 % split.")

    with pytest.raises(SystemExit), plain_errors():
        stumble()
    text = run_log.read_text()
    assert text.startswith("No 50 % split.\nTraceback (most recent call last)")
    assert "in stumble" in text
    assert text.rstrip().endswith("ValueError: No 50 % split.")


PROGRAM = """
import sys
from pathlib import Path
from dlink_plugin.console import load_hparams, load_recipe, plain_errors
import speechbrain as sb
with plain_errors():
    file, _, overrides, hparams = load_recipe(sys.argv[1:])
    sb.create_experiment_directory(hparams["data_folder"], file, overrides)
    raise ValueError("The corpus is empty.")
"""


def test_a_recipe_fails_with_a_sentence_and_a_code(recipe, tmp_path):
    """As a user sees it: with the logging that a SpeechBrain run sets up."""
    output = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, recipe]
    done = subprocess.run(
        [*command, "--data_folder", str(output)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: The corpus is empty."
    assert "Traceback" not in done.stderr
    log = (output / "log.txt").read_text()
    assert "Traceback" in log and "ValueError: The corpus is empty." in log
