"""Where references come from: label files, raw data sets, or a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from livprep.cases import Case, FileRef
from livprep.catalog import Catalog
from livprep.errors import GeometryError, SourceError
from livprep.formats.archive import close_archives, read_bytes
from livprep.formats.nifti import LABEL_BYTES, read_nifti, to_labels
from livprep.geometry import Geometry, Triple
from livprep.labels import Label, LabelArray
from livprep.prepare import prepare
from livprep.sources import discover, read_case
from livprep.splits import join_patients
from livprep.store import Store
from livprep.volume import LabelledVolume, LabelMap, Volume
from livtrain.evaluate.pairing import case_key, nifti_files

SpacingFrom = Literal["header", "catalog"]
IDENTITY_TOLERANCE_MM = 1e-3
"""Of the header that LiTS 28-47 bear instead of their own."""
_ALLOWED = tuple(int(label) for label in Label)


@dataclass(frozen=True, eq=False)
class Reference:
    """Labels `(z, y, x)` to score against, the spacing (zyx, mm) to measure with, and where the voxels lie."""

    labels: LabelArray
    spacing_mm: Triple
    geometry: Geometry


LoadReference = Callable[[], Reference]
LoadImage = Callable[[], Volume]
Place = Callable[[LabelArray], LabelArray]
"""Brings a prediction's voxels onto the reference's grid."""


@dataclass(frozen=True, eq=False)
class ReferenceCase:
    """A reference that is read when it is needed.

    Parameters
    ----------
    patient
        Whom the scan shows, as the catalogue or the store knows; else the case.
    image
        Reads the scan on the same voxels, with its true (repaired) geometry; None where there are labels only.
    voxels
        The grid that predictions come on, where it is not the labels'.
    """

    name: str
    patient: str
    load: LoadReference
    place: Place
    image: LoadImage | None = None
    voxels: Geometry | None = None


def read_label_file(path: Path | FileRef) -> tuple[LabelArray, Geometry, Triple]:
    """Labels of a NIfTI in the file's own axis order `(z, y, x)`, its geometry, and its header's spacing (zyx, mm).

    The spacing is `pixdim` to the last bit of its float32: the challenge measures with that.

    Raises
    ------
    SourceError
        The file is unreadable (NIFTI_..., GZIP_...) or holds values other than 0, 1 and 2 (LABEL_UNKNOWN).
    """
    ref = path if isinstance(path, FileRef) else FileRef(str(path))
    image = read_nifti(ref, read_bytes(ref), LABEL_BYTES)
    return to_labels(ref, image, _ALLOWED), image.geometry, image.pixdim_mm


def from_paths(paths: Sequence[Path], catalog: Catalog, spacing: SpacingFrom) -> list[ReferenceCase]:
    """References under paths: cases of a raw data set where there are any, else label NIfTIs.

    Raises
    ------
    SourceError
        A path holds neither, or a case of the data set cannot be used.
    """
    found: list[ReferenceCase] = []
    for path in paths:
        raw = [case for case in discover([path], catalog).cases if case.masks]
        known = {case.case_id for case in raw}
        # Beside scans of a data set only its own label files count: some may lack their scan.
        kinds = ("label", "test_label") if raw else (None, "label", "test_label")
        files = [
            ref for ref in nifti_files(path)
            if _kind(ref.name, catalog) in kinds and case_key(ref.name, catalog) not in known
        ]  # fmt: skip
        if not raw and not files:
            raise SourceError("NOTHING_FOUND", f"{path}: holds no case of a known data set and no label NIfTI")
        found.extend(_raw(case, catalog, spacing) for case in raw)
        found.extend(_file(ref, catalog, spacing) for ref in files)
    return found


def is_identity(geometry: Geometry) -> bool:
    """Whether a header's affine is the identity, which says nothing about the scan."""
    return np.allclose(geometry.affine_ras, np.eye(4), rtol=0, atol=IDENTITY_TOLERANCE_MM)


def _kind(name: str, catalog: Catalog) -> str | None:
    """What LiTS calls a file of that name; None for other names."""
    listed = catalog.lits.layout.parse(name)
    return None if listed is None else listed.kind


def _same(labels: LabelArray) -> LabelArray:
    return labels


def _file(ref: FileRef, catalog: Catalog, spacing: SpacingFrom) -> ReferenceCase:
    patient = catalog.patient_of(case_key(ref.name, catalog))
    return ReferenceCase(ref.name, patient, _file_loader(ref, catalog, spacing), _same)


def _file_loader(ref: FileRef, catalog: Catalog, spacing: SpacingFrom) -> LoadReference:
    def load() -> Reference:
        labels, geometry, spacing_mm = read_label_file(ref)
        listed = catalog.lits.layout.parse(ref.name)
        repair = catalog.lits.repair(listed.number) if listed is not None and listed.kind == "label" else None
        if repair is not None and is_identity(geometry):
            geometry = repair.geometry(labels.shape)
            spacing_mm = spacing_mm if spacing == "header" else repair.spacing_mm
        return Reference(labels, spacing_mm, geometry)

    return load


def _raw(case: Case, catalog: Catalog, spacing: SpacingFrom) -> ReferenceCase:
    def load() -> Reference:
        try:
            if case.dataset == "lits" and spacing == "header":  # the challenge takes the label's header
                labels, geometry, spacing_mm = read_label_file(case.masks[0][1][0])
                return Reference(labels, spacing_mm, geometry)
            volume = read_case(case, catalog).volume
        finally:
            close_archives()
        if volume.label_map is None:
            raise SourceError("MASK_MISSING", f"{case.case_id}: has no labels to score against")
        return Reference(volume.label_map.labels, volume.geometry.spacing_mm, volume.geometry)

    def image() -> Volume:
        try:
            return read_case(replace(case, masks=()), catalog).volume.image
        finally:
            close_archives()

    return ReferenceCase(case.case_id, catalog.patient_of(case.case_id), load, _same, image)


def from_store(store: Store) -> list[ReferenceCase]:
    """The store's labelled cases on its own grid; predictions on the source grid are brought there by `prepare`.

    Cases with the same voxels count as one patient, whatever the patients' names.
    """
    cases = {case_id: case for case_id, case in store.items() if case.has_labels}
    patients = join_patients(
        {case_id: case.patient for case_id, case in cases.items()},
        {case_id: case.fingerprint for case_id, case in cases.items()},
    )
    return [_stored(store, case_id, patients[case_id]) for case_id in cases]


def _stored(store: Store, case_id: str, patient: str) -> ReferenceCase:
    case = store[case_id]

    def load() -> Reference:
        return Reference(case.read_labels(), case.geometry.spacing_mm, case.geometry)

    def place(labels: LabelArray) -> LabelArray:
        source = case.source_geometry
        if labels.shape != source.shape_zyx:
            raise GeometryError(
                f"{case_id}: prediction of {labels.shape} voxels (zyx), the scan has {source.shape_zyx}: expected equal"
            )
        void = Volume(np.zeros(source.shape_zyx, dtype=np.int16), source)
        moved = prepare(LabelledVolume(void, LabelMap(labels, source)), store.preparation).label_map
        assert moved is not None
        return moved.labels

    def image() -> Volume:
        return Volume(case.read_hu(), case.geometry)

    return ReferenceCase(case_id, patient, load, place, image, case.source_geometry)
