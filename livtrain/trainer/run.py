"""The state of a run: network, optimizer, counters and clocks; one step forward, and to and from a checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livprep.errors import RunError, UsageError
from livtrain.augment import Augmenter
from livtrain.checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from livtrain.loader import Batch, PatchLoader
from livtrain.losses import AlphaSchedule, DeepSupervision, build_loss
from livtrain.networks import get_network
from livtrain.sampling import STAGE_ODDS
from livtrain.stages import get_stage
from livtrain.trainer.optimization import (
    Ema,
    Precision,
    build_for_training,
    build_optimizer,
    drop_encoder_gradients,
)
from livtrain.trainer.plan import Plan, Say
from livtrain.trainer.schedule import Plateau, learning_rate
from livtrain.unpack import fits_packed

_COURSE = {
    "stage", "network", "width", "dropout", "loss", "windows", "window_source", "patch_zyx", "batch", "learning_rate",
    "schedule", "milestones", "warmup", "gradient_clip", "weight_decay", "supervision", "sampling", "augment", "seed",
    "amp", "pretrained", "frozen", "background", "class_weights", "accumulate", "optimizer", "momentum", "patience",
    "ema", "channels_last", "compile", "activation_checkpointing", "patches_per_read",
}  # fmt: skip
"""Settings that decide every parameter of a run; a resumed run must have the same."""


_RUN_FILES = ("config.yaml", LAST, BEST, "metrics.jsonl")


@dataclass
class Progress:
    """Numbers that grow with a run; they go through its checkpoints. Times are in seconds."""

    seconds: float = 0.0
    training_s: float = 0.0
    waiting_s: float = 0.0
    validated_step: int = -1
    best_val_dice: float | None = None
    best_step: int | None = None


class Run:
    """A run between two steps.

    Parameters
    ----------
    plan
        The run with every choice made.
    """

    def __init__(self, plan: Plan) -> None:
        settings = plan.settings
        torch.manual_seed(settings.seed)
        self.plan, self.settings = plan, settings
        self.stage = get_stage(settings.stage)
        self.device = torch.device(settings.device)
        self.network, self.format = build_for_training(settings, self.stage.out_channels, self.device)
        # validation is eager: its patches and hooks differ
        self._forward = torch.compile(self.network, dynamic=False) if settings.compile else self.network
        self.optimizer = build_optimizer(settings, self.network)
        self.precision = Precision(self.device.type, settings.amp)
        self.ema = Ema(self.network, settings.ema) if settings.ema is not None else None
        self.plateau = Plateau()
        supervision = settings.supervision
        self.loss = DeepSupervision(
            build_loss(settings.loss, background=settings.background, class_weights=settings.class_weights),
            AlphaSchedule(supervision.alpha, supervision.decay, supervision.decay_every),
            get_network(settings.network).map_weights,
        )
        self.augmenter = Augmenter(settings.augment, settings.patch_zyx, settings.seed, settings.bank)
        self.step = 0
        self.progress = Progress()
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes."""
        return self.progress.seconds + time.perf_counter() - self._started

    @property
    def fraction(self) -> float:
        """How far the run is, by steps or by time, 0...1."""
        by_steps = self.step / self.settings.steps if self.settings.steps else 0.0
        by_time = self.seconds / self.settings.time_s if self.settings.time_s else 0.0
        return min(max(by_steps, by_time), 1.0)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.settings, self.fraction, self.plateau.drops)

    @property
    def patches_per_step(self) -> int:
        """Patches that an optimizer step sees."""
        return self.settings.batch * self.settings.accumulate

    def train_step(self, batches: Sequence[Batch]) -> Tensor:
        """One optimizer step on the mean loss of batches; returns it, a scalar that may still be computed."""
        settings, fraction = self.settings, self.fraction
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, fraction, self.plateau.drops)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch, fraction, len(batches)) for batch in batches]
        if fraction < settings.frozen:
            drop_encoder_gradients(self.network)
        self.precision.step(self.optimizer, self.network, settings.gradient_clip)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return torch.stack(losses).mean()

    def _backward(self, batch: Batch, fraction: float, share: int) -> Tensor:
        """Add the gradients of one batch's loss, divided by `share`; returns the loss."""
        image, labels = self._augmented(batch)
        target, weight = self.stage.target(labels), self.stage.weight(labels, batch.spacing_mm)
        with self.precision.autocast():
            maps = self._forward(image.contiguous(memory_format=self.format))
        loss = self.loss((maps,) if isinstance(maps, Tensor) else maps, target, weight, epoch=fraction)
        self.precision.backward(loss / share)
        return loss.detach()

    @contextmanager
    def validated_weights(self) -> Iterator[None]:
        """Context in which the network has the weights that are validated: averaged ones where they are kept."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            yield

    def observe(self, dice: float) -> bool:
        """Note a validation Dice for the schedule and the best weights; whether it is the best so far."""
        if self.settings.schedule == "plateau":
            self.plateau.observe(dice, self.settings.patience)
        best = self.progress.best_val_dice
        if better := not math.isnan(dice) and (best is None or dice > best):  # NaN: nothing to score
            self.progress.best_val_dice, self.progress.best_step = dice, self.step
        return better

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        facts: Any = {"counters": batch.counters, "spacing_mm": batch.spacing_mm}
        if batch.flat is not None:
            return self.augmenter.from_packed(batch.packed, **facts)
        return self.augmenter.from_channels(batch.image_BCZYX, batch.labels_BZYX, **facts)

    def loader(self, say: Say) -> PatchLoader:
        """The patches from the next step on; `say` takes one line for where they are read from.

        They stay packed until augmentation, which turns HU and labels in one pass, moves windows, and asks for a
        margin where it turns. Windows beyond 12 bits, and stored channels, come as channels and without a margin.
        """
        settings = self.settings
        packed = settings.window_source == "packed" and all(fits_packed(window) for window in settings.bank)
        budget_gb = settings.ram_budget_gb
        return PatchLoader(
            self.plan.cases,
            settings.patch_zyx,
            settings.batch,
            cases=self.plan.train,
            windows=settings.bank,
            odds=settings.sampling.model_dump() if settings.sampling else STAGE_ODDS[settings.stage],
            seed=settings.seed,
            start=self.step * self.patches_per_step,
            stop=settings.steps * self.patches_per_step if settings.steps else None,
            workers=settings.loader_threads,
            prefetch=settings.prefetch,
            device=self.device,
            source=settings.window_source,
            tier=settings.loader_tier,
            ram_budget_bytes=None if budget_gb is None else int(budget_gb * 1e9),
            patches_per_read=settings.patches_per_read,
            deliver="packed" if packed else "channels",
            margin=self.augmenter.margin if packed else None,
            say=say,
        )

    def checkpoint(self) -> Checkpoint:
        """The state as a checkpoint.

        Raises
        ------
        RunError
            DIVERGED: a weight is not finite; a good checkpoint is never replaced by such a one.
        """
        weights = self.network.state_dict()
        if broken := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
            raise RunError(
                "DIVERGED",
                f"step {self.step}: weights of {broken[0]} are not finite; lower the learning rate",
            )
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return Checkpoint(
            network_state=weights,
            settings=self.settings,
            preparation=self.plan.preparation,
            step=self.step,
            optimizer_state=self.optimizer.state_dict(),
            rng=rng,
            progress={**vars(self.progress), "seconds": self.seconds},
            cases={"train": list(self.plan.train), "val": list(self.plan.val)},
            store_digest=self.plan.store_digest,
            schedule_state=vars(self.plateau),
            scaler_state=self.precision.state_dict(),
            ema_state=self.ema.state_dict() if self.ema is not None else {},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run.

        Raises
        ------
        UsageError
            CONFIG_INVALID: settings that decide the parameters, or the data, are not those of the checkpoint.
        """
        now, then = (s.model_dump(include=_COURSE) for s in (self.settings, checkpoint.settings))
        if changed := [f"{name} was {then[name]!r} and is {now[name]!r}" for name in now if now[name] != then[name]]:
            raise UsageError("CONFIG_INVALID", f"--resume: {'; '.join(changed)}; use another --run")
        if checkpoint.store_digest != self.plan.store_digest:
            raise UsageError(
                "CONFIG_INVALID", "--resume: the training cases are not those of the run; use another --run"
            )
        self.network.load_state_dict(checkpoint.network_state)
        self.optimizer.load_state_dict(checkpoint.optimizer_state)
        torch.set_rng_state(checkpoint.rng["cpu"])
        if self.device.type == "cuda" and "cuda" in checkpoint.rng:
            torch.cuda.set_rng_state(checkpoint.rng["cuda"], self.device)
        self.step, self.progress = checkpoint.step, Progress(**checkpoint.progress)
        self.plateau = Plateau(**checkpoint.schedule_state)
        self.precision.load_state_dict(checkpoint.scaler_state)
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.ema_state)


def open_run(run_dir: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from, or None for a new run.

    Raises
    ------
    RunError
        RUN_EXISTS: the folder holds a run, which is not overwritten. CHECKPOINT_CORRUPT.
    """
    if not any((run_dir / name).exists() for name in _RUN_FILES):
        return None
    if not resume:
        raise RunError("RUN_EXISTS", f"{run_dir} already holds a run")
    if not any((run_dir / name).exists() for name in (LAST, BEST)):
        return None  # it was stopped before its first checkpoint
    return load_checkpoint(run_dir, prefer="last")


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms, and give its switches back at the end."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it (torch docs, reproducibility)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
