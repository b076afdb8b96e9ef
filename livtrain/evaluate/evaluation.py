"""Scores of a set of predictions, in the LiTS challenge's convention and in nnU-Net's."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livprep.catalog import Catalog, load_catalog
from livprep.errors import GeometryError
from livprep.geometry import Triple
from livprep.labels import Label, LabelArray
from livprep.store import open_store
from livtrain.evaluate.pairing import by_case, check_pairs, nifti_files
from livtrain.evaluate.references import ReferenceCase, SpacingFrom, from_paths, from_store, read_label_file
from livtrain.metrics import LitsCase, MaskScores, lits_case, lits_summary, score_masks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case.

    Parameters
    ----------
    liver, tumor
        Scores of label >= 1 and of label 2.
    lits
        What the challenge's scorer keeps of the case; its `detection` gives the lesions.
    volume_ml
        `liver` (label >= 1) and `tumor` of the prediction, `liver_ref` and `tumor_ref` of the reference.
    """

    case: str
    liver: MaskScores
    tumor: MaskScores
    lits: LitsCase
    volume_ml: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The entry of `cases` that commands.md describes; undefined numbers are None."""
        found = self.lits.detection
        return {
            "case": self.case,
            "liver": _finite(self.liver.as_dict()),
            "tumor": _finite(self.tumor.as_dict()),
            "lesions": {"tp": found.tp, "fp": found.fp, "fn": found.fn},
            "volume_ml": _finite(self.volume_ml),
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases; `grid` says on whose voxels they were computed."""

    cases: tuple[CaseScores, ...]
    grid: str

    @property
    def lits(self) -> dict[str, float]:
        """The challenge's 24 numbers."""
        return lits_summary([case.lits for case in self.cases])

    @property
    def nnunet(self) -> dict[str, float]:
        """Mean Dice of liver (label >= 1) and tumor over the cases in which either side has any; else NaN."""
        return {
            "liver_dice": _nan_mean([case.liver.dice for case in self.cases]),
            "tumor_dice": _nan_mean([case.tumor.dice for case in self.cases]),
        }

    def as_json(self) -> dict[str, Any]:
        """The object of `evaluate --json`; undefined numbers are None."""
        return {
            "cases": [case.as_json() for case in self.cases],
            "lits": _finite(self.lits),
            "nnunet": _finite(self.nnunet),
        }


def score_case(case: str, prediction: LabelArray, reference: LabelArray, spacing_mm: Triple) -> CaseScores:
    """Score one case.

    Parameters
    ----------
    prediction, reference
        Labels `(z, y, x)` of one grid.
    spacing_mm
        Spacing zyx in mm.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"{case}: prediction of {prediction.shape} voxels (zyx), reference of {reference.shape}: expected equal"
        )
    liver = score_masks(prediction >= Label.LIVER, reference >= Label.LIVER, spacing_mm)
    tumor = score_masks(prediction == Label.TUMOR, reference == Label.TUMOR, spacing_mm)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    volumes = {
        "liver": int(np.count_nonzero(prediction >= Label.LIVER)) * voxel_ml,
        "tumor": int(np.count_nonzero(prediction == Label.TUMOR)) * voxel_ml,
        "liver_ref": int(np.count_nonzero(reference >= Label.LIVER)) * voxel_ml,
        "tumor_ref": int(np.count_nonzero(reference == Label.TUMOR)) * voxel_ml,
    }
    return CaseScores(case, liver, tumor, lits_case(prediction, reference, spacing_mm, liver), volumes)


def evaluate_folder(
    predictions: Path,
    references: Sequence[Path] | None = None,
    store: Path | None = None,
    *,
    catalog: Catalog | None = None,
    spacing: SpacingFrom = "header",
    progress: Callable[[CaseScores], None] | None = None,
) -> Evaluation:
    """Score every prediction of a folder.

    Parameters
    ----------
    predictions
        Folder of label NIfTIs (or one file).
    references
        Label NIfTIs, folders of them, or raw data set folders (source grid, paired voxel by voxel). Without any,
        the labels of `store` on its own grid, to which predictions are brought from the source grid.
    store
        Needed where no references are given.
    catalog
        What the data sets are; None takes livprep's.
    spacing
        Distances and volumes from the reference's header, as in the challenge, or repaired (`catalog`). A store's
        grid has one spacing, the repaired one.
    progress
        Called with each case's scores.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: a prediction has no reference or, where references are given, the other way round.
    SourceError, GeometryError, StoreError
        A file cannot be read, the grids differ, or there is no store.
    """
    catalog = catalog or load_catalog()
    found = by_case(((path.name, path) for path in nifti_files(predictions)), catalog, "predictions")
    if references:
        cases = from_paths(references, catalog, spacing)
        grid = "the references' own grid"
    else:
        opened = open_store(store or Path())
        cases = from_store(opened)
        grid = f"the grid of the store {opened.path}"
    known: dict[str, ReferenceCase] = by_case(((case.name, case) for case in cases), catalog, "references")
    scores = []
    for name in check_pairs(found, list(known), all_references=bool(references)):
        labels, _, _ = read_label_file(found[name])
        reference = known[name].load()
        scored = score_case(name, known[name].place(labels), reference.labels, reference.spacing_mm)
        if progress is not None:
            progress(scored)
        scores.append(scored)
    return Evaluation(tuple(scores), grid)


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
