"""Ingest through one and more local worker processes: time, memory of the whole tree, bytes of Dask's messages.

Usage: python -m benchmarks.bench_scaling [--cases 40] [--size 512] [--workers 1 2] [--rounds 1]

Cases are LiTS phantoms of `size` x `size` pixels. Printed are, for each number of workers, the wall time, bytes of HU
per second, the largest sum of the private memory of all processes beside the plan's estimate, and the largest task
that was sent.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from livprep.cohort import IngestRequest, plan_ingest
from livprep.convert import IngestJob
from livprep.synthesis import write_lits

COMMAND = [sys.executable, "-c", "from livcli.livprep_main import main; main()"]


def tree_bytes(process: psutil.Process) -> int:
    """Private memory (USS) of a process and all below it."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def measured(sources: Path, store: Path, workers: int) -> tuple[float, int]:
    """Seconds and largest memory in bytes of one ingest."""
    began = time.perf_counter()
    command = [*COMMAND, "ingest", str(sources), "--store", str(store), "--workers", str(workers), "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        top = psutil.Process(process.pid)
        while not done.wait(0.2):
            try:
                peak = max(peak, tree_bytes(top))
            except psutil.Error:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    done.set()
    thread.join()
    if code:
        raise SystemExit(f"ingest ended with {code}")
    return time.perf_counter() - began, peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        write_lits(folder / "in", tuple(range(50, 50 + options.cases)), seed=1, size=options.size)
        planned = plan_ingest(IngestRequest((folder / "in",), folder / "plan.zarr"))
        hu_bytes = sum(need.voxel_bytes for need in planned.plan.needs)
        jobs = [
            IngestJob(case, "s", planned.catalog, planned.request.preparation, "balanced")
            for case in planned.found.cases
        ]
        largest = max(len(pickle.dumps(job)) for job in jobs)
        print(f"{options.cases} cases, {hu_bytes / 1e9:.2f} GB of HU, a task is at most {largest / 1e3:.1f} kB")
        times: dict[int, list[float]] = {}
        for _ in range(options.rounds):
            for workers in options.workers:
                seconds, peak = measured(folder / "in", folder / "store", workers)
                stored = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
                shutil.rmtree(folder / "store")
                times.setdefault(workers, []).append(seconds)
                bound = sum(sorted((need.peak_bytes for need in planned.plan.needs), reverse=True)[:workers])
                print(
                    f"{workers} worker(s): {seconds:.1f} s, {hu_bytes / seconds / 1e6:.0f} MB/s of HU, memory "
                    f"{peak / 1e6:.0f} MB (plan {bound / 1e6:.0f} MB), {stored / 1e9:.2f} GB stored"
                )
        first = min(times[options.workers[0]])
        for workers, found in times.items():
            print(f"{workers} worker(s): {first / min(found):.2f} x")


if __name__ == "__main__":
    main()
