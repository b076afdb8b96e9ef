"""Numbers that grow with a run, and what validations decide: the best weights, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run is; goes through its checkpoints. Times are in seconds.

    `dice_mean` is the running mean of the validation Dice, `best_mean` its largest value, at `best_step`; the Dice of
    that very validation is `best_val_dice`. `stale` counts the validations since.
    """

    seconds: float = 0.0
    training_s: float = 0.0
    waiting_s: float = 0.0
    validating_s: float = 0.0
    validations: int = 0
    validated_step: int = -1
    val_dice: float | None = None
    dice_mean: float | None = None
    best_mean: float | None = None
    best_val_dice: float | None = None
    best_step: int | None = None
    stale: int = 0

    def observe(self, dice: float, step: int, keep: float) -> bool:
        """Note a validation Dice; whether its running mean is the best so far. NaN says nothing.

        The mean is `keep` of the old one and the rest of the new Dice, and starts at the first (nnU-Net's
        `ema_fg_dice`): a single lucky validation does not decide which weights are kept.
        """
        if math.isnan(dice):
            return False
        self.val_dice = dice
        self.dice_mean = dice if self.dice_mean is None else keep * self.dice_mean + (1 - keep) * dice
        if self.best_mean is not None and self.dice_mean <= self.best_mean:
            self.stale += 1
            return False
        self.best_mean, self.best_val_dice, self.best_step, self.stale = self.dice_mean, dice, step, 0
        return True

    def validated(self, step: int, seconds: float) -> None:
        """Note that a validation took place."""
        self.validated_step, self.validations = step, self.validations + 1
        self.validating_s += seconds

    def affordable(self, seconds: float, share: float | None) -> bool:
        """Whether a further validation as long as those before keeps all of them within a share of the run's time."""
        if share is None or not self.validations:
            return True
        each = self.validating_s / self.validations
        return self.validating_s + each <= share * (seconds + each)
