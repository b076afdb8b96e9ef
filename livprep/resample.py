"""Change the spacing of a grid: our separable filters, and SimpleITK's as alternative and oracle.

The new grid has exactly the wanted spacing, covers the old field of view to the nearest voxel and shares its
center: output position i lies at input index (i - (n_out - 1)/2) * t/s + (n_in - 1)/2 for spacings s -> t.

`cubic` is Keys' cubic convolution with a = -1/2 (IEEE Trans ASSP 29:1153, 1981; Catmull-Rom), `linear` the
triangle. Where the new spacing is coarser the kernel is stretched by the ratio, which low-passes (antialiases) in
the same step. Beyond the border the edge value continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from livprep.geometry import Geometry, Triple
from livprep.labels import LabelArray
from livprep.taps import AxisNeighbors, AxisTaps, FloatArray, filter_volume, vote

Interpolation = Literal["cubic", "linear", "bspline"]


def resampled_geometry(geometry: Geometry, spacing_mm: Triple) -> Geometry:
    """Return the grid of the same field-of-view center with `spacing_mm` (z, y, x)."""
    z, y, x = (
        max(1, round(n * s / t)) for n, s, t in zip(geometry.shape_zyx, geometry.spacing_mm, spacing_mm, strict=True)
    )
    # Index of the new first voxel on the old grid, in x, y, z order for the affine.
    first_xyz = [
        (n_in - 1) / 2 - (n_out - 1) / 2 * t / s
        for n_in, n_out, s, t in zip(geometry.shape_zyx, (z, y, x), geometry.spacing_mm, spacing_mm, strict=True)
    ][::-1]
    origin = geometry.affine_lps @ np.array([*first_xyz, 1.0])
    return replace(
        geometry,
        shape_zyx=(z, y, x),
        spacing_mm=spacing_mm,
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    d = np.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _triangle(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(1.0 - np.abs(distance), 0.0, None)


_KERNELS: dict[str, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], int]] = {
    "cubic": (_cubic, 2),
    "linear": (_triangle, 1),
}


def axis_taps(n_in: int, n_out: int, ratio: float, kernel: str, *, antialias: bool) -> AxisTaps:
    """Weights of one axis from `n_in` to `n_out` voxels; `ratio` = new spacing / old spacing."""
    function, radius = _KERNELS[kernel]
    stretch = max(1.0, ratio) if antialias else 1.0
    center = _positions(n_in, n_out, ratio)
    reach = radius * stretch
    taps = int(np.ceil(2 * reach)) + 1
    first = np.floor(center - reach).astype(np.int64)
    weights = function((first[:, None] + np.arange(taps) - center[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    return AxisTaps(first, weights.astype(np.float32))


def _positions(n_in: int, n_out: int, ratio: float) -> npt.NDArray[np.float64]:
    """Index on the old axis of each voxel of the new one, which has the same center."""
    index = np.arange(n_out, dtype=np.float64)
    return np.asarray((index - (n_out - 1) / 2) * ratio + (n_in - 1) / 2, dtype=np.float64)


def _apply_axes(
    values: npt.NDArray[Any], old: Geometry, new: Geometry, kernel: str, out: npt.NDArray[Any], *, antialias: bool
) -> None:
    """Filter `(z, y, x)` values from `old` to `new` into `out`; axes that stay as they are keep their values."""
    z, y, x = (
        axis_taps(n, m, t / s, kernel, antialias=antialias) if (n, s) != (m, t) else AxisTaps.identity(n)
        for n, m, s, t in zip(old.shape_zyx, new.shape_zyx, old.spacing_mm, new.spacing_mm, strict=True)
    )
    filter_volume(values, z, y, x, out)


def resample_hu(
    hu: npt.NDArray[np.int16], old: Geometry, new: Geometry, interpolation: Interpolation
) -> npt.NDArray[np.int16]:
    """Resample `(z, y, x)` int16 HU from `old` to `new`; rounded and clipped to the input's own range.

    `cubic` antialiases where the new spacing is coarser; `linear` and `bspline` are SimpleITK's.
    """
    if interpolation == "cubic":
        out = np.empty(new.shape_zyx, dtype=np.int16)
        _apply_axes(hu, old, new, "cubic", out, antialias=True)
        return out
    values = sitk_resample(hu.astype(np.float32), old, new, interpolation)
    np.rint(values, out=values)
    np.clip(values, hu.min(), hu.max(), out=values)
    return values.astype(np.int16)


def resample_labels(labels: LabelArray, old: Geometry, new: Geometry) -> LabelArray:
    """Resample `(z, y, x)` labels: linear on each label's indicator, then the largest; ties go to the lower label."""
    z, y, x = (
        _neighbors(n, m, t / s)
        for n, m, s, t in zip(old.shape_zyx, new.shape_zyx, old.spacing_mm, new.spacing_mm, strict=True)
    )
    return vote(labels, z, y, x)


def _neighbors(n_in: int, n_out: int, ratio: float) -> AxisNeighbors:
    position = np.clip(_positions(n_in, n_out, ratio), 0, n_in - 1)  # the edge value continues
    lower = np.minimum(np.floor(position).astype(np.int64), max(n_in - 2, 0))
    return AxisNeighbors(lower, np.minimum(lower + 1, n_in - 1), position - lower)


def resample_probabilities(values_CZYX: FloatArray, old: Geometry, new: Geometry) -> FloatArray:
    """Resample `(c, z, y, x)` float32 probabilities linearly onto `new`, which has the same field-of-view center."""
    return np.concatenate([values for _, values in resample_slabs([(0, values_CZYX)], old, new)], axis=1)


def resample_slabs(
    slabs: Iterable[tuple[int, FloatArray]], old: Geometry, new: Geometry
) -> Iterator[tuple[int, FloatArray]]:
    """Resample float32 probabilities linearly, slab by slab.

    Parameters
    ----------
    slabs
        First slice and values `(c, slices, y, x)` on `old`, one after the other along z without gaps.
    old, new
        Grids with the same field-of-view center.

    Yields
    ------
    The same for `new`: slices as soon as the last slice that they need has come. The values do not depend on how
    the input was divided.
    """
    z, y, x = (
        axis_taps(n, m, t / s, "linear", antialias=False) if (n, s) != (m, t) else AxisTaps.identity(n)
        for n, m, s, t in zip(old.shape_zyx, new.shape_zyx, old.spacing_mm, new.spacing_mm, strict=True)
    )
    depth = old.shape_zyx[0]
    lowest = np.clip(z.first, 0, depth - 1)
    highest = np.clip(z.first + z.weights.shape[1] - 1, 0, depth - 1)
    held: FloatArray | None = None
    base, done = 0, 0
    for start, values in slabs:
        held = values if held is None else np.concatenate([held, values], axis=1)
        ready = int(np.searchsorted(highest, start + values.shape[1], side="left"))
        if ready > done:
            part = AxisTaps(z.first[done:ready] - base, z.weights[done:ready])
            out = np.empty((len(held), ready - done, *new.shape_zyx[1:]), dtype=np.float32)
            for channel, target in zip(held, out, strict=True):
                filter_volume(channel, part, y, x, target)
            yield done, out
            done = ready
        keep = int(lowest[done]) if done < len(lowest) else depth
        if keep > base:  # at a border the held slices end where the volume does, so that the edge value continues
            held, base = np.ascontiguousarray(held[:, keep - base :]), keep


def sitk_resample(values: FloatArray, old: Geometry, new: Geometry, interpolation: Interpolation) -> FloatArray:
    """Resample `(z, y, x)` float32 with SimpleITK (`linear`, or `bspline` of order 3); edges continue."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(old.spacing_mm[::-1])
    image.SetOrigin(old.origin_mm)
    image.SetDirection([float(v) for v in np.ravel(old.direction)])
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in new.shape_zyx[::-1]])
    resampler.SetOutputSpacing(new.spacing_mm[::-1])
    resampler.SetOutputOrigin(new.origin_mm)
    resampler.SetOutputDirection([float(v) for v in np.ravel(new.direction)])
    resampler.SetInterpolator(sitk.sitkLinear if interpolation == "linear" else sitk.sitkBSpline)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    result: FloatArray = sitk.GetArrayFromImage(resampler.Execute(image))
    return result
