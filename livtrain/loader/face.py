"""The same patches for users of torch's DataLoader: worker processes that fill shared slots.

A fresh 12 MB batch costs 14 ms of processor time on its way through a DataLoader, a batch in memory that is shared
already less than 1 ms (streaming.md, F). So each worker fills a ring of shared slots, and only handles are sent.
`PatchLoader` needs no processes and is what the trainer uses.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from livprep.errors import UsageError
from livtrain.loader.batch import Batch
from livtrain.loader.filling import FaultCount, Memory
from livtrain.loader.request import PatchRequest
from livtrain.loader.slots import SlotPool

_SPARE_SLOTS = 3
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, not written


class PatchDataset(IterableDataset[Batch]):
    """Batches for a DataLoader with `batch_size=None`; `loader` makes one.

    Worker w of n takes steps w, w + n, ...; the DataLoader takes from the workers in turn, so the stream is that of
    one process. Each iteration begins at `start` again.

    A worker fills `prefetch_factor + 3` slots in turn. A DataLoader asks a worker for at most `prefetch_factor`
    batches that it has not handed on, so a batch stays as it is until two more batches of the same worker were
    fetched; who keeps one for longer clones its tensors, or sets `reuse_slots=False` (each batch has its own memory,
    at the cost above). Without workers nothing is shared, and batches are their holder's as with `PatchLoader`.

    Parameters
    ----------
    request
        Which patches.
    prefetch_factor
        That of the DataLoader.
    reuse_slots
        Whether slots go round.
    """

    def __init__(self, request: PatchRequest, *, prefetch_factor: int = 2, reuse_slots: bool = True) -> None:
        super().__init__()
        if prefetch_factor < 1:
            raise UsageError("CONFIG_INVALID", f"loader: prefetch_factor {prefetch_factor}; expected >= 1")
        self.request, self.prefetch_factor, self.reuse_slots = request, prefetch_factor, reuse_slots

    def loader(
        self,
        workers: int = 2,
        *,
        start_method: Literal["forkserver", "spawn"] = "forkserver",
        pin_memory: bool = False,
    ) -> DataLoader[Batch]:
        """A DataLoader of these batches; fewer workers, and a warning, where shared memory does not hold their slots.

        Containers often have 64 MB of it, and a worker that runs over dies of a bus error.
        """
        fitting = self._fitting(workers)
        if fitting < workers:
            warnings.warn(
                f"loader: {_SHARED_MEMORY} holds the slots of {fitting} workers, expected {workers}; "
                f"going on with {fitting}. More shared memory (docker: --shm-size) or a smaller batch takes them all",
                RuntimeWarning,
                stacklevel=2,
            )
        if fitting == 0:
            return DataLoader(self, batch_size=None, pin_memory=pin_memory)
        return DataLoader(
            self,
            batch_size=None,
            num_workers=fitting,
            prefetch_factor=self.prefetch_factor,
            multiprocessing_context=start_method,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if isinstance(multiprocessing.current_process(), ForkProcess):
            raise UsageError(
                "CONFIG_INVALID",
                "loader: a worker was forked, which the reader's libraries do not survive; "
                "expected DataLoader(..., multiprocessing_context='forkserver') or PatchDataset.loader()",
            )
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        filler = self.request.filler(self.request.open(), self._memory(in_worker=worker is not None))
        number, faults = first, FaultCount(self.request.shares.planned / step)
        while (counters := self.request.shares.step(number)) is not None:
            number += step
            if len(counters):
                filled = filler.unpacked(filler.fill(counters))
                for fault in faults.count(filled):
                    warnings.warn(fault, RuntimeWarning, stacklevel=2)
                yield filler.batch(filled)

    def _memory(self, *, in_worker: bool) -> Any:
        slots = self.prefetch_factor + _SPARE_SLOTS if self.reuse_slots else None

        def make(dtype: str, *, sent: bool) -> Memory:
            return SharedSlots(dtype, slots) if sent and in_worker else SlotPool(dtype)

        return make

    def _fitting(self, workers: int) -> int:
        """How many workers' slots fit into the shared memory that is free."""
        if not _SHARED_MEMORY.is_dir():
            return workers
        request = self.request
        voxels = request.batch * math.prod(request.patch_zyx)
        if request.deliver == "packed":
            size = 2 * voxels
        elif request.deliver == "nnunet":
            size = (4 + 2) * voxels
        else:
            bank = next(iter(request.open().values())).windows if request.windows is None else request.windows
            size = (4 * len(bank) + 1) * voxels
        free = shutil.disk_usage(_SHARED_MEMORY).free
        return min(workers, free // (size * (self.prefetch_factor + _SPARE_SLOTS)))


class SharedSlots:
    """Shared memory for arrays that are sent to another process: a ring, or fresh memory for each.

    Parameters
    ----------
    dtype
        Of the arrays.
    count
        Slots of the ring; None for fresh memory each time.
    """

    def __init__(self, dtype: str, count: int | None) -> None:
        self._dtype, self._count = np.dtype(dtype), count
        self._ring: list[Tensor] = []
        self._turn = 0
        self._latest: tuple[npt.NDArray[Any], Tensor] | None = None

    def take(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """The next slot as an array; its content is that of an older batch."""
        size = math.prod(shape) * self._dtype.itemsize
        slot = self._slot(size)
        tensor = slot[:size].view(getattr(torch, self._dtype.name)).view(tuple(shape))
        array = tensor.numpy()
        self._latest = array, tensor
        return array

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """The shared tensor of the array that was taken last; a tensor made from the array would be copied."""
        assert self._latest is not None
        assert self._latest[0] is array
        return self._latest[1]

    def _slot(self, size: int) -> Tensor:
        k = 0 if self._count is None else self._turn % self._count
        self._turn += 1
        if k == len(self._ring):
            self._ring.append(_shared(size))
        elif self._count is None or self._ring[k].numel() < size:
            self._ring[k] = _shared(size)
        return self._ring[k]


def _shared(size: int) -> Tensor:
    memory = torch.empty(size, dtype=torch.uint8)
    memory.share_memory_()  # type: ignore[no-untyped-call]
    return memory
