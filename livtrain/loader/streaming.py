"""Patches in batches on a device, read ahead by threads.

Order and content depend on the seed and the counters alone, never on the number of threads. Threads are used
because the reader works on zarr, whose event loop does not survive a fork, and because nothing has to be sent
between processes then (streaming.md, F).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.geometry import Geometry, Triple
from livprep.labels import Label
from livprep.windows import WindowBank
from livtrain.dataset import CaseReader, PatchReader, WindowSource
from livtrain.sampling import STAGE_ODDS, CaseIndex, PatchRef, PatchSampler, Shape
from livtrain.stages import get_stage


class LoaderCase(CaseReader, Protocol):
    """What the loader asks of `livprep.store.CaseStore`."""

    @property
    def case_id(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def windows(self) -> WindowBank: ...
    def class_points(self, label: Label) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on the device.

    Parameters
    ----------
    image_BCZYX
        float32 channels, 0...1 = uint8 / 255.
    labels_BZYX
        uint8 labels 0, 1, 2; 15 where a case has none.
    counters
        Counter of each patch; patch k is a function of (seed, k).
    case_ids
        Case of each patch.
    spacing_mm
        Voxel distances (zyx, mm) of each patch.
    """

    image_BCZYX: Tensor
    labels_BZYX: Tensor
    counters: tuple[int, ...]
    case_ids: tuple[str, ...]
    spacing_mm: tuple[Triple, ...]


@dataclass(frozen=True, eq=False)
class _Slot:
    """Host memory of one batch, used again and again; pinned where the device is CUDA."""

    image: Tensor
    labels: Tensor


class PatchLoader:
    """Iterator over batches of patches; usable without the trainer.

    Up to `prefetch` batches are read ahead; a batch that is not fetched holds its place, so a slow consumer stops
    the readers. An error of a reader is raised where its batch is fetched. Close it, or use it as a context
    manager, to end the threads.

    Parameters
    ----------
    store
        Case id to stored case (`livprep.open_store`).
    patch_zyx
        Shape of a patch in voxels.
    batch
        Patches in a batch.
    cases
        Case ids to draw from; all of the store by default.
    windows
        Channels; by default those that the first case stores.
    stage
        Decides the default odds of the kinds of patches.
    odds
        Odds of `tumor`, `liver` and `anywhere` patches.
    seed
        Seed of the patches.
    start
        Counter of the first patch; a resumed run continues with the number of patches it has seen.
    stop
        Counter after the last patch; endless by default.
    workers
        Threads.
    prefetch
        Batches read ahead.
    device
        Where batches are put.
    source
        `packed` or `stored`, see `PatchReader`.
    """

    def __init__(
        self,
        store: Mapping[str, LoaderCase],
        patch_zyx: Shape,
        batch: int,
        *,
        cases: Sequence[str] | None = None,
        windows: WindowBank | None = None,
        stage: str = "liver",
        odds: Mapping[str, float] | None = None,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        workers: int = 2,
        prefetch: int = 4,
        device: torch.device | str = "cpu",
        source: WindowSource = "packed",
    ) -> None:
        chosen = {case_id: store[case_id] for case_id in (store if cases is None else cases)}
        if not chosen or batch < 1 or workers < 1 or prefetch < 1:
            raise UsageError(
                "CONFIG_INVALID",
                f"loader: {len(chosen)} cases, batch {batch}, workers {workers}, prefetch {prefetch}; expected >= 1",
            )
        bank = next(iter(chosen.values())).windows if windows is None else windows
        if not len(bank):
            raise UsageError("NO_WINDOWS", "loader: no windows given and none stored; run `livprep window` first")
        self._spacing = {case_id: case.geometry.spacing_mm for case_id, case in chosen.items()}
        self._sampler = PatchSampler(
            [CaseIndex.of(case) for case in chosen.values()], patch_zyx, odds or STAGE_ODDS[get_stage(stage).name], seed
        )
        self._reader = PatchReader(chosen, patch_zyx, bank, source)
        self._batch, self._next, self._stop = batch, start, stop
        self._device = torch.device(device)
        pin = self._device.type == "cuda"
        shape = (batch, len(bank), *patch_zyx)
        self._slots = deque(
            _Slot(
                torch.zeros(shape, dtype=torch.uint8, pin_memory=pin),
                torch.zeros((batch, *patch_zyx), dtype=torch.uint8, pin_memory=pin),
            )
            for _ in range(prefetch)
        )
        self._copies = torch.cuda.Stream(self._device) if pin else None  # type: ignore[no-untyped-call]
        self._ahead: deque[tuple[Future[list[PatchRef]], _Slot]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="livtrain-loader")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._submit()
        if not self._ahead:
            self.close()
            raise StopIteration
        future, slot = self._ahead.popleft()
        refs = future.result()
        image, labels = self._to_device(slot, len(refs))
        self._slots.append(slot)
        self._submit()
        return Batch(
            image_BCZYX=image.float().div_(255),
            labels_BZYX=labels,
            counters=tuple(ref.counter for ref in refs),
            case_ids=tuple(ref.case_id for ref in refs),
            spacing_mm=tuple(self._spacing[ref.case_id] for ref in refs),
        )

    def _to_device(self, slot: _Slot, count: int) -> tuple[Tensor, Tensor]:
        """Copy a slot's first patches; when this returns, the slot may be filled again."""
        if self._copies is None:
            return slot.image[:count].to(self._device, copy=True), slot.labels[:count].to(self._device, copy=True)
        with torch.cuda.stream(self._copies):  # beside the network's stream: waits for the copy alone
            image = slot.image[:count].to(self._device, non_blocking=True)
            labels = slot.labels[:count].to(self._device, non_blocking=True)
        self._copies.synchronize()
        for tensor in (image, labels):
            tensor.record_stream(torch.cuda.current_stream(self._device))
        return image, labels

    def _submit(self) -> None:
        """Hand free slots to the threads."""
        while self._slots and (self._stop is None or self._next < self._stop):
            slot = self._slots.popleft()
            last = self._next + self._batch if self._stop is None else min(self._next + self._batch, self._stop)
            self._ahead.append((self._pool.submit(self._fill, slot, range(self._next, last)), slot))
            self._next = last

    def _fill(self, slot: _Slot, counters: range) -> list[PatchRef]:
        """Read the patches of some counters into a slot; runs in a thread."""
        refs = [self._sampler[counter] for counter in counters]
        image, labels = slot.image.numpy(), slot.labels.numpy()
        for position, ref in enumerate(refs):
            self._reader.read(ref, image[position], labels[position])
        return refs

    def close(self) -> None:
        """End the threads; batches that were read ahead are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._slots.clear()

    def __enter__(self) -> PatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any:
        self.close()
