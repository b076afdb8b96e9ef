"""NIfTI files: read from verified bytes, written with a fresh header.

Arrays are `(z, y, x)` in the file's own order: the first NIfTI axis is the last array axis.
"""

from __future__ import annotations

import gzip
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from livprep.cases import FileRef, Note
from livprep.errors import GeometryError, SourceError
from livprep.formats.archive import stored_size
from livprep.formats.bounded import FREE_BYTES, MAX_EXPANSION, is_amplified
from livprep.formats.nifti_write import nifti_header
from livprep.geometry import Geometry, Triple

MAX_BYTES = 4 << 30
LABEL_BYTES = 5 << 29
"""Memory that a file of labels alone may take: 1000 slices of 512 x 512 as float64, which shrink 1000-fold."""
MAX_SIDE = 4096
PIXDIM_TOLERANCE_MM = 1e-3
SHEAR_TOLERANCE = 1e-3
FORM_TOLERANCE_MM = 0.05
"""Largest difference of an element of sform and qform at which they count as one; the quaternion is float32."""
MAX_TRAILING_BYTES = 16 << 20
"""What may follow the voxels of a gzipped file; it is checked and dropped."""
_MAX_DEFLATE = 1032
"""The most that deflate expands: 258 bytes from 2 bits."""
_STEP = 64 << 10
"""Compressed bytes decoded at once, so that one step stays below 68 MB."""
_BLOCK_VOXELS = 1 << 22
"""Voxels scaled at once, as float64."""
_GZIP_LEVEL = 6
_HEADER_BYTES = 540
"""Of NIfTI-2; NIfTI-1 has 348."""
_GzipError: type[Exception] = isal_zlib.error  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Nifti:
    """A 3-D NIfTI image: raw values `(z, y, x)` (a view of the file's bytes), scaling and geometry.

    `pixdim_mm` is the header's field (zyx), which can differ from the affine's spacing by a rounding.
    """

    values: npt.NDArray[np.generic]
    slope: float
    inter: float
    geometry: Geometry
    affine_ras: npt.NDArray[np.float64]
    pixdim_mm: Triple
    notes: tuple[Note, ...]

    @property
    def scaled(self) -> bool:
        """Whether the stored values are not the image's own."""
        return self.slope != 1.0 or self.inter != 0.0


def gunzip(ref: FileRef, data: bytes, limit: int = MAX_BYTES) -> bytearray:
    """Decompress a whole gzip file (all members), checking CRC and length, up to `limit` bytes.

    Raises
    ------
    SourceError
        GZIP_CORRUPT: truncated, damaged, followed by other bytes, or larger than `limit`.
    """
    out = bytearray()
    for piece in _inflate(ref, data):
        out += piece
        if len(out) > limit:
            raise SourceError("GZIP_CORRUPT", f"{ref}: expands beyond {limit} bytes")
    return out


def _inflate(ref: FileRef, data: bytes) -> Iterator[bytes]:
    """Content of a gzip file in pieces; that the generator ends says that CRC and length of all members are right."""
    view, position, size = memoryview(data), 0, 0
    while position < len(view):
        stream = isal_zlib.decompressobj(wbits=31)
        while not stream.eof:
            if position >= len(view):
                raise SourceError("GZIP_CORRUPT", f"{ref}: the gzip stream ends early after {size} bytes")
            piece = view[position : position + _STEP]
            try:
                content = stream.decompress(piece)
            except _GzipError as error:
                raise SourceError("GZIP_CORRUPT", f"{ref}: the gzip stream is damaged") from error
            position += len(piece) - len(stream.unused_data)
            size += len(content)
            yield content
        while position < len(view) and view[position] == 0:
            position += 1  # zero padding after a member is allowed (RFC 1952 leaves it to the reader)


@dataclass(frozen=True)
class _Layout:
    """Where the header says the voxels are: `(z, y, x)` of one type from a byte on."""

    shape_zyx: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def count(self) -> int:
        """Voxels."""
        z, y, x = self.shape_zyx
        return z * y * x

    @property
    def end(self) -> int:
        """Bytes that the file must hold."""
        return self.offset + self.count * self.dtype.itemsize


@np.errstate(all="ignore")  # odd numbers are refused by value, without numpy's remarks
def read_nifti(ref: FileRef, data: bytes, free_bytes: int = FREE_BYTES) -> Nifti:
    """Parse a .nii or .nii.gz of one frame; nothing is allocated for what the header claims but cannot be there.

    Parameters
    ----------
    ref, data
        Where the file is, for messages, and its bytes.
    free_bytes
        Memory that it may take however small it is on disk.

    Raises
    ------
    SourceError
        GZIP_CORRUPT, GZIP_LIMIT, NIFTI_HEADER, NIFTI_DIM, NIFTI_SHORT or NIFTI_AFFINE.
    """
    pieces = _inflate(ref, data) if data[:2] == b"\x1f\x8b" else None
    start = data if pieces is None else _first(pieces, _HEADER_BYTES)
    header = _header(ref, bytes(start[:_HEADER_BYTES]))
    layout = _layout(ref, header)
    affine, notes = _affine(ref, header)
    try:
        geometry = Geometry.from_affine_ras(affine, layout.shape_zyx)
    except GeometryError as error:
        raise SourceError("NIFTI_AFFINE", f"{ref}: {error.message}") from error
    _check_size(ref, layout, len(data), len(data) if pieces is None else len(data) * _MAX_DEFLATE, free_bytes)
    content: bytes | npt.NDArray[np.uint8] = data if pieces is None else _fill(ref, layout, start, pieces)
    values = np.frombuffer(content, layout.dtype, layout.count, layout.offset).reshape(layout.shape_zyx)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0.0:
        slope, inter = 1.0, 0.0
    z_mm, y_mm, x_mm = (float(mm) for mm in np.abs(header["pixdim"][3:0:-1]))
    return Nifti(values, slope, inter if np.isfinite(inter) else 0.0, geometry, affine, (z_mm, y_mm, x_mm), notes)


def _first(pieces: Iterator[bytes], size: int) -> bytes:
    start = b""
    while len(start) < size and (piece := next(pieces, None)) is not None:
        start += piece
    return start


def _layout(ref: FileRef, header: nib.Nifti1Header) -> _Layout:
    count = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : 1 + count]) if 1 <= count <= 7 else ()
    x, y, z = (*shape, 1, 1, 1)[:3]
    if not shape or any(n != 1 for n in shape[3:]) or not all(1 <= n <= MAX_SIDE for n in (x, y, z)):
        raise SourceError("NIFTI_DIM", f"{ref}: dimensions {shape}, expected one volume of up to {MAX_SIDE} a side")
    dtype, offset = _dtype(ref, header), float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_BYTES:  # so that NaN is refused too
        raise SourceError("NIFTI_SHORT", f"{ref}: the voxels begin at byte {offset:g}, expected behind the header")
    return _Layout((z, y, x), dtype, int(offset))


def _check_size(ref: FileRef, layout: _Layout, stored: int, most: int, free: int) -> None:
    """Compare what the header claims with what the file can hold, and with what its size on disk can account for."""
    if layout.end > most:
        raise _short(ref, layout, f"at most {most}" if most > stored else f"{most}")
    needed = layout.end + (0 if layout.dtype == np.int16 else 2 * layout.count)  # HU are int16
    if needed > free and (is_amplified(needed, stored) or is_amplified(needed, stored_size(ref) or stored)):
        raise SourceError(
            "GZIP_LIMIT",
            f"{ref}: would take {needed} bytes of memory, expected at most {free} or {MAX_EXPANSION} for "
            "each byte on disk",
        )


def _short(ref: FileRef, layout: _Layout, held: str) -> SourceError:
    size, shape = layout.end - layout.offset, layout.shape_zyx[::-1]
    return SourceError(
        "NIFTI_SHORT", f"{ref}: holds {held} bytes, expected {size} for {shape} from byte {layout.offset}"
    )


def _fill(ref: FileRef, layout: _Layout, start: bytes, pieces: Iterator[bytes]) -> npt.NDArray[np.uint8]:
    """Content up to the last voxel; what follows is only checked."""
    content = np.empty(layout.end, dtype=np.uint8)
    size = 0
    for piece in chain((start,), pieces):
        room = content[size : size + len(piece)]
        room[:] = np.frombuffer(piece, np.uint8, len(room))
        size += len(piece)
        if size > layout.end + MAX_TRAILING_BYTES:
            raise SourceError("GZIP_LIMIT", f"{ref}: goes on behind its {layout.end} bytes of header and voxels")
    if size < layout.end:
        raise _short(ref, layout, f"{size}")
    return content


def stated_grid(ref: FileRef, start: bytes) -> Geometry:
    """The grid that the header in the first bytes of a .nii or .nii.gz states; no check beyond what it needs.

    Raises
    ------
    SourceError
        GZIP_CORRUPT, NIFTI_HEADER or NIFTI_AFFINE.
    """
    if start[:2] == b"\x1f\x8b":
        try:
            start = bytes(isal_zlib.decompressobj(wbits=31).decompress(start, 544))
        except _GzipError as error:
            raise SourceError("GZIP_CORRUPT", f"{ref}: the gzip stream is damaged") from error
    header = _header(ref, start[:544])
    x, y, z = (max(1, int(n)) if k < int(header["dim"][0]) else 1 for k, n in enumerate(header["dim"][1:4]))
    try:
        return Geometry.from_affine_ras(_affine(ref, header)[0], (z, y, x))
    except GeometryError as error:
        raise SourceError("NIFTI_AFFINE", f"{ref}: {error.message}") from error


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
            if _other_qform(header, affine):
                detail = "sform and qform place the voxels differently; the sform is used, ITK may take the qform"
                notes = (Note("NIFTI_FORMS", detail),)
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


def _other_qform(header: nib.Nifti1Header, sform: npt.NDArray[np.float64]) -> bool:
    """Whether a qform is set, and is another affine; one that cannot be read is none."""
    if int(header["qform_code"]) <= 0:
        return False
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # nibabel refuses quaternions that are none
        return False
    return not np.allclose(qform, sform, rtol=0, atol=FORM_TOLERANCE_MM)


def to_hu(ref: FileRef, image: Nifti) -> npt.NDArray[np.int16]:
    """Scaled values as int16 HU `(z, y, x)`.

    Raises
    ------
    SourceError
        HU_RANGE: not finite or outside int16.
    """
    values = image.values
    if not image.scaled and values.dtype.kind in "iu":
        _check_hu(ref, values)
        return values.astype(np.int16, copy=False)
    hu = np.empty(values.shape, dtype=np.int16)
    for slab, scaled in _scaled(image):
        np.rint(scaled, out=scaled)
        _check_hu(ref, scaled)
        hu[slab] = scaled
    return hu


def _check_hu(ref: FileRef, values: npt.NDArray[np.generic]) -> None:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= -32768 and high <= 32767):
        odd = int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0
        text = f"values {low} to {high}, {odd} of {values.size} not finite, expected finite HU within int16"
        raise SourceError("HU_RANGE", f"{ref}: {text}")


def _scaled(image: Nifti) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Scaled values as float64 `(z, y, x)`, some slices at a time."""
    step = max(1, _BLOCK_VOXELS // image.values[0].size)
    for start in range(0, len(image.values), step):
        slab = slice(start, start + step)
        with np.errstate(all="ignore"):  # what is not finite is refused by value
            scaled = image.values[slab].astype(np.float64) * image.slope + image.inter
        yield slab, scaled


def to_labels(ref: FileRef, image: Nifti, allowed: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Scaled values as uint8 labels `(z, y, x)`.

    Raises
    ------
    SourceError
        LABEL_UNKNOWN: a value that is no integer of `allowed`.
    """
    if not image.scaled and image.values.dtype == np.uint8:
        strange = np.ones(256, dtype=bool)
        strange[list(allowed)] = False
        top = max(allowed) if set(allowed) == set(range(max(allowed) + 1)) else -1  # then the largest value decides
        for plane in image.values:
            if plane.max() > top if top >= 0 else strange[plane].any():
                _check_labels(ref, np.unique(plane).tolist(), allowed)
        return image.values.astype(np.uint8, copy=False)
    labels = np.empty(image.values.shape, dtype=np.uint8)
    for slab, scaled in _scaled(image):
        with np.errstate(invalid="ignore"):
            labels[slab] = scaled
        if not ((labels[slab] == scaled) & np.isin(labels[slab], allowed)).all():
            _check_labels(ref, np.unique(scaled).tolist(), allowed)
    return labels


def _check_labels(ref: FileRef, found: Sequence[float], allowed: tuple[int, ...]) -> None:
    unknown = [value for value in found if value not in allowed]
    if unknown:
        raise SourceError("LABEL_UNKNOWN", f"{ref}: label values {unknown[:5]} besides the expected {list(allowed)}")


def encode(values_zyx: npt.NDArray[np.generic], geometry: Geometry) -> bytes:
    """Bytes of an uncompressed NIfTI-1 with a fresh header: geometry and type, no text."""
    return b"".join(_blocks(values_zyx, geometry))


def _blocks(values_zyx: npt.NDArray[np.generic], geometry: Geometry) -> Iterator[bytes]:
    """Those bytes in pieces; float16, which NIfTI does not know, becomes float32."""
    stored = np.dtype(np.float32 if values_zyx.dtype == np.float16 else values_zyx.dtype)
    yield nifti_header(values_zyx.shape, stored, geometry.affine_ras)
    rows = max(1, _BLOCK_VOXELS // max(1, values_zyx[0].size))
    for start in range(0, len(values_zyx), rows):
        # NIfTI's x-fastest order is the C order of (z, y, x)
        yield np.ascontiguousarray(values_zyx[start : start + rows], dtype=stored.newbyteorder("<")).tobytes()


def write_nifti(path: Path, values_zyx: npt.NDArray[np.generic], geometry: Geometry) -> None:
    """Write an array on its geometry to `.nii` or `.nii.gz`, whole or not at all; the bytes are reproducible."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                    packed.writelines(_blocks(values_zyx, geometry))
            else:
                file.writelines(_blocks(values_zyx, geometry))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_labels(path: Path, labels_zyx: npt.NDArray[np.uint8], geometry: Geometry) -> None:
    """Write uint8 labels `(z, y, x)` in the geometry's own axis order."""
    write_nifti(path, labels_zyx.astype(np.uint8, copy=False), geometry)
