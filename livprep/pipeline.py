"""Run case tasks serially or over Dask worker processes; the only user of dask.

One task is one case, single-threaded inside; tasks carry paths and settings, never arrays, and may run twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import psutil

from livprep.cases import Receipt

LOOPBACK = "127.0.0.1"


class Job(Protocol):
    """A task on one case; pickles, and may be run more than once."""

    @property
    def name(self) -> str:
        """Case id."""
        ...

    def run(self) -> Receipt:
        """Do the work."""
        ...


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory_bytes() -> int:
    """Memory that is free now."""
    return int(psutil.virtual_memory().available)


def run_jobs(jobs: Sequence[Job], workers: int, scheduler: str | None = None) -> Iterator[Receipt]:
    """Yield a receipt for each job as it ends.

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


def _run_dask(jobs: Sequence[Job], workers: int, scheduler: str | None) -> Iterator[Receipt]:
    import dask
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    settings = {
        # A case that kills its worker twice is set aside; see the receipt below.
        "distributed.scheduler.allowed-failures": 1,
        "distributed.admin.large-graph-warning-threshold": "1GB",
    }
    with dask.config.set(settings):
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=min(workers, len(jobs)),
                threads_per_worker=1,
                processes=True,
                host=LOOPBACK,
                dashboard_address=None,
                worker_dashboard_address=None,
                memory_limit=0,  # workers are counted to fit; a limit would kill the case instead
                silence_logs=logging.CRITICAL,
            )
            client = Client(cluster)
        else:
            cluster, client = None, Client(scheduler)
        try:
            futures = {client.submit(_run, job, pure=False, key=f"{job.name}-{k}"): job for k, job in enumerate(jobs)}
            for future, result in as_completed(futures, with_results=True, raise_errors=False):
                if future.status == "finished":
                    yield result
                elif isinstance(result, tuple) and isinstance(result[1], KilledWorker):
                    name = futures[future].name
                    yield Receipt(name, "rejected", "WORKER_LOST", f"{name}: its worker process died twice")
                else:
                    raise result[1] if isinstance(result, tuple) else result
        finally:
            client.close()
            if cluster is not None:
                cluster.close()


def _run(job: Job) -> Receipt:
    return job.run()


__all__ = ["Job", "cores", "free_memory_bytes", "run_jobs"]
