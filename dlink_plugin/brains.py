"""The Brains: SpeechBrain training loops over cached embeddings."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.distributed import get_rank, if_main_process
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from .bridges import Bridge
from .checkpoints import AtomicCheckpointer
from .gap import modality_gap
from .judge import cross
from .pairs import ClipBatches, Pairs, seeded

__all__ = ["BridgeBrain", "cosine_with_warmup", "train_bridge"]

BEST = "relative_modality_gap"


class _Objective(nn.Module):
    """A bridge's loss as a forward, which is what DDP wraps."""

    def __init__(self, bridge: Bridge):
        super().__init__()
        self.bridge = bridge

    def forward(self, audio: Tensor, text: Tensor, generator: torch.Generator) -> dict:
        return self.bridge.loss(audio, text, generator)


def cosine_with_warmup(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear to 1, then half a cosine to 0.

    Example
    -------
    >>> [round(cosine_with_warmup(k, 2, 10), 2) for k in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


def _warm_average(averaged, current, updates, decay: float) -> None:
    """EMA with warm-up: decay min(d, k / (k + 10)) at update k."""
    k = float(updates)
    torch._foreach_lerp_(averaged, current, 1 - min(decay, k / (k + 10)))


class BridgeBrain(sb.Brain):
    """Trains a bridge and keeps an exponential moving average of it, which is judged.

    Noise and dropout of a step follow from seed, epoch, step and rank, so an
    interrupted run continues as if nothing had happened.

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

    def __init__(self, bridge: Bridge, hparams: dict, run_opts, folder: str | Path):
        average = partial(_warm_average, decay=hparams["ema_decay"])
        ema = AveragedModel(bridge, multi_avg_fn=average, use_buffers=True)
        self.epoch_counter = EpochCounter(hparams["number_of_epochs"])
        recoverables = {"bridge": bridge, "ema": ema, "epochs": self.epoch_counter}
        super().__init__(
            {"objective": _Objective(bridge)},
            hparams["opt_class"],
            hparams,
            run_opts,
            AtomicCheckpointer(Path(folder) / "save", recoverables),
        )
        # Outside `modules`, so that it is neither optimized nor wrapped: moved and put
        # into eval mode by hand.
        self.bridge, self.ema = bridge, ema.to(self.device).eval()
        self.tensorboard = Path(folder) / "tensorboard"
        self.writer = None
        self.raw_gap = None  # of the validation clips, the same in every epoch

    @property
    def averaged(self) -> Bridge:
        """The bridge to judge and export."""
        return self.ema.module

    def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **kwargs):
        """Batches of distinct clips, the global batch shared out over the ranks."""
        if stage != sb.Stage.TRAIN:
            return super().make_dataloader(dataset, stage, ckpt_prefix, **kwargs)
        self.train_sampler = ClipBatches(
            dataset.clip_of_text.cpu(),
            self.hparams.batch_size,
            self.hparams.passes_per_epoch,
            self.hparams.seed,
            get_rank() or 0,
            torch.distributed.get_world_size() if self.distributed_launch else 1,
        )
        loader = SaveableDataLoader(
            dataset, batch_sampler=self.train_sampler, collate_fn=Pairs.collate
        )
        self.checkpointer.add_recoverable(f"{ckpt_prefix}{stage.name}", loader)
        return loader

    def init_optimizers(self):
        """Adds the learning-rate schedule, which is stepped with every batch."""
        super().init_optimizers()
        total = self.hparams.number_of_epochs * len(self.train_sampler)
        warmup = int(self.hparams.warmup_share * total)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(cosine_with_warmup, warmup=warmup, total=total)
        )
        self.checkpointer.add_recoverable("scheduler", self.scheduler)

    def on_fit_start(self):
        """Opens TensorBoard where the recovered checkpoint left off."""
        super().on_fit_start()
        self._open_writer()

    def _open_writer(self):
        if if_main_process():
            # What an interrupted run logged after its last checkpoint comes again.
            purged = self.optimizer_step + 1 if self.optimizer_step else None
            self.writer = SummaryWriter(self.tensorboard, purge_step=purged)

    def load_best(self) -> Bridge:
        """Recovers the checkpoint with the lowest gap on validation.

        Returns
        -------
        bridge : Bridge
            The averaged one, in eval mode.
        """
        self.on_evaluate_start(min_key=BEST)
        if self.writer is None:
            self._open_writer()
        return self.averaged.eval()

    def on_stage_start(self, stage, epoch=None):
        """Validation collects its pairs, since the gap is not a mean over batches."""
        self.epoch, self.seen = epoch, []

    def on_fit_batch_start(self, batch, should_step):
        """Seeds what takes no generator: dropout."""
        self.generator = seeded(
            self.hparams.seed,
            self.epoch,
            self.step,
            get_rank() or 0,
            device=self.device,
        )
        torch.manual_seed(self.generator.initial_seed())

    def compute_forward(self, batch, stage):
        """The loss terms of a training batch; a validation batch as it is."""
        audio, text = (side.to(self.device, non_blocking=True) for side in batch)
        if stage == sb.Stage.TRAIN:
            return self.modules.objective(audio, text, self.generator)
        self.seen.append((audio, text))
        generator = seeded(self.hparams.seed, self.step, device=self.device)
        return self.averaged.loss(audio, text, generator)

    def compute_objectives(self, predictions, batch, stage):
        """The total of the loss terms."""
        return predictions["loss"]

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Averages, schedules, logs."""
        if not should_step:
            return
        self.ema.update_parameters(self.bridge)
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self.writer and self.optimizer_step % self.hparams.log_every == 0:
            for name, term in {**outputs, "learning_rate": rate}.items():
                self.writer.add_scalar(f"train/{name}", term, self.optimizer_step)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Measures the gap on validation, logs it and saves a checkpoint."""
        if stage != sb.Stage.VALID:
            return
        audio, text = (torch.cat(side) for side in zip(*self.seen, strict=True))
        seed = self.hparams.seed
        if self.raw_gap is None:
            self.raw_gap = modality_gap(audio, text, seed=seed)
        chosen = modality_gap(cross(self.averaged, audio, seed), text, seed=seed)
        gaps = {"none": self.raw_gap, self.bridge.name: chosen}
        if self.writer:
            self.writer.add_scalar("valid/loss", stage_loss, self.optimizer_step)
            for name, gap in gaps.items():
                for criterion, value in gap.items():
                    tag = f"gap_{name}/{criterion}"
                    self.writer.add_scalar(tag, value, self.optimizer_step)
        # The control logs to the same file, so each line says whose it is.
        whose = {"run": self.tensorboard.parent.name, "epoch": epoch}
        self.hparams.train_logger.log_stats(whose, valid_stats=chosen)
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, BEST: chosen[BEST]},
            min_keys=[BEST],
            importance_keys=[],
        )


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
    bridge = hparams["bridge"](dim=train.audio.shape[1])
    bridge.fit(train.audio[train.clip_of_text.to(train.audio.device)], train.text)
    brain = BridgeBrain(bridge, hparams, run_opts, folder)
    if any(parameter.requires_grad for parameter in bridge.parameters()):
        brain.fit(
            brain.epoch_counter,
            train,
            valid,
            valid_loader_kwargs={"batch_size": 4096, "collate_fn": Pairs.collate},
        )
    return brain
