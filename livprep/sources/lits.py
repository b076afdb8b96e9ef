"""LiTS: volume-N and segmentation-N, test-volume-N without labels; NIfTI, plain, gzipped or zipped.

MSD Task03 Liver is another form of it: the same numbers as `imagesTr/liver_N` and `labelsTr/liver_N`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from livprep.cases import Case, FileRef, Note, Rejection
from livprep.catalog import Catalog, LitsFile, LitsRepair
from livprep.errors import SourceError
from livprep.formats.hashing import HashingReader
from livprep.formats.nifti import Nifti, read_nifti, to_hu, to_labels
from livprep.geometry import Geometry, canonical_axes
from livprep.labels import Label
from livprep.sources.found import Files, Found, SourceCase, look_at, prefer_loose
from livprep.volume import LabelledVolume, LabelMap, Volume

AFFINE_TOLERANCE_MM = 1e-3


def case_id(number: int, *, test: bool = False) -> str:
    """`lits-028`, or `litstest-003`."""
    return f"{'litstest' if test else 'lits'}-{number:03d}"


def find(files: Files, catalog: Catalog) -> Found:
    """Pair volumes and segmentations by number, wherever they lie below the sources.

    A number that lies there in LiTS's form and in the Decathlon's becomes two cases of one id.
    """
    groups: dict[LitsFile, list[FileRef]] = defaultdict(list)
    for parts, ref in files:
        name = catalog.lits.layout.locate(parts)
        if name is not None:
            groups[name].append(ref)
    found = Found()
    unnamed = [name for name in groups if name.decathlon and name.kind == "test_volume"]
    if unnamed:
        folder = catalog.lits.layout.decathlon.test_volumes
        detail = f"{len(unnamed)} unlabelled volumes are left out: which LiTS test cases they are is not documented"
        found.ignored.append(Rejection(folder, "", detail))
    for name in sorted(groups.keys() - set(unnamed), key=lambda name: (name.decathlon, name)):
        if name.kind == "test_label":
            continue  # a submission, not part of the data set
        if name.kind == "label":
            if name._replace(kind="volume") not in groups:
                where = groups[name][0]
                detail = f"{where}: there is no {_name(name._replace(kind='volume'), catalog)} beside it"
                found.rejected.append(Rejection(case_id(name.number), "SOURCE_MISSING", detail))
            continue
        _add(found, name, groups[name], groups.get(name._replace(kind="label"), []), catalog)
    return _without_links(found)


def _name(name: LitsFile, catalog: Catalog) -> str:
    """A file's name in its form of the data set, for messages."""
    layout = catalog.lits.layout
    if not name.decathlon:
        return str(getattr(layout, name.kind).format(n=name.number))
    folder = layout.decathlon.labels if name.kind == "label" else layout.decathlon.volumes
    return f"{folder}/{layout.decathlon.file.format(n=name.number)}"


def _add(found: Found, name: LitsFile, volumes: list[FileRef], labels: list[FileRef], catalog: Catalog) -> None:
    test = name.kind == "test_volume"
    case = case_id(name.number, test=test)
    volume = prefer_loose(volumes)
    known = catalog.lits.is_test(name.number) if test else catalog.lits.is_train(name.number)
    if not known:
        found.rejected.append(Rejection(case, "CASE_UNKNOWN", f"{volume}: no LiTS case of the catalogue"))
        return
    if not test and not labels:
        missing = _name(name._replace(kind="label"), catalog)
        found.rejected.append(Rejection(case, "MASK_MISSING", f"{volume}: there is no {missing}"))
        return
    notes: tuple[Note, ...] = ()
    if len(volumes) > 1 or len(labels) > 1:
        copies = max(len(volumes), len(labels))
        notes = (Note("SOURCE_TWICE", f"{case}: lies there {copies} times; the least zipped is used"),)
    masks = () if test else (("label", (prefer_loose(labels),)),)
    found.cases.append(Case(case, "lits", name.number, (volume,), masks, notes))


def _without_links(found: Found) -> Found:
    """Drop the second form of a case where both its files are those of the first under another name."""
    first: dict[str, Case] = {}
    for case in found.cases:
        if case.case_id not in first:
            first[case.case_id] = case
    found.cases = [case for case in found.cases if case is first[case.case_id] or not _same(case, first[case.case_id])]
    return found


def _same(one: Case, other: Case) -> bool:
    """Whether two cases have the same plain files (hard or symbolic links), scan and labels alike."""
    files = [[*case.image, *(ref for _, refs in case.masks for ref in refs)] for case in (one, other)]
    pairs = zip(*files, strict=True)
    return all(not a.members and not b.members and Path(a.path).samefile(b.path) for a, b in pairs)


def read(case: Case, catalog: Catalog, reader: HashingReader) -> SourceCase:
    """Read scan and label; the known identity headers are repaired from the catalogue."""
    ref = case.image[0]
    image = read_nifti(ref, reader.read("image", ref))
    hu = to_hu(ref, image)
    geometry = image.geometry
    repairs: tuple[str, ...] = ()
    notes = [*case.notes, *image.notes]
    test = case.case_id.startswith("litstest")
    repair = None if test else catalog.lits.repair(case.number)
    if repair is not None:
        notes.extend(_compare(case, repair, image))
        if _is_identity(image):
            geometry, repairs = _repaired(case, image, repair)
    elif test and case.number in catalog.lits.test_axes_swapped:
        geometry, repairs, swap_notes = _unswapped(case, image)
        notes.extend(swap_notes)
    notes.extend(Note("REPAIRED", line) for line in repairs)
    label_map = None
    for _, refs in case.masks:
        label_map, label_notes = _labels(case, refs[0], image, geometry, reader)
        notes.extend(label_notes)
    volume = LabelledVolume(Volume(hu, geometry), label_map)
    look = look_at(case.case_id, volume, notes)
    return SourceCase(
        case=case,
        patient=catalog.patient_of(case.case_id),
        volume=volume,
        header_affine_ras=image.affine_ras,
        notes=(*notes, *look.notes),
        repairs=tuple(repairs),
        look=look,
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


def _compare(case: Case, repair: LitsRepair, image: Nifti) -> list[Note]:
    """Say where a scan has other slices than the patient; a repair's spacing holds for a part, not for a resampling."""
    slices = image.geometry.shape_zyx[0]
    if slices == repair.slices:
        return []
    known = f"{case.case_id}: {slices} slices, the catalogue says {repair.slices}"
    repaired = "; the patient's spacing is used, which is wrong if the scan was resampled"
    return [Note("CATALOG_MISMATCH", known + (repaired if _is_identity(image) else ""))]


def _unswapped(case: Case, image: Nifti) -> tuple[Geometry, tuple[str, ...], list[Note]]:
    """Geometry of a scan whose file has its second and third axis exchanged, where it still has.

    LiTS's slices are square. In the order that the header states, a correct copy is square in x and y; the exchanged
    one is square in x and z. A header that turns the axes itself describes the file rightly and is left alone. Voxel
    distances travel with their axes if the first and third are equal; if the first and second are, the header is that
    of the order before the exchange. Only the geometry changes: predictions return to the file's own order.
    """
    axes, stated = canonical_axes(image.geometry)
    z, y, x = stated.shape_zyx
    if y == x or z != x or axes.permutation_zyx != (0, 1, 2):
        return image.geometry, (), _unclear(case, image) if y != x else []
    z_mm, y_mm, x_mm = image.geometry.spacing_mm
    if x_mm not in (y_mm, z_mm):
        return image.geometry, (), _unclear(case, image)
    # array axis y runs toward the head, array axis z to posterior, each in the direction the header has for it
    spacing = (z_mm, y_mm, x_mm) if x_mm == z_mm else (y_mm, z_mm, x_mm)
    a, b, c = image.geometry.direction
    direction = ((a[0], a[2], a[1]), (b[0], b[2], b[1]), (c[0], c[2], c[1]))
    geometry = replace(image.geometry, spacing_mm=spacing, direction=direction)
    line = (
        f"{case.case_id}: the second and third axis of the file are exchanged; {y} slices of {z} x {x} voxels, "
        f"{spacing[1]:g} mm apart"
    )
    return geometry, (line,), []


def _unclear(case: Case, image: Nifti) -> list[Note]:
    shape = image.geometry.shape_zyx
    detail = (
        f"{case.case_id}: two axes are known to be exchanged, but {shape} voxels (zyx) do not show which; left alone"
    )
    return [Note("CATALOG_MISMATCH", detail)]


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
