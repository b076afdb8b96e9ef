"""Run case tasks serially or over Dask worker processes; the only user of dask.

One task is one case, single-threaded inside; tasks carry paths and settings, never arrays, and may run twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from livprep.cases import Receipt
from livprep.machine import cores, free_memory_bytes

LOOPBACK = "127.0.0.1"
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[R_co]):
    """A task on one case; pickles, and may be run more than once."""

    @property
    def name(self) -> str:
        """Case id."""
        ...

    def run(self) -> R_co:
        """Do the work."""
        ...


def run_jobs(jobs: Sequence[Job[R]], workers: int, scheduler: str | None = None) -> Iterator[R | Receipt]:
    """Yield what each job returns as it ends; a receipt for a job whose worker died.

    Parameters
    ----------
    jobs
        In the order in which they should start.
    workers
        Worker processes on this machine; 1 runs in this process.
    scheduler
        Address of a running Dask scheduler to use instead.

    Raises
    ------
    LivError, OSError
        A job's fault that is not the case's own: store or disk. Running jobs are dropped; nothing half written
        is visible.
    """
    if scheduler is None and (workers <= 1 or len(jobs) <= 1):
        for job in jobs:
            yield job.run()
        return
    yield from _run_dask(jobs, workers, scheduler)


def _run_dask(jobs: Sequence[Job[R]], workers: int, scheduler: str | None) -> Iterator[R | Receipt]:
    import dask
    from distributed import Client, LocalCluster

    settings = {
        # A task whose worker dies comes back at once and is tried again alone; see _run_on.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.admin.large-graph-warning-threshold": "1GB",
    }
    with dask.config.set(settings):
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=min(workers, len(jobs)),
                threads_per_worker=1,
                processes=True,
                host=LOOPBACK,
                dashboard_address=f"{LOOPBACK}:0",  # without an address it takes port 8787, and warns if that is taken
                worker_dashboard_address=None,
                memory_limit=0,  # workers are counted to fit; a limit would kill the case instead
                silence_logs=logging.CRITICAL,
            )
            client = Client(cluster)
        else:
            cluster, client = None, Client(scheduler)
        try:
            yield from _run_on(client, jobs)
        finally:
            client.close()
            if cluster is not None:
                cluster.close()


def _run_on(client: Any, jobs: Sequence[Job[R]]) -> Iterator[R | Receipt]:
    """Run all jobs, then those alone whose worker died: it may have died of another case that it had to do."""
    suspects = []
    for job, receipt in _submit(client, jobs, "first"):
        if receipt is None:
            suspects.append(job)
        else:
            yield receipt
    for suspect in suspects:
        for job, receipt in _submit(client, [suspect], "alone"):
            yield receipt or Receipt(job.name, "rejected", "WORKER_LOST", f"{job.name}: its worker process died twice")


def _submit(client: Any, jobs: Sequence[Job[R]], attempt: str) -> Iterator[tuple[Job[R], R | None]]:
    """Yield each job with its receipt as it ends, or None where the worker died; other errors are raised."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {client.submit(_run, job, pure=False, key=f"{job.name}-{attempt}-{k}"): job for k, job in enumerate(jobs)}
    for future, result in as_completed(futures, with_results=True, raise_errors=False):
        if future.status == "finished":
            yield futures[future], result
            continue
        error = result[1] if isinstance(result, tuple) else result
        if not isinstance(error, KilledWorker):
            raise error
        yield futures[future], None


def _run(job: Job[R]) -> R:
    return job.run()


__all__ = ["Job", "cores", "free_memory_bytes", "run_jobs"]
