"""Which lesions are found, by their size.

A lesion is a 6-connected component, as in the LiTS scorer, but nothing is merged here: each reference lesion is found
or missed, and each predicted one true or false, on its own. Two criteria: *touched*, any common voxel; and *matched*,
IoU > 0.5 with one component, which no two components can both have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MATCHED_IOU = 0.5
CLASS_LIMITS_MM = (10.0, 20.0)
"""Between small, medium and large: RECIST 1.1 calls a lesion measurable from 10 mm, RECIST 1.0 from 20 mm without
spiral CT (Eisenhauer et al. 2009, Eur J Cancer 45:228)."""
CLASS_NAMES = ("< 10 mm", "10–20 mm", "≥ 20 mm")


@dataclass(frozen=True)
class Lesion:
    """One component of the reference or of the prediction; `volume_ml` is its own."""

    volume_ml: float
    touched: bool
    matched: bool

    @property
    def diameter_mm(self) -> float:
        """Diameter of the sphere of the same volume."""
        return diameter_mm(self.volume_ml)

    @property
    def size_class(self) -> int:
        """Index of `CLASS_NAMES`."""
        return int(np.searchsorted(CLASS_LIMITS_MM, self.diameter_mm, side="right"))


@dataclass(frozen=True)
class Lesions:
    """All lesions of one case: of the reference (found or missed), of the prediction (true or false)."""

    reference: tuple[Lesion, ...]
    predicted: tuple[Lesion, ...]


@dataclass(frozen=True)
class SizeClass:
    """Detection in one class of size.

    Parameters
    ----------
    name
        Of `CLASS_NAMES`, or `all`.
    reference, touched, matched
        Reference lesions, and how many of them are found by either criterion.
    predicted, true_touched, true_matched
        Predicted lesions of that size, and how many of them are true.
    case_sensitivity, case_sensitivity_matched
        Mean over the cases that have such a lesion, of each case's share that is found; NaN without one.
    """

    name: str
    reference: int
    touched: int
    matched: int
    predicted: int
    true_touched: int
    true_matched: int
    case_sensitivity: float
    case_sensitivity_matched: float

    @property
    def sensitivity(self) -> float:
        """Touched reference lesions over all, pooled over cases; NaN without one."""
        return self.touched / self.reference if self.reference else math.nan

    @property
    def sensitivity_matched(self) -> float:
        """Matched reference lesions over all, pooled over cases; NaN without one."""
        return self.matched / self.reference if self.reference else math.nan

    @property
    def precision(self) -> float:
        """Predicted lesions that touch a reference lesion over all, pooled over cases; NaN without one."""
        return self.true_touched / self.predicted if self.predicted else math.nan

    @property
    def precision_matched(self) -> float:
        """Predicted lesions that match one over all, pooled over cases; NaN without one."""
        return self.true_matched / self.predicted if self.predicted else math.nan


def diameter_mm(volume_ml: float) -> float:
    """Diameter in mm of a sphere of that volume: (6 V / pi)^(1/3)."""
    return float((6 * volume_ml * 1000 / math.pi) ** (1 / 3))


def find_lesions(table: npt.NDArray[np.int64], voxel_ml: float) -> Lesions:
    """Judge every lesion of a case.

    Parameters
    ----------
    table
        Common voxels of each pair of components, `(n_predicted + 1, n_reference + 1)`; row and column 0 are
        background (`livtrain.metrics.lesions.overlaps`).
    voxel_ml
        Volume of a voxel.
    """
    hits = table[1:, 1:]
    sizes_p, sizes_r = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    # Compared without a division, so that no rounding decides at one half.
    fits = hits > MATCHED_IOU * (sizes_p[:, None] + sizes_r[None, :] - hits)
    return Lesions(
        reference=_lesions(sizes_r, np.any(hits, axis=0), np.any(fits, axis=0), voxel_ml),
        predicted=_lesions(sizes_p, np.any(hits, axis=1), np.any(fits, axis=1), voxel_ml),
    )


def _lesions(
    sizes: npt.NDArray[np.int64], touched: npt.ArrayLike, matched: npt.ArrayLike, voxel_ml: float
) -> tuple[Lesion, ...]:
    rows = zip(sizes, np.atleast_1d(touched), np.atleast_1d(matched), strict=True)
    return tuple(Lesion(float(size) * voxel_ml, bool(any_voxel), bool(fit)) for size, any_voxel, fit in rows)


def detection_by_size(cases: Sequence[Lesions]) -> tuple[SizeClass, ...]:
    """Detection of each class of `CLASS_NAMES`, then of all lesions."""
    classes = [_size_class(name, cases, k) for k, name in enumerate(CLASS_NAMES)]
    return (*classes, _size_class("all", cases, None))


def _size_class(name: str, cases: Sequence[Lesions], wanted: int | None) -> SizeClass:
    chosen = [
        Lesions(
            tuple(lesion for lesion in case.reference if wanted in (None, lesion.size_class)),
            tuple(lesion for lesion in case.predicted if wanted in (None, lesion.size_class)),
        )
        for case in cases
    ]
    having = [case.reference for case in chosen if case.reference]
    reference = [lesion for lesions in having for lesion in lesions]
    predicted = [lesion for case in chosen for lesion in case.predicted]
    return SizeClass(
        name=name,
        reference=len(reference),
        touched=sum(lesion.touched for lesion in reference),
        matched=sum(lesion.matched for lesion in reference),
        predicted=len(predicted),
        true_touched=sum(lesion.touched for lesion in predicted),
        true_matched=sum(lesion.matched for lesion in predicted),
        case_sensitivity=_mean([sum(lesion.touched for lesion in case) / len(case) for case in having]),
        case_sensitivity_matched=_mean([sum(lesion.matched for lesion in case) / len(case) for case in having]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
