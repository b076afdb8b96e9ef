"""What a run will do and need, before it touches a voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from livprep.cases import Case
from livprep.catalog import Catalog
from livprep.errors import GeometryError
from livprep.formats.archive import close_archives, uncompressed_size
from livprep.formats.extent import stated_extent
from livprep.geometry import Geometry, Shape, Triple
from livprep.prepare import Preparation
from livprep.schema import PROFILES, ProfileName

WORKER_BASE_BYTES = 500 << 20
WORKER_FACTOR = 4
"""A worker stays below 4 times the case's int16 size + 500 MB; measured in benchmarks/bench_ingest.py."""
RESAMPLED_FACTOR = 10
"""Resampling stays below the case's int16 size + 10 times that of the new grid; measured 9.2 (258 x 730 x 730)."""
STORED_BYTES: dict[ProfileName, float] = {"fast": 5.0, "balanced": 1.8, "small": 1.6}
"""HU, packed array and labels a voxel; compressed ones measured on a patient, 1.72 and 1.54."""
CHANNEL_BYTES: dict[ProfileName, float] = {"fast": 1.0, "balanced": 0.55, "small": 0.5}
"""One channel a voxel; compressed ones measured on a patient at three windows, up to 0.52 and 0.45."""
METADATA_BYTES = 60_000
"""Attributes, positions, index and manifests of a case, about; those of a channel are a quarter."""
RESERVE = 1.2
"""Less free space than this times the estimate is refused."""


@dataclass(frozen=True)
class Need:
    """Estimated needs of one case in bytes; shape and spacing in mm (z, y, x) are those that it will have in the
    store, None where they were not looked up."""

    case_id: str
    voxel_bytes: int
    peak_bytes: int
    disk_bytes: int
    shape_zyx: Shape | None = None
    spacing_mm: Triple | None = None

    def channel_bytes(self, profile: ProfileName) -> int:
        """Disk that one channel of the case needs."""
        return channel_bytes(self.shape_zyx or (self.voxel_bytes // 2, 1, 1), profile)


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
        """Worker processes that fit into `free_bytes` of memory with any cases at once, at least one."""
        largest = sorted((need.peak_bytes for need in self.needs), reverse=True)
        fitting = sum(total <= free_bytes * 0.8 for total in accumulate(largest))
        return max(1, min(cores, fitting))


def make_plan(
    cases: Sequence[Case],
    preparation: Preparation,
    profile: ProfileName = "balanced",
    catalog: Catalog | None = None,
) -> Plan:
    """Estimate memory and disk from file sizes, and from headers what resampling makes of them.

    `catalog` knows the true spacing of scans whose header is wrong.
    """
    plain = preparation.is_native and PROFILES[profile].codec is not None
    needs = []
    for case in cases:
        size = sum(uncompressed_size(ref) for ref in case.image)
        grid = None if plain else _grid(case, preparation, catalog)
        peak = WORKER_BASE_BYTES + WORKER_FACTOR * size
        if grid is not None and not preparation.is_native:
            peak = _peak(size, 2 * math.prod(grid.shape_zyx))
        voxels = size // 2 if grid is None else stored_voxels(grid.shape_zyx, profile)
        disk = int(voxels * STORED_BYTES[profile]) + METADATA_BYTES
        shape, spacing = (None, None) if grid is None else (grid.shape_zyx, grid.spacing_mm)
        needs.append(Need(case.case_id, size, peak, disk, shape, spacing))
    close_archives()
    return Plan(tuple(sorted(needs, key=lambda need: (-need.voxel_bytes, need.case_id))), preparation)


def _grid(case: Case, preparation: Preparation, catalog: Catalog | None) -> Geometry | None:
    """The grid on which a case will be stored, as far as its header tells."""
    stated = stated_extent(case.image)
    if stated is None:
        return None
    repair = catalog.lits.repair(case.number) if catalog and case.case_id.startswith("lits-") else None
    try:
        if repair is not None and stated.spacing_mm == (1.0, 1.0, 1.0):
            stated = repair.geometry(stated.shape_zyx)
        return preparation.grid(stated)
    except GeometryError:
        return None


def stored_voxels(shape_zyx: Shape, profile: ProfileName) -> int:
    """Voxels that an array takes on disk: chunks at the far ends are whole where nothing compresses what is empty."""
    if PROFILES[profile].codec is not None:
        return math.prod(shape_zyx)
    return math.prod(-(-n // inner) * inner for n, inner in zip(shape_zyx, PROFILES[profile].inner_zyx, strict=True))


def channel_bytes(shape_zyx: Shape, profile: ProfileName) -> int:
    """Disk that one channel of a shape needs."""
    return int(stored_voxels(shape_zyx, profile) * CHANNEL_BYTES[profile]) + METADATA_BYTES // 4


def peak_bytes(source_zyx: Shape, prepared_zyx: Shape) -> int:
    """Memory of a worker that reads a scan of one shape and resamples it to another."""
    return _peak(2 * math.prod(source_zyx), 2 * math.prod(prepared_zyx))


def _peak(source_bytes: int, prepared_bytes: int) -> int:
    resampling = source_bytes + RESAMPLED_FACTOR * prepared_bytes
    return WORKER_BASE_BYTES + max(WORKER_FACTOR * source_bytes, resampling)


def too_large(
    case_id: str, shape_zyx: Shape | None, spacing_mm: Triple | None, need_bytes: int, limit_bytes: int
) -> str:
    """The text of CASE_TOO_LARGE."""
    where = ""
    if shape_zyx is not None and spacing_mm is not None:
        shape, spacing = (" x ".join(f"{n:g}" for n in values) for values in (shape_zyx, spacing_mm))
        where = f" as {shape} voxels (zyx) at {spacing} mm"
    return (
        f"{case_id}: needs about {need_bytes / 1e9:.1f} GB of memory{where}, this machine or its container gives "
        f"{limit_bytes / 1e9:.1f} GB; choose a coarser --spacing or a larger machine"
    )
