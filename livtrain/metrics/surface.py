"""Distances between the surfaces of two masks, in mm.

A surface voxel is a voxel of the mask that an erosion with the full 18-neighborhood element removes; beyond
the array is background. Distances are Euclidean, between voxel centers, from each surface voxel of one mask
to the nearest of the other (Heimann et al. 2009, IEEE TMI 28:1251; the definition of medpy and of the LiTS
scorer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from livprep.geometry import Triple

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

SURFACE_TOLERANCE_MM = 2.0
"""Distance within which a surface voxel counts as met in `surface_dice`."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances of the surface voxels of two masks that both hold a voxel.

    Parameters
    ----------
    to_reference_mm, to_prediction_mm
        One float64 for each surface voxel of the prediction, and of the reference.
    """

    to_reference_mm: FloatArray
    to_prediction_mm: FloatArray

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: both sums over both counts."""
        return float((self.to_reference_mm.sum() + self.to_prediction_mm.sum()) / self._count)

    @property
    def rmsd(self) -> float:
        """Root of the mean square over both sets."""
        squares = (self.to_reference_mm**2).sum() + (self.to_prediction_mm**2).sum()
        return float(np.sqrt(squares / self._count))

    @property
    def msd(self) -> float:
        """Maximum symmetric surface distance (Hausdorff)."""
        return float(max(self.to_reference_mm.max(), self.to_prediction_mm.max()))

    @property
    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles (Maier-Hein et al. 2024, Metrics Reloaded)."""
        return float(max(np.percentile(self.to_reference_mm, 95), np.percentile(self.to_prediction_mm, 95)))

    def surface_dice(self, tolerance_mm: float = SURFACE_TOLERANCE_MM) -> float:
        """Share of the surface voxels of both masks that lie within the tolerance of the other surface."""
        met = (self.to_reference_mm <= tolerance_mm).sum() + (self.to_prediction_mm <= tolerance_mm).sum()
        return float(met / self._count)

    @property
    def _count(self) -> int:
        return self.to_reference_mm.size + self.to_prediction_mm.size


def surface_voxels(mask: BoolArray) -> npt.NDArray[np.intp]:
    """Indices `(n, 3)` of the surface voxels of a mask."""
    eroded = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 2))
    return np.argwhere(mask & ~eroded)


def surface_distances(prediction: BoolArray, reference: BoolArray, spacing_mm: Triple) -> SurfaceDistances | None:
    """Measure two masks `(z, y, x)` with spacing zyx in mm; None where one of them is empty.

    The cost follows the size of the arrays, so crop them to their common box first.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    points_p, points_r = surface_voxels(prediction) * spacing, surface_voxels(reference) * spacing
    if not len(points_p) or not len(points_r):
        return None
    to_reference = np.asarray(cKDTree(points_r).query(points_p)[0], dtype=np.float64)
    to_prediction = np.asarray(cKDTree(points_p).query(points_r)[0], dtype=np.float64)
    return SurfaceDistances(to_reference, to_prediction)
