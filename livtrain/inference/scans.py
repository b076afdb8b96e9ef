"""What `predict` is asked to segment: stored cases by id, and scans in folders, zips and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from livprep.cases import Case, FileRef, Rejection
from livprep.catalog import Catalog
from livprep.errors import SourceError, StoreError, UsageError
from livprep.formats.archive import read_bytes
from livprep.formats.dicom_header import patient_number
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livprep.sources import discover, read_case
from livprep.store import CaseStore, Store, is_store, open_store
from livprep.volume import LabelledVolume, Volume

DEFAULT_SPLIT = "default"
_PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan in memory.

    Parameters
    ----------
    name
        Case id, or the stem of a file or series.
    volume
        HU without labels: on the source's grid, or on the store's.
    prepared
        The preparation that `volume` went through already; None for a source's own voxels.
    source
        The grid on which the prediction is written (repaired).
    header
        The same voxels as the source's header places them.
    dicom
        The files of a DICOM series; empty for other sources.
    warnings
        What reading it gave rise to; empty for a stored case, of which ingest told.
    """

    name: str
    volume: LabelledVolume
    prepared: Preparation | None
    source: Geometry
    header: Geometry
    dicom: tuple[FileRef, ...] = ()
    warnings: tuple[str, ...] = ()


class Scan(Protocol):
    """Something that can be loaded for prediction."""

    @property
    def name(self) -> str:
        """Case id, or the stem of a file or series; names the output."""

    def load(self) -> LoadedScan:
        """Read the voxels."""


@dataclass(frozen=True)
class StoredScan:
    """A case of a store."""

    case: CaseStore
    preparation: Preparation

    @property
    def name(self) -> str:
        """Case id."""
        return self.case.case_id

    def load(self) -> LoadedScan:
        """Read the stored HU."""
        source = self.case.source_geometry
        volume = LabelledVolume(Volume(self.case.read_hu(), self.case.geometry))
        header = _header(self.case.meta.source_affine_ras, source)
        return LoadedScan(self.name, volume, self.preparation, source, header)


@dataclass(frozen=True)
class SourceScan:
    """A scan in files, which may never have been ingested."""

    case: Case
    catalog: Catalog

    @property
    def name(self) -> str:
        """Case id, or the stem of the file or series."""
        return self.case.case_id

    def load(self) -> LoadedScan:
        """Read the scan's files; masks are not read."""
        found = read_case(replace(self.case, masks=()), self.catalog)
        image = found.volume.image
        header = _header(found.header_affine_ras, image.geometry)
        files = () if self.case.image[0].is_nifti else self.case.image
        told = tuple(note.told for note in found.notes)
        return LoadedScan(self.name, LabelledVolume(image), None, image.geometry, header, files, told)


def _header(affine_ras: npt.ArrayLike, source: Geometry) -> Geometry:
    return Geometry.from_affine_ras(np.asarray(affine_ras, dtype=np.float64), source.shape_zyx)


def find_scans(
    sources: Sequence[str], store: Path, catalog: Catalog, cases: str | None = None
) -> tuple[list[Scan], list[Rejection]]:
    """Resolve the arguments of `predict`.

    Parameters
    ----------
    sources
        Paths, where they exist (a store stands for its cases); else case ids or patterns of the store. None at all
        means every stored case.
    store
        The store; it need not exist as long as only paths are given.
    catalog
        What the data sets are.
    cases
        Keep only these: `train`, `val` or `test` of the store's default split, or a pattern of names.

    Returns
    -------
    Scans by name, and what was found but cannot be read.

    Raises
    ------
    StoreError
        STORE_CASE_UNKNOWN, or whatever keeps the store from being opened.
    SourceError
        SOURCE_MISSING: a source with `/` or `.` in it, which no case id has, does not exist.
    UsageError
        Two sources have one name, or a path holds no scan, or nothing is left to predict.
    """
    scans: list[Scan] = []
    rejected: list[Rejection] = []
    paths = [Path(source) for source in sources if Path(source).exists()]
    patterns = [source for source in sources if not Path(source).exists()]
    if lost := [source for source in patterns if _reads_as_path(source)]:
        raise SourceError("SOURCE_MISSING", f"{lost[0]}: no such file or folder")
    opened = open_store(store) if patterns or not sources or cases in _PARTS else None
    if opened is not None and (patterns or not sources):
        scans.extend(_stored(opened, patterns or ["*"]))
    for path in paths:
        if is_store(path):
            scans.extend(_stored(open_store(path), ["*"]))
            continue
        found, faults = _in_files(path, catalog)
        scans.extend(SourceScan(case, catalog) for case in found)
        rejected.extend(faults)
    if cases is not None:
        scans = [scan for scan in scans if _chosen(scan.name, cases, opened)]
    names = [scan.name for scan in scans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            "USAGE",
            f"predict: {', '.join(twice)} given twice; expected one scan for each name of an output, "
            "so predict them one after the other into different folders",
        )
    if not scans and not rejected:
        raise UsageError("USAGE", f"predict: no scan fits {list(sources)} with --cases {cases}")
    return sorted(scans, key=lambda scan: scan.name), rejected


def _reads_as_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a file or folder: case ids hold neither `/` nor `.`."""
    return "/" in source or "." in source


def _stored(store: Store, patterns: Sequence[str]) -> list[StoredScan]:
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in store if fnmatchcase(name, pattern)}
        if not fitting:
            raise StoreError(
                "STORE_CASE_UNKNOWN", f"{pattern!r} is no path, and {store.path} has no such case; see `livprep info`"
            )
        chosen |= fitting
    return [StoredScan(store[name], store.preparation) for name in sorted(chosen)]


def _chosen(name: str, cases: str, store: Store | None) -> bool:
    if store is None or cases not in _PARTS:
        return any(fnmatchcase(name, pattern.strip()) for pattern in cases.split(","))
    split = store.read_split(DEFAULT_SPLIT)
    if split is None:
        raise UsageError("SPLIT_INVALID", f"{store.path}: has no split {DEFAULT_SPLIT!r}; run `livprep split`")
    return name in {"train": split.train, "val": split.val, "test": split.test}[cases]


def _in_files(path: Path, catalog: Catalog) -> tuple[list[Case], list[Rejection]]:
    """Scans under a path: those of known data sets, masks or not; where there are none, every CT and NIfTI."""
    found = discover([path], catalog)
    # A scan whose masks are missing, or that the catalogue does not list, cannot be ingested, but it can be segmented.
    bare = {fault.case_id for fault in found.rejected if fault.code in ("MASK_MISSING", "CASE_UNKNOWN")}
    if found.cases and not bare:
        return list(found.cases), list(found.rejected)
    anything = discover([path], catalog, "any")
    known = {case.case_id: case for case in (_recognized(case, catalog) for case in anything.cases) if case}
    added = [case for _, case in sorted(known.items()) if case.case_id in bare or (bare and case.dataset == "any")]
    cases = [*found.cases, *added]
    served = {case.case_id for case in cases}
    served.update(folder for case in added if case.dataset == "any" for folder in _folders(case.image[0]))
    rejected = [fault for fault in found.rejected if fault.case_id not in served]
    if cases or any(not fault.code.startswith("ARCHIVE_") for fault in rejected):
        return cases, rejected  # a damaged zip alone does not make a data set
    if not anything.cases and not anything.rejected:
        raise UsageError("NOTHING_FOUND", f"{path}: holds no CT series and no NIfTI{anything.aside}")
    return list(anything.cases), list(anything.rejected)


def _recognized(case: Case, catalog: Catalog) -> Case | None:
    """A scan that by its name or folder is one of a known data set, without masks; else None.

    In 3DIRCADb's layout it stays what it is where neither folder nor header has a number: somebody's own patients.
    """
    ref = case.image[0]
    folders = _folders(ref)
    named = catalog.lits.layout.locate((*folders, ref.name))
    if named is not None and (named.kind == "volume" or (named.kind == "test_volume" and not named.decathlon)):
        prefix = "litstest" if named.kind == "test_volume" else "lits"
        return Case(f"{prefix}-{named.number:03d}", "lits", named.number, case.image)
    if catalog.ircadb.layout.scan.lower() in (folder.lower() for folder in folders):
        numbers = (catalog.ircadb.layout.case_number(folder) for folder in reversed(folders))
        number = next((number for number in numbers if number is not None), None)
        number = patient_number(read_bytes(ref)) if number is None else number
        return case if number is None else Case(f"ircadb-{number:02d}", "ircadb", number, case.image)
    return None


def _folders(ref: FileRef) -> list[str]:
    """Names of the folders and zips (without .zip) that a file lies in."""
    parts = [part for name in (ref.path, *ref.members) for part in name.split("/")]
    return [part.removesuffix(".zip") for part in parts[:-1]]
