"""A minimal writer of 3-D NIfTI-1 files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from livprep.geometry import FloatArray

_GZIP_LEVEL = 4
_BLOCK_BYTES = 1 << 24


def nifti_header(shape_zyx: tuple[int, ...], dtype: npt.DTypeLike, affine_ras: FloatArray) -> bytes:
    """Encode the 352 bytes before the voxels of a single-file NIfTI-1.

    Parameters
    ----------
    shape_zyx
        Voxels along z, y, x.
    dtype
        Type of the voxels.
    affine_ras
        4 x 4 map from index (x, y, z, 1) to RAS mm; written as sform and qform, both with code 1 (scanner).
    """
    header = nib.Nifti1Header()
    header.set_data_shape(shape_zyx[::-1])
    header.set_data_dtype(np.dtype(dtype))
    header.set_qform(affine_ras, code=1)
    header.set_sform(affine_ras, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = 352
    block: bytes = header.binaryblock
    return block + bytes(4)


def write_nifti(path: Path, array_zyx: npt.NDArray[np.generic], affine_ras: FloatArray) -> None:
    """Write a `(z, y, x)` array as `.nii` or, by its name, `.nii.gz`.

    The bytes follow from the arguments alone: the gzip form carries neither time nor file name.
    """
    header = nifti_header(array_zyx.shape, array_zyx.dtype, affine_ras)
    with path.open("wb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed:
                _write(packed, header, array_zyx)
        else:
            _write(raw, header, array_zyx)


def _write(file: BinaryIO | gzip.GzipFile, header: bytes, array_zyx: npt.NDArray[np.generic]) -> None:
    file.write(header)
    # NIfTI's x-fastest order is the C order of (z, y, x).
    rows = max(1, _BLOCK_BYTES // max(1, array_zyx[0].nbytes))
    for start in range(0, len(array_zyx), rows):
        block = array_zyx[start : start + rows]
        file.write(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).tobytes())
