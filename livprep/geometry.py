"""Where voxels lie: shape, spacing, origin and direction of a regular grid, LPS inside.

Axis conventions, used everywhere in this project: arrays are `(z, y, x)`; names that end in `_zyx` follow that
order; `origin_mm` and the rows of `direction` are LPS coordinates (x to the patient's left, y to posterior,
z to head), and the columns of `direction` belong to the array's x, y and z index, as in ITK. RAS, which NIfTI
uses, appears at the border only (`affine_ras`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.errors import GeometryError

FloatArray = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Matrix = tuple[Triple, Triple, Triple]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TOLERANCE_MM = 1e-3
"""Largest difference of spacing or origin at which two grids count as one (header text is float32)."""
TOLERANCE_DIRECTION = 1e-4
"""Largest difference of a direction cosine at which two grids count as one."""

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # per LPS axis: negative, positive


def shortest_decimal(value: float) -> float:
    """Return the shortest decimal that has the same float32 (0.569999992847443 -> 0.57).

    Scanners and converters write float32 spacings as text with tails; the tail is no information and would make
    DICOM and NIfTI forms of one scan differ.
    """
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Geometry:
    """A regular 3-D grid in patient space.

    Parameters
    ----------
    shape_zyx
        Voxels along z, y, x.
    spacing_mm
        Distance of voxel centers in mm, along z, y, x.
    origin_mm
        LPS position (x, y, z) in mm of the center of voxel (0, 0, 0).
    direction
        3 x 3 direction cosines; row = LPS axis, column = array index in the order x, y, z (ITK's convention).

    Raises
    ------
    GeometryError
        A value is not finite, a size or spacing is not positive, or the directions are not orthonormal.
    """

    shape_zyx: Shape
    spacing_mm: Triple
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: Matrix = IDENTITY

    def __post_init__(self) -> None:
        numbers = np.array([*self.spacing_mm, *self.origin_mm, *np.ravel(self.direction)], dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise GeometryError(f"grid {self.shape_zyx}: spacing, origin or direction is not finite; expected mm")
        if min(self.shape_zyx) < 1 or min(self.spacing_mm) <= 0:
            raise GeometryError(
                f"grid {self.shape_zyx} with spacing {self.spacing_mm} mm: expected positive sizes and spacings"
            )
        columns = np.array(self.direction)
        if np.abs(columns.T @ columns - np.eye(3)).max() > 1e-3:
            raise GeometryError(f"grid {self.shape_zyx}: the direction cosines are not orthonormal within 1e-3")

    @property
    def affine_lps(self) -> FloatArray:
        """4 x 4 map from index (x, y, z, 1) to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction) * np.array(self.spacing_mm[::-1])
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def affine_ras(self) -> FloatArray:
        """4 x 4 map from index (x, y, z, 1) to RAS mm, as NIfTI wants it."""
        affine: FloatArray = _RAS_FROM_LPS @ self.affine_lps
        return affine

    @classmethod
    def from_affine_lps(cls, affine: FloatArray, shape_zyx: Shape) -> Geometry:
        """Build a grid from a 4 x 4 map of index (x, y, z, 1) to LPS mm; spacing gets its shortest decimal."""
        affine = np.asarray(affine, dtype=np.float64)
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or (norms <= 0).any():
            raise GeometryError(f"grid {shape_zyx}: the affine is singular or not finite")
        direction = affine[:3, :3] / norms
        direction[np.abs(direction) < 1e-7] = 0.0
        rounded = np.round(direction)
        if np.abs(direction - rounded).max() < 1e-6:
            direction = rounded + 0.0  # axis-aligned: no float tails, no negative zero
        z_mm, y_mm, x_mm = (shortest_decimal(norms[k]) for k in (2, 1, 0))
        return cls(
            shape_zyx=shape_zyx,
            spacing_mm=(z_mm, y_mm, x_mm),
            origin_mm=_triple(affine[:3, 3] + 0.0),
            direction=(_triple(direction[0]), _triple(direction[1]), _triple(direction[2])),
        )

    @classmethod
    def from_affine_ras(cls, affine: FloatArray, shape_zyx: Shape) -> Geometry:
        """Build a grid from NIfTI's map of index (x, y, z, 1) to RAS mm."""
        return cls.from_affine_lps(_RAS_FROM_LPS @ np.asarray(affine, dtype=np.float64), shape_zyx)

    @property
    def orientation(self) -> str:
        """Anatomical letters toward which the x, y and z index grow, e.g. `LPS`."""
        return "".join(_LETTERS[axis][int(sign > 0)] for axis, sign in (self._nearest(column) for column in range(3)))

    def _nearest(self, column: int) -> tuple[int, int]:
        """LPS axis that an array index follows most closely, and its sign."""
        vector = np.array(self.direction)[:, column]
        axis = int(np.argmax(np.abs(vector)))
        return axis, 1 if vector[axis] > 0 else -1

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def same_grid(self, other: Geometry) -> bool:
        """Whether both describe the same voxels within `TOLERANCE_MM` and `TOLERANCE_DIRECTION`."""
        return (
            self.shape_zyx == other.shape_zyx
            and np.allclose(self.spacing_mm, other.spacing_mm, rtol=0, atol=TOLERANCE_MM)
            and np.allclose(self.origin_mm, other.origin_mm, rtol=0, atol=TOLERANCE_MM)
            and np.allclose(self.direction, other.direction, rtol=0, atol=TOLERANCE_DIRECTION)
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, read back by `from_dict`."""
        return {
            "shape_zyx": list(self.shape_zyx),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": [list(row) for row in self.direction],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """Read the form written by `as_dict`."""
        z, y, x = (int(v) for v in data["shape_zyx"])
        rows = data["direction"]
        return cls(
            shape_zyx=(z, y, x),
            spacing_mm=_triple(data["spacing_mm"]),
            origin_mm=_triple(data["origin_mm"]),
            direction=(_triple(rows[0]), _triple(rows[1]), _triple(rows[2])),
        )


@dataclass(frozen=True)
class AxisMap:
    """How an array was turned into another axis order and direction: transpose first, then flip (axes zyx)."""

    permutation_zyx: tuple[int, int, int]
    flipped_zyx: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn a `(z, y, x)` array; a view, no copy."""
        turned = array.transpose(self.permutation_zyx)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped_zyx)]

    def invert(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo `apply`; a view, no copy."""
        unflipped = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped_zyx)]
        return unflipped.transpose(tuple(int(k) for k in np.argsort(self.permutation_zyx)))


def canonical_axes(geometry: Geometry) -> tuple[AxisMap, Geometry]:
    """Find the turn that brings a grid to LPS order (x to left, y to posterior, z to head).

    Oblique grids are brought to the nearest axes; the remaining rotation stays in `direction`.

    Returns
    -------
    The map for arrays and the geometry of the turned grid.
    """
    nearest = [geometry._nearest(column) for column in range(3)]
    axes = [axis for axis, _ in nearest]
    if sorted(axes) != [0, 1, 2]:
        raise GeometryError(f"grid {geometry.shape_zyx}: two array axes follow one patient axis; no LPS order exists")
    affine = geometry.affine_lps
    turned = np.eye(4)
    turned[:3, 3] = affine[:3, 3]
    permutation, flipped = [0, 0, 0], [False, False, False]
    for target in range(3):  # LPS axis x, y, z
        source = axes.index(target)
        column = affine[:3, source].copy()
        size = geometry.shape_zyx[2 - source]
        flip = nearest[source][1] < 0
        if flip:
            turned[:3, 3] += column * (size - 1)
            column = -column
        turned[:3, target] = column
        permutation[2 - target], flipped[2 - target] = 2 - source, flip
    p0, p1, p2 = permutation
    f0, f1, f2 = flipped
    z, y, x = (geometry.shape_zyx[k] for k in permutation)
    return AxisMap((p0, p1, p2), (f0, f1, f2)), Geometry.from_affine_lps(turned, (z, y, x))


def _triple(values: Any) -> Triple:
    a, b, c = (float(v) for v in values)
    return (a, b, c)
