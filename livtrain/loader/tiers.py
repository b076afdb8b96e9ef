"""Where the voxels lie between two patches: on the device, decoded in main memory, or on disk.

Chosen from sizes: device memory holds the whole cohort where it can, since nothing is read and nothing is copied
then; else decoded chunks stay in main memory within a budget; else patches stream from disk, and the plan of the
next ones has the kernel fetch them. Each tier gives the same bits. A store behind a network would be one more tier
beside these: its reader fetches whole chunks in threads, and all above `PatchReader` stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.machine import free_memory_bytes
from livtrain.dataset import NO_MARGIN, CaseReader, enlarged, overlap
from livtrain.loader.batch import Batch, patches, sizes
from livtrain.loader.filling import BatchFiller
from livtrain.sampling import PatchRef, Shape

TierName = Literal["auto", "device", "ram", "disk"]
TIERS = ("auto", "device", "ram", "disk")

DEVICE_SHARE, RAM_SHARE = 0.4, 0.5
"""Part of the free memory that a cohort may take without being asked: the network and its activations, or the rest
of the machine, need the other part."""
_PACKED_BYTES = 2


class TierCase(CaseReader, Protocol):
    """What a choice asks of `livprep.store.CaseStore`."""

    def packed_bytes(self, region: tuple[slice, slice, slice] | None = None) -> int: ...


@dataclass(frozen=True)
class Tier:
    """A choice and its reason; sizes in bytes."""

    name: Literal["device", "ram", "disk"]
    cohort_bytes: int
    budget_bytes: int
    why: str

    @property
    def line(self) -> str:
        """The choice in one line."""
        return f"loader: tier {self.name}: {self.why}"


def choose_tier(
    wanted: TierName,
    cases: Sequence[TierCase],
    device: torch.device,
    *,
    uses_packed: bool = True,
    ram_budget_bytes: int | None = None,
    processes: int = 1,
    free_bytes: Callable[[torch.device], int] | None = None,
) -> Tier:
    """Choose from measured sizes.

    Parameters
    ----------
    wanted
        `auto`, or a tier that is taken whatever the sizes are.
    uses_packed
        Whether the packed array is read; other arrays stream from disk.
    ram_budget_bytes
        Most bytes of decoded chunks; half of the free memory by default.
    processes
        Loaders that share this machine's memory.
    free_bytes
        Free memory of a device; measured by default.

    Raises
    ------
    UsageError
        CONFIG_INVALID: no such tier, or `device` where channels do not come from the packed array.
    """
    if wanted not in TIERS:
        raise UsageError("CONFIG_INVALID", f"loader tier {wanted!r}: expected one of {', '.join(TIERS)}")
    cohort = sum(math.prod(case.shape_zyx) for case in cases) * _PACKED_BYTES
    if not uses_packed:
        if wanted in ("device", "ram"):
            raise UsageError(
                "CONFIG_INVALID",
                f"loader tier {wanted!r} holds the packed array, which is not read here (source 'stored', or windows "
                "beyond -1024 ... 3071 HU); expected tier disk or auto",
            )
        return Tier("disk", cohort, 0, "channels are not read from the packed array")
    free = (free_bytes or free_memory)(torch.device("cpu"))
    budget = int(RAM_SHARE * free / processes) if ram_budget_bytes is None else ram_budget_bytes
    size = _gb(cohort)
    if wanted == "device":
        return Tier("device", cohort, 0, f"{len(cases)} cases, {size} packed, asked for")
    if wanted == "ram":
        return Tier("ram", cohort, budget, f"{size} decoded, up to {_gb(budget)} of it kept, asked for")
    if wanted == "disk":
        return Tier("disk", cohort, 0, f"{size} decoded, streamed as asked for")
    if device.type != "cpu":
        room = int(DEVICE_SHARE * (free_bytes or free_memory)(device))
        if cohort <= room:
            return Tier("device", cohort, 0, f"{size} packed fit into {_gb(room)} of {device}")
    if is_uncompressed(cases[0]):
        return Tier("disk", cohort, 0, f"{size} lie uncompressed, the kernel's page cache keeps them")
    if cohort <= budget:
        return Tier("ram", cohort, budget, f"{size} decoded fit into {_gb(budget)} of free memory")
    return Tier("disk", cohort, 0, f"{size} decoded do not fit into {_gb(budget)} of free memory")


def is_uncompressed(case: TierCase) -> bool:
    """Whether a case's packed array is stored as it is; decoding it once saves nothing then."""
    return case.packed_bytes() >= math.prod(case.shape_zyx) * _PACKED_BYTES


def free_memory(device: torch.device) -> int:
    """Free bytes of a device; of main memory, what the system, control groups and the batch job all leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes()


class ResidentCohort:
    """The packed arrays of all cases as one flat tensor on a device, from which patches are gathered.

    Parameters
    ----------
    cases
        Case id to stored case.
    device
        Where the tensor lies.
    threads
        Threads that decode.
    """

    def __init__(self, cases: Mapping[str, CaseReader], device: torch.device, threads: int) -> None:
        self._shapes = {case_id: case.shape_zyx for case_id, case in cases.items()}
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        self._starts = dict(zip(cases, [0, *ends[:-1].tolist()], strict=True))
        # int16 carries the same bits, and more of torch works on it than on uint16
        self._flat = torch.empty(int(ends[-1]), dtype=torch.int16, device=device)
        with ThreadPoolExecutor(threads, thread_name_prefix="livtrain-resident") as pool:
            list(pool.map(lambda item: self._load(*item), cases.items()))

    @property
    def bytes(self) -> int:
        """Device memory in use."""
        return self._flat.numel() * _PACKED_BYTES

    def _load(self, case_id: str, case: CaseReader) -> None:
        start, shape = self._starts[case_id], self._shapes[case_id]
        part = self._flat[start : start + math.prod(shape)]
        whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        if part.device.type == "cpu":
            case.read_packed(whole, out=part.numpy().view(np.uint16).reshape(shape))
            return
        staged = case.read_packed(whole)
        part.copy_(torch.from_numpy(staged.view(np.int16).reshape(-1)))

    def batch(self, filler: BatchFiller, counters: range) -> Batch:
        """The patches of some counters."""
        refs = filler.sampler.refs(counters)
        margins, patch = filler.margins(refs), filler.reader.patch_zyx
        voxels = sum(math.prod(size) for size in sizes(patch, margins))
        if self._flat.device.type == "cpu":
            flat = torch.from_numpy(filler.buffers.slots.take((voxels,))).view(torch.int16)
        else:
            flat = torch.empty(voxels, dtype=torch.int16, device=self._flat.device)
        for ref, margin, out in zip(refs, margins, patches(flat, patch, margins), strict=True):
            self.gather(ref, patch, out, margin)
        return filler.deliver(refs, margins, flat.view(torch.uint16))

    def gather(self, ref: PatchRef, patch_zyx: Shape, out_ZYX: Tensor, margin_zyx: Shape = NO_MARGIN) -> None:
        """Copy one patch and its margin to `out_ZYX` (int16) on the device; outside the volume is 0."""
        shape = self._shapes[ref.case_id]
        start, wanted = enlarged(ref.origin_zyx, patch_zyx, margin_zyx)
        region, inside = overlap(start, wanted, shape)
        size = tuple(part.stop - part.start for part in region)
        if size != wanted:
            out_ZYX.zero_()
        steps = (shape[1] * shape[2], shape[2], 1)
        first = self._starts[ref.case_id] + sum(r.start * step for r, step in zip(region, steps, strict=True))
        out_ZYX[inside].copy_(torch.as_strided(self._flat, size, steps, first))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
