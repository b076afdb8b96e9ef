"""Probabilities that are kept, and the CRF over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from livprep.errors import StoreError
from livprep.geometry import AxisMap, Geometry, canonical_axes
from livtrain.crf import CrfSettings, refine
from livtrain.inference.options import HalfVolume
from livtrain.inference.scans import LoadedScan
from livtrain.inference.window import FloatVolume
from livtrain.postprocess import BoolArray, bounding_box, grow_box
from livtrain.stages import THRESHOLD

CRF_MARGIN_MM = 20.0
"""The CRF sees a structure and this much around it (method.md, section 5: 10 slices, 30 pixels)."""


class Known:
    """Probabilities in LPS order, kept where they are wanted."""

    def __init__(self, canonical: Geometry, wanted: bool) -> None:
        self.canonical, self._wanted = canonical, wanted
        self.values: dict[str, HalfVolume] = {}

    def add(self, name: str, start: int, values_ZYX: FloatVolume) -> None:
        """Note some slices; a later stage's replace an earlier one's."""
        if not self._wanted:
            return
        if name not in self.values:
            self.values[name] = np.zeros(self.canonical.shape_zyx, dtype=np.float16)
        self.values[name][start : start + len(values_ZYX)] = values_ZYX

    def turned(self, axes: AxisMap) -> dict[str, HalfVolume]:
        """The probabilities in the source's axis order."""
        return {name: np.ascontiguousarray(axes.invert(values)) for name, values in self.values.items()}


def own_hu(scan: LoadedScan) -> npt.NDArray[np.int16]:
    """HU of the source's own grid, in LPS order.

    Raises
    ------
    StoreError
        STORE_PREPARATION: the scan was read from a store that has it resampled.
    """
    if scan.prepared is not None and not scan.prepared.is_native:
        raise StoreError(
            "STORE_PREPARATION",
            f"{scan.name}: --crf needs the scan's own voxels, and the store has them at {scan.prepared.spacing_mm} mm "
            "(zyx); predict from the source files instead",
        )
    axes, _ = canonical_axes(scan.volume.geometry)
    return axes.apply(scan.volume.image.hu)


def smooth(
    name: str,
    mask: BoolArray,
    threshold: float | None,
    known: Known,
    hu: npt.NDArray[np.int16],
    settings: CrfSettings,
    device: torch.device,
) -> None:
    """Pass a structure's probability through the CRF; changes it and `mask`, in LPS order, in place.

    Where the mask is empty, nothing changes.
    """
    box = bounding_box(mask)
    if box is None:
        return
    spacing_mm = known.canonical.spacing_mm
    z, y, x = (int(CRF_MARGIN_MM // step) + 1 for step in spacing_mm)
    box = grow_box(box, (z, y, x), known.canonical.shape_zyx)
    refined = refine(known.values[name][box], hu[box], spacing_mm, settings, device)
    known.values[name][box] = refined
    mask[box] = refined >= (THRESHOLD if threshold is None else threshold)
