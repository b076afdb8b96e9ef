"""What a run reports: while it goes, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """Where a run is: for progress bars. `loss` is the newest, `seconds_left` an estimate."""

    step: int
    steps: int | None
    fraction: float
    loss: float
    patches_per_s: float
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Summary:
    """What a run came to; `summary.json` holds the same. Dice is None where nothing was scored."""

    stage: str
    network: str
    preset: str
    parameters: int
    steps: int
    stopped_by: str
    seconds: float
    loss: float | None
    best_val_dice: float | None
    best_step: int | None
    train_dice: float | None
    patches_per_s: float
    data_wait_fraction: float
    device: str
    train_cases: int
    val_cases: int
    run: str
    version: str


def dice_text(means: Mapping[str, float]) -> str:
    """Mean Dice for a person, by structure where there are several."""
    texts = {
        name: f"{value:.4f}" if math.isfinite(value) else "unknown (no case has it)" for name, value in means.items()
    }
    mean = texts.pop("mean")
    return mean if len(texts) == 1 else f"{mean} ({', '.join(f'{name} {text}' for name, text in texts.items())})"
