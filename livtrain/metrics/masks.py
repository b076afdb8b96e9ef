"""Scores of one mask against another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.errors import GeometryError
from livprep.geometry import Triple
from livtrain.metrics.surface import SURFACE_TOLERANCE_MM, surface_distances

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskScores:
    """Scores of a prediction P against a reference R; NaN where a formula has no value.

    Parameters
    ----------
    dice, jaccard
        2|P and R| / (|P| + |R|) and |P and R| / |P or R|; NaN where both are empty.
    voe
        Volumetric overlap error, 1 - jaccard.
    rvd
        (|R| - |P|) / |P|: signed and relative to the prediction, as the LiTS scorer computes it.
    assd, rmsd, msd, hd95
        Surface distances in mm; NaN where a mask is empty.
    surface_dice
        Share of surface voxels within the tolerance; 0 where one mask is empty, NaN where both are.
    """

    dice: float
    jaccard: float
    voe: float
    rvd: float
    assd: float
    rmsd: float
    msd: float
    hd95: float
    surface_dice: float

    def as_dict(self) -> dict[str, float]:
        """Names and values in order."""
        return asdict(self)


def dice(intersection: int, total: int) -> float:
    """2 |P and R| / (|P| + |R|), NaN for 0 / 0."""
    return 2 * intersection / total if total else math.nan


def common_box(prediction: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]) -> tuple[slice, ...]:
    """Smallest box that holds every nonzero voxel of both arrays; an empty box if there is none.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"prediction of {prediction.shape} voxels (zyx), reference of {reference.shape}: expected equal"
        )
    either = ((prediction != 0) | (reference != 0)).view(np.uint8)
    boxes = ndimage.find_objects(either, max_label=1)
    return boxes[0] if boxes[0] is not None else (slice(0, 0),) * prediction.ndim


def score_masks(
    prediction: BoolArray,
    reference: BoolArray,
    spacing_mm: Triple,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> MaskScores:
    """Score two masks `(z, y, x)` of one grid.

    Parameters
    ----------
    spacing_mm
        Voxel distances zyx in mm.
    tolerance_mm
        Of `surface_dice`.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    box = common_box(prediction, reference)
    p, r = prediction[box], reference[box]
    size_p, size_r = int(np.count_nonzero(p)), int(np.count_nonzero(r))
    both = int(np.count_nonzero(p & r))
    overlap = dice(both, size_p + size_r)
    jaccard = overlap / (2 - overlap)
    rvd = (size_r - size_p) / size_p if size_p else math.nan
    surfaces = surface_distances(p, r, spacing_mm) if size_p and size_r else None
    if surfaces is None:
        met = 0.0 if size_p or size_r else math.nan
        return MaskScores(overlap, jaccard, 1 - jaccard, rvd, math.nan, math.nan, math.nan, math.nan, met)
    return MaskScores(
        dice=overlap,
        jaccard=jaccard,
        voe=1 - jaccard,
        rvd=rvd,
        assd=surfaces.assd,
        rmsd=surfaces.rmsd,
        msd=surfaces.msd,
        hd95=surfaces.hd95,
        surface_dice=surfaces.surface_dice(tolerance_mm),
    )
