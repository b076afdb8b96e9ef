"""Which number of a data set means what, and its confidence interval over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from livtrain.evaluate.scoring import CaseScores
from livtrain.metrics import Interval, bootstrap, weighted_mean, weighted_ratio

FloatArray = npt.NDArray[np.float64]
Value = Callable[[CaseScores], float]


def lits_dice(sizes: tuple[int, int]) -> float:
    """The challenge's Dice of one case: 1 where neither side has a voxel."""
    return 2 * sizes[0] / sizes[1] if sizes[1] else 1.0


def _liver_dice(case: CaseScores) -> float:
    return lits_dice(case.lits.liver_sizes) if case.lits.liver_predicted else 0.0


_MEANS: dict[str, tuple[Value, str]] = {
    "liver_dice_per_case": (_liver_dice, "LiTS: mean over cases; 0 without a voxel of label 1"),
    "lesion_dice_per_case": (
        lambda case: lits_dice(case.lits.lesion_sizes),
        "LiTS: mean over cases; 1 where neither side has tumor, 0 where one has",
    ),
    "nnunet_liver_dice": (
        lambda case: case.liver.dice,
        "nnU-Net: label ≥ 1, mean over cases where either side has any",
    ),
    "nnunet_liver_only_dice": (
        lambda case: case.liver_only_dice,
        "nnU-Net without regions: label 1 alone, mean over cases where either side has any",
    ),
    "nnunet_tumor_dice": (
        lambda case: case.tumor.dice,
        "nnU-Net: label 2, mean over cases where either side has any",
    ),
    "liver_assd": (lambda case: case.liver.assd, "mm; mean over cases where both sides have liver"),
    "liver_hd95": (lambda case: case.liver.hd95, "mm; mean over cases where both sides have liver"),
    "liver_surface_dice": (lambda case: case.liver.surface_dice, "mean over cases where either side has any"),
    "tumor_assd": (lambda case: case.tumor.assd, "mm; mean over cases where both sides have tumor"),
    "tumor_hd95": (lambda case: case.tumor.hd95, "mm; mean over cases where both sides have tumor"),
    "tumor_surface_dice": (lambda case: case.tumor.surface_dice, "mean over cases where either side has any"),
    "tumor_sensitivity": (lambda case: case.tumor_rates.sensitivity, "voxels; mean over cases with tumor"),
    "tumor_precision": (lambda case: case.tumor_rates.precision, "voxels; mean over cases with predicted tumor"),
}
_RATIOS: dict[str, tuple[Callable[[CaseScores], tuple[float, float]], str]] = {
    "liver_dice_global": (
        lambda case: (2.0 * case.lits.liver_sizes[0], case.lits.liver_sizes[1]),
        "LiTS: the voxels of all cases pooled",
    ),
    "lesion_dice_global": (
        lambda case: (2.0 * case.lits.lesion_sizes[0], case.lits.lesion_sizes[1]),
        "LiTS: the voxels of all cases pooled",
    ),
    "lesion_recall": (
        lambda case: (case.lits.detection.tp, case.lits.detection.tp + case.lits.detection.fn),
        "LiTS: detected at IoU > 0.5 after merging, pooled over cases",
    ),
    "lesion_precision": (
        lambda case: (case.lits.detection.tp, case.lits.detection.tp + case.lits.detection.fp),
        "LiTS: detected at IoU > 0.5 after merging, pooled over cases",
    ),
}
INTERVALS: dict[str, str] = {
    **{name: text for name, (_, text) in _MEANS.items()},
    **{name: text for name, (_, text) in _RATIOS.items()},
}
"""Name -> what exactly is averaged over what."""
LOWER_IS_BETTER = frozenset({"liver_assd", "liver_hd95", "tumor_assd", "tumor_hd95"})


def case_values(name: str, cases: Sequence[CaseScores]) -> FloatArray:
    """The value of a mean's name for each case, NaN where it has none."""
    return np.array([_MEANS[name][0](case) for case in cases], dtype=np.float64)


def interval_of(name: str, cases: Sequence[CaseScores], seed: int = 0) -> Interval:
    """A number of `INTERVALS` with its interval over patients; draws follow from the seed."""
    patients = [case.patient for case in cases]
    if name in _MEANS:
        values = case_values(name, cases)
        return bootstrap(weighted_mean(values), patients, known=~np.isnan(values), seed=seed)
    parts = np.array([_RATIOS[name][0](case) for case in cases], dtype=np.float64).reshape(-1, 2)
    if not parts.size or math.isclose(parts[:, 1].sum(), 0):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    return bootstrap(weighted_ratio(parts[:, 0], parts[:, 1]), patients, seed=seed)
