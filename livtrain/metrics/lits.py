"""The LiTS challenge's numbers, as its public scoring code of 2017-09-03 computes them.

Liver = label >= 1, lesion = label 2. Where that code would divide by zero, this one is defined: see `lits_summary`.
How lesions are detected: see `livtrain.metrics.lesions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.geometry import Triple
from livprep.labels import Label, LabelArray
from livtrain.metrics.lesions import Detection, IntArray, components, detect, overlaps
from livtrain.metrics.masks import Box, MaskScores, common_box, dice, score_masks

LARGE = 9001.0
"""The challenge's value for a distance or volume difference that does not exist."""
_SCORES = ("dice", "jaccard", "voe", "rvd", "assd", "rmsd", "msd")
_UNDEFINED = dict(zip(_SCORES, (0.0, 0.0, 1.0, LARGE, LARGE, LARGE, LARGE), strict=True))
LITS_NAMES = (
    "lesion_precision",
    "lesion_recall",
    "lesion_precision_greater_zero",
    "lesion_recall_greater_zero",
    *(f"lesion_{name}" for name in _SCORES),
    "lesion_dice_per_case",
    "lesion_dice_global",
    *(f"liver_{name}" for name in _SCORES),
    "liver_dice_per_case",
    "liver_dice_global",
    "RMSE_Tumorburden",
    "MAXERROR_Tumorburden",
)
"""The 24 names of the scorer's output."""


@dataclass(frozen=True)
class LitsCase:
    """What the scorer keeps of one case.

    Parameters
    ----------
    detection, any_overlap
        Lesions at IoU > 0.5 and > 0.
    lesions
        Scores of each lesion detected at > 0.5.
    liver
        Scores of the liver, or None where the prediction has no voxel of label 1 or the reference no liver.
    liver_predicted
        Whether any voxel has label 1 (not >= 1).
    lesion_sizes, liver_sizes
        Voxels of the intersection, and of prediction plus reference.
    burden_error
        Tumor burden n(2) / n(>= 1) of the reference minus that of the prediction.
    table
        Common voxels of each pair of lesions (`overlaps`).
    """

    detection: Detection
    any_overlap: Detection
    lesions: tuple[MaskScores, ...]
    liver: MaskScores | None
    liver_predicted: bool
    lesion_sizes: tuple[int, int]
    liver_sizes: tuple[int, int]
    burden_error: float
    table: IntArray = field(repr=False, compare=False)


def lits_case(
    prediction: LabelArray, reference: LabelArray, spacing_mm: Triple, liver: MaskScores | None = None
) -> LitsCase:
    """Score one case.

    Parameters
    ----------
    prediction, reference
        Labels `(z, y, x)` in the axis order of the file (first file axis last).
    spacing_mm
        Spacing zyx in mm of the reference's header.
    liver
        Scores of label >= 1 if they are known already.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    box = common_box(prediction, reference)
    p, r = prediction[box], reference[box]
    lesion_p, lesion_r = p == Label.TUMOR, r == Label.TUMOR
    near = common_box(lesion_p, lesion_r)
    parts_p, parts_r = components(lesion_p[near]), components(lesion_r[near])
    table = overlaps(parts_p, parts_r)
    detection, any_overlap = detect(table, 0.5), detect(table, 0.0)
    lesions: tuple[MaskScores, ...] = ()
    if detection.tp > 0:  # merges can make it 0 or less although pairs remain; the scorer then skips them
        boxes_p, boxes_r = ndimage.find_objects(parts_p), ndimage.find_objects(parts_r)
        for mine, theirs in detection.pairs:
            place = _around([boxes_p[k - 1] for k in mine] + [boxes_r[k - 1] for k in theirs])
            pair = np.isin(parts_p[place], mine), np.isin(parts_r[place], theirs)
            lesions += (score_masks(*pair, spacing_mm),)
    liver_p, liver_r = p >= Label.LIVER, r >= Label.LIVER
    predicted = bool((p == Label.LIVER).any())
    if not predicted or not liver_r.any():
        liver = None
    elif liver is None:
        liver = score_masks(liver_p, liver_r, spacing_mm)
    return LitsCase(
        detection=detection,
        any_overlap=any_overlap,
        lesions=lesions,
        liver=liver,
        liver_predicted=predicted,
        lesion_sizes=_sizes(parts_p > 0, parts_r > 0),
        liver_sizes=_sizes(liver_p, liver_r) if predicted else (0, int(np.count_nonzero(liver_r))),
        burden_error=_burden(r) - (_burden(p) if predicted else LARGE),
        table=table,
    )


def _around(boxes: Sequence[Box]) -> Box:
    """Smallest box that holds all boxes."""
    z, y, x = (slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
    return z, y, x


def _sizes(p: npt.NDArray[np.bool_], r: npt.NDArray[np.bool_]) -> tuple[int, int]:
    return int(np.count_nonzero(p & r)), int(np.count_nonzero(p)) + int(np.count_nonzero(r))


def _burden(labels: LabelArray) -> float:
    """n(label 2) / n(label >= 1); 0 without any liver, where the scorer would divide by zero."""
    liver = int(np.count_nonzero(labels >= Label.LIVER))
    return int(np.count_nonzero(labels == Label.TUMOR)) / liver if liver else 0.0


def lits_summary(cases: Sequence[LitsCase]) -> dict[str, float]:
    """The scorer's 24 numbers over a data set, by `LITS_NAMES`.

    Means run over cases, those of `lesion_dice` ... `lesion_msd` over the lesions detected at > 0.5, and
    detection is pooled. Defined here, where the scorer would fail: a global Dice is 1 if no voxel exists in
    either set (as its Dice per case), and the burden of a reference without liver is 0. No case at all gives
    NaN.
    """
    if not cases:
        return dict.fromkeys(LITS_NAMES, math.nan)
    values: dict[str, float] = {}
    for suffix, found in (
        ("", [case.detection for case in cases]),
        ("_greater_zero", [case.any_overlap for case in cases]),
    ):
        tp = sum(d.tp for d in found)
        values[f"lesion_precision{suffix}"] = _ratio(tp, sum(d.tp + d.fp for d in found))
        values[f"lesion_recall{suffix}"] = _ratio(tp, sum(d.tp + d.fn for d in found))
    lesions = [score for case in cases for score in case.lesions]
    for name in _SCORES:
        detected = [getattr(score, name) for score in lesions]
        values[f"lesion_{name}"] = float(np.mean(detected)) if detected else _UNDEFINED[name]
        liver = [_UNDEFINED[name] if case.liver is None else getattr(case.liver, name) for case in cases]
        values[f"liver_{name}"] = float(np.mean(liver))
    values["lesion_dice_per_case"] = float(np.mean([_dice_or_one(case.lesion_sizes) for case in cases]))
    values["liver_dice_per_case"] = float(
        np.mean([_dice_or_one(case.liver_sizes) if case.liver_predicted else 0.0 for case in cases])
    )
    for organ in ("lesion", "liver"):
        sizes = np.array([getattr(case, f"{organ}_sizes") for case in cases])
        values[f"{organ}_dice_global"] = _dice_or_one((int(sizes[:, 0].sum()), int(sizes[:, 1].sum())))
    errors = np.array([case.burden_error for case in cases])
    values["RMSE_Tumorburden"] = float(np.sqrt(np.mean(errors**2)))
    values["MAXERROR_Tumorburden"] = float(errors.max())
    return {name: values[name] for name in LITS_NAMES}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _dice_or_one(sizes: tuple[int, int]) -> float:
    value = dice(*sizes)
    return 1.0 if math.isnan(value) else value
