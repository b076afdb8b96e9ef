"""The learning rate as a function of how far the run is, and of the drops that a plateau caused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from livtrain.config import Settings

POLY_POWER = 0.9  # nnU-Net's
DROP_FACTOR = 0.1  # of a milestone (MICCAI-LITS2017) and of a plateau (Multiclass-U-Net)
ONE_CYCLE_PEAK = 0.25  # fastai's fit_one_cycle: when the rate is highest, where it starts and where it ends
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1e-5
PLATEAU_DELTA = 1e-4  # Keras' ReduceLROnPlateau: what counts as better


@dataclass
class Plateau:
    """How long validation has been without progress; the only state of a schedule, saved with the run."""

    best: float | None = None
    waited: int = 0
    drops: int = 0

    def observe(self, dice: float, patience: int) -> None:
        """Note a validation; after `patience` in a row that are not better the rate drops. NaN says nothing."""
        if math.isnan(dice):
            return
        if self.best is None or dice > self.best + PLATEAU_DELTA:
            self.best, self.waited = dice, 0
            return
        self.waited += 1
        if self.waited >= patience:
            self.drops, self.waited = self.drops + 1, 0


def learning_rate(settings: Settings, progress: float, drops: int = 0) -> float:
    """Learning rate at a progress of 0 (first step) to 1 (end of the run).

    During the first `warmup` of the run the rate climbs linearly from a hundredth; the schedule then spans the
    whole run: `multistep` (x 0.1 at each milestone), `poly` ((1 - progress)^0.9), `cosine`, `one_cycle` (cosines up
    from 1/25 during the first quarter, then down to 1e-5), `plateau` (x 0.1 for each of `drops`) or `constant`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if settings.schedule == "multistep":
        factor = DROP_FACTOR ** sum(progress >= milestone for milestone in settings.milestones)
    elif settings.schedule == "poly":
        factor = (1 - progress) ** POLY_POWER
    elif settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "one_cycle":
        factor = _one_cycle(progress)
    elif settings.schedule == "plateau":
        factor = DROP_FACTOR**drops
    else:
        factor = 1.0
    if progress < settings.warmup:
        factor *= 0.01 + 0.99 * progress / settings.warmup
    return settings.learning_rate * factor


def _one_cycle(progress: float) -> float:
    """Share of the highest rate (Smith 2018, with fastai's cosines; its cycling of the momentum is left out)."""
    if progress < ONE_CYCLE_PEAK:
        start, end, part = ONE_CYCLE_START, 1.0, progress / ONE_CYCLE_PEAK
    else:
        start, end, part = 1.0, ONE_CYCLE_END, (progress - ONE_CYCLE_PEAK) / (1 - ONE_CYCLE_PEAK)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))
