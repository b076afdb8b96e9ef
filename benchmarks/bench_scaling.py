"""Ingest through one and more local worker processes: time, memory of the whole tree, bytes of Dask's messages.

Usage: python -m benchmarks.bench_scaling [--cases 40] [--size 512] [--workers 1 2] [--rounds 3]

Cases are LiTS phantoms of `size` x `size` pixels. Printed are, for each number of workers, the wall time of the whole
command, bytes of HU per second, the largest sum of the private memory of all processes beside the plan's estimate, and
the largest task that was sent. Rounds are interleaved; memory is watched in a run of its own, because asking the kernel
for the private pages of a process holds that process up.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import statistics
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


def started(sources: Path, store: Path, workers: int) -> subprocess.Popen[bytes]:
    """One ingest, begun."""
    command = [*COMMAND, "ingest", str(sources), "--store", str(store), "--workers", str(workers), "-q"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for an ingest that has to succeed."""
    if code := process.wait():
        raise SystemExit(f"ingest ended with {code}")


def seconds_of(sources: Path, store: Path, workers: int) -> float:
    """Seconds of one ingest, from its start to its end."""
    began = time.perf_counter()
    ended(started(sources, store, workers))
    return time.perf_counter() - began


def memory_of(sources: Path, store: Path, workers: int) -> int:
    """Largest private memory in bytes of one ingest and all that it starts."""
    process = started(sources, store, workers)
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
    process.wait()
    done.set()
    thread.join()
    ended(process)
    return peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
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
        store = folder / "store"
        for number in range(options.rounds):
            for workers in options.workers if number % 2 == 0 else reversed(options.workers):
                seconds = seconds_of(folder / "in", store, workers)
                times.setdefault(workers, []).append(seconds)
                print(f"{workers} worker(s): {seconds:.1f} s, {hu_bytes / seconds / 1e6:.0f} MB/s of HU", flush=True)
                stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
                shutil.rmtree(store)
        first = statistics.median(times[options.workers[0]])
        for workers, found in times.items():
            peak = memory_of(folder / "in", store, workers)
            shutil.rmtree(store)
            bound = sum(sorted((need.peak_bytes for need in planned.plan.needs), reverse=True)[:workers])
            print(
                f"{workers} worker(s): {first / statistics.median(found):.2f} x, memory {peak / 1e6:.0f} MB "
                f"(plan {bound / 1e6:.0f} MB), {stored / 1e9:.2f} GB stored"
            )


if __name__ == "__main__":
    main()
