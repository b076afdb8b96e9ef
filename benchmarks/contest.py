"""One process a contestant: it opens its loader, warms it up, and measures a window of time.

Processor time is that of the process and of all its living children, user and system; workers live through the
window, so nothing of theirs is missed. A contestant that sits idle holds no worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.peers import Batch, contestant
from benchmarks.volumes import Shape

LIMIT_S = 240.0
"""Longest that one measurement may take; filling MONAI's cache is part of it."""


@dataclass(frozen=True)
class Task:
    """What to measure: a loader's setting and patch, and for how long; or, with `patches`, so many from the start."""

    setting: str
    patch: Shape
    seed: int
    warm_s: float = 2.0
    seconds: float = 5.0
    patches: int | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured: patches, wall and processor seconds, bytes from disk, and what a batch holds."""

    patches: int
    wall_s: float
    cpu_s: float
    disk_bytes: int
    delivers: str

    @property
    def per_s(self) -> float:
        """Patches per second."""
        return self.patches / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds per patch."""
        return 1000 * self.cpu_s / self.patches


class Entrant:
    """A contestant's process. It is spawned, so that nothing of another library is in it.

    Parameters
    ----------
    name
        Module of the contestant.
    folder
        Where it prepared its files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self.name, self._folder))
        self._process.start()
        far.close()

    def measure(self, task: Task) -> Measured:
        """Let it run one task.

        Raises
        ------
        RuntimeError
            It fails, with the child's traceback; or it hangs, and a fresh process stands ready for the next task.
        """
        self._pipe.send(task)
        try:
            answer = self._pipe.recv() if self._pipe.poll(LIMIT_S) else f"{self.name}: hangs for {LIMIT_S:g} s"
        except EOFError:
            answer = f"{self.name}: its process ended with {self._process.exitcode}"
        if isinstance(answer, str):
            if "Traceback" not in answer:
                self._kill()
                self._start()
            raise RuntimeError(answer)
        measured: Measured = answer
        return measured

    def _kill(self) -> None:
        """End the process and its workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                process.kill()
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            self._kill()

    def __enter__(self) -> Entrant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, name: str, folder: Path) -> None:
    """Answer tasks until None comes; runs in the child."""
    while (task := pipe.recv()) is not None:
        try:
            answer: Measured | str = _measure(name, folder, task)
        except Exception:
            answer = traceback.format_exc()
        gc.collect()  # what still maps a file would keep its pages
        pipe.send(answer)


def _measure(name: str, folder: Path, task: Task) -> Measured:
    module = contestant(name)
    cpu, disk = usage()
    started = time.perf_counter()
    with module.batches(folder, task.setting, task.patch, task.seed, task.patches) as source:
        if task.patches is None:
            _run(source, module.WARM if task.warm_s else 0, task.warm_s, module.BURST)
            cpu, disk = usage()
            started = time.perf_counter()
            count, delivers = _run(source, module.BURST, task.seconds, module.BURST)
        else:  # opening the loader counts
            count, delivers = _run(source, task.patches, 0.0, 1)
        wall = time.perf_counter() - started
        cpu_after, disk_after = usage()
    return Measured(count, wall, cpu_after - cpu, disk_after - disk, delivers)


def _run(source: Iterator[Batch], least: int, seconds: float, burst: int) -> tuple[int, str]:
    """Take batches for some seconds, at least `least` patches, until a cycle of the loader's buffers is whole."""
    started, count, delivers = time.perf_counter(), 0, ""
    while count < least or time.perf_counter() - started < seconds or count % burst:
        batch = next(source)
        count += len(batch[0])
        delivers = delivers or ", ".join(f"{str(part.dtype).removeprefix('torch.')}" for part in batch)
    return count, delivers


def usage() -> tuple[float, int]:
    """Processor seconds and bytes read from disk of this process, its threads and its living children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    cpu, disk = 0.0, 0
    for process in processes:
        try:
            times = process.cpu_times()
            cpu += times.user + times.system
            disk += process.io_counters().read_bytes
        except psutil.NoSuchProcess:  # pragma: no cover - it ended between the two lines
            continue
    return cpu, disk


@contextlib.contextmanager
def held(paths: list[Path]) -> Iterator[None]:
    """Keep files in memory meanwhile: mapped and locked, for a shared machine may drop what was read before."""
    libc = _libc()
    with contextlib.ExitStack() as stack:
        for path in paths:
            size = path.stat().st_size
            if not size:
                continue
            with path.open("rb") as file:
                # shared and for reading only: the lock of a private writable map would hold copies
                address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
                stack.callback(libc.munmap, address, size)
                failed = libc.mlock(address, size)
                while failed and file.read(1 << 22):  # not allowed to lock: read once at least
                    pass
        yield


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def evict(paths: list[Path]) -> None:
    """Drop files from the page cache; pages that a process maps stay, so nobody may hold them mapped."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def resident(paths: list[Path]) -> float:
    """Share of the pages of files that lie in the page cache (mincore)."""
    libc = _libc()
    inside = pages = 0
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        states = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc.mincore(address, size, states)
        libc.munmap(address, size)
        inside += sum(state & 1 for state in states)
        pages += len(states)
    return inside / max(pages, 1)
