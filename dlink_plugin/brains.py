"""The Brains: SpeechBrain training loops over cached embeddings."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .bridges import Bridge, Share
from .decoder import PrefixDecoder
from .gap import modality_gap
from .judge import cross
from .pairs import Captioned, Pairs, seeded
from .report import captions_table
from .resumable import PatientEpochs, ResumableBrain
from .scoring import cider_d
from .tasks import CaptionTask

__all__ = [
    "BridgeBrain",
    "DecoderBrain",
    "caption_in_shares",
    "train_bridge",
    "train_decoder",
]

_SHOWN_CAPTIONS = 10


class _Objective(nn.Module):
    """A bridge's loss as a forward, which is what DDP wraps."""

    def __init__(self, bridge: Bridge):
        super().__init__()
        self.bridge = bridge

    def forward(self, *batch) -> dict[str, Tensor]:
        return self.bridge.loss(*batch)


class BridgeBrain(ResumableBrain):
    """Trains a bridge and keeps an exponential moving average of it, which is judged.

    Arguments
    ---------
    bridge : Bridge
        Fresh; its closed-form state already fitted.
    hparams : dict
        ``seed``, ``opt_class``, ``number_of_epochs``, ``passes_per_epoch``,
        ``batch_size``, ``warmup_share``, ``ema_decay``, ``log_every``.
    run_opts : RunOptions
        SpeechBrain's.
    folder : str or Path
        Gets ``save`` (checkpoints) and ``tensorboard``.
    """

    best = "relative_modality_gap"

    def __init__(self, bridge: Bridge, hparams: dict, run_opts, folder: str | Path):
        ema = AveragedModel(bridge, multi_avg_fn=self._average, use_buffers=True)
        self.epoch_counter = EpochCounter(hparams["number_of_epochs"])
        recoverables = {"bridge": bridge, "ema": ema, "epochs": self.epoch_counter}
        super().__init__(_Objective(bridge), recoverables, hparams, run_opts, folder)
        # Outside `modules`, so that it is neither optimized nor wrapped: moved and put
        # into eval mode by hand.
        self.bridge, self.ema = bridge, ema.to(self.device).eval()
        self.ema.n_averaged = self.ema.n_averaged.cpu()  # or each step waits for it
        self.raw_gap = None  # of the validation clips, the same in every epoch

    @property
    def averaged(self) -> Bridge:
        """The bridge to judge and export."""
        return self.ema.module

    def load_best(self) -> Bridge:
        """Recovers the checkpoint with the lowest gap on validation.

        Returns
        -------
        bridge : Bridge
            The averaged one, in eval mode.
        """
        self.on_evaluate_start(min_key=self.best)
        self.open_writer()
        return self.averaged.eval()

    def on_stage_start(self, stage, epoch=None):
        """Validation collects its pairs, since the gap is not a mean over batches."""
        super().on_stage_start(stage, epoch)
        self.seen = []

    def compute_forward(self, batch, stage):
        """The loss terms of a batch."""
        audio, text = (side.to(self.device, non_blocking=True) for side in batch)
        if stage == sb.Stage.TRAIN:
            return self.modules.objective(audio, text, self.generator, self.share)
        self.seen.append((audio, text))
        generator = seeded(self.hparams.seed, self.step, device=self.device)
        return self.averaged.loss(audio, text, generator)

    def _average(self, averaged, current, _):
        """EMA with warm-up: decay min(d, k / (k + 10)) at update k."""
        k = self.optimizer_step - 1
        decay = min(self.hparams.ema_decay, k / (k + 10))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Averages, schedules, logs."""
        if should_step:
            self.ema.update_parameters(self.bridge)
        super().on_fit_batch_end(batch, outputs, loss, should_step)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Measures the gap on validation, logs it and saves a checkpoint."""
        if stage != sb.Stage.VALID:
            return
        gaps = ddp_broadcast(self._gaps() if if_main_process() else None)
        chosen = gaps[self.bridge.name]
        scalars = {"valid/loss": stage_loss}
        for name, gap in gaps.items():
            scalars |= {f"gap_{name}/{k}": value for k, value in gap.items()}
        self.log_validation(epoch, scalars, chosen)
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, self.best: chosen[self.best]},
            min_keys=[self.best],
            importance_keys=[],
        )

    def _gaps(self) -> dict[str, dict[str, float]]:
        """Of validation, without the bridge and through it."""
        audio, text = (torch.cat(side) for side in zip(*self.seen, strict=True))
        seed = self.hparams.seed
        if self.raw_gap is None:
            self.raw_gap = modality_gap(audio, text, seed=seed)
        text = self.averaged.text_space(text)
        bridged = modality_gap(cross(self.averaged, audio, seed), text, seed=seed)
        return {"none": self.raw_gap, self.bridge.name: bridged}


def train_bridge(
    hparams: dict, run_opts, train: Pairs, valid: Pairs, folder: str | Path
) -> BridgeBrain:
    """Build, fit and train the bridge that the hyperparameters describe.

    Arguments
    ---------
    hparams : dict
        What ``BridgeBrain`` needs, and ``bridge``: a partial that takes ``dim``.
    run_opts : RunOptions
        SpeechBrain's.
    train : Pairs
        Training pairs, on the training device.
    valid : Pairs
        Validation pairs, one caption of each clip.
    folder : str or Path
        Where checkpoints and TensorBoard events go; an earlier run there is resumed.

    Returns
    -------
    brain : BridgeBrain
        Trained; ``load_best`` gives the bridge.
    """
    torch.manual_seed(hparams["seed"])
    bridge = hparams["bridge"](dim=train.audio.shape[1]).to(train.audio.device)
    if type(bridge).fit is not Bridge.fit:  # all pairs at once, in memory
        owner = train.clip_of_text.to(train.audio.device)
        bridge.fit(train.audio[owner], train.text[:])
    brain = BridgeBrain(bridge, hparams, run_opts, folder)
    if any(parameter.requires_grad for parameter in bridge.parameters()):
        brain.fit(
            brain.epoch_counter,
            train,
            valid,
            valid_loader_kwargs={"batch_size": 4096, "collate_fn": Pairs.collate},
        )
    return brain


class DecoderBrain(ResumableBrain):
    """Trains a decoder to write captions from embeddings.

    Checkpoints hold what is trained and no weights of a frozen language model.

    Arguments
    ---------
    decoder : PrefixDecoder
        To be trained.
    task : CaptionTask
        What it is trained on.
    hparams : dict
        ``seed``, ``opt_class``, ``number_of_epochs``, ``patience``,
        ``passes_per_epoch``, ``batch_size``, ``warmup_share``, ``log_every``,
        ``generation``.
    run_opts : RunOptions
        SpeechBrain's.
    folder : str or Path
        Gets ``save`` (checkpoints) and ``tensorboard``.
    can_write : bool
        Whether it was trained before: its start is then judged as epoch 0.
    """

    best = "cider_d"

    def __init__(
        self,
        decoder: PrefixDecoder,
        task: CaptionTask,
        hparams: dict,
        run_opts,
        folder: str | Path,
        can_write: bool = False,
    ):
        self.can_write = can_write
        self.epoch_counter = PatientEpochs(
            hparams["number_of_epochs"], hparams["patience"], 0, "max"
        )
        recoverables = {"epochs": self.epoch_counter}
        super().__init__(decoder, recoverables, hparams, run_opts, folder)
        self.checkpointer.add_recoverable("decoder", decoder, _load, _save)
        self.decoder, self.task = decoder, task

    def load_best(self) -> PrefixDecoder:
        """Recovers the checkpoint whose captions scored best on validation.

        Returns
        -------
        decoder : PrefixDecoder
            In eval mode.
        """
        self.on_evaluate_start(max_key=self.best)
        self.open_writer()
        return self.decoder.eval()

    def compute_forward(self, batch, stage):
        """The loss of a batch, its embeddings through what the task puts there."""
        embeddings, captions = batch
        if stage == sb.Stage.TRAIN:
            generator, share = self.generator, self.share
        else:
            generator = seeded(self.hparams.seed, self.step, device=self.device)
            share = Share()
        with torch.no_grad():
            every = share.gather(embeddings.to(self.device))
            inputs = share.of(self.task.inputs(every, generator))
        return {"loss": self.modules.objective(inputs, captions, share)}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Captions the probes, logs, saves a checkpoint, looks whether to stop."""
        if stage == sb.Stage.VALID:
            stats = {"loss": stage_loss, "perplexity": math.exp(stage_loss)}
            self.epoch_counter.update_metric(self._judge(epoch, stats))
            self._keep_best(epoch)

    def on_fit_start(self):
        """Judges a decoder that can write already, before training may spoil it."""
        super().on_fit_start()
        if self.can_write and not self.epoch_counter.current and not self.step:
            self.epoch_counter.best_score = self._judge(0, {})
            self._keep_best(0)

    def _judge(self, epoch: int, stats: dict) -> float:
        """Score of the first probe; those of all are logged beside the stats."""
        references = self.task.references
        captions = {
            name: caption_in_shares(self.decoder, rows, **self.hparams.generation)
            for name, rows in self.task.probes.items()
        }
        scores = [cider_d(written, references) for written in captions.values()]
        stats |= {f"cider_d_{k}": v for k, v in zip(captions, scores, strict=True)}
        self.log_validation(epoch, {f"valid/{k}": v for k, v in stats.items()}, stats)
        if self.writer:
            table = captions_table(captions, references, _SHOWN_CAPTIONS)
            self.writer.add_text("valid/captions", table, self.optimizer_step)
        self.score = scores[0]
        return self.score

    def _keep_best(self, epoch: int):
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, self.best: self.score},
            max_keys=[self.best],
            importance_keys=[],
        )


def caption_in_shares(
    decoder: PrefixDecoder, embeddings: Tensor, **generation
) -> list[str]:
    """Write captions, under torchrun each process its share; all processes get all.

    Arguments
    ---------
    decoder : PrefixDecoder
        The same in all processes.
    embeddings : Tensor
        (N, d), the same in all processes.
    **generation : dict
        As ``PrefixDecoder.generate`` takes them; one caption for each embedding.

    Returns
    -------
    captions : list of str
        N of them.
    """
    here = Share.here()
    mine = embeddings[here.rank :: here.world]
    parts = [decoder.generate(mine, **generation) if len(mine) else []]
    if here.world > 1:
        (written,), parts = parts, [None] * here.world
        torch.distributed.all_gather_object(parts, written)
    captions = [""] * len(embeddings)
    for first, part in enumerate(parts):
        captions[first :: here.world] = part
    return captions


def _save(decoder: PrefixDecoder, path: Path) -> None:
    torch.save(decoder.trained_state(), path)


def _load(decoder: PrefixDecoder, path: Path, end_of_epoch: bool) -> None:
    decoder.load_trained_state(torch.load(path, map_location="cpu", weights_only=True))


def train_decoder(
    hparams: Mapping,
    run_opts,
    output: str | Path,
    task: CaptionTask,
    folder: str = "",
    start: Mapping[str, Tensor] | None = None,
    changes: Mapping | None = None,
) -> DecoderBrain:
    """Build and train the decoder that the hyperparameters describe.

    Arguments
    ---------
    hparams : mapping
        What ``DecoderBrain`` needs, and ``decoder``: a partial that takes ``dim``,
        ``lm`` and ``lm_training``, which are taken from here as well.
    run_opts : RunOptions
        SpeechBrain's.
    output : str or Path
        The run folder.
    task : CaptionTask
        What it is trained on.
    folder : str
        Below ``output``: where checkpoints and TensorBoard events go; an earlier run
        there is resumed.
    start : mapping of str to Tensor, optional
        The learned state it starts from, of a decoder of the same kind. It is judged
        on validation as epoch 0, so that training cannot make it worse. Unless
        ``train_lm`` of the hyperparameters is true, its language model stays as it is.
    changes : mapping, optional
        Hyperparameters that differ for this one.

    Returns
    -------
    brain : DecoderBrain
        Trained; ``load_best`` gives the decoder.
    """
    hparams = {**hparams, **(changes or {})}
    # A Brain refers to itself: without this, one that is no longer used would still be
    # there, and its language model beside the new one.
    gc.collect()
    torch.manual_seed(hparams["seed"])
    decoder = hparams["decoder"](
        dim=task.train.source.shape[1],
        lm=hparams["lm"],
        lm_training=hparams["lm_training"],
    )
    if start is not None:
        decoder.load_trained_state(start)
        if not hparams["train_lm"]:
            decoder.freeze_lm()
    folder, can_write = Path(output) / folder, start is not None
    brain = DecoderBrain(decoder, task, hparams, run_opts, folder, can_write)
    twice = 2 * hparams["batch_size"]  # what fits with gradients fits twice without
    brain.fit(
        brain.epoch_counter,
        task.train,
        task.valid,
        valid_loader_kwargs={"batch_size": twice, "collate_fn": Captioned.collate},
    )
    return brain
