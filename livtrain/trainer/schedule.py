"""The learning rate as a function of how far the run is; it has no state to save."""

from __future__ import annotations

import math

from livtrain.config import Settings

POLY_POWER = 0.9  # nnU-Net's
MULTISTEP_FACTOR = 0.1  # MICCAI-LITS2017's


def learning_rate(settings: Settings, progress: float) -> float:
    """Learning rate at a progress of 0 (first step) to 1 (end of the run).

    During the first `warmup` of the run the rate climbs linearly from a hundredth; the schedule then spans the
    whole run: `multistep` (x 0.1 at each milestone), `poly` ((1 - progress)^0.9), `cosine` or `constant`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if settings.schedule == "multistep":
        factor = MULTISTEP_FACTOR ** sum(progress >= milestone for milestone in settings.milestones)
    elif settings.schedule == "poly":
        factor = (1 - progress) ** POLY_POWER
    elif settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = 1.0
    if progress < settings.warmup:
        factor *= 0.01 + 0.99 * progress / settings.warmup
    return settings.learning_rate * factor
