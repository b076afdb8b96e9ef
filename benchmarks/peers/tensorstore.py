"""tensorstore in a torch DataLoader, on our own packed arrays: the same bytes on disk as ours, another reader.

It reads the packed array, as ours does, so that HU and label cost one read. It aborts in forked processes: workers
are spawned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import BATCH, FOREGROUND, Batch
from benchmarks.volumes import Shape, Volume

SETTINGS = ("balanced, 0 workers", "balanced, 2 workers")
PACKAGES = ("tensorstore", "torch")
BURST = BATCH
WARM = 16 * BATCH
_POINTS = 4096
_ENDLESS = 1 << 40


def prepare(volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape]) -> None:
    """Foreground voxels to center patches on; the arrays are those of our stores."""
    if (folder / "points.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    points = {}
    for volume in volumes:
        found = np.flatnonzero(volume.labels)
        chosen = np.unravel_index(rng.choice(found, _POINTS), volume.labels.shape)
        points[volume.case_id] = np.stack(chosen, axis=1).astype(np.int32)
    np.savez(folder / "points.npz", **points)


def _array(folder: Path, setting: str, case_id: str) -> Path:
    return folder.parent / f"{setting.split(',')[0]}.zarr" / "cases" / case_id / "train" / "packed"


def files(folder: Path, setting: str, patch: Shape) -> list[Path]:
    """Shards of the packed arrays."""
    with np.load(folder / "points.npz") as points:
        arrays = [_array(folder, setting, case_id) for case_id in points]
    return [path for array in arrays for path in sorted(array.rglob("*")) if path.is_file()]


class Patches(Dataset[Any]):
    """Patch k of (seed, k), opened in the process that reads it; pickles as paths."""

    def __init__(self, folder: Path, setting: str, patch: Shape, seed: int) -> None:
        self.patch = patch
        self.seed = seed
        with np.load(folder / "points.npz") as points:
            self.points = dict(points)
        self.names = sorted(self.points)
        self.arrays = [_array(folder, setting, case_id) for case_id in self.names]
        self.opened: list[Any] = []

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, counter: int) -> torch.Tensor:
        if not self.opened:
            self._open()
        rng = np.random.default_rng([self.seed, counter])
        which = int(rng.integers(len(self.opened)))
        array = self.opened[which]
        room = np.array(array.shape) - self.patch
        if rng.random() < FOREGROUND:
            points = self.points[self.names[which]]
            start = np.clip(points[rng.integers(len(points))] - np.array(self.patch) // 2, 0, room)
        else:
            start = rng.integers(0, room + 1)
        region = tuple(slice(int(low), int(low) + size) for low, size in zip(start, self.patch, strict=True))
        return torch.from_numpy(array[region].read().result())

    def _open(self) -> None:
        import tensorstore

        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self.opened = [
            tensorstore.open(
                {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}},
                context=context,
                open=True,
                read=True,
                recheck_cached_metadata="open",
                recheck_cached_data="open",  # otherwise every read asks for the file's age again
            ).result()
            for path in self.arrays
        ]


@contextlib.contextmanager
def batches(folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None) -> Iterator[Iterator[Batch]]:
    """Batches of packed uint16."""
    workers = int(setting.split(", ")[1].split()[0])
    loader = DataLoader(
        Patches(folder, setting, patch, seed),
        batch_size=BATCH,
        sampler=range(_ENDLESS),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    source = iter(loader)
    try:
        yield ((batch,) for batch in source)
    finally:
        if workers:
            with contextlib.suppress(RuntimeError):  # its threads may abort a worker that is told to end
                source._shutdown_workers()  # type: ignore[attr-defined]
