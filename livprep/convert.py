"""One task is one case: read, prepare, write; or window one stored case. What happened is a Receipt."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from livprep.anatomy import doubts
from livprep.cases import Case, Note, Receipt
from livprep.catalog import Catalog
from livprep.errors import GeometryError, LivError, SourceError, trace
from livprep.fingerprint import fingerprint_of
from livprep.geometry import Geometry
from livprep.labels import Label, label_counts
from livprep.machine import total_memory_bytes
from livprep.plan import peak_bytes, too_large
from livprep.prepare import Preparation, prepare
from livprep.provenance import digest_of
from livprep.schema import SCHEMA_VERSION, CaseMeta, ProfileName, SourceMeta
from livprep.sources import SourceCase, read_case, source_digest
from livprep.store import CaseContent, add_window, open_store, publish_case
from livprep.volume import LabelledVolume
from livprep.windows import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestJob:
    """Everything that one worker needs to ingest one case; paths and settings only."""

    case: Case
    store: str
    catalog: Catalog
    preparation: Preparation
    profile: ProfileName
    replace: bool = False

    @property
    def name(self) -> str:
        """Case id."""
        return self.case.case_id

    def run(self) -> Receipt:
        """Ingest the case."""
        return ingest_case(self)


@dataclass(frozen=True)
class WindowJob:
    """Everything that one worker needs to add one channel to one case."""

    case_id: str
    store: str
    window: Window
    order: int

    @property
    def name(self) -> str:
        """Case id."""
        return self.case_id

    def run(self) -> Receipt:
        """Add the channel."""
        started = time.monotonic()
        size = add_window(Path(self.store), self.case_id, self.window, self.order)
        return Receipt(
            self.case_id,
            "published" if size else "unchanged",
            detail=self.window.name,
            seconds=time.monotonic() - started,
            bytes_out=size,
        )


def ingest_case(job: IngestJob) -> Receipt:
    """Ingest one case; a fault of the case is a receipt, a fault of disk or store is raised.

    Running it twice, or twice at once, leaves one copy.
    """
    started = time.monotonic()
    try:
        receipt = _ingest(job)
    except (SourceError, GeometryError) as error:
        receipt = Receipt(job.name, "rejected", error.code, error.message)
    except MemoryError:
        receipt = Receipt(job.name, "rejected", "CASE_TOO_LARGE", f"{job.name}: does not fit into the worker's memory")
    except (LivError, OSError):
        raise
    except Exception as error:
        log.debug("%s:\n%s", job.name, trace(error))
        receipt = Receipt(job.name, "rejected", "INTERNAL", f"{job.name}: {type(error).__name__} in the reader")
    return replace(receipt, seconds=round(time.monotonic() - started, 3))


def _ingest(job: IngestJob) -> Receipt:
    store = Path(job.store)
    settings = settings_digest(job)
    published = open_store(store).get(job.name)
    if published is not None and not job.replace:
        meta = published.meta
        if meta.settings_digest == settings and meta.source.digest == source_digest(job.case):
            return Receipt(job.name, "unchanged")
        detail = f"{job.name}: published from other source bytes or settings; --replace rebuilds it"
        return Receipt(job.name, "rejected", "SOURCE_CHANGED", detail)
    source = read_case(job.case, job.catalog)
    _check_memory(job, source.volume.geometry)
    volume = prepare(source.volume, job.preparation)
    meta, bytes_in = describe(source, volume, settings), source.bytes_in
    warnings = (*(note.told for note in source.notes), *meta.warnings[len(source.notes) :])
    del source  # frees the source's own copy before the arrays are written
    size = publish_case(store, CaseContent(meta, volume), job.profile, replace=job.replace)
    if not size:
        return Receipt(job.name, "unchanged", detail="another run published it first", warnings=warnings)
    return Receipt(job.name, "published", bytes_in=bytes_in, bytes_out=size, warnings=warnings)


def _check_memory(job: IngestJob, source: Geometry) -> None:
    """Refuse what cannot be prepared here, now that the grid is certain; the plan knew its header at most."""
    if job.preparation.is_native:
        return  # the scan is in memory already
    grid, limit = job.preparation.grid(source), total_memory_bytes()
    if (need := peak_bytes(source.shape_zyx, grid.shape_zyx)) > limit:
        raise SourceError("CASE_TOO_LARGE", too_large(job.name, grid.shape_zyx, grid.spacing_mm, need, limit))


def settings_digest(job: IngestJob) -> str:
    """Hash of all that decides how the case's bytes become arrays: preparation, profile, mask roles, repair."""
    case, catalog = job.case, job.catalog
    repair = catalog.lits.repair(case.number) if case.case_id.startswith("lits-") else None
    settings: dict[str, Any] = {
        "preparation": job.preparation.as_dict(),
        "profile": job.profile,
        "masks": {name: catalog.ircadb.classify(name).value for name, _ in case.masks},
        "repair": None if repair is None else repair.model_dump(mode="json"),
        "patient": catalog.patient_of(case.case_id),
    }
    if case.case_id.startswith("litstest-") and case.number in catalog.lits.test_axes_swapped:
        settings["axes_swapped"] = True
    listed = catalog.own_case(case.case_id)
    if listed is not None:
        settings["labels"] = {str(value): int(label) for value, label in listed.labels.items()}
    return digest_of(settings)


def describe(source: SourceCase, volume: LabelledVolume, settings: str) -> CaseMeta:
    """Attributes of a prepared case: by allow-list, nothing of the source's text.

    The one place where a scan is compared with anatomy; a doubt becomes one of the case's warnings.
    """
    grid, origin = volume.geometry, source.volume.geometry
    notes = [*source.notes, *(Note(d.code, f"{source.case.case_id}: {d.detail}") for d in doubts(volume))]
    return CaseMeta(
        schema_version=SCHEMA_VERSION,
        case=source.case.case_id,
        dataset=source.case.dataset,
        patient=source.patient,
        source=SourceMeta(
            kind="nifti" if source.case.image[0].is_nifti else "dicom",
            files=len(source.case.image) + sum(len(refs) for _, refs in source.case.masks),
            bytes=source.bytes_in,
            digest=source.digest,
        ),
        settings_digest=settings,
        grid=grid.as_dict(),
        affine_lps=grid.affine_lps.tolist(),
        affine_ras=grid.affine_ras.tolist(),
        source_grid=origin.as_dict(),
        source_affine_ras=source.header_affine_ras.tolist(),
        source_orientation=origin.orientation,
        source_spacing_mm=list(origin.spacing_mm),
        hu_min=int(volume.image.hu.min()),
        hu_max=int(volume.image.hu.max()),
        label_map={label.name.lower(): int(label) for label in Label},
        label_voxels=None if volume.label_map is None else label_counts(volume.label_map.labels),
        fingerprint=fingerprint_of(source.look.counts),
        hu_sanity=source.look.intensity,
        repairs=list(source.repairs),
        warnings=[str(note) for note in notes],
    )


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that the disk or the quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
