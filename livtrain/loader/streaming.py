"""Patches in batches on a device, read ahead by threads.

Order and content depend on the seed and the counters alone: not on the number of threads, on the tier, or on where a
run was interrupted. Threads are used because decoding holds no lock of Python's, the reader does not survive a fork,
and nothing has to be sent between processes then (streaming.md, F).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from livprep.errors import StoreError, UsageError
from livprep.store import ChunkCache
from livprep.windows import WindowBank
from livtrain.dataset import WindowSource
from livtrain.loader.batch import Batch, Deliver, Margin
from livtrain.loader.filling import FaultCount, Filled
from livtrain.loader.inline import Inline
from livtrain.loader.placing import CudaPlacer
from livtrain.loader.request import LoaderCase, PatchRequest
from livtrain.loader.slots import SlotPool
from livtrain.loader.tiers import ResidentCohort, Tier, TierName, choose_tier
from livtrain.sampling import Shape
from livtrain.unpack import CtNormalization

_HINTED = 4
"""Batches between asking the kernel for a patch and reading it, beyond those that are being read."""


class PatchLoader:
    """Iterator over batches of patches; usable without the trainer.

    Up to `prefetch` batches are read ahead; a batch that is not fetched holds its place, so a slow consumer stops
    the readers. An error of a reader is raised where its batch is fetched. A patch whose chunk is damaged is drawn
    again, with a warning that names its case, until more than 0.1 % of the patches were. Close it, or use it as a
    context manager, to end the threads.

    A batch belongs to its holder: its memory is used again once no tensor of it is referred to, and not before.

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
        Odds of `tumor`, `liver`, `near` and `anywhere` patches.
    seed
        Seed of the patches.
    start
        Counter of the first patch; a resumed run continues with the number of patches it has seen.
    stop
        Counter after the last patch; endless by default.
    workers
        Threads; 0 reads each batch when it is asked for.
    prefetch
        Batches read ahead.
    device
        Where batches are put.
    source
        `packed` or `stored`, see `PatchReader`.
    deliver
        `channels`: float32 channels and uint8 labels; `packed`: the voxels as stored, unpacked on the device when
        somebody asks for channels; `nnunet`: normalized float32 HU and int16 labels.
    tier
        `auto`, `device`, `ram` or `disk` (`livtrain.loader.tiers`); the same batches from each.
    ram_budget_bytes
        Most bytes of decoded chunks; by default half of the free memory.
    patches_per_read
        Neighbors that one read serves (`PatchSampler`).
    rank, world
        Which of how many loaders this is (`Shares`).
    margin
        Voxels that a patch needs at its sides, by its counter and spacing; with `deliver="packed"` only.
    normalization
        HU of `deliver="nnunet"`.
    say
        Takes one line for the tier, and one for each patch that could not be read; by default the latter are
        warnings.
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
        deliver: Deliver = "channels",
        tier: TierName = "auto",
        ram_budget_bytes: int | None = None,
        patches_per_read: int = 1,
        rank: int = 0,
        world: int = 1,
        margin: Margin | None = None,
        normalization: CtNormalization | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if workers < 0 or prefetch < 1:
            raise UsageError(
                "CONFIG_INVALID", f"loader: workers {workers}, prefetch {prefetch}; expected >= 0 and >= 1"
            )
        request = PatchRequest(
            store, patch_zyx, batch, cases, windows, stage, odds, seed, start, stop, source, deliver, patches_per_read,
            rank, world, margin, normalization,
        )  # fmt: skip
        chosen = request.open()
        self._device = torch.device(device)
        pinned = self._device.type == "cuda"
        self._filler = request.filler(chosen, lambda dtype, *, sent: SlotPool(dtype, pinned=pinned))
        self._shares = request.shares
        self._say = say
        self._faults = FaultCount(self._shares.planned)
        self._submitted = 0
        self._closed = False
        self._workers, self._prefetch = max(workers, 1), prefetch if workers else 1
        self._ahead: deque[Future[Filled]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="livtrain-loader") if workers else Inline()
        self.tier, self._resident = self._settle(chosen, tier, ram_budget_bytes)
        """Where the voxels lie between two patches."""
        self._placer = CudaPlacer(self._filler, self._device) if pinned else None

    def _settle(
        self, cases: Mapping[str, LoaderCase], wanted: TierName, ram_budget_bytes: int | None
    ) -> tuple[Tier, ResidentCohort | None]:
        """Choose the tier and bring the voxels there."""
        uses_packed = not self._filler.delivery.from_bytes
        tier = choose_tier(
            wanted,
            list(cases.values()),
            self._device,
            uses_packed=uses_packed,
            ram_budget_bytes=ram_budget_bytes,
            processes=self._shares.world,
        )
        resident = None
        if tier.name == "device":
            try:
                resident = ResidentCohort(cases, self._device, self._workers)
            except (StoreError, torch.OutOfMemoryError) as error:
                if wanted == "device":
                    raise
                tier = Tier("disk", tier.cohort_bytes, 0, f"the cohort cannot be held on {self._device} ({error})")
        if uses_packed:
            cache = ChunkCache(tier.budget_bytes) if tier.name == "ram" else None
            for case in cases.values():
                case.use_cache(cache)
        if self._say is not None:
            self._say(tier.line)
        return tier, resident

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._resident is not None:
            return self._gathered(self._resident)
        self._submit()
        if not self._ahead:
            self.close()
            raise StopIteration
        filled = self._ahead.popleft().result()
        self._report(self._faults.count(filled))
        batch = self._filler.batch(filled) if self._placer is None else self._placer.take(filled)
        del filled  # its memory goes round
        self._submit()
        if self._placer is not None and self._ahead and self._ahead[0].done():
            self._placer.place_ahead(self._ahead[0])
        return batch

    def _gathered(self, resident: ResidentCohort) -> Batch:
        """The next batch, from the device's own memory."""
        counters = self._next_counters()
        if counters is None:
            self.close()
            raise StopIteration
        return resident.batch(self._filler, counters)

    def _next_counters(self) -> range | None:
        """Counters of the next step in which this loader has any."""
        while not self._closed and (counters := self._shares.step(self._submitted)) is not None:
            self._submitted += 1
            if len(counters):
                return counters
        return None

    def _submit(self) -> None:
        """Keep `prefetch` batches under way."""
        while len(self._ahead) < self._prefetch:
            counters = self._next_counters()
            if counters is None:
                return
            self._ahead.append(self._pool.submit(self._fill, self._submitted - 1, counters))

    def _fill(self, step: int, counters: range) -> Filled:
        """Read one batch; runs in a thread."""
        if self.tier.name == "disk":
            for later in range(1 if step == 0 else _HINTED, _HINTED + 1):
                ahead = self._shares.step(step + later)
                if ahead:
                    self._filler.will_need(ahead)
        filled = self._filler.fill(counters)
        return filled if self._placer is not None else self._filler.unpacked(filled)

    def _report(self, faults: list[str]) -> None:
        for fault in faults:
            if self._say is None:
                warnings.warn(fault, RuntimeWarning, stacklevel=4)
            else:
                self._say(f"warning: {fault}")

    def close(self) -> None:
        """End the threads; batches that were read ahead are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._resident = None
        self._closed = True

    def __enter__(self) -> PatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any:
        self.close()
