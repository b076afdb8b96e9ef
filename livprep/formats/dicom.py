"""A DICOM CT series, from slices to one int16 HU volume, checked.

Headers come first: slices are ordered by their position along the normal of the image plane, never by name or
InstanceNumber, and checked; pixels are decoded only then. Header text of a patient never enters a message or a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.cases import FileRef, Note
from livprep.errors import GeometryError, SourceError
from livprep.formats.bounded import FREE_BYTES, MAX_EXPANSION, is_amplified
from livprep.formats.dicom_checks import (
    AIR_HU,
    check_complete,
    check_rescale,
    check_rescale_type,
    check_uniform,
    header_notes,
    slice_distance,
)
from livprep.formats.dicom_pixels import IntArray
from livprep.formats.dicom_slice import Slice, parse_slices
from livprep.formats.hashing import HashingReader
from livprep.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Series:
    """A checked series: `(z, y, x)` int16 HU in the order of position along the normal."""

    hu: IntArray
    geometry: Geometry
    notes: tuple[Note, ...]


@dataclass(frozen=True, eq=False)
class MaskSeries:
    """A checked series of a mask: `(z, y, x)` bool in the order of position along the normal."""

    values: npt.NDArray[np.bool_]
    geometry: Geometry


def read_series(reader: HashingReader, role: str, refs: Sequence[FileRef]) -> Series:
    """Read and check one series that should fill `refs`.

    Parameters
    ----------
    reader
        Reads and hashes the files.
    role
        `image` for the scan, or a mask's name; for messages and hashes.
    refs
        One file a slice, or files of many frames, in any order; localizers among them are set aside.

    Raises
    ------
    SourceError
        DICOM_…, PIXELDATA_…, SERIES_… or HU_RANGE.
    """
    slices, aside = _parse(reader, role, refs)
    series = assemble(role, slices)
    if not aside:
        return series
    note = Note("SERIES_LOCALIZER", f"{role}: {aside} localizers lie among the slices and are not used")
    return Series(series.hu, series.geometry, (*series.notes, note))


def read_mask(reader: HashingReader, role: str, refs: Sequence[FileRef]) -> MaskSeries:
    """Read and check the series of a mask: 0 outside, 1 or 255 inside.

    Slice by slice, so that a mask never takes the memory of a scan.

    Raises
    ------
    SourceError
        As `read_series`; MASK_VALUE: it holds other values.
    """
    slices, _ = _parse(reader, role, refs)
    geometry, _ = _order(role, slices)
    _check_memory(role, slices)
    mask = np.zeros(geometry.shape_zyx, dtype=np.bool_)
    for entry, inside in zip(slices, mask, strict=True):
        values = entry.pixels.values()
        entry.pixels.release()
        if not values.any():
            continue
        np.not_equal(values, 0, out=inside)
        odd = inside & (values != 1) & (values != 255)
        if odd.any():
            found = np.unique(values[odd])[:5].tolist()
            raise SourceError("MASK_VALUE", f"mask {role}: {entry} holds {found}, expected 0, 1 and 255")
    return MaskSeries(mask, geometry)


def _parse(reader: HashingReader, role: str, refs: Sequence[FileRef]) -> tuple[list[Slice], int]:
    """Slices of the files, and how many of the files are localizers."""
    parsed = [parse_slices(ref, reader.read(role, ref)) for ref in refs]
    slices = [entry for entries in parsed for entry in entries]
    aside = sum(not entries for entries in parsed)
    if not slices:
        kind = "only localizers" if aside else "no slices"
        raise SourceError("SERIES_INCOMPLETE", f"{role}: found {kind}, expected at least one slice")
    return slices, aside


@np.errstate(all="ignore")
def assemble(role: str, slices: list[Slice]) -> Series:
    """Check that slices form one series, decode and stack them along the normal; empties `slices`."""
    geometry, notes = _order(role, slices)
    _check_memory(role, slices)
    hu, padding = _decode(role, slices)
    notes += [*check_rescale(role, slices, hu), *padding]
    slices.clear()
    return Series(hu, geometry, tuple(notes))


@np.errstate(all="ignore")  # odd numbers are refused by value, without numpy's remarks
def _order(role: str, slices: list[Slice]) -> tuple[Geometry, list[Note]]:
    """Sort slices along the normal and check that they form one series, by their headers alone."""
    check_uniform(role, slices)
    first = slices[0]
    normal = first.normal
    slices.sort(key=lambda s: float(s.position @ normal))
    dz = slice_distance(role, slices)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing_yx[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing_yx[0]
    affine[:3, 2] = normal * dz
    affine[:3, 3] = slices[0].position
    try:
        geometry = Geometry.from_affine_lps(affine, (len(slices), *first.pixels.shape))
    except GeometryError as error:
        raise SourceError("SERIES_TAG", f"{role}: {error.message}") from None
    notes = [*header_notes(role, slices, dz), *check_rescale_type(role, slices), *check_complete(role, slices, dz)]
    return geometry, notes


def _check_memory(role: str, slices: Sequence[Slice]) -> None:
    """Refuse pixels that the files cannot hold, before there is an array for them."""
    rows, columns = slices[0].pixels.shape
    needed = 2 * len(slices) * rows * columns  # HU are int16
    stored = sum({id(entry.pixels.elements): entry.pixels.stored_bytes for entry in slices}.values())
    if is_amplified(needed, stored):
        raise SourceError(
            "SERIES_LIMIT",
            f"{role}: {len(slices)} slices of {rows} x {columns} pixels from {stored} bytes, "
            f"expected {FREE_BYTES} bytes of HU at most, or {MAX_EXPANSION} for each byte",
        )


def _decode(role: str, slices: Sequence[Slice]) -> tuple[IntArray, tuple[Note, ...]]:
    hu = np.empty((len(slices), *slices[0].pixels.shape), dtype=np.int16)
    padded, values = 0, set()
    for z, entry in enumerate(slices):
        count = entry.pixels.decode(hu[z])
        entry.pixels.release()
        if count and entry.pixels.padding_hu != AIR_HU:
            padded += count
            values.add(entry.pixels.padding_hu)
    if not padded:
        return hu, ()
    shown = ", ".join(f"{value:g}" for value in sorted(v for v in values if v is not None)[:3])
    return hu, (Note("SERIES_PADDING", f"{role}: {padded} padding voxels of {shown} HU are kept as they are"),)
