"""A user's own labelled scans, as the catalogue's `own` lists them: NIfTI or a DICOM folder, and a NIfTI of labels.

Unlike LiTS nothing is known of the headers, so labels are never paired by index: the label must lie on the scan's
voxels. Axes may run in another order or direction (a label drawn on a converted copy); they are turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from livprep.cases import Case, FileRef, Note, Rejection
from livprep.catalog import Catalog, OwnCase, fits
from livprep.errors import SourceError
from livprep.formats.dicom import read_series
from livprep.formats.hashing import HashingReader
from livprep.formats.nifti import Nifti, read_nifti, to_hu, to_labels
from livprep.geometry import Geometry, canonical_axes
from livprep.labels import LabelArray
from livprep.sources.found import Files, Found, SourceCase, look_at
from livprep.volume import LabelledVolume, LabelMap, Volume

POSITION_TOLERANCE_VOXELS = 0.1
"""Largest distance, in the scan's smallest spacing, of a label voxel from the scan's voxel."""


def find(files: Files, catalog: Catalog, roots: Sequence[tuple[str, ...]]) -> Found:
    """Find the files of each listed case; where nothing of any case lies below the sources, none is asked for.

    Parameters
    ----------
    files
        Every file below the sources.
    catalog
        Lists the cases.
    roots
        Parts of the sources' own paths; the catalogue's paths are relative to them.
    """
    relative = [
        (parts[len(root) :], ref)
        for parts, ref in files
        for root in dict.fromkeys(roots)
        if len(parts) > len(root) and parts[: len(root)] == root and not parts[-1].startswith(".")
    ]
    matched = [(listed, _match(relative, listed)) for listed in catalog.own]
    found = Found()
    if not any(images or labels for _, (images, labels) in matched):
        return found
    for listed, (images, labels) in matched:
        try:
            found.cases.append(_case(listed, images, labels))
        except SourceError as error:
            found.rejected.append(Rejection(listed.case, error.code, error.message))
    return found


def _match(files: Files, listed: OwnCase) -> tuple[Files, Files]:
    images = {ref: parts for parts, ref in files if fits(listed.image, parts, below=True)}  # sources may overlap
    labels = {ref: parts for parts, ref in files if fits(listed.label, parts)}
    return [(parts, ref) for ref, parts in images.items()], [(parts, ref) for ref, parts in labels.items()]


def _case(listed: OwnCase, images: Files, labels: Files) -> Case:
    for what, pattern, found in (("image", listed.image, images), ("label", listed.label, labels)):
        if not found:
            raise SourceError("SOURCE_MISSING", f"{listed.case}: no {what} at {pattern} below the sources")
    if len(labels) > 1:
        raise SourceError("CASE_DUPLICATE", f"{listed.case}: {len(labels)} files fit the label {listed.label}")
    volumes = [ref for _, ref in images if ref.is_nifti]
    if volumes and len(images) > 1:
        raise SourceError(
            "CASE_DUPLICATE", f"{listed.case}: {len(images)} files fit {listed.image}, expected one NIfTI or DICOM"
        )
    folders = {parts[:-1] for parts, _ in images}
    if len(folders) > 1:
        raise SourceError(
            "SERIES_MIXED", f"{listed.case}: {listed.image} holds files in {len(folders)} folders, expected one series"
        )
    return Case(listed.case, "own", -1, tuple(ref for _, ref in images), (("label", (labels[0][1],)),))


def read(case: Case, catalog: Catalog, reader: HashingReader) -> SourceCase:
    """Read scan and labels; label values become background, liver and tumor by the case's own map."""
    listed = catalog.own_case(case.case_id)
    if listed is None:
        raise SourceError("CASE_UNKNOWN", f"{case.case_id}: the catalogue lists no such case under `own`")
    volume, affine, notes = _scan(case, reader)
    ((_, (ref,)),) = case.masks
    label = read_nifti(ref, reader.read("label", ref))
    label_map = LabelMap(_on_scan(case, listed, ref, label, volume.geometry), volume.geometry)
    labelled = LabelledVolume(volume, label_map)
    look = look_at(case.case_id, labelled, notes)
    return SourceCase(
        case=case,
        patient=listed.patient_id,
        volume=labelled,
        header_affine_ras=affine,
        notes=(*notes, *look.notes),
        repairs=(),
        look=look,
        digest=reader.digest(),
        bytes_in=reader.bytes_read,
    )


def _scan(case: Case, reader: HashingReader) -> tuple[Volume, npt.NDArray[np.float64], tuple[Note, ...]]:
    ref = case.image[0]
    if ref.is_nifti:
        image = read_nifti(ref, reader.read("image", ref))
        return Volume(to_hu(ref, image), image.geometry), image.affine_ras, tuple(image.notes)
    series = read_series(reader, "image", case.image)
    return Volume(series.hu, series.geometry), series.geometry.affine_ras, tuple(series.notes)


def _on_scan(case: Case, listed: OwnCase, ref: FileRef, label: Nifti, scan: Geometry) -> LabelArray:
    """Labels in the scan's own axis order.

    Raises
    ------
    SourceError
        MASK_SHAPE or MASK_GEOMETRY: they do not lie on the scan's voxels; LABEL_UNKNOWN: a value has no meaning.
    """
    scan_map, scan_lps = canonical_axes(scan)
    label_map, label_lps = canonical_axes(label.geometry)
    if label_lps.shape_zyx != scan_lps.shape_zyx:
        raise SourceError(
            "MASK_SHAPE",
            f"{case.case_id}: labels of {label_lps.shape_zyx} voxels (zyx, toward LPS), "
            f"the scan has {scan_lps.shape_zyx}",
        )
    distance = _farthest_mm(label_lps, scan_lps)
    if distance > POSITION_TOLERANCE_VOXELS * min(scan.spacing_mm):
        raise SourceError(
            "MASK_GEOMETRY",
            f"{case.case_id}: the label lies up to {distance:.3g} mm from the scan's voxels, "
            f"expected at most {POSITION_TOLERANCE_VOXELS:g} of {min(scan.spacing_mm):g} mm",
        )
    meanings = listed.labels
    values = to_labels(ref, label, tuple(sorted(meanings)))
    table = np.zeros(256, dtype=np.uint8)
    table[list(meanings)] = [int(meaning) for meaning in meanings.values()]
    return np.ascontiguousarray(scan_map.invert(label_map.apply(table[values])))


def _farthest_mm(one: Geometry, other: Geometry) -> float:
    """Largest distance of the same corner of two grids of one shape."""
    z, y, x = (size - 1 for size in one.shape_zyx)
    corners = np.array([(i, j, k, 1.0) for i in (0, x) for j in (0, y) for k in (0, z)])
    return float(np.linalg.norm(corners @ (one.affine_lps - other.affine_lps).T, axis=1).max())
