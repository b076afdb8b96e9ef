"""The only preprocessing: canonical LPS order and, when asked, another spacing.

Ingest, verification and prediction all call `prepare`; `restore` brings predicted probabilities back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.errors import GeometryError, UsageError
from livprep.geometry import Geometry, Triple, canonical_axes
from livprep.labels import LabelArray
from livprep.provenance import digest_of
from livprep.resample import (
    Interpolation,
    resample_hu,
    resample_labels,
    resample_slabs,
    resampled_geometry,
)
from livprep.volume import LabelledVolume, LabelMap, Volume

MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 20.0
FREE_VOXELS, MAX_REFINEMENT = 1 << 26, 32
"""A prepared grid may have that many voxels, or that many for one of the source: 5 mm slices of 0.9 mm pixels at
0.7 mm have 12 for one. A header that claims voxels of a meter would fill the memory."""


@dataclass(frozen=True)
class Preparation:
    """How every case of one store is prepared.

    Parameters
    ----------
    spacing_mm
        Wanted spacing in mm along z, y, x of the LPS grid; None keeps the source's.
    interpolation
        `cubic` (default), or SimpleITK's `linear` or `bspline`.
    """

    spacing_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    interpolation: Interpolation = "cubic"

    def __post_init__(self) -> None:
        for value in self.spacing_mm:
            if value is not None and not MIN_SPACING_MM <= value <= MAX_SPACING_MM:
                raise UsageError(
                    "USAGE", f"spacing {value} mm: expected {MIN_SPACING_MM} to {MAX_SPACING_MM} mm or native"
                )
        if self.interpolation not in ("cubic", "linear", "bspline"):
            raise UsageError("USAGE", f"interpolation {self.interpolation!r}: expected cubic, linear or bspline")

    @property
    def is_native(self) -> bool:
        """Whether no resampling happens."""
        return self.spacing_mm == (None, None, None)

    def __str__(self) -> str:
        """For messages: `spacing native,0.8,0.8 mm (z, y, x), cubic`."""
        wanted = ",".join("native" if value is None else f"{value:g}" for value in self.spacing_mm)
        return f"spacing {'native' if self.is_native else f'{wanted} mm (z, y, x)'}, {self.interpolation}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, read back by `from_dict`."""
        data = asdict(self)
        data["spacing_mm"] = list(self.spacing_mm)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preparation:
        """Read the form written by `as_dict`."""
        z, y, x = (None if v is None else float(v) for v in data["spacing_mm"])
        return cls(spacing_mm=(z, y, x), interpolation=data["interpolation"])

    @property
    def digest(self) -> str:
        """sha256 of the settings."""
        return digest_of(self.as_dict())

    def grid(self, source: Geometry) -> Geometry:
        """The stored grid of a source grid, without touching voxels."""
        _, canonical = canonical_axes(source)
        wanted = self._spacing(canonical)
        if wanted == canonical.spacing_mm:
            return canonical
        factor = math.prod(own / want for own, want in zip(canonical.spacing_mm, wanted, strict=True))
        before = math.prod(canonical.shape_zyx)
        if not before * factor <= max(FREE_VOXELS, MAX_REFINEMENT * before):
            raise GeometryError(
                f"grid {canonical.shape_zyx} of {canonical.spacing_mm} mm: {before * factor:.3g} voxels at {wanted} "
                f"mm, expected at most {MAX_REFINEMENT} for one; check the source's spacing"
            )
        return resampled_geometry(canonical, wanted)

    def _spacing(self, canonical: Geometry) -> Triple:
        z, y, x = (
            own if want is None else want for want, own in zip(self.spacing_mm, canonical.spacing_mm, strict=True)
        )
        return (z, y, x)


def prepare(volume: LabelledVolume, preparation: Preparation) -> LabelledVolume:
    """Bring a scan and its labels to LPS order and the preparation's spacing.

    Pure: same input, same output. At native spacing the voxels are only reordered. HU are rounded to int16 and
    stay inside the source's range; labels are interpolated linearly on their indicators and the largest wins.
    """
    axes, canonical = canonical_axes(volume.geometry)
    hu = np.ascontiguousarray(axes.apply(volume.image.hu))
    labels = None if volume.label_map is None else np.ascontiguousarray(axes.apply(volume.label_map.labels))
    grid = preparation.grid(volume.geometry)
    if grid is not canonical and grid != canonical:
        hu = resample_hu(hu, canonical, grid, preparation.interpolation)
        if labels is not None:
            labels = resample_labels(labels, canonical, grid)
    return LabelledVolume(Volume(hu, grid), None if labels is None else LabelMap(labels, grid))


def prepare_labels(labels: LabelArray, source: Geometry, preparation: Preparation) -> LabelMap:
    """Bring labels `(z, y, x)` of a source grid to LPS order and the preparation's spacing, as `prepare` does."""
    axes, canonical = canonical_axes(source)
    turned = np.ascontiguousarray(axes.apply(labels))
    grid = preparation.grid(source)
    return LabelMap(turned if grid == canonical else resample_labels(turned, canonical, grid), grid)


def restore(values_CZYX: npt.NDArray[np.float32], prepared: Geometry, source: Geometry) -> npt.NDArray[np.float32]:
    """Bring `(c, z, y, x)` float32 values from a prepared grid back to the source's grid and axis order.

    Exact (a pure reordering) where the spacing was native; linear interpolation otherwise.
    """
    axes, _ = canonical_axes(source)
    values = np.concatenate([part for _, part in restore_slabs([(0, values_CZYX)], prepared, source)], axis=1)
    return np.stack([np.ascontiguousarray(axes.invert(channel)) for channel in values])


def restore_slabs(
    slabs: Iterable[tuple[int, npt.NDArray[np.float32]]], prepared: Geometry, source: Geometry
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Bring values back slab by slab, as `restore` does, but in LPS order.

    Parameters
    ----------
    slabs
        First slice and values `(c, slices, y, x)` on the prepared grid, along z without gaps.
    prepared, source
        The prepared grid and the source's.

    Yields
    ------
    The same on the source's grid in LPS order; `canonical_axes(source)[0].invert` gives the source's own.
    """
    _, canonical = canonical_axes(source)
    if prepared.shape_zyx == canonical.shape_zyx and prepared.spacing_mm == canonical.spacing_mm:
        yield from slabs
        return
    old = replace(prepared, origin_mm=canonical.origin_mm, direction=canonical.direction)
    yield from resample_slabs(slabs, old, canonical)
