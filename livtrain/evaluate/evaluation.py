"""Scores of a set of predictions, in the LiTS challenge's convention and in nnU-Net's."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from livprep.cases import FileRef
from livprep.catalog import Catalog, load_catalog
from livprep.geometry import Geometry
from livprep.store import open_store
from livtrain.evaluate.pairing import by_case, check_pairs, named_alike, nifti_files
from livtrain.evaluate.references import (
    ReferenceCase,
    SpacingFrom,
    from_paths,
    from_store,
    is_identity,
    read_label_file,
)
from livtrain.evaluate.scoring import CaseScores, finite, score_case
from livtrain.evaluate.summary import INTERVALS, interval_of
from livtrain.metrics import SURFACE_TOLERANCE_MM, Interval, SizeClass, detection_by_size, lits_summary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases; `grid` says on whose voxels they were computed."""

    cases: tuple[CaseScores, ...]
    grid: str
    tolerance_mm: float = SURFACE_TOLERANCE_MM

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

    @property
    def nnunet_liver_only(self) -> float:
        """nnU-Net's mean Dice of label 1 alone, as without regions."""
        return _nan_mean([case.liver_only_dice for case in self.cases])

    @property
    def by_size(self) -> tuple[SizeClass, ...]:
        """Lesion detection by size."""
        return detection_by_size([case.lesions for case in self.cases])

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """Bootstrap intervals by the names of `INTERVALS`."""
        return {name: interval_of(name, self.cases, seed) for name in INTERVALS}

    def as_json(self) -> dict[str, Any]:
        """The object of `evaluate --json`; undefined numbers are None."""
        return {
            "cases": [case.as_json() for case in self.cases],
            "lits": finite(self.lits),
            "nnunet": finite(self.nnunet),
        }

    def details(self, seed: int = 0) -> dict[str, Any]:
        """What `evaluate --json --all` says besides; undefined numbers are None."""
        sizes = [
            {
                **finite({key: value for key, value in asdict(entry).items() if key != "name"}),
                **finite({key: getattr(entry, key) for key in _POOLED}),
                "name": entry.name,
            }
            for entry in self.by_size
        ]
        return {
            "surface_tolerance_mm": self.tolerance_mm,
            **finite({"nnunet_liver_only_dice": self.nnunet_liver_only}),
            "intervals": {name: finite(asdict(entry)) for name, entry in self.intervals(seed).items()},
            "lesions_by_size": sizes,
            "cases": [case.details() for case in self.cases],
        }


_POOLED = ("sensitivity", "sensitivity_matched", "precision", "precision_matched")


@dataclass(frozen=True, eq=False)
class Pair:
    """A prediction's file and its reference, both read when needed."""

    name: str
    prediction: FileRef
    reference: ReferenceCase

    def score(self, tolerance_mm: float = SURFACE_TOLERANCE_MM) -> CaseScores:
        """Read both and score them; raises what reading raises, and GeometryError where the shapes differ."""
        labels, grid, _ = read_label_file(self.prediction)
        known = self.reference.load()
        self._compare(grid, self.reference.voxels or known.geometry)
        return score_case(
            self.name,
            self.reference.place(labels),
            known.labels,
            known.spacing_mm,
            patient=self.reference.patient,
            tolerance_mm=tolerance_mm,
        )

    def _compare(self, grid: Geometry, expected: Geometry) -> None:
        """Remark where the headers say that voxels of one index lie at different places of the body."""
        stated = [each for each in (grid, expected) if not is_identity(each)]  # which says nothing
        if len({each.orientation for each in stated}) > 1:
            log.warning(
                "%s: the axes run to %s in the prediction and to %s in the reference by their headers; "
                "compared voxel by voxel all the same, as the challenge does",
                self.name,
                grid.orientation,
                expected.orientation,
            )


def pair_folder(
    predictions: Path,
    references: Sequence[Path] | None = None,
    store: Path | None = None,
    *,
    catalog: Catalog | None = None,
    spacing: SpacingFrom = "header",
) -> tuple[list[Pair], str]:
    """Pair every prediction of a folder with its reference; see `evaluate_folder`.

    Returns
    -------
    The pairs by case, and on whose grid they are scored.
    """
    catalog = catalog or load_catalog()
    found = by_case(((ref.name, ref) for ref in nifti_files(predictions)), catalog, "predictions")
    if references:
        cases = from_paths(references, catalog, spacing)
        grid = "the references' own grid"
    else:
        opened = open_store(store or Path())
        cases = from_store(opened)
        grid = f"the grid of the store {opened.path}"
    known: dict[str, ReferenceCase] = by_case(((case.name, case) for case in cases), catalog, "references")
    known = named_alike(known, found)
    names = check_pairs(found, list(known), all_references=bool(references))
    return [Pair(name, found[name], known[name]) for name in names], grid


def evaluate_pairs(
    pairs: Iterable[Pair],
    grid: str,
    *,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    progress: Callable[[CaseScores], None] | None = None,
) -> Evaluation:
    """Score pairs one after the other; `progress` is called with each case's scores."""
    scores = []
    for pair in pairs:
        scores.append(pair.score(tolerance_mm))
        if progress is not None:
            progress(scores[-1])
    return Evaluation(tuple(scores), grid, tolerance_mm)


def evaluate_folder(
    predictions: Path,
    references: Sequence[Path] | None = None,
    store: Path | None = None,
    *,
    catalog: Catalog | None = None,
    spacing: SpacingFrom = "header",
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    progress: Callable[[CaseScores], None] | None = None,
) -> Evaluation:
    """Score every prediction of a folder.

    Parameters
    ----------
    predictions
        Folder or zip of label NIfTIs, or one file.
    references
        Label NIfTIs, folders or zips of them, or raw data sets (source grid, paired voxel by voxel). Without any,
        the labels of `store` on its own grid, to which predictions are brought from the source grid.
    store
        Needed where no references are given.
    catalog
        What the data sets are; None takes livprep's.
    spacing
        Distances and volumes from the reference's header, as in the challenge, or repaired (`catalog`). A store's
        grid has one spacing, the repaired one.
    tolerance_mm
        Of the surface Dice.
    progress
        Called with each case's scores.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: a prediction has no reference or, where references are given, the other way round.
    SourceError, GeometryError, StoreError
        A file cannot be read, the grids differ, or there is no store.
    """
    pairs, grid = pair_folder(predictions, references, store, catalog=catalog, spacing=spacing)
    return evaluate_pairs(pairs, grid, tolerance_mm=tolerance_mm, progress=progress)


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
