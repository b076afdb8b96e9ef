"""Scores of one mask against another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled
from livprep.errors import GeometryError
from livprep.geometry import Triple
from livtrain.metrics.surface import SURFACE_TOLERANCE_MM, surface_distances

BoolArray = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


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


def common_box(prediction: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]) -> Box:
    """Smallest box that holds every nonzero voxel of both `(z, y, x)` arrays; an empty box if there is none.

    Raises
    ------
    GeometryError
        The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"prediction of {prediction.shape} voxels (zyx), reference of {reference.shape}: expected equal"
        )
    bounds = np.zeros((3, 2), dtype=np.int64)
    _bound(_as_bytes(prediction), _as_bytes(reference), bounds)
    z, y, x = (slice(int(low), int(high)) for low, high in bounds)
    return z, y, x


def _as_bytes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """A contiguous `(z, y, x)` array of one byte a voxel; a view where it is one already."""
    narrow = values if values.dtype.itemsize == 1 else values != 0
    return np.ascontiguousarray(narrow).view(np.uint8)


@compiled
def _bound(p, r, bounds):  # type: ignore[no-untyped-def]
    """Write the first and one past the last index of a nonzero voxel along each axis; zeros where there is none."""
    depth, height, width = p.shape
    low_z, low_y, low_x, high_z, high_y, high_x = depth, height, width, 0, 0, 0
    for z in range(depth):
        for y in range(height):
            any_bit = 0
            for x in range(width):
                any_bit |= p[z, y, x] | r[z, y, x]
            if any_bit == 0:
                continue
            low_z, high_z = min(low_z, z), z + 1
            low_y, high_y = min(low_y, y), max(high_y, y + 1)
            first = 0
            while p[z, y, first] == 0 and r[z, y, first] == 0:
                first += 1
            last = width - 1
            while p[z, y, last] == 0 and r[z, y, last] == 0:
                last -= 1
            low_x, high_x = min(low_x, first), max(high_x, last + 1)
    if high_z > 0:
        bounds[0, 0], bounds[0, 1] = low_z, high_z
        bounds[1, 0], bounds[1, 1] = low_y, high_y
        bounds[2, 0], bounds[2, 1] = low_x, high_x


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
