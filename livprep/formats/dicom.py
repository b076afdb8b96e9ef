"""A DICOM CT series, from slices to one int16 HU volume, checked.

Slices are ordered by their position along the normal of the image plane, never by name or InstanceNumber. Each
check has a named tolerance and a code of its own. Header text of a patient never enters a message or a log.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from livprep.cases import FileRef, Note
from livprep.errors import GeometryError, SourceError
from livprep.formats.dicom_header import check_expansion
from livprep.formats.hashing import HashingReader
from livprep.geometry import Geometry, shortest_decimal

GAP_TOLERANCE = 0.05
"""Largest deviation of one slice distance from the median, as a share of the median."""
SHIFT_TOLERANCE_MM = 0.1
"""Largest in-plane deviation of a slice position from the line along the normal."""
DUPLICATE_TOLERANCE_MM = 1e-3
SPACING_TOLERANCE_MM = 1e-4
COSINE_TOLERANCE = 1e-4
THICKNESS_TOLERANCE_MM = 0.01
MAX_SIDE = 4096

CT_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.2",
}  # CT, legacy converted enhanced CT

IntArray = npt.NDArray[np.int16]


@dataclass
class Slice:
    """Geometry and stored values of one slice; lengths in mm, vectors in LPS."""

    ref: FileRef
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing_yx: tuple[float, float]
    thickness: float | None
    series_uid: str
    sop_class: str
    modality: str
    pixels: IntArray

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit normal of the plane: cross product of the row and the column direction (PS3.3 C.7.6.2.1.1)."""
        vector: npt.NDArray[np.float64] = np.cross(self.orientation[:3], self.orientation[3:])
        return vector


@dataclass(frozen=True, eq=False)
class Series:
    """A checked series: `(z, y, x)` int16 HU in the order of position along the normal."""

    hu: IntArray
    geometry: Geometry
    notes: tuple[Note, ...]


def read_series(reader: HashingReader, role: str, refs: Sequence[FileRef]) -> Series:
    """Read and check one series that should fill `refs`.

    Parameters
    ----------
    reader
        Reads and hashes the files.
    role
        Name for messages and hashes, e.g. `image` or a mask's name.
    refs
        One file a slice, in any order.

    Raises
    ------
    SourceError
        DICOM_…, PIXELDATA_…, SERIES_… or HU_RANGE.
    """
    slices = [parse_slice(ref, reader.read(role, ref)) for ref in refs]
    if not slices:
        raise SourceError("SERIES_INCOMPLETE", f"{role}: found no slices, expected at least one")
    return assemble(role, slices)


def parse_slice(ref: FileRef, data: bytes) -> Slice:
    """Parse one slice and rescale its values to int16 HU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            check_expansion(ref, data)
            dataset = pydicom.dcmread(io.BytesIO(data))
            return _slice_of(ref, dataset)
    except InvalidDicomError as error:
        raise SourceError("DICOM_UNREADABLE", f"{ref}: no DICOM file (preamble and DICM missing)") from error
    except SourceError:
        raise
    except Exception as error:  # pydicom raises almost anything on damaged bytes
        raise SourceError("DICOM_UNREADABLE", f"{ref}: damaged DICOM ({type(error).__name__})") from None


def _slice_of(ref: FileRef, dataset: Any) -> Slice:
    position = _numbers(ref, dataset, "ImagePositionPatient", 3)
    orientation = _numbers(ref, dataset, "ImageOrientationPatient", 6)
    spacing = _numbers(ref, dataset, "PixelSpacing", 2)
    row, column = orientation[:3], orientation[3:]
    if max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1)) > 0.01 or abs(row @ column) > 1e-3:
        raise SourceError("SERIES_TAG", f"{ref}: ImageOrientationPatient holds no unit vectors at right angles")
    spacing_yx = shortest_decimal(spacing[0]), shortest_decimal(spacing[1])
    if not all(0 < mm < float("inf") for mm in spacing_yx):
        raise SourceError("SERIES_TAG", f"{ref}: PixelSpacing is not positive, expected mm")
    thickness = dataset.get("SliceThickness")
    return Slice(
        ref=ref,
        position=position,
        orientation=orientation,
        spacing_yx=spacing_yx,
        thickness=None if thickness in (None, "") else float(thickness),
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        sop_class=str(dataset.get("SOPClassUID") or ""),
        modality=str(dataset.get("Modality") or ""),
        pixels=_rescale(ref, dataset, _stored_values(ref, dataset)),
    )


def _numbers(ref: FileRef, dataset: Any, keyword: str, count: int) -> npt.NDArray[np.float64]:
    try:
        numbers = np.array([float(v) for v in dataset.get(keyword)], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.size != count or not np.isfinite(numbers).all():
        raise SourceError("SERIES_TAG", f"{ref}: {keyword} is missing or unusable, expected {count} numbers")
    return numbers


def _stored_values(ref: FileRef, dataset: Any) -> npt.NDArray[Any]:
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    bits = int(dataset.get("BitsAllocated") or 0)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise SourceError("SERIES_TAG", f"{ref}: {rows} x {columns} pixels, expected 1 to {MAX_SIDE} a side")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or bits not in (8, 16):
        raise SourceError("SERIES_TAG", f"{ref}: expected one sample of 8 or 16 bits a pixel, found {bits} bits")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        return _decompress(ref, dataset, (rows, columns))
    data = dataset.get("PixelData")
    if data is None:
        raise SourceError("PIXELDATA_MISSING", f"{ref}: has no pixel data")
    expected = rows * columns * bits // 8
    if len(data) < expected:
        raise SourceError("PIXELDATA_SHORT", f"{ref}: holds {len(data)} pixel bytes, expected {expected}")
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    order = "<" if syntax.is_little_endian else ">"
    values = np.frombuffer(data, dtype=f"{order}{kind}{bits // 8}", count=rows * columns).reshape(rows, columns)
    unused = bits - int(dataset.get("BitsStored") or bits)
    # What lies above the stored bits is no value (PS3.5, 8.1.1); the way back extends the sign.
    return (values << unused) >> unused if 0 < unused < bits else values


def _decompress(ref: FileRef, dataset: Any, shape: tuple[int, int]) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = dataset.pixel_array
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise SourceError(
            "DICOM_SYNTAX",
            f"{ref}: pixel data in {dataset.file_meta.TransferSyntaxUID.name} cannot be decoded; "
            "install the extra livprep[codecs]",
        ) from error
    if values.shape != shape:
        raise SourceError("PIXELDATA_SHORT", f"{ref}: decodes to {values.shape}, expected {shape}")
    return values


def _rescale(ref: FileRef, dataset: Any, stored: npt.NDArray[Any]) -> IntArray:
    slope = float(dataset.get("RescaleSlope") or 1.0)
    intercept = float(dataset.get("RescaleIntercept") or 0.0)
    values: npt.NDArray[Any]
    if slope == 1.0 and intercept.is_integer() and abs(intercept) < 1 << 24:
        values = stored.astype(np.int32) + np.int32(intercept)
    else:
        values = np.rint(stored.astype(np.float64) * slope + intercept)
    if not (values.min() >= -32768 and values.max() <= 32767):  # so that NaN is refused too
        raise SourceError("HU_RANGE", f"{ref}: HU {values.min():g} to {values.max():g} do not fit int16")
    return values.astype(np.int16)


def assemble(role: str, slices: list[Slice]) -> Series:
    """Check that slices form one series and stack them along the normal; empties `slices` as it goes."""
    first = slices[0]
    _check_uniform(role, slices)
    normal = first.normal
    slices.sort(key=lambda s: float(s.position @ normal))
    dz, notes = _check_positions(role, slices, normal)
    origin = slices[0].position
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing_yx[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing_yx[0]
    affine[:3, 2] = normal * dz
    affine[:3, 3] = origin
    hu = np.empty((len(slices), *first.pixels.shape), dtype=np.int16)
    for z, entry in enumerate(slices):
        hu[z] = entry.pixels
        entry.pixels = hu[z]  # frees the slice's own copy
    z, y, x = hu.shape
    try:
        geometry = Geometry.from_affine_lps(affine, (z, y, x))
    except GeometryError as error:
        raise SourceError("SERIES_TAG", f"{role}: {error.message}") from None
    return Series(hu, geometry, (*_identity_notes(role, slices), *notes))


def _check_uniform(role: str, slices: Sequence[Slice]) -> None:
    first = slices[0]
    if len({s.series_uid for s in slices}) > 1:
        raise SourceError("SERIES_MIXED", f"{role}: {len({s.series_uid for s in slices})} series in one folder")
    for entry in slices:
        if entry.pixels.shape != first.pixels.shape:
            raise SourceError(
                "SERIES_SHAPE", f"{entry.ref}: {entry.pixels.shape} pixels, expected {first.pixels.shape}"
            )
        if not np.allclose(entry.spacing_yx, first.spacing_yx, rtol=0, atol=SPACING_TOLERANCE_MM):
            raise SourceError(
                "SERIES_SPACING",
                f"{entry.ref}: pixel spacing {entry.spacing_yx} mm, expected {first.spacing_yx}",
            )
        if not np.allclose(entry.orientation, first.orientation, rtol=0, atol=COSINE_TOLERANCE):
            raise SourceError("SERIES_ORIENTATION", f"{entry.ref}: its orientation differs from the other slices'")


def _check_positions(
    role: str, slices: Sequence[Slice], normal: npt.NDArray[np.float64]
) -> tuple[float, tuple[Note, ...]]:
    """Return the slice distance in mm and notes; positions must be even and lie on one line along the normal."""
    first = slices[0]
    if len(slices) == 1:
        if not first.thickness or not 0 < first.thickness < float("inf"):
            raise SourceError("SERIES_TAG", f"{first.ref}: a single slice without SliceThickness has no extent")
        return shortest_decimal(first.thickness), ()
    positions = np.stack([s.position for s in slices])
    along = positions @ normal
    steps = np.diff(along)
    if steps.min() < DUPLICATE_TOLERANCE_MM:
        k = int(np.argmin(steps))
        raise SourceError("SERIES_DUPLICATE", f"{slices[k].ref} and {slices[k + 1].ref} lie at one position")
    dz = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - dz)))
    if abs(steps[worst] - dz) > GAP_TOLERANCE * dz:
        raise SourceError(
            "SERIES_GAP",
            f"{role}: {steps[worst]:.4g} mm between {slices[worst].ref} and the next slice, expected {dz:.4g} mm",
        )
    dz = float(along[-1] - along[0]) / (len(slices) - 1)
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    shift = float(np.abs(sideways).max())
    if shift > SHIFT_TOLERANCE_MM:
        raise SourceError("SERIES_TILT", f"{role}: slices shift sideways by up to {shift:.3g} mm, expected none")
    dz = shortest_decimal(dz)
    if first.thickness and abs(first.thickness - dz) > THICKNESS_TOLERANCE_MM:
        return dz, (
            Note(
                "SERIES_THICKNESS",
                f"{role}: thickness {first.thickness:g} mm, slice distance {dz:g} mm is used",
            ),
        )
    return dz, ()


def _identity_notes(role: str, slices: Sequence[Slice]) -> Iterable[Note]:
    if any(not s.series_uid for s in slices):
        yield Note("SERIES_UID_MISSING", f"{role}: the series UID is empty; the folder's slices were taken as one")
    if any(s.sop_class not in CT_SOP_CLASSES for s in slices):
        yield Note("SERIES_SOP_CLASS", f"{role}: the SOP class is empty or not CT; Modality CT decided")
