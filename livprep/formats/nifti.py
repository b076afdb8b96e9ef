"""NIfTI files: read from verified bytes, written with a fresh header.

Arrays are `(z, y, x)` in the file's own order: the first NIfTI axis is the last array axis.
"""

from __future__ import annotations

import gzip
import os
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from livprep.cases import FileRef, Note
from livprep.errors import GeometryError, SourceError
from livprep.geometry import Geometry

MAX_BYTES = 4 << 30
MAX_SIDE = 4096
PIXDIM_TOLERANCE_MM = 1e-3
SHEAR_TOLERANCE = 1e-3
_STEP = 256 << 10
"""Compressed bytes decoded at once; deflate expands at most 1032-fold, so one step stays below 270 MB."""
_GzipError: type[Exception] = isal_zlib.error  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Nifti:
    """A 3-D NIfTI image: raw values `(z, y, x)` (a view of the file's bytes), scaling and geometry."""

    values: npt.NDArray[np.generic]
    slope: float
    inter: float
    geometry: Geometry
    affine_ras: npt.NDArray[np.float64]
    notes: tuple[Note, ...]


def gunzip(ref: FileRef, data: bytes, limit: int = MAX_BYTES) -> bytearray:
    """Decompress a whole gzip file (all members), checking CRC and length, up to `limit` bytes.

    Raises
    ------
    SourceError
        GZIP_CORRUPT: truncated, damaged, followed by other bytes, or larger than `limit`.
    """
    out, view, position = bytearray(), memoryview(data), 0
    while position < len(view):
        stream = isal_zlib.decompressobj(wbits=31)
        while not stream.eof:
            if position >= len(view):
                raise SourceError("GZIP_CORRUPT", f"{ref}: the gzip stream ends early after {len(out)} bytes")
            piece = view[position : position + _STEP]
            try:
                out += stream.decompress(piece)
            except _GzipError as error:
                raise SourceError("GZIP_CORRUPT", f"{ref}: the gzip stream is damaged") from error
            position += len(piece) - len(stream.unused_data)
            if len(out) > limit:
                raise SourceError("GZIP_CORRUPT", f"{ref}: expands beyond {limit} bytes")
        while position < len(view) and view[position] == 0:
            position += 1  # zero padding after a member is allowed (RFC 1952 leaves it to the reader)
    return out


def read_nifti(ref: FileRef, data: bytes) -> Nifti:
    """Parse a .nii or .nii.gz of one frame.

    Raises
    ------
    SourceError
        GZIP_CORRUPT, NIFTI_HEADER, NIFTI_DIM, NIFTI_SHORT or NIFTI_AFFINE.
    """
    content: bytes | bytearray = gunzip(ref, data) if data[:2] == b"\x1f\x8b" else data
    header = _header(ref, bytes(content[:544]))
    count = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : 1 + count]) if 1 <= count <= 7 else ()
    x, y, z = (*shape, 1, 1, 1)[:3]
    if not shape or any(n != 1 for n in shape[3:]) or not all(1 <= n <= MAX_SIDE for n in (x, y, z)):
        raise SourceError("NIFTI_DIM", f"{ref}: dimensions {shape}, expected one volume of up to {MAX_SIDE} a side")
    dtype = _dtype(ref, header)
    offset, size = float(header["vox_offset"]), x * y * z * dtype.itemsize
    if not header.sizeof_hdr <= offset <= len(content) - size:  # so that NaN is refused too
        raise SourceError(
            "NIFTI_SHORT", f"{ref}: holds {len(content)} bytes, expected {size} for {shape} from byte {offset:g}"
        )
    values = np.frombuffer(content, dtype=dtype, count=x * y * z, offset=int(offset)).reshape(z, y, x)
    affine, notes = _affine(ref, header)
    try:
        geometry = Geometry.from_affine_ras(affine, (z, y, x))
    except GeometryError as error:
        raise SourceError("NIFTI_AFFINE", f"{ref}: {error.message}") from error
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0.0:
        slope, inter = 1.0, 0.0
    return Nifti(values, slope, inter if np.isfinite(inter) else 0.0, geometry, affine, notes)


def _header(ref: FileRef, data: bytes) -> nib.Nifti1Header:
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    orders: tuple[tuple[Literal["little", "big"], str], ...] = (("little", "<"), ("big", ">"))
    for order, sign in orders:
        size = int.from_bytes(data[:4], order)
        if size in kinds and len(data) >= size:
            try:
                return kinds[size](data[:size], endianness=sign, check=False)  # extensions are never read
            except Exception as error:
                raise SourceError("NIFTI_HEADER", f"{ref}: unreadable header ({type(error).__name__})") from None
    raise SourceError("NIFTI_HEADER", f"{ref}: no NIfTI header (expected a size of 348 or 540 bytes)")


def _dtype(ref: FileRef, header: nib.Nifti1Header) -> np.dtype[np.generic]:
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except Exception:  # nibabel looks the code up in a table
        raise SourceError("NIFTI_HEADER", f"{ref}: values of an unknown type") from None
    if dtype.kind not in "iuf":
        raise SourceError("NIFTI_HEADER", f"{ref}: values of type {dtype}, expected integers or floats")
    return dtype


def _affine(ref: FileRef, header: nib.Nifti1Header) -> tuple[npt.NDArray[np.float64], tuple[Note, ...]]:
    """The sform where set, else the qform, else the voxel sizes; finite, without shear, columns = pixdim."""
    notes: tuple[Note, ...] = ()
    try:
        if int(header["sform_code"]) > 0:
            affine = np.asarray(header.get_sform(), dtype=np.float64)
        elif int(header["qform_code"]) > 0:
            affine = np.asarray(header.get_qform(), dtype=np.float64)
        else:
            affine = np.asarray(header.get_base_affine(), dtype=np.float64)
            notes = (Note("NIFTI_NO_AFFINE", "neither sform nor qform is set; orientation is assumed"),)
    except Exception as error:
        raise SourceError("NIFTI_AFFINE", f"{ref}: unusable affine ({type(error).__name__})") from None
    columns = affine[:3, :3]
    norms = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or (norms <= 0).any():
        raise SourceError("NIFTI_AFFINE", f"{ref}: the affine is singular or not finite")
    unit = columns / norms
    if np.abs(unit.T @ unit - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise SourceError("NIFTI_AFFINE", f"{ref}: the affine is sheared by more than {SHEAR_TOLERANCE}")
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not np.allclose(norms, pixdim, rtol=0, atol=PIXDIM_TOLERANCE_MM):
        raise SourceError("NIFTI_AFFINE", f"{ref}: affine spacing {norms} mm, but pixdim says {pixdim} mm")
    return affine, notes


def to_hu(ref: FileRef, image: Nifti) -> npt.NDArray[np.int16]:
    """Scaled values as int16 HU `(z, y, x)`.

    Raises
    ------
    SourceError
        HU_RANGE: not finite or outside int16.
    """
    values = image.values
    if image.slope == 1.0 and image.inter == 0.0 and values.dtype.kind in "iu":
        scaled: npt.NDArray[np.generic] = values
    else:
        scaled = np.rint(values.astype(np.float64) * image.slope + image.inter)
    low, high = scaled.min(), scaled.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= -32768 and high <= 32767):
        raise SourceError("HU_RANGE", f"{ref}: values {low} to {high}, expected finite HU within int16")
    return scaled.astype(np.int16, copy=False)


def to_labels(ref: FileRef, image: Nifti, allowed: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Scaled values as uint8 labels `(z, y, x)`.

    Raises
    ------
    SourceError
        LABEL_UNKNOWN: a value that is no integer of `allowed`.
    """
    if image.slope == 1.0 and image.inter == 0.0 and image.values.dtype == np.uint8:
        scaled: npt.NDArray[np.generic] = image.values
        strange = np.ones(256, dtype=bool)
        strange[list(allowed)] = False
        top = max(allowed) if set(allowed) == set(range(max(allowed) + 1)) else -1  # then the largest value decides
        # slice by slice: a list of all values is only made of slices that hold something unexpected
        odd = [section for section in image.values if (section.max() > top if top >= 0 else strange[section].any())]
        found = np.unique(np.stack(odd)).tolist() if odd else []
    else:
        scaled = image.values.astype(np.float64) * image.slope + image.inter
        found = np.unique(scaled).tolist()
    unknown = [value for value in found if value not in allowed]
    if unknown:
        raise SourceError("LABEL_UNKNOWN", f"{ref}: label values {unknown[:5]} besides the expected {list(allowed)}")
    return scaled.astype(np.uint8)


def encode(values_zyx: npt.NDArray[np.generic], geometry: Geometry) -> bytes:
    """Bytes of an uncompressed NIfTI-1 with a fresh header: geometry and type, no text."""
    image = nib.Nifti1Image(np.asarray(values_zyx).transpose(2, 1, 0), geometry.affine_ras)
    image.header.set_xyzt_units("mm")
    image.set_qform(geometry.affine_ras, code=1)
    image.set_sform(geometry.affine_ras, code=1)
    data: bytes = image.to_bytes()
    return data


def write_nifti(path: Path, values_zyx: npt.NDArray[np.generic], geometry: Geometry) -> None:
    """Write an array on its geometry to `.nii` or `.nii.gz`, whole or not at all; the bytes are reproducible."""
    data = encode(values_zyx, geometry)
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=zlib.Z_DEFAULT_COMPRESSION, mtime=0)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_labels(path: Path, labels_zyx: npt.NDArray[np.uint8], geometry: Geometry) -> None:
    """Write uint8 labels `(z, y, x)` in the geometry's own axis order."""
    write_nifti(path, labels_zyx.astype(np.uint8, copy=False), geometry)
