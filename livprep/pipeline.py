"""Run case tasks serially or over Dask worker processes; the only user of dask.

One task is one case, single-threaded inside; tasks carry paths and settings, never arrays, and may run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shlex
import shutil
import signal
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from livprep.cases import Receipt
from livprep.errors import LivError
from livprep.machine import cores, free_memory_bytes
from livprep.provenance import package_version
from livprep.store import marked

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ClusterName = Literal["slurm"]
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


@dataclass(frozen=True)
class Crew:
    """Who does the jobs.

    Parameters
    ----------
    workers
        Worker processes on this machine, or jobs of the cluster; 1 on this machine runs in this process.
    scheduler
        Address of a running Dask scheduler to use instead; for `tls://` with the credentials of Dask's settings
        (`distributed.comm.tls`, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and its like).
    cluster
        Start the workers through this batch system; its account, queue and the like come from Dask's own settings
        (`jobqueue.slurm`).
    worker_bytes
        Memory that one worker may take; None for no limit. What goes beyond it is a MemoryError of that case alone.
    say
        Is told where the dashboard listens.
    """

    workers: int = 1
    scheduler: str | None = None
    cluster: ClusterName | None = None
    worker_bytes: int | None = None
    say: Callable[[str], None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether the workers are processes of this machine."""
        return self.scheduler is None and self.cluster is None


def run_jobs(
    jobs: Sequence[Job[R]], workers: int = 1, scheduler: str | None = None, *, crew: Crew | None = None, mark: str = ""
) -> Iterator[R | Receipt]:
    """Yield what each job returns as it ends; a receipt for a job whose worker died.

    Parameters
    ----------
    jobs
        In the order in which they should start.
    workers, scheduler
        Of a plain crew.
    crew
        Instead of these.
    mark
        Is in the names of what the jobs stage, so that the caller can remove what dead workers left.

    Raises
    ------
    LivError
        SCHEDULER_UNUSABLE: it does not answer, or is lost, or its workers have another livprep.
    LivError, OSError
        A job's fault that is not the case's own: store or disk. Running jobs are dropped; nothing half written
        is visible.
    """
    crew = crew or Crew(workers, scheduler)
    if crew.is_here and (crew.workers <= 1 or len(jobs) <= 1):
        for job in jobs:
            with marked(mark):
                result = job.run()
            yield result
        return
    yield from _run_dask(jobs, crew, mark)


def _run_dask(jobs: Sequence[Job[R]], crew: Crew, mark: str) -> Iterator[R | Receipt]:
    import dask
    from distributed import Client

    with dask.config.set(_SETTINGS):
        if crew.scheduler is not None:
            _greet(crew.scheduler)
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs as well is raised
        cluster = None if crew.scheduler is not None else _start(crew, min(crew.workers, len(jobs)))
        client = Client(crew.scheduler) if cluster is None else Client(cluster)
        if crew.say is not None and client.dashboard_link:
            crew.say(f"dashboard: {client.dashboard_link}")
        try:
            if crew.cluster is not None:
                _say_if_none_starts(
                    client, QUEUE_S, "no job of the batch system has started within %d s (squeue says why)"
                )
            elif crew.scheduler is not None:
                _say_if_none_starts(client, WORKERS_S, "the scheduler has had no worker for %d s")
                _check_foreign(client)
            yield from _run_on(client, jobs, partial(_run, mark=mark, limit_bytes=crew.worker_bytes))
        except BaseException:
            if cluster is not None and crew.cluster is None:
                _kill_workers(cluster)  # they would first finish the cases that they have
            raise
        finally:
            client.close()
            if cluster is not None:
                cluster.close()


QUEUE_S, WORKERS_S = 60, 10
"""Seconds in a queue, and with another's scheduler, without a worker after which a word is said."""
SCHEDULER_S = 30
"""Seconds in which another's scheduler must answer."""
_KEEP_BUFFERS = "export MALLOC_TRIM_THRESHOLD_=134217728 MALLOC_MMAP_THRESHOLD_=33554432"
"""For processes whose settings are not ours to make; see _SETTINGS. glibc's own are 128 kB that grow (mallopt(3))."""
_SETTINGS = {
    # A task whose worker dies comes back at once and is tried again alone; see _run_on.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.admin.large-graph-warning-threshold": "1GB",
    # One task a worker and no more: a task that waits behind another would be lost with it.
    "distributed.scheduler.worker-saturation": 1.0,
    # Dask has workers give back every 64 kB, which for buffers of chunks means new pages from the kernel for each one:
    # two workers were 1.15 times as fast as one with it.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


def _start(crew: Crew, count: int) -> Any:
    """A cluster of this run alone."""
    if crew.cluster == "slurm":
        return _start_slurm(crew, count)
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        host=LOOPBACK,
        dashboard_address=f"{LOOPBACK}:0",  # without an address it takes port 8787, and warns if that is taken
        worker_dashboard_address=None,
        memory_limit=0,  # no spilling and no killing by Dask: workers are counted to fit, and limited below
        silence_logs=logging.CRITICAL,
    )


def _start_slurm(crew: Crew, count: int) -> Any:
    """Workers as SLURM jobs; everything they say goes through TLS with credentials of this run alone."""
    import dask
    from dask_jobqueue import SLURMCluster
    from distributed.security import Security

    shared = Path.cwd() / f".livprep-tls-{uuid.uuid4().hex[:8]}"
    shared.mkdir(mode=0o700)
    needed: dict[str, Any] = {} if crew.worker_bytes is None else {"memory": f"{-(-crew.worker_bytes >> 20)}MiB"}
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        python=shlex.quote(sys.executable),  # it goes into a shell script as it is
        protocol="tls://",
        security=Security.temporary(),
        shared_temp_directory=shared.name,  # jobs start in this folder, whose own name may hold spaces
        scheduler_options={"dashboard_address": f"{LOOPBACK}:0"},
        job_script_prologue=[*dask.config.get("jobqueue.slurm.job-script-prologue", []), _KEEP_BUFFERS],
        **needed,
    )
    weakref.finalize(cluster, shutil.rmtree, shared, ignore_errors=True)
    cluster.scale(jobs=count)
    return cluster


def _greet(address: str) -> None:
    """See that a Dask scheduler answers, for Dask's client would wait for ever for one that does not greet back.

    Raises
    ------
    LivError
        SCHEDULER_UNUSABLE.
    """
    from distributed.comm import connect
    from distributed.security import Security

    async def greet() -> None:
        comm = await connect(address, timeout=SCHEDULER_S, **Security().get_connection_args("client"))
        await comm.close()

    try:
        asyncio.run(asyncio.wait_for(greet(), SCHEDULER_S + 1))
    except TypeError as error:  # Dask's own way to say so
        raise LivError("SCHEDULER_UNUSABLE", f"{address}: TLS asks for credentials, Dask has none here") from error
    except (OSError, ValueError, TimeoutError) as error:
        why = error.__cause__ or error
        text = f"no Dask scheduler answers ({str(why) or type(why).__name__})"
        raise LivError("SCHEDULER_UNUSABLE", f"{address}: {text}") from error


def _say_if_none_starts(client: Any, seconds: int, text: str) -> None:
    """A queue may be long, so it is waited for; but not in silence, for a wrong account waits for ever."""
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        log.warning(f"{text}; still waiting", seconds)


def _check_foreign(client: Any) -> None:
    """Refuse another's scheduler or workers without this livprep: workers would die of a task, and nobody be told.

    Raises
    ------
    LivError
        SCHEDULER_UNUSABLE.
    """
    client.wait_for_workers(1)
    found = {f"worker {k}": v for k, v in client.run(metadata.version, "livprep", on_error="return").items()}
    try:
        found["the scheduler"] = client.run_on_scheduler(metadata.version, "livprep")
    except metadata.PackageNotFoundError as error:
        found["the scheduler"] = error
    for who, version in found.items():
        if version != package_version():
            has = f"livprep {version}" if isinstance(version, str) else "no livprep"
            raise LivError("SCHEDULER_UNUSABLE", f"{who} has {has}, expected {package_version()}")


def _kill_workers(cluster: Any) -> None:
    """End the worker processes of a local cluster now."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with contextlib.suppress(ProcessLookupError):
            if nanny.pid:
                os.kill(nanny.pid, signal.SIGKILL)


def _run_on(client: Any, jobs: Sequence[Job[R]], run: Callable[[Job[R]], R]) -> Iterator[R | Receipt]:
    """Run all jobs, then those alone whose worker died: it may have died of another case that it had to do."""
    suspects = []
    for job, receipt in _submit(client, jobs, run, "first"):
        if receipt is None:
            suspects.append(job)
        else:
            yield receipt
    for suspect in suspects:
        for job, receipt in _submit(client, [suspect], run, "alone"):
            yield receipt or Receipt(job.name, "rejected", "WORKER_LOST", f"{job.name}: its worker process died twice")


def _submit(
    client: Any, jobs: Sequence[Job[R]], run: Callable[[Job[R]], R], attempt: str
) -> Iterator[tuple[Job[R], R | None]]:
    """Yield each job with its receipt as it ends, or None where the worker died; other errors are raised."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {client.submit(run, job, pure=False, key=f"{job.name}-{attempt}-{k}"): job for k, job in enumerate(jobs)}
    for future, result in as_completed(futures, with_results=True, raise_errors=False):
        if future.status == "finished":
            yield futures[future], result
            continue
        if future.status == "cancelled":
            raise LivError("SCHEDULER_UNUSABLE", "the connection to the scheduler was lost; running it again goes on")
        error = result[1] if isinstance(result, tuple) else result
        if not isinstance(error, KilledWorker):
            raise error
        yield futures[future], None


def _run(job: Job[R], mark: str, limit_bytes: int | None) -> R:
    """Do one job in a worker process."""
    if limit_bytes is not None:
        # Private writable memory (getrlimit(2)): the case that asks for more fails, not the machine.
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with marked(mark):
        return job.run()


__all__ = ["ClusterName", "Crew", "Job", "cores", "free_memory_bytes", "run_jobs"]
