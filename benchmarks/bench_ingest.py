"""Time, processor time and peak memory of ingesting each case in a process of its own.

    python -m benchmarks.bench_ingest [SRC...] [--spacing 3]

Without SRC it measures phantoms of both data sets. The bound on memory is 4 x the case's int16 size + 500 MB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from livprep.catalog import load_catalog
from livprep.convert import IngestJob, ingest_case
from livprep.prepare import Preparation
from livprep.sources import catalog_beside, discover
from livprep.store import create_store, open_store


def measure(job: IngestJob, queue: multiprocessing.Queue[tuple[float, float, float, str]]) -> None:
    """Run one job and send wall s, processor s, peak MB and the status."""
    started = time.perf_counter()
    receipt = ingest_case(job)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter() - started
    queue.put((wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, receipt.status))


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--spacing", type=float, default=None, help="mm along every axis; native by default")
    parser.add_argument("--size", type=int, default=128, help="pixels of the phantoms")
    parser.add_argument("--cases", type=int, default=2, help="phantoms a data set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sources = options.sources or phantoms(Path(scratch) / "data", options.cases, options.size)
        store = Path(scratch) / "bench.zarr"
        catalog = load_catalog(catalog_beside(sources))
        preparation = Preparation((options.spacing,) * 3)
        create_store(store, preparation, "balanced", catalog.digest)
        print(describe("numpy", "zarr", "pydicom", "nibabel"))
        print(f"{'case':<12} {'int16 MB':>9} {'wall s':>7} {'cpu s':>7} {'peak MB':>8} {'bound MB':>9}  status")
        for case in discover(sources, catalog).cases:
            report(IngestJob(case, str(store), catalog, preparation, "balanced"))


def phantoms(dest: Path, cases: int, size: int) -> list[Path]:
    """Phantoms of both data sets."""
    from livprep.synthesis import write_phantoms

    write_phantoms(dest, "both", cases=cases, seed=0, size=size)
    return [dest / "ircadb", dest / "lits"]


def report(job: IngestJob) -> None:
    """Measure one job in a fresh process and print its line."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[float, float, float, str]] = context.Queue()
    process = context.Process(target=measure, args=(job, queue))
    process.start()
    wall, cpu, peak, status = queue.get()
    process.join()
    z, y, x = open_store(Path(job.store))[job.name].source_geometry.shape_zyx
    size = z * y * x * 2 / 2**20
    print(f"{job.name:<12} {size:9.1f} {wall:7.2f} {cpu:7.2f} {peak:8.0f} {4 * size + 500:9.0f}  {status}", flush=True)


if __name__ == "__main__":
    main()
