"""The part of a Brain that lets an interrupted run end as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from .bridges import Share
from .checkpoints import AtomicCheckpointer
from .pairs import ClipBatches, seeded

__all__ = ["PatientEpochs", "ResumableBrain", "cosine_with_warmup"]


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


class ResumableBrain(sb.Brain):
    """What the Brains share: a run that is interrupted ends as if it had not been.

    Batches, noise and dropout of a step follow from seed, epoch and step (dropout from
    the rank as well); the learning-rate schedule is recovered, and TensorBoard goes on
    where it was.

    Arguments
    ---------
    objective : torch.nn.Module
        Gives a dict of loss terms, "loss" their total. DDP wraps it.
    recoverables : dict
        What checkpoints hold beside optimizer, schedule and data loader.
    hparams : dict
        ``seed``, ``opt_class``, ``number_of_epochs``, ``passes_per_epoch``,
        ``batch_size``, ``warmup_share``, ``log_every``, ``train_logger``.
    run_opts : RunOptions
        SpeechBrain's.
    folder : str or Path
        Gets ``save`` (checkpoints) and ``tensorboard``.
    """

    def __init__(
        self,
        objective: nn.Module,
        recoverables: dict,
        hparams: dict,
        run_opts,
        folder: str | Path,
    ):
        self.folder = Path(folder)
        super().__init__(
            {"objective": objective},
            partial(_optimize_trained, hparams["opt_class"]),
            hparams,
            run_opts,
            AtomicCheckpointer(self.folder / "save", recoverables),
        )
        if self.debug:  # SpeechBrain makes a temporary folder in each process
            folder = ddp_broadcast(self.checkpointer.checkpoints_dir)
            self.checkpointer.checkpoints_dir = folder
        self.writer, self.share, self.unseen = None, Share.here(), []

    def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **kwargs):
        """Batches of distinct clips, the global batch shared out over the ranks."""
        if stage != sb.Stage.TRAIN:
            return super().make_dataloader(dataset, stage, ckpt_prefix, **kwargs)
        self.train_sampler = ClipBatches(
            dataset.clip_of_text.cpu(),
            self.hparams.batch_size,
            self.hparams.passes_per_epoch,
            self.hparams.seed,
            self.share.rank,
            self.share.world,
            getattr(dataset, "lengths", None),
        )
        loader = SaveableDataLoader(
            dataset, batch_sampler=self.train_sampler, collate_fn=dataset.collate
        )
        self.checkpointer.add_recoverable(f"{ckpt_prefix}{stage.name}", loader)
        return loader

    def init_optimizers(self):
        """Adds the learning-rate schedule, which is stepped with the optimizer."""
        super().init_optimizers()
        batches = self.hparams.number_of_epochs * len(self.train_sampler)
        total = batches // self.grad_accumulation_factor
        warmup = int(self.hparams.warmup_share * total)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(cosine_with_warmup, warmup=warmup, total=total)
        )
        self.checkpointer.add_recoverable("scheduler", self.scheduler)

    def on_fit_start(self):
        """Opens TensorBoard where the recovered checkpoint left off."""
        super().on_fit_start()
        self.open_writer()

    def open_writer(self):
        """Opens TensorBoard, in the main process, unless it is open."""
        if if_main_process() and self.writer is None:
            # What an interrupted run logged after its last checkpoint comes again.
            purged = self.optimizer_step + 1 if self.optimizer_step else None
            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=purged)

    def close_writer(self):
        """Closes TensorBoard where it is open: one of many runs in a process."""
        if self.writer is not None:
            self.writer.close()

    def on_stage_start(self, stage, epoch=None):
        """Remembers stage and epoch."""
        self.stage, self.epoch = stage, epoch

    def on_fit_batch_start(self, batch, should_step):
        """Seeds the batch's noise, alike in all processes, and dropout, in each."""
        numbers = self.hparams.seed, self.epoch, self.step
        self.generator = seeded(*numbers, 0, device=self.device)
        torch.manual_seed(seeded(*numbers, self.share.rank).initial_seed())

    def fit_batch(self, batch):
        """SpeechBrain's, but that nobody looks at the loss.

        To look waits for the device; ``update_average`` does so now and then.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                terms = self.compute_forward(batch, sb.Stage.TRAIN)
            loss = terms["loss"] / self.grad_accumulation_factor
            self.scaler.scale(loss).backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, terms, terms["loss"], should_step)
        return terms["loss"].detach()

    def update_average(self, loss, avg_loss):
        """In training the mean of the last ``log_every`` losses, looked at together."""
        if self.stage != sb.Stage.TRAIN:
            return super().update_average(loss, avg_loss)
        self.unseen.append(loss)
        if self.step % self.hparams.log_every:
            return avg_loss
        mean = torch.stack(self.unseen).mean()
        self.unseen.clear()
        self.check_loss_isfinite(mean)
        return float(mean)

    def compute_objectives(self, predictions, batch, stage):
        """The total of the loss terms."""
        return predictions["loss"]

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Schedules, logs."""
        if not should_step:
            return
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self.writer and self.optimizer_step % self.hparams.log_every == 0:
            for name, term in {**outputs, "learning_rate": rate}.items():
                self.writer.add_scalar(f"train/{name}", term, self.optimizer_step)

    def log_validation(self, epoch: int, scalars: Mapping[str, float], stats: Mapping):
        """Scalars go to TensorBoard, stats to the training log."""
        if self.writer:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, self.optimizer_step)
        # Controls log to the same file, so each line says whose it is.
        whose = {"run": getattr(self.hparams, "run_name", self.folder.name)}
        whose["epoch"] = epoch
        self.hparams.train_logger.log_stats(whose, valid_stats=stats)


def _optimize_trained(opt_class: Callable, parameters: Iterable[nn.Parameter]):
    """An optimizer that never hears of a frozen model."""
    return opt_class([each for each in parameters if each.requires_grad])


@register_checkpoint_hooks
class PatientEpochs(EpochCounterWithStopper):
    """Epochs until validation stops improving, also across a restart.

    SpeechBrain's stopper inherits the saver of a plain counter and forgets that it had
    stopped.
    """

    @mark_as_saver
    def _save(self, path):
        super()._save(path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch=True):
        super()._recover(path, end_of_epoch)
        self.should_stop = self.current - self.best_limit >= self.limit_to_stop
