import pytest
import torch
from speechbrain import RunOptions
from speechbrain.utils.train_logger import FileTrainLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import normalize

from dlink_plugin.brains import BridgeBrain, cosine_with_warmup, train_bridge
from dlink_plugin.bridges import Bridge, DiffusionLink
from dlink_plugin.gap import CRITERIA
from dlink_plugin.pairs import Pairs


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
    original = BridgeBrain.on_fit_batch_start

    def stop(self, batch, should_step):
        if self.optimizer_step == steps:
            raise Interrupted
        original(self, batch, should_step)

    monkeypatch.setattr(BridgeBrain, "on_fit_batch_start", stop)


@pytest.mark.parametrize("steps", [3, 6, 11])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    hparams, train, valid, tmp_path, monkeypatch, steps
):
    """At 3 in mid-epoch, at 6 right after an epoch, at 11 late in the second one."""
    whole = run(hparams, train, valid, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, steps)
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
    before, after = scalars(tmp_path / "whole"), scalars(tmp_path / "killed")
    assert before.keys() == after.keys()
    for tag, points in before.items():
        assert [step for step, _ in after[tag]] == [step for step, _ in points], tag
        assert [v for _, v in after[tag]] == pytest.approx([v for _, v in points]), tag


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


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [cosine_with_warmup(step, 5, 50) for step in range(51)]
    assert factors[4] == factors[5] == 1
    assert all(a < b for a, b in zip(factors[:4], factors[1:5], strict=True))
    assert all(a > b for a, b in zip(factors[5:], factors[6:], strict=False))
    assert factors[50] == pytest.approx(0)
