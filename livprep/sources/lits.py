"""LiTS: volume-N and segmentation-N, test-volume-N without labels; NIfTI, plain, gzipped or zipped."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from livprep.cases import Case, FileRef, Note, Rejection
from livprep.catalog import Catalog, LitsRepair
from livprep.errors import SourceError
from livprep.formats.hashing import HashingReader
from livprep.formats.nifti import Nifti, read_nifti, to_hu, to_labels
from livprep.geometry import Geometry
from livprep.labels import Label
from livprep.sources.found import Files, Found, SourceCase, hu_notes, prefer_loose
from livprep.volume import LabelledVolume, LabelMap, Volume

AFFINE_TOLERANCE_MM = 1e-3


def case_id(number: int, *, test: bool = False) -> str:
    """`lits-028`, or `litstest-003`."""
    return f"{'litstest' if test else 'lits'}-{number:03d}"


def find(files: Files, catalog: Catalog) -> Found:
    """Pair volumes and segmentations by number, wherever they lie below the sources."""
    groups: dict[tuple[str, int], list[FileRef]] = defaultdict(list)
    for parts, ref in files:
        name = catalog.lits.layout.parse(parts[-1])
        if name is not None:
            groups[name.kind, name.number].append(ref)
    found = Found()
    for kind, number in sorted(groups):
        if kind == "test_label":
            continue  # a submission, not part of the data set
        if kind == "label":
            if ("volume", number) not in groups:
                where = groups[kind, number][0]
                found.rejected.append(
                    Rejection(case_id(number), "SOURCE_MISSING", f"{where}: there is no volume-{number} beside it")
                )
            continue
        _add(found, number, groups[kind, number], groups.get(("label", number), []), kind, catalog)
    return found


def _add(found: Found, number: int, volumes: list[FileRef], labels: list[FileRef], kind: str, catalog: Catalog) -> None:
    test = kind == "test_volume"
    name = case_id(number, test=test)
    volume = prefer_loose(volumes)
    known = catalog.lits.is_test(number) if test else catalog.lits.is_train(number)
    if not known:
        found.rejected.append(Rejection(name, "CASE_UNKNOWN", f"{volume}: no LiTS case of the catalogue"))
        return
    if not test and not labels:
        found.rejected.append(Rejection(name, "MASK_MISSING", f"{volume}: there is no segmentation-{number}"))
        return
    notes: tuple[Note, ...] = ()
    if len(volumes) > 1 or len(labels) > 1:
        copies = max(len(volumes), len(labels))
        notes = (Note("SOURCE_TWICE", f"{name}: lies there {copies} times; the least zipped is used"),)
    masks = () if test else (("label", (prefer_loose(labels),)),)
    found.cases.append(Case(name, "lits", number, (volume,), masks, notes))


def read(case: Case, catalog: Catalog, reader: HashingReader) -> SourceCase:
    """Read scan and label; the known identity headers are repaired from the catalogue."""
    ref = case.image[0]
    image = read_nifti(ref, reader.read("image", ref))
    hu = to_hu(ref, image)
    geometry = image.geometry
    repairs: tuple[str, ...] = ()
    repair = None if case.case_id.startswith("litstest") else catalog.lits.repair(case.number)
    if repair is not None and _is_identity(image):
        geometry, repairs = _repaired(case, image, repair)
    notes = [*case.notes, *image.notes, *hu_notes(case.case_id, hu)]
    notes.extend(Note("REPAIRED", line) for line in repairs)
    label_map = None
    for _, refs in case.masks:
        label_map, label_notes = _labels(case, refs[0], image, geometry, reader)
        notes.extend(label_notes)
    return SourceCase(
        case=case,
        patient=catalog.patient_of(case.case_id),
        volume=LabelledVolume(Volume(hu, geometry), label_map),
        header_affine_ras=image.affine_ras,
        notes=tuple(notes),
        repairs=tuple(repairs),
        digest=reader.digest(),
        bytes_in=reader.bytes_read,
    )


def _labels(
    case: Case, ref: FileRef, image: Nifti, geometry: Geometry, reader: HashingReader
) -> tuple[LabelMap, list[Note]]:
    label = read_nifti(ref, reader.read("label", ref))
    if label.geometry.shape_zyx != geometry.shape_zyx:
        raise SourceError(
            "MASK_SHAPE",
            f"{case.case_id}: labels of {label.geometry.shape_zyx} voxels (zyx), the scan has {geometry.shape_zyx}",
        )
    notes = []
    if not np.allclose(label.affine_ras, image.affine_ras, rtol=0, atol=AFFINE_TOLERANCE_MM):
        detail = f"{case.case_id}: the label's affine differs from the scan's; voxels are paired by index"
        notes.append(Note("LABEL_AFFINE", detail))
    values = to_labels(ref, label, tuple(int(value) for value in Label))
    return LabelMap(values, geometry), notes


def _is_identity(image: Nifti) -> bool:
    return bool(np.allclose(image.affine_ras, np.eye(4), rtol=0, atol=AFFINE_TOLERANCE_MM))


def _repaired(case: Case, image: Nifti, repair: LitsRepair) -> tuple[Geometry, tuple[str, ...]]:
    """Geometry of an identity-header volume: spacing, orientation and origin of the catalogue, so that both forms
    of a patient share one grid."""
    line = (
        f"{case.case_id}: identity header; orientation {repair.orientation} and "
        f"spacing {list(repair.spacing_mm)} mm (zyx) from the catalogue"
    )
    return repair.geometry(image.geometry.shape_zyx), (line,)
