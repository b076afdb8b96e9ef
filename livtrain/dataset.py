"""Reading one patch from the store into the caller's buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from livprep.labels import UNLABELLED, Label, LabelArray
from livprep.windows import Window, WindowBank
from livtrain.sampling import PatchRef, Shape

Region = tuple[slice, slice, slice]
WindowSource = Literal["packed", "stored"]

PACKED_LOW_HU, PACKED_HIGH_HU = -1024, 3071
"""HU that the 12 bits of the packed training array hold; what lies beyond is clipped there (streaming.md)."""
_HU_BITS = 12
_HU_MASK = (1 << _HU_BITS) - 1


class CaseReader(Protocol):
    """What the reader asks of `livprep.store.CaseStore`."""

    @property
    def shape_zyx(self) -> Shape: ...
    @property
    def has_labels(self) -> bool: ...
    def read_packed(self, region: Region | None = None) -> npt.NDArray[np.uint16]: ...
    def read_hu(self, region: Region | None = None) -> npt.NDArray[np.int16]: ...
    def read_labels(self, region: Region | None = None) -> LabelArray: ...
    def read_window(self, name: str, region: Region | None = None) -> npt.NDArray[np.uint8]: ...


class PatchReader:
    """Reads patches: windowed channels and labels of the patch's own region, nothing else of the case.

    What lies outside the volume is padded with 0 in the channels (the windows' low end) and background in the
    labels. Channels come from the packed array through one table a window, which gives the bytes of the stored
    channels (a property test holds it) at a fraction of their reading; windows that reach beyond the 12 bits of
    that array come from the int16 HU instead; `source="stored"` reads the stored channels themselves.

    Parameters
    ----------
    cases
        Case id to stored case.
    patch_zyx
        Shape of a patch in voxels.
    windows
        Channels in order.
    source
        `packed` derives channels from HU, `stored` reads the stored channels of those names.
    """

    def __init__(
        self,
        cases: Mapping[str, CaseReader],
        patch_zyx: Shape,
        windows: WindowBank,
        source: WindowSource = "packed",
    ) -> None:
        self._cases = cases
        self.patch_zyx = patch_zyx
        self.windows = windows
        self._source = source
        self._tables = [packed_table(window) for window in windows]
        self._twelve_bits = all(fits_packed(window) for window in windows)

    def read(self, ref: PatchRef, image_CZYX: npt.NDArray[np.uint8], labels_ZYX: LabelArray) -> None:
        """Fill `(channel, z, y, x)` uint8 channels and `(z, y, x)` uint8 labels (15 where unlabelled)."""
        case = self._cases[ref.case_id]
        region, inside = overlap(ref.origin_zyx, self.patch_zyx, case.shape_zyx)
        if any(s.stop - s.start < size for s, size in zip(inside, self.patch_zyx, strict=True)):
            image_CZYX.fill(0)
            labels_ZYX.fill(int(Label.BACKGROUND))
        image, labels = image_CZYX[(slice(None), *inside)], labels_ZYX[inside]
        if self._source == "packed" and self._twelve_bits:
            packed = case.read_packed(region)
            np.right_shift(packed, _HU_BITS, out=labels, casting="unsafe")
            hu_bits = packed & _HU_MASK
            for channel, table in zip(image, self._tables, strict=True):
                np.take(table, hu_bits, out=channel, mode="clip")  # "clip" spares a buffer; no index is outside
            return
        labels[...] = case.read_labels(region) if case.has_labels else UNLABELLED
        if self._source == "stored":
            for channel, window in zip(image, self.windows, strict=True):
                channel[...] = case.read_window(window.name, region)
        else:
            image[...] = self.windows.apply(case.read_hu(region))


def fits_packed(window: Window) -> bool:
    """Whether the 12 bits of the packed array decide every byte of a window."""
    return window.low_hu >= PACKED_LOW_HU and window.high_hu <= PACKED_HIGH_HU


def packed_table(window: Window) -> npt.NDArray[np.uint8]:
    """The window's byte for each of the 4096 values of the packed array's HU bits."""
    hu = np.arange(1 << _HU_BITS, dtype=np.int32) + PACKED_LOW_HU
    return window.table()[hu.astype(np.int16).view(np.uint16)]


def overlap(origin_zyx: Shape, patch_zyx: Shape, shape_zyx: Shape) -> tuple[Region, Region]:
    """Part of a patch that lies in the volume: as a region of the volume, and of the patch."""
    region, inside = [], []
    for start, size, length in zip(origin_zyx, patch_zyx, shape_zyx, strict=True):
        low, high = max(start, 0), min(start + size, length)
        region.append(slice(low, high))
        inside.append(slice(low - start, high - start))
    return (region[0], region[1], region[2]), (inside[0], inside[1], inside[2])
