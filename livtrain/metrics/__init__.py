"""How predictions are scored: masks, surfaces, lesions by size, and the LiTS challenge's own numbers."""

from livtrain.metrics.bootstrap import Interval, bootstrap, weighted_mean, weighted_ratio
from livtrain.metrics.lits import LITS_NAMES, LitsCase, lits_case, lits_summary
from livtrain.metrics.masks import MaskScores, common_box, dice, score_masks
from livtrain.metrics.rates import MaskRates, mask_rates
from livtrain.metrics.sizes import CLASS_NAMES, Lesion, Lesions, SizeClass, detection_by_size, find_lesions
from livtrain.metrics.surface import SURFACE_TOLERANCE_MM, SurfaceDistances, surface_distances

__all__ = [
    "CLASS_NAMES",
    "LITS_NAMES",
    "SURFACE_TOLERANCE_MM",
    "Interval",
    "Lesion",
    "Lesions",
    "LitsCase",
    "MaskRates",
    "MaskScores",
    "SizeClass",
    "SurfaceDistances",
    "bootstrap",
    "common_box",
    "detection_by_size",
    "dice",
    "find_lesions",
    "lits_case",
    "lits_summary",
    "mask_rates",
    "score_masks",
    "surface_distances",
    "weighted_mean",
    "weighted_ratio",
]
