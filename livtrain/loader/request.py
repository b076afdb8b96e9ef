"""Which patches a loader delivers and in which form; what threads, workers and ranks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from livprep.errors import UsageError
from livprep.geometry import Geometry
from livprep.labels import Label
from livprep.store import ChunkCache
from livprep.windows import WindowBank
from livtrain.dataset import PatchReader, WindowSource
from livtrain.loader.batch import Deliver, Delivery, Margin
from livtrain.loader.filling import BatchFiller, Buffers, Memory
from livtrain.loader.tiers import TierCase
from livtrain.sampling import STAGE_ODDS, CaseIndex, PatchSampler, Shape
from livtrain.stages import get_stage
from livtrain.unpack import CtNormalization


class LoaderCase(TierCase, Protocol):
    """What the loader asks of `livprep.store.CaseStore`."""

    @property
    def case_id(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def windows(self) -> WindowBank: ...
    @property
    def near_count(self) -> int: ...
    def class_count(self, label: Label) -> int: ...
    def class_points(self, label: Label) -> npt.NDArray[np.int32]: ...
    def near_points(self) -> npt.NDArray[np.int32]: ...
    def use_cache(self, cache: ChunkCache | None) -> None: ...


class MemoryMaker(Protocol):
    """Makes the memory of one kind of array; `sent` arrays leave the loader, others only go through it."""

    def __call__(self, dtype: str, /, *, sent: bool) -> Memory: ...


@dataclass(frozen=True)
class Shares:
    """Which counters one of several loaders takes.

    The global batch of a step, `batch * world` consecutive counters, is cut into one run of `batch` for each rank:
    rank r takes `[r * batch, (r + 1) * batch)` of it. The ranks are disjoint, and in the order of the ranks they are
    the stream of one loader with the batch `batch * world`. Counters start at `start` and end before `stop`; in a
    last step that is not whole, later ranks get fewer or none.
    """

    batch: int
    start: int = 0
    stop: int | None = None
    rank: int = 0
    world: int = 1

    @property
    def planned(self) -> float:
        """Patches that this loader takes in all; 0 where there is no end."""
        return 0 if self.stop is None else max(self.stop - self.start, 0) / self.world

    def step(self, number: int) -> range | None:
        """Counters of one step, possibly none; None after the last step."""
        first = self.start + number * self.batch * self.world
        if self.stop is not None and first >= self.stop:
            return None
        low = first + self.rank * self.batch
        high = low + self.batch if self.stop is None else min(low + self.batch, self.stop)
        return range(low, max(low, high))


@dataclass(frozen=True, eq=False)
class PatchRequest:
    """What is to be delivered; the fields are those of `PatchLoader`. Pickles as the store does, by its path."""

    store: Mapping[str, LoaderCase]
    patch_zyx: Shape
    batch: int
    cases: Sequence[str] | None = None
    windows: WindowBank | None = None
    stage: str = "liver"
    odds: Mapping[str, float] | None = None
    seed: int = 0
    start: int = 0
    stop: int | None = None
    source: WindowSource = "packed"
    deliver: Deliver = "channels"
    patches_per_read: int = 1
    rank: int = 0
    world: int = 1
    margin: Margin | None = None
    normalization: CtNormalization | None = None

    def __post_init__(self) -> None:
        counts = (len(self.store if self.cases is None else self.cases), self.batch, self.patches_per_read)
        if min(counts) < 1 or not 0 <= self.rank < self.world:
            raise UsageError(
                "CONFIG_INVALID",
                f"loader: {counts[0]} cases, batch {self.batch}, patches_per_read {self.patches_per_read}; "
                f"expected >= 1 of each; rank {self.rank} of {self.world}",
            )
        if self.margin is not None and self.deliver != "packed":
            raise UsageError("CONFIG_INVALID", f"loader: a margin with deliver {self.deliver!r}; expected 'packed'")

    @property
    def shares(self) -> Shares:
        """The counters."""
        return Shares(self.batch, self.start, self.stop, self.rank, self.world)

    def open(self) -> dict[str, LoaderCase]:
        """The cases to draw from."""
        return {case_id: self.store[case_id] for case_id in (self.store if self.cases is None else self.cases)}

    def filler(self, cases: Mapping[str, LoaderCase], memory: MemoryMaker) -> BatchFiller:
        """What reads the batches.

        Raises
        ------
        UsageError
            NO_WINDOWS or CONFIG_INVALID: what is asked for cannot be had of these cases.
        """
        bank = next(iter(cases.values())).windows if self.windows is None else self.windows
        reader = PatchReader(cases, self.patch_zyx, bank, self.source)
        delivery = Delivery.of(self.deliver, bank, reader.uses_packed, self.normalization or CtNormalization())
        sampler = PatchSampler(
            [CaseIndex.of(case) for case in cases.values()],
            self.patch_zyx,
            self.odds or STAGE_ODDS[get_stage(self.stage).name],
            self.seed,
            self.patches_per_read,
        )
        buffers = Buffers(
            memory("uint8" if delivery.from_bytes else "uint16", sent=self.deliver == "packed"),
            memory("float32", sent=True),
            memory(delivery.label_type, sent=True),
        )
        spacing = {case_id: case.geometry.spacing_mm for case_id, case in cases.items()}
        return BatchFiller(sampler, reader, delivery, spacing, self.margin, buffers)
