import math
import os
import shutil
import weakref
from functools import partial

import pytest
import torch
from speechbrain import RunOptions
from speechbrain.utils.train_logger import FileTrainLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from dlink_plugin.brains import (
    BridgeBrain,
    DecoderBrain,
    caption_in_shares,
    train_bridge,
    train_decoder,
)
from dlink_plugin.bridges import Bridge, DiffusionLink
from dlink_plugin.decoder import PrefixDecoder
from dlink_plugin.gap import CRITERIA
from dlink_plugin.mini.language import write_lm
from dlink_plugin.pairs import Captioned, Pairs
from dlink_plugin.resumable import ResumableBrain
from dlink_plugin.tasks import CaptionTask, add_noise, as_they_are

from .conftest import write_llama
from .ranks import in_ranks


def unit(n, d, seed):
    draw = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return normalize(draw, dim=1)


def make_pairs(seed, clips=24, captions=2):
    audio = unit(clips, 8, seed)
    owner = torch.arange(clips).repeat_interleave(captions)
    noise = 0.2 * unit(len(owner), 8, seed + 1)
    return Pairs(audio, normalize(audio[owner] + unit(1, 8, 0) + noise, dim=1), owner)


@pytest.fixture
def train():
    return make_pairs(1)


@pytest.fixture
def valid():
    return make_pairs(7, captions=1)


@pytest.fixture
def hparams(tmp_path):
    return {
        "seed": 1,
        "bridge": DiffusionLink,
        "opt_class": lambda params: torch.optim.AdamW(params, 1e-3),
        "number_of_epochs": 3,
        "passes_per_epoch": 2,
        "batch_size": 8,
        "warmup_share": 0.1,
        "ema_decay": 0.99,
        "log_every": 1,
        "ckpt_interval_steps": 2,
        "train_logger": FileTrainLogger(str(tmp_path / "train_log.txt")),
    }


OPTIONS = RunOptions.from_dictionary({"device": "cpu", "noprogressbar": True})


def run(hparams, train, valid, folder):
    return train_bridge(hparams, OPTIONS, train, valid, folder)


def scalars(folder):
    """(step, value) by tag, as TensorBoard shows them: purged points are gone."""
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


class Interrupted(BaseException):
    pass


def interrupt_after(monkeypatch, steps):
    """Stop as a kill would, in the middle of a batch; later batches never run."""
    original = ResumableBrain.on_fit_batch_start

    def stop(self, batch, should_step):
        if self.optimizer_step == steps:
            raise Interrupted
        original(self, batch, should_step)

    monkeypatch.setattr(ResumableBrain, "on_fit_batch_start", stop)


def interrupt_validation(monkeypatch, step):
    """Stop in the first validation, after the last step of an epoch was saved."""
    original = ResumableBrain.evaluate_batch

    def stop(self, batch, stage):
        if self.optimizer_step == step:
            raise Interrupted
        return original(self, batch, stage)

    monkeypatch.setattr(ResumableBrain, "evaluate_batch", stop)


def assert_same_curves(whole, resumed):
    before, after = scalars(whole), scalars(resumed)
    assert before.keys() == after.keys()
    for tag, points in before.items():
        assert [step for step, _ in after[tag]] == [step for step, _ in points], tag
        assert [v for _, v in after[tag]] == pytest.approx([v for _, v in points]), tag


MOMENTS = pytest.mark.parametrize(
    ("interrupt", "steps"),
    [(interrupt_after, s) for s in (3, 6, 11)] + [(interrupt_validation, 6)],
)


@MOMENTS
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    hparams, train, valid, tmp_path, monkeypatch, interrupt, steps
):
    """At 3 in mid-epoch, at 6 right after an epoch, at 11 late in the second one."""
    whole = run(hparams, train, valid, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, steps)
        run(hparams, train, valid, tmp_path / "killed")
    resumed = run(hparams, train, valid, tmp_path / "killed")
    assert resumed.optimizer_step == whole.optimizer_step == 18
    for name, value in whole.averaged.state_dict().items():
        torch.testing.assert_close(resumed.averaged.state_dict()[name], value)
    assert (
        whole.load_best().state_dict().keys() == resumed.load_best().state_dict().keys()
    )
    for brain in (whole, resumed):
        brain.writer.close()
    assert_same_curves(tmp_path / "whole", tmp_path / "killed")


def test_tensorboard_has_every_criterion_for_raw_and_bridged(
    hparams, train, valid, tmp_path
):
    run(hparams, train, valid, tmp_path).writer.close()
    points = scalars(tmp_path)
    for name in ("none", "diffusion_link"):
        for criterion in CRITERIA:
            steps = [step for step, _ in points[f"gap_{name}/{criterion}"]]
            assert steps == [6, 12, 18]
    assert [step for step, _ in points["train/loss"]] == list(range(1, 19))
    rates = [value for _, value in points["train/learning_rate"]]
    assert rates[1] == pytest.approx(1e-3) and rates[-1] < 1e-4


def test_the_best_checkpoint_is_the_one_with_the_lowest_gap(
    hparams, train, valid, tmp_path, monkeypatch
):
    made_up = iter([0.9, 0.5, 0.2, 0.4])  # raw, then bridged after each epoch

    def gap(audio, text, seed=0):
        return {"relative_modality_gap": next(made_up)}

    monkeypatch.setattr("dlink_plugin.brains.modality_gap", gap)
    kept = []
    original = BridgeBrain.on_stage_end

    def spy(self, stage, loss, epoch=None):
        original(self, stage, loss, epoch)
        if stage.name == "VALID":
            kept.append({k: v.clone() for k, v in self.averaged.state_dict().items()})

    monkeypatch.setattr(BridgeBrain, "on_stage_end", spy)
    best = run(hparams, train, valid, tmp_path).load_best().state_dict()
    for name, value in kept[1].items():
        assert torch.equal(best[name], value), name
    assert any(not torch.equal(best[name], value) for name, value in kept[2].items())


def test_the_average_follows_the_warmed_up_decay(hparams, train, valid, tmp_path):
    brain = BridgeBrain(DiffusionLink(8), hparams, OPTIONS, tmp_path)
    weight, tracked = brain.bridge.denoiser.out.bias, brain.averaged.denoiser.out.bias
    expected = None
    for k in range(40):
        with torch.no_grad():
            weight.fill_(float(k))
        brain.optimizer_step = k + 1
        brain.ema.update_parameters(brain.bridge)
        decay = min(0.99, k / (k + 10))
        expected = k if expected is None else decay * expected + (1 - decay) * k
        assert float(tracked.detach()[0]) == pytest.approx(expected, rel=1e-5)


def test_only_the_bridge_is_optimized(hparams, train, valid, tmp_path):
    brain = run(hparams, train, valid, tmp_path)
    optimized = {id(p) for g in brain.optimizer.param_groups for p in g["params"]}
    assert optimized == {id(p) for p in brain.bridge.parameters()}
    assert not optimized & {id(p) for p in brain.averaged.parameters()}


def test_the_same_seed_gives_the_same_bridge_and_another_another(
    hparams, train, valid, tmp_path
):
    def weights(seed, folder):
        brain = run({**hparams, "seed": seed}, train, valid, tmp_path / folder)
        return torch.cat([p.flatten() for p in brain.averaged.parameters()])

    first = weights(1, "a")
    assert torch.equal(first, weights(1, "b"))
    assert not torch.equal(first, weights(2, "c"))


def test_a_bridge_without_parameters_needs_no_training(hparams, train, valid, tmp_path):
    class Offset(Bridge, name="offset_for_test"):
        def __init__(self, dim):
            super().__init__(dim)
            self.register_buffer("shift", torch.zeros(dim))

        def fit(self, audio, text):
            self.shift = (text - audio).mean(0)

        def forward(self, audio, generator=None):
            return normalize(audio + self.shift, dim=1)

    try:
        brain = run({**hparams, "bridge": Offset}, train, valid, tmp_path)
        bridge = brain.load_best()
        expected = (train.text - train.audio[train.clip_of_text]).mean(0)
        assert torch.allclose(bridge.shift, expected)
        assert brain.optimizer_step == 0
    finally:
        del Bridge.registry["offset_for_test"]


# Decoder

CAPTIONS = [f"{a} {b}" for a in ("a dog", "a cat", "rain") for b in ("barks", "falls")]


def captioned(seed, captions=CAPTIONS):
    return Captioned(
        unit(len(captions), 8, seed), torch.arange(len(captions)), captions
    )


@pytest.fixture
def task():
    train = captioned(1)
    references = [[caption, caption + " again"] for caption in CAPTIONS]
    probes = {"text": train.source, "other": unit(len(CAPTIONS), 8, 5)}
    inputs = partial(add_noise, variance=0.01)
    return CaptionTask(train, captioned(2), inputs, probes, references)


@pytest.fixture
def decoder_hparams(hparams, tmp_path):
    lm = write_lm(
        tmp_path / "lm",
        CAPTIONS,
        vocab_size=290,
        width=16,
        layers=1,
        heads=2,
        dropout=0.1,
    )
    return {
        **hparams,
        "decoder": partial(PrefixDecoder, prefix_length=1, projector="linear"),
        "lm": lm,
        "lm_training": "scratch",
        "batch_size": 2,
        "patience": 9,
        "train_lm": True,
        "generation": {"max_new_tokens": 6},
    }


def learn(hparams, task, folder):
    return train_decoder(hparams, OPTIONS, folder, task)


@MOMENTS
def test_an_interrupted_decoder_ends_like_an_uninterrupted_one(
    decoder_hparams, task, tmp_path, monkeypatch, interrupt, steps
):
    whole = learn(decoder_hparams, task, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, steps)
        learn(decoder_hparams, task, tmp_path / "killed")
    resumed = learn(decoder_hparams, task, tmp_path / "killed")
    assert resumed.optimizer_step == whole.optimizer_step == 18
    state = resumed.decoder.trained_state()
    for name, value in whole.decoder.trained_state().items():
        torch.testing.assert_close(state[name], value)
    for brain in (whole, resumed):
        brain.writer.close()
    assert_same_curves(tmp_path / "whole", tmp_path / "killed")


# Speed


class Looks(TorchDispatchMode):
    """Counts how often Python asks for the value of a loss or a gradient."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        asked = function is torch.ops.aten._local_scalar_dense.default
        self.count += asked and args[0].is_floating_point()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("log_every", "looks"), [(4, 3), (1, 18)])
def test_steps_between_two_looks_do_not_wait_for_the_device(
    hparams, train, tmp_path, log_every, looks
):
    """Six steps in each of three epochs. SGD: Adam keeps its count on the CPU."""
    hparams |= {"opt_class": partial(torch.optim.SGD, lr=0.1), "log_every": log_every}
    brain = BridgeBrain(DiffusionLink(8), hparams, OPTIONS, tmp_path)
    with Looks() as counted:
        brain.fit(brain.epoch_counter, train)
    assert counted.count == looks


def test_a_loss_that_is_not_finite_ends_the_training(hparams, train, tmp_path):
    hparams["opt_class"] = partial(torch.optim.SGD, lr=math.inf)
    brain = BridgeBrain(DiffusionLink(8), hparams, OPTIONS, tmp_path)
    with pytest.raises(ValueError, match="Loss is not finite"):
        brain.fit(brain.epoch_counter, train)


@pytest.mark.parametrize(
    ("option", "tolerance"), [({"compile": True}, 1e-4), ({"precision": "bf16"}, 0.05)]
)
def test_faster_options_change_the_losses_by_rounding_only(
    hparams, train, valid, tmp_path, option, tolerance
):
    if "compile" in option and not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    hparams["bridge"] = partial(DiffusionLink, dropout=0.0)  # its masks would differ
    plain = {"device": "cpu", "noprogressbar": True}
    curves = []
    for folder, changes in (("plain", {}), ("fast", option)):
        options = RunOptions.from_dictionary({**plain, **changes})
        train_bridge(hparams, options, train, valid, tmp_path / folder)
        curves.append([v for _, v in scalars(tmp_path / folder)["train/loss"]])
    assert curves[1] == pytest.approx(curves[0], rel=tolerance)
    assert curves[1] != curves[0]


# Several processes


TINY_LM = {"vocab_size": 290, "width": 16, "layers": 1, "heads": 2, "dropout": 0.0}


def train_as_rank(rank, world, train, hparams, folder, *data):
    """What is trained in several processes, or in one: the weights at the end."""
    options = {"device": "cpu", "noprogressbar": True}
    options["grad_accumulation_factor"] = hparams.get("accumulated", 1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        options |= {"distributed_launch": True, "distributed_backend": "gloo"}
    # Adam would make much of what rounding leaves where gradients are zero.
    hparams = {**hparams, "opt_class": partial(torch.optim.SGD, lr=0.1)}
    return train(hparams, RunOptions.from_dictionary(options), folder, *data)


def bridge_weights(hparams, options, folder, train, valid):
    brain = train_bridge(hparams, options, train, valid, folder)
    return brain.averaged.state_dict()


def decoder_weights(hparams, options, folder, task):
    brain = train_decoder(hparams, options, folder, task)
    return brain.decoder.trained_state()


@pytest.fixture(params=["bridge", "decoder", "LLaMA with LoRA"])
def job(request, hparams, train, valid):
    """A training without dropout, whose masks differ from process to process."""
    if request.param == "bridge":
        hparams = {**hparams, "bridge": partial(DiffusionLink, dropout=0.0)}
        return bridge_weights, hparams, train, valid
    hparams = {**request.getfixturevalue("decoder_hparams"), "batch_size": 4}
    task = request.getfixturevalue("task")
    if request.param == "decoder":
        write_lm(hparams["lm"], CAPTIONS, **TINY_LM)
        return decoder_weights, hparams, task
    shutil.rmtree(hparams["lm"])
    write_llama(hparams["lm"], CAPTIONS)
    changes = {"lm_training": "lora", "accumulated": 2}
    changes["decoder"] = partial(hparams["decoder"], lora_dropout=0.0)
    return decoder_weights, hparams | changes, task


def test_two_processes_train_like_one(job, tmp_path):
    train, hparams, *data = job
    one = train_as_rank(0, 1, train, hparams, tmp_path / "one", *data)
    given = train, hparams, tmp_path / "two", *data
    two, other = in_ranks(2, tmp_path / "ranks", train_as_rank, *given)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-5)
        assert torch.equal(other[name], two[name])


def caption_as_rank(rank, world, decoder, rows):
    return caption_in_shares(decoder, rows, max_new_tokens=6)


@pytest.mark.parametrize("clips", [2, 7])
def test_processes_share_the_captions(decoder_hparams, tmp_path, clips):
    write_lm(decoder_hparams["lm"], CAPTIONS, **TINY_LM)
    decoder = PrefixDecoder(8, decoder_hparams["lm"], lm_training="scratch")
    rows = torch.randn(clips, 8, generator=torch.Generator().manual_seed(0))
    alone = decoder.generate(rows, max_new_tokens=6)
    for written in in_ranks(3, tmp_path, caption_as_rank, decoder, rows):
        assert written == alone


def scripted_scores(monkeypatch, scores):
    """CIDEr-D of the first probe and then of the second, epoch after epoch."""
    made_up = iter(scores)
    score = lambda captions, references: next(made_up)  # noqa: E731
    monkeypatch.setattr("dlink_plugin.brains.cider_d", score)


def test_training_stops_when_validation_does_and_a_restart_does_not_go_on(
    decoder_hparams, task, tmp_path, monkeypatch
):
    hparams = {**decoder_hparams, "number_of_epochs": 9, "patience": 2}
    scripted_scores(monkeypatch, [0.1, 0, 0.5, 0, 0.4, 9, 0.3, 9, 0.9, 0])
    stopped = learn(hparams, task, tmp_path)
    assert stopped.epoch_counter.current == 4 and stopped.optimizer_step == 24
    again = learn(hparams, task, tmp_path)
    assert again.optimizer_step == 24


def test_the_first_probe_chooses_the_checkpoint(
    decoder_hparams, task, tmp_path, monkeypatch
):
    scripted_scores(monkeypatch, [0.2, 0.1, 0.6, 0.2, 0.4, 0.9])
    kept = []
    original = DecoderBrain.on_stage_end

    def spy(self, stage, loss, epoch=None):
        original(self, stage, loss, epoch)
        if stage.name == "VALID":
            state = self.decoder.trained_state()
            kept.append({name: value.clone() for name, value in state.items()})

    monkeypatch.setattr(DecoderBrain, "on_stage_end", spy)
    best = learn(decoder_hparams, task, tmp_path).load_best().trained_state()
    assert all(torch.equal(best[name], value) for name, value in kept[1].items())
    assert any(not torch.equal(best[name], value) for name, value in kept[2].items())


def test_tensorboard_has_perplexity_scores_and_captions(
    decoder_hparams, task, tmp_path
):
    learn(decoder_hparams, task, tmp_path).writer.close()
    points = scalars(tmp_path)
    steps = [6, 12, 18]
    for tag in ("loss", "perplexity", "cider_d_text", "cider_d_other"):
        assert [step for step, _ in points[f"valid/{tag}"]] == steps
    pairs = zip(points["valid/loss"], points["valid/perplexity"], strict=True)
    assert all(p == pytest.approx(math.exp(loss), 1e-5) for (_, loss), (_, p) in pairs)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0}).Reload()
    (shown, *_) = events.Tensors("valid/captions/text_summary")
    assert b"a dog barks / a dog barks again" in shown.tensor_proto.string_val[0]


def test_perplexity_falls_only_where_captions_belong_to_embeddings(
    decoder_hparams, task, tmp_path
):
    def last_loss(captions, folder):
        train = Captioned(task.train.source, task.train.clip_of_text, captions)
        own = CaptionTask(train, task.train, as_they_are, task.probes, task.references)
        hparams = {
            **decoder_hparams,
            "number_of_epochs": 4,
            "passes_per_epoch": 60,
            "ckpt_interval_steps": 1000,
            "log_every": 100,
            "opt_class": lambda params: torch.optim.AdamW(params, 1e-2),
        }
        learn(hparams, own, tmp_path / folder).writer.close()
        return scalars(tmp_path / folder)["valid/loss"][-1][1]

    assert last_loss(CAPTIONS, "own") < 0.3
    assert last_loss(CAPTIONS[3:] + CAPTIONS[:3], "shuffled") > 1.0


def test_a_frozen_lm_is_neither_optimized_nor_saved(decoder_hparams, task, tmp_path):
    whole = PrefixDecoder(8, decoder_hparams["lm"], "scratch")
    folder = tmp_path / "trained_lm"
    whole.lm.save_pretrained(folder)
    whole.tokenizer.save_pretrained(folder)
    hparams = {**decoder_hparams, "lm": folder, "lm_training": "frozen"}
    modes = []
    spied = CaptionTask(
        task.train,
        task.valid,
        lambda rows, generator: modes.append(brain_lm().training) or rows,
        task.probes,
        task.references,
    )
    brain_lm = lambda: brain.decoder.lm  # noqa: E731
    brain = DecoderBrain(
        hparams["decoder"](dim=8, lm=folder, lm_training="frozen"),
        spied,
        hparams,
        OPTIONS,
        tmp_path / "run",
    )
    brain.fit(brain.epoch_counter, task.train)
    assert modes and not any(modes)
    optimized = {id(p) for g in brain.optimizer.param_groups for p in g["params"]}
    assert optimized == {id(p) for p in brain.decoder.projector.parameters()}
    assert brain.checkpointer.save_checkpoint() is not None
    for saved in (tmp_path / "run" / "save").glob("CKPT*/decoder.ckpt"):
        state = torch.load(saved, weights_only=True)
        assert state.keys() == {"projector.weight", "projector.bias"}


def test_a_decoder_that_is_no_longer_used_makes_room_for_the_next(
    decoder_hparams, task, tmp_path
):
    gone = weakref.ref(learn(decoder_hparams, task, tmp_path / "a").load_best())
    seen = []

    def build(**options):
        seen.append(gone())
        return decoder_hparams["decoder"](**options)

    learn({**decoder_hparams, "decoder": build}, task, tmp_path / "b")
    assert seen == [None]


def test_a_start_is_where_training_begins(decoder_hparams, task, tmp_path):
    hparams = {**decoder_hparams, "opt_class": lambda p: torch.optim.SGD(p, 0.0)}
    first = learn({**hparams, "seed": 5}, task, tmp_path / "a")
    state = first.decoder.trained_state()
    second = train_decoder(hparams, OPTIONS, tmp_path / "b", task, "sub", state)
    assert (tmp_path / "b" / "sub" / "save").is_dir()
    for name, value in second.decoder.trained_state().items():
        assert torch.equal(value, state[name])
    fresh = learn(hparams, task, tmp_path / "c").decoder.trained_state()
    assert any(not torch.equal(fresh[name], value) for name, value in state.items())


def test_a_start_keeps_its_language_where_the_projector_alone_learns(
    decoder_hparams, task, tmp_path
):
    state = learn(decoder_hparams, task, tmp_path / "a").decoder.learned_state()
    state = {name: value.clone() for name, value in state.items()}
    hparams = {**decoder_hparams, "train_lm": False}
    brain = train_decoder(hparams, OPTIONS, tmp_path / "b", task, "", state)
    projector = {"projector.weight", "projector.bias"}
    assert state.keys() > projector
    for name, value in brain.decoder.learned_state().items():
        assert torch.equal(value, state[name]) == (name not in projector), name
    optimized = {id(p) for g in brain.optimizer.param_groups for p in g["params"]}
    assert optimized == {id(p) for p in brain.decoder.projector.parameters()}


def test_a_start_that_training_spoils_is_kept(
    decoder_hparams, task, tmp_path, monkeypatch
):
    state = learn(decoder_hparams, task, tmp_path / "a").decoder.trained_state()
    state = {name: value.clone() for name, value in state.items()}
    scripted_scores(monkeypatch, [0.9, 0, 0.5, 0, 0.8, 0, 0.7, 0])
    hparams = {**decoder_hparams, "patience": 2}
    brain = train_decoder(hparams, OPTIONS, tmp_path / "b", task, "", state)
    assert brain.epoch_counter.current == 2  # two epochs without a better score
    best = brain.load_best().trained_state()
    assert all(torch.equal(best[name], value) for name, value in state.items())
