"""The state of a run: network, optimizer, counters and clocks; one step forward, and to and from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from livprep.errors import RunError
from livprep.windows import WindowBank
from livtrain.augment import Augmenter
from livtrain.checkpoint import Checkpoint
from livtrain.loader import Batch, PatchLoader
from livtrain.losses import AlphaSchedule, DeepSupervision, build_loss
from livtrain.model import hull, learned_bank
from livtrain.networks import get_network
from livtrain.sampling import STAGE_ODDS
from livtrain.stages import get_stage
from livtrain.trainer.distributed import Ranks, unsynchronized
from livtrain.trainer.optimization import (
    Ema,
    Precision,
    build_for_training,
    build_optimizer,
    compiled,
    drop_encoder_gradients,
)
from livtrain.trainer.plan import Plan, Say
from livtrain.trainer.progress import Progress
from livtrain.trainer.resuming import check_course
from livtrain.trainer.schedule import Plateau, learning_rate
from livtrain.trainer.waiting import DataWait
from livtrain.unpack import PACKED_LOW_HU, fits_packed


class Run:
    """A run between two steps.

    Parameters
    ----------
    plan
        The run with every choice made.
    ranks
        The processes of the run.
    """

    def __init__(self, plan: Plan, ranks: Ranks | None = None) -> None:
        settings = plan.settings
        self.ranks = ranks or Ranks()
        torch.manual_seed(settings.seed)
        self.plan, self.settings = plan, settings
        self.stage = get_stage(settings.stage)
        self.device = torch.device(settings.device)
        network, self.format = build_for_training(settings, self.stage.out_channels, self.device)
        self.network = self.ranks.synchronized(network, self.device)
        self._parallel = self.ranks.parallel(self.network, self.device)
        # validation is eager and of one rank: its patches and hooks differ
        self._forward = compiled(self._parallel) if settings.compile else self._parallel
        self.optimizer = build_optimizer(settings, self.network)
        self.precision = Precision(self.device.type, settings.amp)
        self.ema = Ema(self.network, settings.ema) if settings.ema is not None else None
        self.ranks.seed(settings.seed)
        self.plateau = Plateau()
        supervision = settings.supervision
        self.loss = DeepSupervision(
            build_loss(settings.loss, background=settings.background, class_weights=settings.class_weights),
            AlphaSchedule(supervision.alpha, supervision.decay, supervision.decay_every),
            get_network(settings.network).map_weights,
        )
        self._hull = hull(settings.bank)
        bank = WindowBank((self._hull,)) if settings.learn_windows else settings.bank
        self.augmenter = Augmenter(
            settings.augment, settings.patch_zyx, settings.seed, bank, clamp=not settings.learn_windows
        )
        self.step = 0
        self.progress, self.waits = Progress(), DataWait(self.device)
        self.agreed_s = 0.0
        """Wall time of the run as its ranks last agreed on it; what depends on time depends on this alone."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far on this rank, over all its processes."""
        return self.progress.seconds + time.perf_counter() - self._started

    @property
    def fraction(self) -> float:
        """How far the run is, by steps or by time, 0...1."""
        by_steps = self.step / self.settings.steps if self.settings.steps else 0.0
        by_time = self.agreed_s / self.settings.time_s if self.settings.time_s else 0.0
        return min(max(by_steps, by_time), 1.0)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.settings, self.fraction, self.plateau.drops)

    @property
    def patches_per_step(self) -> int:
        """Patches that an optimizer step sees, on all ranks."""
        return self.settings.batch * self.settings.accumulate * self.ranks.world

    def train_step(self, batches: Sequence[Batch]) -> Tensor:
        """One optimizer step on the mean loss of batches; returns it, a scalar that may still be computed."""
        settings, fraction = self.settings, self.fraction
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, fraction, self.plateau.drops)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for position, batch in enumerate(batches, start=1):
            with unsynchronized(self._parallel, position < len(batches)):
                losses.append(self._backward(batch, fraction, len(batches)))
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

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the network takes, and labels."""
        facts: Any = {"counters": batch.counters, "spacing_mm": batch.spacing_mm}
        if batch.flat is None:
            return self.augmenter.from_channels(batch.image_BCZYX, batch.labels_BZYX, **facts)
        image, labels = self.augmenter.from_packed(batch.packed, **facts)
        if self.settings.learn_windows:  # back from units of the window to HU + 1024
            image.mul_(self._hull.width_hu).add_(self._hull.low_hu - PACKED_LOW_HU)
        return image, labels

    @contextmanager
    def validated_weights(self) -> Iterator[None]:
        """Context in which the network has the weights that are validated: averaged ones where they are kept."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            yield

    def observe(self, dice: float) -> bool:
        """Note a validation Dice for the schedule and the best weights; whether they are the best so far."""
        if self.settings.schedule == "plateau":
            self.plateau.observe(dice, self.settings.patience)
        return self.progress.observe(dice, self.step, self.settings.dice_ema)

    def learned_windows(self) -> dict[str, float]:
        """Level and width in HU of each window that is learned, for the journal."""
        bank = learned_bank(self.network) or ()
        return {
            f"{window.name}_{key}": value
            for window in bank
            for key, value in (("wl", window.center_hu), ("ww", window.width_hu))
        }

    def loader(self, say: Say) -> PatchLoader:
        """This rank's patches from the next step on; `say` takes one line for where they are read from.

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
            rank=self.ranks.rank,
            world=self.ranks.world,
            deliver="packed" if packed else "channels",
            margin=self.augmenter.margin if packed else None,
            say=say,
        )

    def checkpoint(self) -> Checkpoint:
        """The state as a checkpoint; every rank calls it.

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
        rng: dict[str, Tensor] = {}
        for rank, state in enumerate(self.ranks.gather(self._rng())):
            rng |= {_of_rank(name, rank): value for name, value in state.items()}
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
            world=self.ranks.world,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run.

        Raises
        ------
        UsageError
            CONFIG_INVALID: what decides the parameters is not that of the checkpoint (`check_course`).
        """
        check_course(self.settings, self.plan.store_digest, self.ranks.world, checkpoint)
        self.network.load_state_dict(checkpoint.network_state)
        self.optimizer.load_state_dict(checkpoint.optimizer_state)
        for name in self._rng():
            if (state := checkpoint.rng.get(_of_rank(name, self.ranks.rank))) is not None:
                torch.set_rng_state(state) if name == "cpu" else torch.cuda.set_rng_state(state, self.device)
        self.step, self.progress = checkpoint.step, Progress(**checkpoint.progress)
        self.agreed_s = self.progress.seconds
        self.plateau = Plateau(**checkpoint.schedule_state)
        self.precision.load_state_dict(checkpoint.scaler_state)
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.ema_state)

    def _rng(self) -> dict[str, Tensor]:
        """States of this rank's generators."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states


def _of_rank(name: str, rank: int) -> str:
    """Name of a generator's state in a checkpoint; rank 0 has that of a single process."""
    return f"{name}.{rank}" if rank else name
