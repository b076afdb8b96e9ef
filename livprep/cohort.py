"""Whole-cohort work: ingest sources into a store, add windows to every case. What the commands call."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from livprep.cases import Receipt, Rejection
from livprep.catalog import Catalog, load_catalog
from livprep.convert import IngestJob, WindowJob, is_disk_full
from livprep.errors import LivError, SourceError, StoreError, UsageError
from livprep.journal import Journal
from livprep.machine import cores, free_memory_bytes, total_memory_bytes
from livprep.pipeline import ClusterName, Crew, Job, run_jobs
from livprep.plan import RESERVE, Plan, channel_bytes, make_plan, too_large
from livprep.prepare import Preparation
from livprep.private_map import check_private_map, write_private_map
from livprep.schema import ProfileName, WindowMeta
from livprep.sources import Choice, Discovery, catalog_beside, discover
from livprep.store import (
    Store,
    change_preparation,
    channels_of,
    create_store,
    discard_marked,
    is_remote,
    journal_root,
    keep_journal,
    open_store,
    place_of,
    remove_window,
    taken,
)
from livprep.windows import Window

CLUSTER_WORKERS = 16
"""Jobs that `--cluster` asks for unless told."""
UNUSED_BYTES = 1 << 30
"""Address space of a worker that its interpreter, libraries and allocators reserve and do not use, at most."""


@dataclass(frozen=True)
class IngestRequest:
    """What the user asked of `livprep ingest`."""

    sources: tuple[Path, ...]
    store: Path
    dataset: Choice = "auto"
    preparation: Preparation = field(default_factory=Preparation)
    profile: ProfileName = "balanced"
    replace: bool = False
    catalog: Path | None = None
    pattern: str = "*"
    part: tuple[int, int] = (1, 1)
    workers: int | None = None
    scheduler: str | None = None
    cluster: ClusterName | None = None
    private_map: Path | None = None


@dataclass(frozen=True)
class Ingest:
    """A planned ingest: what was found, what it needs, and how many workers fit."""

    request: IngestRequest
    catalog: Catalog
    catalog_path: Path | None
    found: Discovery
    plan: Plan
    workers: int

    @property
    def total(self) -> int:
        """Receipts to expect."""
        return len(self.found.cases) + len(self.found.rejected)


def plan_ingest(request: IngestRequest) -> Ingest:
    """Find the cases of the sources and estimate what they need; nothing is written.

    Raises
    ------
    SourceError
        NOTHING_FOUND: no case of a known data set lies there.
    UsageError
        The private map cannot be written where it is wanted.
    """
    if request.private_map is not None:
        check_private_map(request.private_map, request.store)
    beside = request.catalog or catalog_beside(request.sources)
    catalog = load_catalog(beside)
    found = discover(request.sources, catalog, request.dataset)
    if not found.cases and not found.rejected:
        where = ", ".join(str(path) for path in request.sources)
        raise SourceError(
            "NOTHING_FOUND",
            f"{where}: found no 3DIRCADb or LiTS case, and none that the catalogue lists as own{found.aside}",
        )
    chosen = _choose(found, request)
    plan = make_plan(chosen.cases, request.preparation, request.profile, catalog)
    if request.scheduler is None and request.cluster is None:
        chosen, plan = _leave_out(chosen, plan, total_memory_bytes())
        workers = request.workers or plan.workers(cores(), free_memory_bytes())
    else:  # the workers have memory of their own, and look themselves
        workers = request.workers or max(1, min(CLUSTER_WORKERS, len(plan.needs)))
    return Ingest(request, catalog, beside, chosen, plan, workers)


def _choose(found: Discovery, request: IngestRequest) -> Discovery:
    """Keep the cases that fit --cases, then every N-th of them for --part I/N (by sorted id)."""
    index, count = request.part
    if not 1 <= index <= count:
        raise UsageError("USAGE", f"--part {index}/{count}: expected I/N with 1 <= I <= N")
    cases = [case for case in found.cases if fnmatchcase(case.case_id, request.pattern)]
    rejected = [entry for entry in found.rejected if fnmatchcase(entry.case_id, request.pattern)]
    if not cases and not rejected:
        raise SourceError("NOTHING_FOUND", f"--cases {request.pattern}: no case found fits")
    return Discovery(tuple(cases[index - 1 :: count]), tuple(rejected if index == 1 else ()), found.ignored)


def _leave_out(found: Discovery, plan: Plan, limit_bytes: int) -> tuple[Discovery, Plan]:
    """Reject the cases that can never fit into memory, each alone and before any work."""
    large = {need.case_id: need for need in plan.needs if need.peak_bytes > limit_bytes}
    rejected = [
        Rejection(
            name,
            "CASE_TOO_LARGE",
            too_large(name, need.shape_zyx, need.spacing_mm, need.peak_bytes, limit_bytes),
        )
        for name, need in large.items()
    ]
    kept = tuple(case for case in found.cases if case.case_id not in large)
    needs = tuple(need for need in plan.needs if need.case_id not in large)
    every = sorted((*found.rejected, *rejected), key=lambda entry: entry.case_id)
    return Discovery(kept, tuple(every), found.ignored), Plan(needs, plan.preparation)


def run_ingest(ingest: Ingest, say: Callable[[str], None] | None = None) -> Iterator[Receipt]:
    """Ingest and yield a receipt a case; rejected ones first. `say` is told where Dask's dashboard listens.

    Raises
    ------
    StoreError
        STORE_PREPARATION or STORE_UNREADABLE.
    LivError
        DISK_FULL: before anything is written where the estimate does not fit, or when the disk became full.
    """
    request = ingest.request
    _prepare_store(ingest)
    _check_disk(ingest)
    if request.private_map is not None:
        write_private_map(request.private_map, request.store, ingest.found.cases)
    journal = Journal(journal_root(request.store), "ingest")
    journal.add("start", cases=[case.case_id for case in ingest.found.cases], workers=ingest.workers)
    by_id = {case.case_id: case for case in ingest.found.cases}
    jobs = [
        IngestJob(
            by_id[need.case_id],
            place_of(request.store),
            ingest.catalog,
            request.preparation,
            request.profile,
            request.replace,
        )
        for need in ingest.plan.needs
    ]
    for entry in ingest.found.rejected:
        receipt = Receipt(entry.case_id, "rejected", entry.code, entry.detail)
        journal.add_receipt(receipt, [entry.case_id] if ingest.catalog.lists(entry.case_id) else [])
        yield receipt
    crew = Crew(ingest.workers, request.scheduler, request.cluster, _worker_bytes(ingest), say)
    try:
        yield from _journaled(journal, request.store, jobs, crew)
    except OSError as error:
        if not is_disk_full(error) or is_remote(request.store):
            raise
        free = shutil.disk_usage(request.store).free
        text = f"became full; what is left to do needs about {_needed_bytes(ingest)} bytes, {free} are free"
        raise LivError("DISK_FULL", f"{request.store}: {text}") from error


def _worker_bytes(ingest: Ingest) -> int | None:
    """Memory that one worker may take: its share of what is free here, in any case what the plan says it needs."""
    if ingest.request.scheduler is not None:
        return None  # those workers are another's
    share = free_memory_bytes() // ingest.workers if ingest.request.cluster is None else 0
    return max(ingest.plan.peak_bytes, share) + UNUSED_BYTES


def _journaled(journal: Journal, store: Path, jobs: Sequence[Job[Receipt]], crew: Crew) -> Iterator[Receipt]:
    known = {job.name for job in jobs}
    mark = uuid.uuid4().hex[:12]
    try:
        for receipt in run_jobs(jobs, crew=crew, mark=mark):
            journal.add_receipt(receipt, known)
            yield receipt
    finally:
        discard_marked(store, mark)
        keep_journal(store, journal.path)
    journal.add("end")
    keep_journal(store, journal.path)


def _prepare_store(ingest: Ingest) -> None:
    request = ingest.request
    try:
        create_store(request.store, request.preparation, request.profile, ingest.catalog.digest)
    except StoreError as error:
        # --replace of every published case is the one way to change a store's preparation, unless it is empty.
        if error.code != "STORE_PREPARATION" or not (request.replace or not open_store(request.store).case_ids):
            raise
        kept = set(open_store(request.store)) - {case.case_id for case in ingest.found.cases}
        if kept:
            raise StoreError(
                "STORE_PREPARATION",
                f"{request.store}: --replace would leave {sorted(kept)[:5]} prepared otherwise; use another --store",
            ) from error
        change_preparation(request.store, request.preparation, request.profile, ingest.catalog.digest)


def _check_disk(ingest: Ingest) -> None:
    """Compare what is to be done with what is free."""
    if not is_remote(ingest.request.store):
        _require_free(ingest.request.store, _needed_bytes(ingest))


def _needed_bytes(ingest: Ingest) -> int:
    """Disk that the cases need which are not yet there, with the channels that are made anew."""
    request, store = ingest.request, open_store(ingest.request.store)
    done = set() if request.replace else set(store)
    needed = 0
    for need in ingest.plan.needs:
        if need.case_id not in done:
            channels = len(channels_of(request.store, need.case_id))
            needed += need.disk_bytes + channels * need.channel_bytes(request.profile)
    return needed


def _require_free(store: Path, needed: int) -> None:
    if is_remote(store):
        return
    free = shutil.disk_usage(store).free
    if RESERVE * needed > free:
        text = f"needs about {needed} bytes, with a reserve {int(RESERVE * needed)}, {free} are free"
        raise LivError("DISK_FULL", f"{store}: {text}")


def plan_windows(
    store: Store, windows: Sequence[Window], pattern: str = "*", part: tuple[int, int] = (1, 1)
) -> list[WindowJob]:
    """One job for each case and window; channels keep one order over the cohort. `part` is as that of ingest.

    Raises
    ------
    StoreError
        STORE_EMPTY: there is no case that fits.
    UsageError
        STORE_WINDOW_EXISTS: a name is taken by other settings.
    """
    cases = [case for case in store if fnmatchcase(case, pattern)]
    if not cases:
        raise StoreError("STORE_EMPTY", f"{store.path}: holds no case that fits {pattern!r}")
    cases = sorted(cases)[part[0] - 1 :: part[1]]
    known: dict[str, WindowMeta] = {}
    for case_id in store:
        known |= {meta.name: meta for meta in store[case_id].window_metas}
    orders = {name: meta.order for name, meta in known.items()}
    for window in windows:
        meta = known.get(window.name)
        if meta is not None and (stored := meta.channel()) != window:
            raise UsageError("STORE_WINDOW_EXISTS", taken(stored))
        orders.setdefault(window.name, max(orders.values(), default=-1) + 1)
    return [WindowJob(case, place_of(store.path), window, orders[window.name]) for case in cases for window in windows]


def run_windows(
    store: Store,
    jobs: Sequence[WindowJob],
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: ClusterName | None = None,
) -> Iterator[Receipt]:
    """Add the channels and yield a receipt for each.

    Raises
    ------
    LivError
        DISK_FULL before anything is written where the estimate does not fit.
    """
    if not jobs:
        return  # a part beyond the last case
    profile = store.meta.profile
    new = [job for job in jobs if job.window.name not in store[job.case_id].window_names]
    _require_free(store.path, sum(channel_bytes(store[job.case_id].shape_zyx, profile) for job in new))
    largest = max(_voxels(store, job.case_id) for job in jobs)
    # HU, one channel and the encoder's copy of each, beside the worker itself
    each = (500 << 20) + 6 * largest
    if cluster is None:
        crew = Crew(workers or max(1, min(cores(), len(jobs), int(free_memory_bytes() * 0.8 // each))), scheduler)
    else:
        crew = Crew(workers or min(CLUSTER_WORKERS, len(jobs)), None, cluster, each + UNUSED_BYTES)
    yield from _journaled(Journal(journal_root(store.path), "window"), store.path, jobs, crew)


def _voxels(store: Store, case_id: str) -> int:
    z, y, x = store[case_id].shape_zyx
    return z * y * x


def remove_windows(store: Store, name: str, pattern: str = "*") -> Iterator[Receipt]:
    """Remove a channel from every case that has it."""
    for case_id in store:
        if fnmatchcase(case_id, pattern):
            removed = remove_window(store.path, case_id, name)
            yield Receipt(case_id, "published" if removed else "unchanged", detail=f"{name} removed" if removed else "")


__all__ = [
    "Ingest",
    "IngestRequest",
    "plan_ingest",
    "plan_windows",
    "remove_windows",
    "run_ingest",
    "run_windows",
]
