"""Does the loader's cost grow with the cohort, does its memory grow with time, what does handing a batch over cost?

    python -m benchmarks.bench_cohort_growth STORE [--cases 10,100,1000] [--patches 10000] [--patch 128,128,128]

STORE's cases are linked under new names, so that every cohort reads the same bytes. Loaders of all sizes are measured
in turns within each round; processor time counts, as other work may share the machine. What a run pays once (a
case's index, the map and page table of its shard, the crc32c of each chunk) is shown apart: the first 1000 patches
of each cohort, then the rounds after every chunk was touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from benchmarks.machine import describe
from livprep.store import open_store
from livtrain import Batch, PatchDataset, PatchLoader, PatchRequest
from livtrain.loader.filling import Filled


def linked(source: Path, folder: Path, count: int) -> Path:
    """A store of `count` cases that are links to those of `source`."""
    (folder / "cases").mkdir(parents=True)
    shutil.copy(source / "zarr.json", folder / "zarr.json")
    cases = sorted(path for path in (source / "cases").iterdir() if path.is_dir())
    for k in range(count):
        (folder / "cases" / f"case-{k:04d}").symlink_to(cases[k % len(cases)].resolve())
    return folder


@dataclass
class Cohort:
    """A loader over one cohort, and what was measured of it."""

    size: int
    start_s: float
    first_s: float
    loader: PatchLoader
    store: Path
    first_cpu_ms: float = 0.0
    cpu_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, store: Path, size: int, patch: tuple[int, int, int]) -> Cohort:
        """Time from a path to a loader, and to its first batch."""
        began = time.perf_counter()
        loader = PatchLoader(open_store(store), patch, 2, deliver="packed", tier="disk", workers=2)
        start_s = time.perf_counter() - began
        next(loader)
        return cls(size, start_s, time.perf_counter() - began, loader, store)

    def touch(self) -> None:
        """Read every chunk once through the loader's own cases."""
        for case in self.loader._filler.reader._cases.values():
            case.read_packed()

    def stream(self, batches: int) -> None:
        """Take some batches."""
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(batches):
            next(self.loader)
        self.cpu_ms.append(1000 * (time.process_time() - cpu) / batches / 2)
        self.per_s.append(2 * batches / (time.perf_counter() - began))


def growth(store: Path, sizes: list[int], patch: tuple[int, int, int], patches: int, scratch: Path) -> None:
    """Print one line a cohort, and how memory, threads and handles went in the largest."""
    with PatchLoader(open_store(store), patch, 2, deliver="packed", tier="disk") as warm:
        next(warm)  # imports and compiled code, which every process pays once
    cohorts = [Cohort.open(linked(store, scratch / str(size), size), size, patch) for size in sizes]
    for cohort in cohorts:
        cohort.stream(500)
        cohort.first_cpu_ms = cohort.cpu_ms.pop()
        cohort.per_s.clear()
        cohort.touch()
    rounds = max(patches // 1000, 1)
    seen = []
    for _ in range(rounds):
        for cohort in cohorts:
            cohort.stream(500)
        handles = len(list(Path("/proc/self/fd").iterdir()))
        seen.append((_own_mib(), threading.active_count(), handles))
    print("cases  start s  first batch s  CPU ms/patch: first 1000   after   ratio  patches/s")
    for cohort in cohorts:
        ratios = [own / least for own, least in zip(cohort.cpu_ms, cohorts[0].cpu_ms, strict=True)]
        print(
            f"{cohort.size:>5} {cohort.start_s:>8.2f} {cohort.first_s:>14.2f} {cohort.first_cpu_ms:>25.2f} "
            f"{statistics.median(cohort.cpu_ms):>7.2f} {statistics.median(ratios):>7.2f} "
            f"{statistics.median(cohort.per_s):>10.0f}"
        )
        cohort.loader.close()
    print(f"rounds of 1000 patches a cohort: {rounds}")
    print("after each: " + ", ".join(f"{own:.0f} MiB own/{threads} threads/{fds} fds" for own, threads, fds in seen))


def _own_mib() -> float:
    """Resident memory of the process without the pages of mapped files, which the system may take back."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(rows["RssAnon"].split()[0]) / 1024


class _Unread(PatchDataset):
    """Batches whose slots are taken and sent, but never filled: what is left is transport."""

    def __iter__(self) -> Iterator[Batch]:
        request = self.request
        filler = request.filler(request.open(), self._memory(in_worker=True))
        voxels = request.batch * request.patch_zyx[0] * request.patch_zyx[1] * request.patch_zyx[2]
        number = 0
        while (counters := request.shares.step(number)) is not None:
            number += 1
            refs = filler.sampler.refs(counters)
            flat = filler.buffers.slots.take((voxels,))
            yield filler.batch(Filled(refs, [], filler.margins(refs), flat=flat))


def transport(store: Path, batches: int = 300) -> None:
    """Print the processor time, on both sides, of handing one batch of 12.6 MB through a DataLoader worker."""
    request = PatchRequest(open_store(store), (128, 128, 128), 3, deliver="packed", stop=3 * (batches + 50))
    for strategy in ("file_descriptor", "file_system"):
        torch.multiprocessing.set_sharing_strategy(strategy)
        for reuse in (True, False):
            stream = iter(_Unread(request, reuse_slots=reuse).loader(1, start_method="spawn"))
            for _ in range(50):
                next(stream)
            worker = psutil.Process().children(recursive=True)
            before = _cpu_s(worker)
            for _ in range(batches - 50):
                next(stream)
            spent_ms = 1000 * (_cpu_s(worker) - before) / (batches - 50)
            kind = "reused" if reuse else "fresh"
            print(f"transport, {strategy}, slots {kind}: {spent_ms:.2f} CPU ms per 12.6 MB batch")
            del stream


def _cpu_s(workers: list[psutil.Process]) -> float:
    return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--cases", default="10,100,1000")
    parser.add_argument("--patches", type=int, default=10_000, help="patches a cohort")
    parser.add_argument("--patch", default="128,128,128")
    options = parser.parse_args()
    z, y, x = (int(part) for part in options.patch.split(","))
    print(describe("numpy", "torch", "zarr", "numba"), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        growth(options.store, [int(n) for n in options.cases.split(",")], (z, y, x), options.patches, Path(scratch))
    transport(options.store)


if __name__ == "__main__":
    main()
