"""Read a case from its source again, prepare it again, and compare it with what is stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from livprep.cases import Case
from livprep.catalog import Catalog
from livprep.convert import IngestJob, describe, settings_digest
from livprep.errors import GeometryError, SourceError
from livprep.prepare import Preparation, prepare
from livprep.schema import ProfileName
from livprep.sources import read_case
from livprep.store import CaseStore, Findings, layout

_REMARKS = ("settings_digest", "warnings", "hu_sanity")
"""Attributes that may differ with another catalogue or version without any voxel or position doing so."""


def check_source(
    found: Findings,
    case: CaseStore,
    damaged: set[str],
    source: Case,
    catalog: Catalog,
    preparation: Preparation,
    profile: ProfileName,
) -> None:
    """Compare a stored case with its source; a source that cannot be read is a finding with the source's code."""
    try:
        read = read_case(source, catalog)
        volume = prepare(read.volume, preparation)
    except (SourceError, GeometryError) as error:
        found.add(error.code, error.message)
        return
    settings = settings_digest(IngestJob(source, str(case.store), catalog, preparation, profile))
    fresh = describe(read, volume, settings).model_dump(mode="json")
    del read
    stored = case.meta.model_dump(mode="json")
    differ = [name for name, value in fresh.items() if stored[name] != value]
    if wrong := [name for name in differ if name not in _REMARKS]:
        found.add("STORE_DIFFERS", f"{', '.join(wrong)}: the source gives other values")
    if remarks := [name for name in differ if name in _REMARKS]:
        found.add("STORE_DIFFERS", f"{', '.join(remarks)}: the source gives others now", "warning")
    if layout.HU in damaged:
        return
    _compare(found, "HU", case.read_hu(), volume.image.hu)
    if volume.label_map is not None and case.has_labels:
        _compare(found, "labels", case.read_labels(), volume.label_map.labels)


def _compare(found: Findings, what: str, stored: npt.NDArray[np.generic], fresh: npt.NDArray[np.generic]) -> None:
    if stored.shape != fresh.shape:
        found.add("STORE_DIFFERS", f"{what}: {stored.shape} voxels (zyx) stored, the source gives {fresh.shape}")
    elif wrong := np.count_nonzero(stored != fresh):
        found.add("STORE_DIFFERS", f"{what}: {wrong} of {fresh.size} voxels are not what the source gives")
