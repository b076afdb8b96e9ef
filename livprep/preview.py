"""A case on one picture: slices through the liver, as `livprep preview` and the report show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.figures import Plane, draw_montage
from livprep.labels import Label, LabelArray
from livprep.shown import Shown
from livprep.windows import Window

AXIAL = 25
"""Slices of the montage."""
_BODY_HU, _BORDER_MM = -300, 8.0
_AXIAL, _CORONAL, _SAGITTAL = ("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")
"""Letters at the left, right, top and bottom edge."""


def preview(shown: Shown) -> bytes:
    """The montage of a case as PNG: 5 x 5 axial slices through the liver, a mid coronal and a mid sagittal one."""
    case = shown.case
    planes = axial_planes(shown, AXIAL)
    spacing = " × ".join(f"{mm:g}" for mm in case.geometry.spacing_mm)
    title = f"{case.case_id}   {window_text(shown.window)}"
    note = f"{' × '.join(map(str, case.shape_zyx))} voxels of {spacing} mm (z, y, x) · not for diagnosis"
    return draw_montage(title, note, planes, side_planes(shown))


def window_text(window: Window) -> str:
    """A window's name, with level and width where it is linear."""
    if not window.is_local:
        return f"channel {window}"
    name = "" if window.name == f"wl{window.center_hu:g}_ww{window.width_hu:g}" else f" {window.name}"
    bounds = f"{window.low_hu:g} … {window.high_hu:g} HU"
    return f"window{name} WL {window.center_hu:g} WW {window.width_hu:g} ({bounds})"


def axial_planes(shown: Shown, count: int) -> list[Plane]:
    """Slices evenly from the lowest to the highest one with liver (of the whole scan without), head first."""
    low, high = _span(shown.labels, 0, shown.case.shape_zyx[0])
    rows, columns = _body(shown, low, high)
    chosen = np.unique(np.linspace(low, high, min(count, high - low + 1)).round().astype(int))
    _, y_mm, x_mm = shown.case.geometry.spacing_mm

    def plane(z: int) -> Plane:
        return _plane(shown, f"slice {z}", lambda v: np.ascontiguousarray(v[z, rows, columns]), (y_mm, x_mm), _AXIAL)

    return [plane(int(z)) for z in chosen[::-1]]


def side_planes(shown: Shown) -> list[Plane]:
    """A coronal and a sagittal plane through the middle of the liver, the head on top."""
    z_mm, y_mm, x_mm = shown.case.geometry.spacing_mm
    _, y, x = _middle(shown.labels, shown.case.shape_zyx)

    def coronal(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(volume[::-1, y, :])

    def sagittal(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(volume[::-1, :, x])

    return [
        _plane(shown, f"coronal, row {y}", coronal, (z_mm, x_mm), _CORONAL),
        _plane(shown, f"sagittal, column {x}", sagittal, (z_mm, y_mm), _SAGITTAL),
    ]


def _plane(
    shown: Shown,
    title: str,
    cut: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    spacing_mm: tuple[float, float],
    letters: tuple[str, str, str, str],
) -> Plane:
    labels = [None if volume is None else cut(volume) for volume in (shown.reference, shown.prediction)]
    return Plane(title, cut(shown.gray), labels[0], labels[1], spacing_mm, letters)


def _span(labels: LabelArray | None, axis: int, size: int) -> tuple[int, int]:
    """First and last index with liver along an axis; the whole axis where there is none."""
    others = tuple(k for k in range(3) if k != axis)
    found = np.flatnonzero((labels >= Label.LIVER).any(axis=others)) if labels is not None else np.empty(0)
    return (int(found[0]), int(found[-1])) if len(found) else (0, size - 1)


def _middle(labels: LabelArray | None, shape_zyx: tuple[int, int, int]) -> tuple[int, int, int]:
    """Center of the liver's voxels; of the grid where there is none."""
    if labels is None or not (labels >= Label.LIVER).any():
        z, y, x = (size // 2 for size in shape_zyx)
        return z, y, x
    liver = labels >= Label.LIVER
    sums = [liver.sum(axis=tuple(k for k in range(3) if k != axis), dtype=np.int64) for axis in range(3)]
    z, y, x = (round(float(np.average(np.arange(len(counts)), weights=counts))) for counts in sums)
    return z, y, x


def _body(shown: Shown, low: int, high: int) -> tuple[slice, slice]:
    """Rows and columns of the body in the middle one of some slices, with a border."""
    body = shown.case.read_hu((slice((low + high) // 2, (low + high) // 2 + 1), slice(None), slice(None)))[0] > _BODY_HU
    _, y_mm, x_mm = shown.case.geometry.spacing_mm
    cuts = []
    for axis, step in ((0, y_mm), (1, x_mm)):
        found, border = np.flatnonzero(body.any(axis=1 - axis)), round(_BORDER_MM / step)
        size = body.shape[axis]
        cuts.append(
            slice(max(0, found[0] - border), min(size, found[-1] + 1 + border)) if len(found) else slice(0, size)
        )
    return cuts[0], cuts[1]
