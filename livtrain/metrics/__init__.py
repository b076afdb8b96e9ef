"""How predictions are scored: masks, surfaces, and the LiTS challenge's own numbers."""

from livtrain.metrics.lits import LITS_NAMES, LitsCase, lits_case, lits_summary
from livtrain.metrics.masks import MaskScores, dice, score_masks
from livtrain.metrics.surface import SURFACE_TOLERANCE_MM, SurfaceDistances, surface_distances

__all__ = [
    "LITS_NAMES",
    "SURFACE_TOLERANCE_MM",
    "LitsCase",
    "MaskScores",
    "SurfaceDistances",
    "dice",
    "lits_case",
    "lits_summary",
    "score_masks",
    "surface_distances",
]
