"""Reading patches from the store into the caller's buffers."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from livprep.labels import UNLABELLED, LabelArray
from livprep.windows import WindowBank
from livtrain.sampling import PatchRef, Shape
from livtrain.unpack import HU_BITS, HU_MASK, fits_packed, packed_table

Region = tuple[slice, slice, slice]
Packed = npt.NDArray[np.uint16]
WindowSource = Literal["packed", "stored"]
NO_MARGIN: Shape = (0, 0, 0)


class CaseReader(Protocol):
    """What the reader asks of `livprep.store.CaseStore`."""

    @property
    def shape_zyx(self) -> Shape: ...
    @property
    def has_labels(self) -> bool: ...
    def read_packed(self, region: Region | None = None, out: Packed | None = None) -> Packed: ...
    def read_hu(self, region: Region | None = None) -> npt.NDArray[np.int16]: ...
    def read_labels(self, region: Region | None = None) -> LabelArray: ...
    def read_window(self, name: str, region: Region | None = None) -> npt.NDArray[np.uint8]: ...
    def will_need_packed(self, region: Region) -> None: ...


class PatchReader:
    """Reads patches: windowed channels and labels of the patch's own region, nothing else of the case.

    What lies outside the volume is padded with 0 in the channels (the windows' low end) and background in the
    labels. Channels come from the packed array through one table a window, which gives the bytes of the stored
    channels (a property test holds it) at a fraction of their reading; windows that reach beyond the 12 bits of
    that array come from the int16 HU instead; `source="stored"` reads the stored channels themselves, as is always
    done with channels that follow from the whole scan (`livprep.channels`).

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
        self.uses_packed = source == "packed" and all(fits_packed(window) for window in windows)
        """Whether channels and labels follow from the packed array alone."""
        self._tables = [packed_table(window) for window in windows] if self.uses_packed else []
        self._scratch = threading.local()

    def read(self, ref: PatchRef, image_CZYX: npt.NDArray[np.uint8], labels_ZYX: LabelArray) -> None:
        """Fill `(channel, z, y, x)` uint8 channels and `(z, y, x)` uint8 labels (15 where unlabelled)."""
        case = self._cases[ref.case_id]
        region, inside = overlap(ref.origin_zyx, self.patch_zyx, case.shape_zyx)
        for each in (*image_CZYX, labels_ZYX):
            clear_outside(each, inside)  # 0 is the windows' low end, and background
        image, labels = image_CZYX[(slice(None), *inside)], labels_ZYX[inside]
        if self.uses_packed:
            packed = case.read_packed(region)
            np.right_shift(packed, HU_BITS, out=labels, casting="unsafe")
            hu_bits = packed & HU_MASK
            for channel, table in zip(image, self._tables, strict=True):
                np.take(table, hu_bits, out=channel, mode="clip")  # "clip" spares a buffer; no index is outside
            return
        labels[...] = case.read_labels(region) if case.has_labels else UNLABELLED
        hu = None
        for channel, window in zip(image, self.windows, strict=True):
            if self._source == "stored" or not window.is_local:
                channel[...] = case.read_window(window.name, region)
            else:
                hu = case.read_hu(region) if hu is None else hu
                channel[...] = window.apply(hu)

    def read_packed(self, ref: PatchRef, out_ZYX: Packed, margin_zyx: Shape = NO_MARGIN) -> None:
        """Fill the packed voxels of a patch, and of `margin_zyx` more voxels at each of its sides.

        What lies outside the volume is 0: -1024 HU, the low end of each window, and background.

        Parameters
        ----------
        out_ZYX
            `(z + 2 margin, ...)` uint16, filled in place.
        """
        case = self._cases[ref.case_id]
        region, inside = overlap(*enlarged(ref.origin_zyx, self.patch_zyx, margin_zyx), case.shape_zyx)
        clear_outside(out_ZYX, inside)
        case.read_packed(region, out=out_ZYX[inside])

    def read_neighbors(self, refs: Sequence[PatchRef], outs_ZYX: Sequence[Packed]) -> None:
        """Fill several patches of one case from one read of the box that holds them all.

        Chunks that several of them touch are decoded once. Where the box is larger than the patches together,
        they are read one by one.
        """
        case = self._cases[refs[0].case_id]
        origins = np.array([ref.origin_zyx for ref in refs])
        low, size = origins.min(axis=0), np.ptp(origins, axis=0) + self.patch_zyx
        box, _ = overlap(_triple(low), _triple(size), case.shape_zyx)
        shape = [s.stop - s.start for s in box]
        if len(refs) == 1 or math.prod(shape) > len(refs) * math.prod(self.patch_zyx):
            for ref, out in zip(refs, outs_ZYX, strict=True):
                self.read_packed(ref, out)
            return
        block = self._buffer(math.prod(shape)).reshape(shape)
        case.read_packed(box, out=block)
        for ref, out in zip(refs, outs_ZYX, strict=True):
            region, inside = overlap(ref.origin_zyx, self.patch_zyx, case.shape_zyx)
            clear_outside(out, inside)
            z, y, x = (slice(r.start - b.start, r.stop - b.start) for r, b in zip(region, box, strict=True))
            out[inside] = block[z, y, x]

    def will_need(self, ref: PatchRef, margin_zyx: Shape = NO_MARGIN) -> None:
        """Ask the kernel to fetch what a patch will read."""
        if self.uses_packed:
            case = self._cases[ref.case_id]
            region, _ = overlap(*enlarged(ref.origin_zyx, self.patch_zyx, margin_zyx), case.shape_zyx)
            case.will_need_packed(region)

    def _buffer(self, voxels: int) -> Packed:
        """Memory of this thread, used again and again."""
        kept: Packed | None = getattr(self._scratch, "kept", None)
        if kept is None or kept.size < voxels:
            kept = self._scratch.kept = np.empty(voxels, dtype=np.uint16)
        return kept[:voxels]


def enlarged(origin_zyx: Shape, patch_zyx: Shape, margin_zyx: Shape) -> tuple[Shape, Shape]:
    """Start and size of a patch with a margin at each of its sides."""
    if not any(margin_zyx):
        return origin_zyx, patch_zyx
    start = [o - m for o, m in zip(origin_zyx, margin_zyx, strict=True)]
    size = [n + 2 * m for n, m in zip(patch_zyx, margin_zyx, strict=True)]
    return _triple(start), _triple(size)


def clear_outside(out_ZYX: npt.NDArray[np.generic], inside: Region) -> None:
    """Set the part of a patch that lies outside of the volume to 0."""
    for axis, part in enumerate(inside):
        before = (*inside[:axis], slice(0, part.start))
        after = (*inside[:axis], slice(part.stop, None))
        out_ZYX[before] = 0
        out_ZYX[after] = 0


def overlap(origin_zyx: Shape, patch_zyx: Shape, shape_zyx: Shape) -> tuple[Region, Region]:
    """Part of a patch that lies in the volume: as a region of the volume, and of the patch."""
    region, inside = [], []
    for start, size, length in zip(origin_zyx, patch_zyx, shape_zyx, strict=True):
        low, high = max(start, 0), min(start + size, length)
        region.append(slice(low, high))
        inside.append(slice(low - start, high - start))
    return (region[0], region[1], region[2]), (inside[0], inside[1], inside[2])


def _triple(values: Sequence[int] | npt.NDArray[np.int64]) -> Shape:
    z, y, x = (int(value) for value in values)
    return z, y, x
