"""Whole verification runs: every case of a store, and where sources are given, every case of those."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from livprep.cases import Case, Finding, Receipt, Rejection, printable
from livprep.catalog import Catalog, load_catalog
from livprep.errors import LivError, SourceError, StoreError
from livprep.machine import cores, free_memory_bytes
from livprep.pipeline import run_jobs
from livprep.plan import WORKER_BASE_BYTES, WORKER_FACTOR
from livprep.sources import Choice, catalog_beside, discover
from livprep.splits import check_split
from livprep.store import Store, case_folders, check_root, open_store, place_of
from livprep.verify import Verdict, VerifyJob


@dataclass(frozen=True)
class AuditRequest:
    """What the user asked of `livprep verify`."""

    store: Path
    sources: tuple[Path, ...] = ()
    deep: bool = False
    dataset: Choice = "auto"
    catalog: Path | None = None
    workers: int | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class Audit:
    """A planned verification."""

    request: AuditRequest
    opened: Store
    jobs: tuple[VerifyJob, ...]
    elsewhere: tuple[Finding, ...]
    workers: int


def plan_audit(request: AuditRequest) -> Audit:
    """Find what is to be verified; nothing but names and the store's root is read.

    Raises
    ------
    StoreError
        STORE_MISSING, STORE_UNREADABLE or STORE_NEWER: there is nothing to verify.
    SourceError
        NOTHING_FOUND: the sources hold no case of a known data set.
    """
    opened = open_store(request.store)
    stored = case_folders(opened)
    sources: dict[str, Case] = {}
    catalog, elsewhere = None, []
    if request.sources:
        catalog = load_catalog(request.catalog or catalog_beside(request.sources))
        sources, rejected = _discover(request, catalog)
        elsewhere = _compare_ids(stored, sources, rejected)
    jobs = tuple(
        VerifyJob(
            name,
            place_of(request.store),
            opened.preparation,
            opened.meta.profile,
            request.deep,
            sources.get(name),
            catalog,
        )
        for name in stored
    )
    return Audit(request, opened, jobs, tuple(elsewhere), request.workers or _workers(opened, jobs))


def _discover(request: AuditRequest, catalog: Catalog) -> tuple[dict[str, Case], tuple[Rejection, ...]]:
    found = discover(request.sources, catalog, request.dataset)
    if not found.cases and not found.rejected:
        where = ", ".join(str(path) for path in request.sources)
        raise SourceError(
            "NOTHING_FOUND",
            f"{where}: found no 3DIRCADb or LiTS case, and none that the catalogue lists as own{found.aside}",
        )
    return {case.case_id: case for case in found.cases}, found.rejected


def _compare_ids(stored: list[str], sources: dict[str, Case], rejected: tuple[Rejection, ...]) -> list[Finding]:
    """Cases that only one of store and sources has."""
    findings = [
        # A case that never could be ingested is no damage of the store.
        Finding(entry.case_id, entry.code, "error" if entry.case_id in stored else "warning", entry.detail)
        for entry in rejected
    ]
    findings += [
        Finding(name, "STORE_CASE_MISSING", "error", f"{name}: lies in the sources and not in the store")
        for name in sources
        if name not in stored
    ]
    given = {name.partition("-")[0] for name in sources}
    known = {*sources, *(entry.case_id for entry in rejected)}
    findings += [
        Finding(
            name,
            "STORE_CASE_EXTRA",
            "warning" if name.partition("-")[0] in given else "info",
            f"{name}: lies in the store and not in the sources",
        )
        for name in stored
        if name not in known
    ]
    return findings


def _workers(opened: Store, jobs: tuple[VerifyJob, ...]) -> int:
    """As many workers as fit cores and memory; a deep look holds one case several times."""
    largest = 0
    for job in jobs:
        case = opened.get(job.case_id)
        try:
            z, y, x = (0, 0, 0) if case is None else case.shape_zyx
        except LivError:
            continue  # becomes a finding
        largest = max(largest, z * y * x)
    heavy = any(job.deep or job.source is not None for job in jobs)
    if not heavy:
        return 1  # names and sizes only: done before a worker has started
    peak = WORKER_BASE_BYTES + 2 * WORKER_FACTOR * largest
    return max(1, min(cores(), len(jobs), int(free_memory_bytes() * 0.8 // peak)))


def run_audit(audit: Audit) -> Iterator[Verdict]:
    """Yield what was found of the store itself, of its splits, and of each case."""
    yield Verdict("", (*check_root(audit.opened), *_check_splits(audit.opened)))
    yield from (Verdict(finding.case, (finding,)) for finding in audit.elsewhere)
    for result in run_jobs(audit.jobs, audit.workers, audit.request.scheduler):
        if isinstance(result, Receipt):
            yield Verdict(result.case, (Finding(result.case, result.code, "error", result.detail),))
        else:
            yield result


def _check_splits(store: Store) -> list[Finding]:
    """Recorded splits are as they were written, name cases of the store, and keep patients on one side."""
    patients, fingerprints = {}, {}
    for name, case in store.items():
        try:
            patients[name], fingerprints[name] = case.patient, case.meta.fingerprint
        except LivError:
            patients[name] = name  # becomes a finding of the case
    found = []
    for name in store.split_names():
        try:
            split = store.read_split(name)
            if split is None or split.name != name:
                raise StoreError("STORE_SPLIT", f"split {name}: its file holds another one")
            if missing := [case for case in split.case_ids if case not in patients]:
                raise StoreError("STORE_SPLIT", f"split {name}: the store has no {', '.join(missing[:3])}")
            check_split(split, patients, fingerprints)
        except LivError as error:
            code = "STORE_SPLIT" if isinstance(error, StoreError) else error.code
            found.append(Finding("", code, "error", printable(error.message)))
    return found
