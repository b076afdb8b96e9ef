"""Smooth random fields and the slabs of a grid on which anatomy is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.geometry import Shape, Triple

FloatArray = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]

HALF_BOX_MM = 300.0
"""Fields are defined within this distance of the body's center along each axis and constant beyond it."""
BOUND = 2.5
"""Fields have about unit standard deviation and never exceed this."""
SLAB_SLICES = 12
"""Slices drawn at once: bounds memory, and keeps the arrays of a slab near the cache."""


def stream(seed: int, patient: str, purpose: str) -> np.random.Generator:
    """Random stream of one purpose for one patient; independent of every other stream and of call order."""
    words = np.frombuffer(hashlib.sha256(f"{patient}\n{purpose}".encode()).digest()[:16], dtype="<u4")
    return np.random.default_rng([seed, *(int(word) for word in words)])


def _taps(
    positions_mm: npt.NDArray[np.float64], step_mm: float, size: int
) -> tuple[list[npt.NDArray[np.intp]], list[FloatArray]]:
    """Indices and weights of the four cubic B-spline control points around each position."""
    u = (positions_mm + HALF_BOX_MM) / step_mm + 1.0
    base = np.floor(u)
    t = u - base
    weights = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    indices = [np.clip(base.astype(np.intp) + k - 1, 0, size - 1) for k in range(4)]
    return indices, [weight.astype(np.float32) for weight in weights]


class Field:
    """A smooth random scalar field over the body, about unit standard deviation.

    Cubic B-spline over random control points; evaluated tap by tap rather than by matrix products, so that the
    values do not depend on the linear-algebra library or its threads.

    Parameters
    ----------
    rng
        Source of the control points.
    scale_mm
        Distance of control points: features are about twice as large.
    """

    def __init__(self, rng: np.random.Generator, scale_mm: float) -> None:
        self.scale_mm = scale_mm
        self.size = int(np.ceil(2 * HALF_BOX_MM / scale_mm)) + 3
        control = rng.standard_normal((self.size,) * 3).astype(np.float32)
        # 3.0 makes up for the spline's averaging: its squared weights sum to about 0.48 along each axis.
        self.control: FloatArray = np.clip(control, -2.0, 2.0) * np.float32(3.0)

    def on(self, y_mm: npt.NDArray[np.float64], x_mm: npt.NDArray[np.float64]) -> PlanarField:
        """Expand the field to the rows and columns of a grid, once for all of its slices."""
        size = self.size
        along_x = np.zeros((size, size, len(x_mm)), dtype=np.float32)
        for i, w in zip(*_taps(x_mm, self.scale_mm, size), strict=True):
            along_x += self.control[:, :, i] * w
        along_y = np.zeros((size, len(y_mm), len(x_mm)), dtype=np.float32)
        for i, w in zip(*_taps(y_mm, self.scale_mm, size), strict=True):
            along_y += along_x[:, i, :] * w[:, None]
        return PlanarField(along_y, self.scale_mm)


@dataclass(frozen=True, eq=False)
class PlanarField:
    """A field on the rows and columns of a grid, still on control points along z: `(control, y, x)`."""

    planes: FloatArray
    scale_mm: float

    def at(self, z_mm: npt.NDArray[np.float64]) -> FloatArray:
        """Values `(z, y, x)` float32 at the given heights."""
        indices, weights = _taps(z_mm, self.scale_mm, len(self.planes))
        out = np.empty((len(z_mm), *self.planes.shape[1:]), dtype=np.float32)
        for k in range(len(z_mm)):
            out[k] = sum(self.planes[i[k]] * w[k] for i, w in zip(indices, weights, strict=True))
        return np.clip(out, -BOUND, BOUND, out=out)


@dataclass(frozen=True, eq=False)
class Axes:
    """Positions in mm of a grid's planes, rows and columns about the body's center (LPS directions)."""

    z_mm: npt.NDArray[np.float64]
    y_mm: npt.NDArray[np.float64]
    x_mm: npt.NDArray[np.float64]

    @classmethod
    def centered(cls, shape_zyx: Shape, spacing_mm: Triple, center_mm: Triple) -> Axes:
        """Axes of a grid whose middle lies at `center_mm` (z, y, x) of the body."""
        positions = [
            ((np.arange(n) - (n - 1) / 2) * d + c).astype(np.float64)
            for n, d, c in zip(shape_zyx, spacing_mm, center_mm, strict=True)
        ]
        return cls(positions[0], positions[1], positions[2])

    def slabs(self) -> Iterator[slice]:
        """Ranges of slices, `SLAB_SLICES` at a time."""
        for start in range(0, len(self.z_mm), SLAB_SLICES):
            yield slice(start, min(start + SLAB_SLICES, len(self.z_mm)))


@dataclass(frozen=True, eq=False)
class Slab:
    """Some slices of a grid with body coordinates after the patient's deformation.

    `x`, `y`, `z` are `(z, y, x)` float32 in mm; `rough` is a unit field that roughens organ surfaces; `axes` are
    the undeformed positions; `reach_mm` bounds the deformation.
    """

    x: FloatArray
    y: FloatArray
    z: FloatArray
    rough: FloatArray
    axes: Axes
    reach_mm: float

    def box(self, low_xyz: Triple, high_xyz: Triple) -> Box | None:
        """Index box that surely holds all voxels between two corners in mm; None if the slab has none."""
        box = []
        for axis_mm, low, high in zip(
            (self.axes.z_mm, self.axes.y_mm, self.axes.x_mm), low_xyz[::-1], high_xyz[::-1], strict=True
        ):
            start = int(np.searchsorted(axis_mm, low - self.reach_mm))
            stop = int(np.searchsorted(axis_mm, high + self.reach_mm))
            if start >= stop:
                return None
            box.append(slice(start, stop))
        return box[0], box[1], box[2]
