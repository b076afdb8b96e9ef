"""What a run will do and need, before it touches a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livprep.cases import Case
from livprep.formats.archive import close_archives, uncompressed_size
from livprep.prepare import Preparation

WORKER_BASE_BYTES = 500 << 20
WORKER_FACTOR = 4
"""A worker stays below 4 times the case's int16 size + 500 MB; measured in benchmarks/bench_ingest.py."""
DISK_FACTOR = 1.2
"""HU and the packed array at lz4hc's measured 2.4-fold each, labels and index: about 0.9; with a reserve."""


@dataclass(frozen=True)
class Need:
    """Estimated needs of one case in bytes."""

    case_id: str
    voxel_bytes: int
    peak_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Plan:
    """Needs of all cases, the largest first: the order in which a pool finishes earliest."""

    needs: tuple[Need, ...]
    preparation: Preparation

    @property
    def peak_bytes(self) -> int:
        """Memory that the largest case needs."""
        return max((need.peak_bytes for need in self.needs), default=0)

    @property
    def disk_bytes(self) -> int:
        """Disk that all cases need."""
        return sum(need.disk_bytes for need in self.needs)

    def workers(self, cores: int, free_bytes: int) -> int:
        """Worker processes that fit into `free_bytes` of memory, at least one."""
        by_memory = int(free_bytes * 0.8 // self.peak_bytes) if self.peak_bytes else cores
        return max(1, min(cores, len(self.needs), by_memory))


def make_plan(cases: Sequence[Case], preparation: Preparation) -> Plan:
    """Estimate memory and disk from file sizes; resampling to finer grids is not foreseen."""
    needs = []
    for case in cases:
        size = sum(uncompressed_size(ref) for ref in case.image)
        peak = WORKER_BASE_BYTES + WORKER_FACTOR * size
        needs.append(Need(case.case_id, size, peak, int(size * DISK_FACTOR)))
    close_archives()
    return Plan(tuple(sorted(needs, key=lambda need: (-need.voxel_bytes, need.case_id))), preparation)
