"""How large a scan is, from the headers of its first files: for estimates before anything is read whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livprep.cases import FileRef
from livprep.errors import GeometryError, SourceError
from livprep.formats.archive import read_bytes, read_start, uncompressed_size
from livprep.formats.dicom_slice import Slice, parse_slices
from livprep.formats.nifti import stated_grid
from livprep.geometry import Geometry

_START_BYTES = 1 << 16
_MAX_FILE_BYTES = 64 << 20
"""Beyond a slice: a file of many frames, too large to be read twice."""


def stated_extent(refs: Sequence[FileRef]) -> Geometry | None:
    """The grid that one NIfTI, or the first two slices of a series, state; None where they cannot be read.

    What is wrong with a file is for the reader to say. The slice distance of a series is that of its first two files
    by name, or their thickness where that is more than twofold (files whose names do not follow the slices).
    """
    try:
        if refs[0].is_nifti:
            return stated_grid(refs[0], read_start(refs[0], _START_BYTES))
        if uncompressed_size(refs[0]) > _MAX_FILE_BYTES:
            return None
        slices = [entry for ref in refs[:2] for entry in parse_slices(ref, read_bytes(ref))]
        return _of_slices(slices, len(refs)) if slices else None
    except (SourceError, GeometryError, MemoryError):
        return None


def _of_slices(slices: list[Slice], files: int) -> Geometry:
    first = slices[0]
    stated = first.spacing_between or first.thickness or 0.0
    steps = [abs(float((entry.position - first.position) @ first.normal)) for entry in slices[1:2]]
    dz = next((step for step in steps if step > 0 and (not stated or step <= 2 * stated)), stated)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing_yx[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing_yx[0]
    affine[:3, 2] = first.normal * dz
    affine[:3, 3] = first.position
    return Geometry.from_affine_lps(affine, (max(files, len(slices)), *first.pixels.shape))
