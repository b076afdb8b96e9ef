"""Where references come from: label files, raw data sets, or a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from livprep.cases import Case, FileRef
from livprep.catalog import Catalog
from livprep.errors import GeometryError, SourceError
from livprep.formats.archive import close_archives, read_bytes
from livprep.formats.nifti import read_nifti, to_labels
from livprep.geometry import Geometry, Triple
from livprep.labels import Label, LabelArray
from livprep.prepare import prepare
from livprep.sources import discover, read_case
from livprep.store import Store
from livprep.volume import LabelledVolume, LabelMap, Volume
from livtrain.evaluate.pairing import nifti_files

SpacingFrom = Literal["header", "catalog"]
IDENTITY_TOLERANCE_MM = 1e-3
"""Of the header that LiTS 28-47 bear instead of their own."""
_ALLOWED = tuple(int(label) for label in Label)


@dataclass(frozen=True, eq=False)
class Reference:
    """Labels `(z, y, x)` to score against, and the spacing (zyx, mm) to measure with."""

    labels: LabelArray
    spacing_mm: Triple


LoadReference = Callable[[], Reference]
Place = Callable[[LabelArray], LabelArray]
"""Brings a prediction's voxels onto the reference's grid."""


@dataclass(frozen=True, eq=False)
class ReferenceCase:
    """A reference that is read when it is needed."""

    name: str
    load: LoadReference
    place: Place


def read_label_file(path: Path | FileRef) -> tuple[LabelArray, Geometry, Triple]:
    """Labels of a NIfTI in the file's own axis order `(z, y, x)`, its geometry, and its header's spacing (zyx, mm).

    Raises
    ------
    SourceError
        The file is unreadable (NIFTI_..., GZIP_...) or holds values other than 0, 1 and 2 (LABEL_UNKNOWN).
    """
    ref = path if isinstance(path, FileRef) else FileRef(str(path))
    image = read_nifti(ref, read_bytes(ref))
    return to_labels(ref, image, _ALLOWED), image.geometry, header_spacing(image.affine_ras)


def header_spacing(affine_ras: npt.NDArray[np.float64]) -> Triple:
    """Spacing (zyx, mm) as the header has it, float32 tail included: the challenge measures with that."""
    x, y, z = (float(np.float32(norm)) for norm in np.linalg.norm(affine_ras[:3, :3], axis=0))
    return z, y, x


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
        if raw:
            found.extend(_raw(case, catalog, spacing) for case in raw)
            continue
        files = [file for file in nifti_files(path) if not _is_scan(file.name, catalog)]
        if not files:
            raise SourceError("NOTHING_FOUND", f"{path}: holds no case of a known data set and no label NIfTI")
        found.extend(ReferenceCase(file.name, _file_loader(file, catalog, spacing), _same) for file in files)
    return found


def _is_scan(name: str, catalog: Catalog) -> bool:
    listed = catalog.lits.layout.parse(name)
    return listed is not None and listed.kind in ("volume", "test_volume")


def _same(labels: LabelArray) -> LabelArray:
    return labels


def _file_loader(path: Path, catalog: Catalog, spacing: SpacingFrom) -> LoadReference:
    def load() -> Reference:
        labels, geometry, spacing_mm = read_label_file(path)
        listed = catalog.lits.layout.parse(path.name)
        if spacing == "catalog" and listed is not None and listed.kind == "label":
            repair = catalog.lits.repair(listed.number)
            if repair is not None and np.allclose(geometry.affine_ras, np.eye(4), rtol=0, atol=IDENTITY_TOLERANCE_MM):
                spacing_mm = repair.spacing_mm
        return Reference(labels, spacing_mm)

    return load


def _raw(case: Case, catalog: Catalog, spacing: SpacingFrom) -> ReferenceCase:
    def load() -> Reference:
        try:
            if case.dataset == "lits" and spacing == "header":  # the challenge takes the label's header
                labels, _, spacing_mm = read_label_file(case.masks[0][1][0])
                return Reference(labels, spacing_mm)
            volume = read_case(case, catalog).volume
        finally:
            close_archives()
        if volume.label_map is None:
            raise SourceError("MASK_MISSING", f"{case.case_id}: has no labels to score against")
        return Reference(volume.label_map.labels, volume.geometry.spacing_mm)

    return ReferenceCase(case.case_id, load, _same)


def from_store(store: Store) -> list[ReferenceCase]:
    """The store's labelled cases on its own grid; predictions on the source grid are brought there by `prepare`."""
    return [_stored(store, case_id) for case_id in store if store[case_id].has_labels]


def _stored(store: Store, case_id: str) -> ReferenceCase:
    case = store[case_id]

    def load() -> Reference:
        return Reference(case.read_labels(), case.geometry.spacing_mm)

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

    return ReferenceCase(case_id, load, place)
