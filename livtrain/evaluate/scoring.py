"""Scores of one case, by every convention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from livprep.errors import GeometryError
from livprep.geometry import Triple
from livprep.labels import Label, LabelArray
from livtrain.metrics import (
    SURFACE_TOLERANCE_MM,
    Lesions,
    LitsCase,
    MaskRates,
    MaskScores,
    common_box,
    dice,
    find_lesions,
    lits_case,
    mask_rates,
    score_masks,
)


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case.

    Parameters
    ----------
    patient
        Whom the scan shows; the case's own name where nobody knows.
    liver, tumor
        Scores of label >= 1 and of label 2.
    lits
        What the challenge's scorer keeps of the case; its `detection` gives the lesions.
    volume_ml
        `liver` (label >= 1) and `tumor` of the prediction, `liver_ref` and `tumor_ref` of the reference.
    liver_rates, tumor_rates
        Sensitivity and its kin, of the same masks.
    liver_only_dice
        Dice of label 1 alone (nnU-Net without regions); NaN where neither side has any.
    lesions
        Each lesion, found or missed, true or false.
    """

    case: str
    patient: str
    liver: MaskScores
    tumor: MaskScores
    lits: LitsCase
    volume_ml: dict[str, float]
    liver_rates: MaskRates
    tumor_rates: MaskRates
    liver_only_dice: float
    lesions: Lesions

    def as_json(self) -> dict[str, Any]:
        """The entry of `cases` that commands.md describes; undefined numbers are None."""
        found = self.lits.detection
        return {
            "case": self.case,
            "liver": finite(self.liver.as_dict()),
            "tumor": finite(self.tumor.as_dict()),
            "lesions": {"tp": found.tp, "fp": found.fp, "fn": found.fn},
            "volume_ml": finite(self.volume_ml),
        }

    def details(self) -> dict[str, Any]:
        """What `evaluate --json --all` says of the case besides; undefined numbers are None."""
        return {
            "case": self.case,
            "patient": self.patient,
            "liver": finite(self.liver_rates.as_dict()),
            "tumor": finite(self.tumor_rates.as_dict()),
            **finite({"liver_only_dice": self.liver_only_dice}),
            "lesions": {
                side: [
                    {
                        "volume_ml": lesion.volume_ml,
                        "diameter_mm": lesion.diameter_mm,
                        "touched": lesion.touched,
                        "matched": lesion.matched,
                    }
                    for lesion in getattr(self.lesions, side)
                ]
                for side in ("reference", "predicted")
            },
        }


def score_case(
    case: str,
    prediction: LabelArray,
    reference: LabelArray,
    spacing_mm: Triple,
    *,
    patient: str | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> CaseScores:
    """Score one case.

    Parameters
    ----------
    prediction, reference
        Labels `(z, y, x)` of one grid.
    spacing_mm
        Spacing zyx in mm.
    patient
        Whom the scan shows; None takes the case's name.
    tolerance_mm
        Of the surface Dice.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"{case}: prediction of {prediction.shape} voxels (zyx), reference of {reference.shape}: expected equal"
        )
    box = common_box(prediction, reference)  # everything below depends on labelled voxels alone
    p, r = prediction[box], reference[box]
    masks = {"liver": (p >= Label.LIVER, r >= Label.LIVER), "tumor": (p == Label.TUMOR, r == Label.TUMOR)}
    scores = {name: score_masks(*pair, spacing_mm, tolerance_mm) for name, pair in masks.items()}
    rates = {name: mask_rates(*pair, prediction.size) for name, pair in masks.items()}
    voxel_ml = math.prod(spacing_mm) / 1000.0
    lits = lits_case(p, r, spacing_mm, scores["liver"])
    only_p, only_r = p == Label.LIVER, r == Label.LIVER
    return CaseScores(
        case=case,
        patient=patient or case,
        liver=scores["liver"],
        tumor=scores["tumor"],
        lits=lits,
        volume_ml={
            f"{name}{suffix}": int(np.count_nonzero(masks[name][side])) * voxel_ml
            for side, suffix in enumerate(("", "_ref"))
            for name in ("liver", "tumor")
        },
        liver_rates=rates["liver"],
        tumor_rates=rates["tumor"],
        liver_only_dice=dice(
            int(np.count_nonzero(only_p & only_r)), int(np.count_nonzero(only_p)) + int(np.count_nonzero(only_r))
        ),
        lesions=find_lesions(lits.table, voxel_ml),
    )


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """The same with None for what is no finite number, as JSON needs it."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
