"""Arrays that know where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled
from livprep.errors import GeometryError
from livprep.geometry import Geometry
from livprep.labels import LabelArray

LOWEST_HU = -32768
"""What the first entry of a `histogram` counts."""


@dataclass(frozen=True, eq=False)
class Volume:
    """HU of one scan: `(z, y, x)` int16 on `geometry`."""

    hu: npt.NDArray[np.int16]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16 or self.hu.shape != self.geometry.shape_zyx:
            raise GeometryError(
                f"volume: found {self.hu.dtype} {self.hu.shape}, expected int16 {self.geometry.shape_zyx} (zyx)"
            )


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels of one scan: `(z, y, x)` uint8 with values of `Label`, on `geometry`."""

    labels: LabelArray
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.labels.dtype != np.uint8 or self.labels.shape != self.geometry.shape_zyx:
            raise GeometryError(
                f"labels: found {self.labels.dtype} {self.labels.shape}, expected uint8 {self.geometry.shape_zyx} (zyx)"
            )


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A scan with its labels, if any, on one grid.

    Raises
    ------
    GeometryError
        Scan and labels lie on different grids.
    """

    image: Volume
    label_map: LabelMap | None = None

    def __post_init__(self) -> None:
        if self.label_map is not None and not self.image.geometry.same_grid(self.label_map.geometry):
            raise GeometryError(
                f"labels on {self.label_map.geometry} but scan on {self.image.geometry}: expected one grid"
            )

    @property
    def geometry(self) -> Geometry:
        """The common grid."""
        return self.image.geometry


def histogram(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Count each of the 65,536 values of an int16 array; entry k counts `LOWEST_HU` + k."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    _count(hu.ravel() if hu.flags.c_contiguous else hu.flatten(), counts)
    return counts


@compiled
def _count(values, counts):  # type: ignore[no-untyped-def]
    for value in values:
        counts[value + 32768] += 1
