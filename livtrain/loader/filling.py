"""Fill the host memory of one batch: plan, read, and draw again what cannot be read. Runs in threads or workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from livprep.errors import StoreError
from livprep.geometry import Triple
from livtrain.dataset import NO_MARGIN, PatchReader
from livtrain.loader.batch import Batch, Delivery, Margin, patches, sizes
from livtrain.sampling import PatchRef, PatchSampler, Shape
from livtrain.unpack import unit_interval, unpack_arrays, unpack_into

Array = npt.NDArray[Any]
DAMAGED = ("STORE_CORRUPT", "STORE_DECODE")
"""Errors of one chunk, after which the run goes on without it."""
FAULTS_ALLOWED = 0.001
"""Part of the patches that may be unreadable before a run ends (reliability.md)."""
_MOST_ATTEMPTS = 8
"""Draws of a patch before its error is passed on."""


class Memory(Protocol):
    """Where the arrays of batches come from."""

    def take(self, shape: Sequence[int], /) -> Array: ...
    def tensor(self, array: Array, /) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Buffers:
    """Memory of what is read (uint16, or uint8 where channels are), and of channels and labels as delivered."""

    slots: Memory
    images: Memory
    labels: Memory


@dataclass(frozen=True, eq=False)
class Filled:
    """A batch in host memory.

    Parameters
    ----------
    refs
        What was read, in order.
    faults
        One line for each patch that could not be read and was drawn again.
    margins_zyx
        Voxels that each patch of `flat` is larger at its sides.
    flat
        uint16 packed voxels, the patches one after the other; None where `image` holds the channels.
    image, labels
        `(B, C, Z, Y, X)` channels and `(B, Z, Y, X)` labels: uint8 channels as stored, or unpacked ones.
    """

    refs: list[PatchRef]
    faults: list[str]
    margins_zyx: tuple[Shape, ...]
    flat: Array | None = None
    image: Array | None = None
    labels: Array | None = None


class FaultCount:
    """Counts patches that were drawn again, and ends the run where there are too many of them.

    Parameters
    ----------
    planned
        Patches of the whole run, 0 where they are not known; what was seen counts then.
    """

    def __init__(self, planned: float) -> None:
        self._planned, self._seen, self._faults = planned, 0, 0

    def count(self, filled: Filled) -> list[str]:
        """One line for each fault of a batch.

        Raises
        ------
        StoreError
            STORE_CORRUPT: more than `FAULTS_ALLOWED` of the patches could not be read.
        """
        self._seen += len(filled.refs)
        self._faults += len(filled.faults)
        if self._faults > FAULTS_ALLOWED * max(self._planned, self._seen):
            raise StoreError(
                "STORE_CORRUPT",
                f"{self._faults} of {self._seen} patches could not be read, expected at most {FAULTS_ALLOWED:.1%} "
                f"of a run; the last: {filled.faults[-1]}",
            )
        advice = "another patch takes its place; `livprep verify --deep` finds what is damaged"
        return [f"{fault}; {advice}" for fault in filled.faults]


class BatchFiller:
    """Reads the patches of some counters into host memory.

    Parameters
    ----------
    sampler, reader
        Where patches lie, and how they are read.
    delivery
        What is made of them.
    spacing_mm
        Voxel distances (zyx, mm) of each case.
    margin
        Voxels that a patch needs at its sides.
    buffers
        Where the arrays come from.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        reader: PatchReader,
        delivery: Delivery,
        spacing_mm: Mapping[str, Triple],
        margin: Margin | None,
        buffers: Buffers,
    ) -> None:
        self.sampler, self.reader, self.delivery, self.buffers = sampler, reader, delivery, buffers
        self._spacing, self._margin = spacing_mm, margin

    def fill(self, counters: range) -> Filled:
        """Read the patches of some counters.

        A patch that meets a damaged chunk is replaced by the next draw of its own counter, so what a run sees does
        not depend on which thread met it.
        """
        refs, faults = self.sampler.refs(counters), list[str]()
        margins = self.margins(refs)
        patch = self.reader.patch_zyx
        if self.delivery.from_bytes:
            image = self.buffers.slots.take((len(refs), self.delivery.channels, *patch))
            labels = self.buffers.labels.take((len(refs), *patch))
            for k in range(len(refs)):
                faults += self._read(refs, k, margins, (image[k], labels[k]))
            return Filled(refs, faults, margins, image=image, labels=labels)
        flat = self.buffers.slots.take((sum(math.prod(size) for size in sizes(patch, margins)),))
        parts = patches(flat, patch, margins)
        for group in self._groups(refs, margins):
            if not self._neighbors(refs, group, parts):
                for k in group:
                    faults += self._read(refs, k, margins, (parts[k],))
        return Filled(refs, faults, margins, flat=flat)

    def unpacked(self, filled: Filled) -> Filled:
        """The same batch as it is delivered."""
        if self.delivery.mode == "packed":
            return filled
        shape = (len(filled.refs), *self.reader.patch_zyx)
        image = self.buffers.images.take((shape[0], self.delivery.channels, *shape[1:]))
        labels = filled.labels
        if filled.flat is None:
            assert filled.image is not None
            np.divide(filled.image, np.float32(255), out=image)
        else:
            assert self.delivery.table is not None
            labels = self.buffers.labels.take(shape)
            unpack_arrays(filled.flat.reshape(shape), self.delivery.table, image, labels, self.delivery.normalization)
        return Filled(filled.refs, filled.faults, filled.margins_zyx, image=image, labels=labels)

    def batch(self, filled: Filled) -> Batch:
        """What is delivered, in host memory and without a copy."""
        unpacked = None
        if filled.image is not None and filled.labels is not None:
            unpacked = self.buffers.images.tensor(filled.image), self.buffers.labels.tensor(filled.labels)
        flat = None if filled.flat is None else self.buffers.slots.tensor(filled.flat)
        return self._described(filled.refs, filled.margins_zyx, unpacked, flat)

    def deliver(self, refs: Sequence[PatchRef], margins_zyx: tuple[Shape, ...], flat: torch.Tensor) -> Batch:
        """What is delivered of packed voxels that lie on a device already, on that device."""
        table = self.delivery.table
        if self.delivery.mode == "packed" or table is None:
            return self._described(refs, margins_zyx, None, flat)
        packed = flat.view(len(refs), *self.reader.patch_zyx)
        shape = (len(refs), len(table), *self.reader.patch_zyx)
        if flat.device.type == "cpu":
            image = torch.from_numpy(self.buffers.images.take(shape))
            labels = torch.from_numpy(self.buffers.labels.take(packed.shape))
        else:
            image = torch.empty(shape, dtype=torch.float32, device=flat.device)
            labels = torch.empty(packed.shape, dtype=getattr(torch, self.delivery.label_type), device=flat.device)
        unpack_into(packed, table, image, labels)
        return self._described(refs, margins_zyx, (image, labels), None)

    def deliver_bytes(self, filled: Filled, image: torch.Tensor, labels: torch.Tensor) -> Batch:
        """What is delivered of uint8 channels that lie on a device already."""
        return self._described(filled.refs, filled.margins_zyx, (unit_interval(image), labels), None)

    def _described(
        self,
        refs: Sequence[PatchRef],
        margins_zyx: tuple[Shape, ...],
        unpacked: tuple[torch.Tensor, torch.Tensor] | None,
        flat: torch.Tensor | None,
    ) -> Batch:
        """A batch of these tensors."""
        return Batch(
            counters=tuple(ref.counter for ref in refs),
            case_ids=tuple(ref.case_id for ref in refs),
            spacing_mm=tuple(self._spacing[ref.case_id] for ref in refs),
            windows=self.delivery.windows,
            patch_zyx=self.reader.patch_zyx,
            unpacked=unpacked,
            flat=flat,
            margins_zyx=margins_zyx,
        )

    def will_need(self, counters: range) -> None:
        """Have the disk fetch what later patches will read; what is damaged shows when it is read."""
        refs = self.sampler.refs(counters)
        for ref, margin in zip(refs, self.margins(refs), strict=True):
            with suppress(StoreError):
                self.reader.will_need(ref, margin)

    def margins(self, refs: Sequence[PatchRef]) -> tuple[Shape, ...]:
        """Voxels that each patch asks for at its sides."""
        if self._margin is None:
            return (NO_MARGIN,) * len(refs)
        return tuple(self._margin(ref.counter, self._spacing[ref.case_id]) for ref in refs)

    def _groups(self, refs: list[PatchRef], margins_zyx: Sequence[Shape]) -> Iterator[list[int]]:
        """Positions of the patches that one read serves."""
        size = self.sampler.patches_per_read
        if size == 1 or any(map(any, margins_zyx)):
            yield from ([k] for k in range(len(refs)))
            return
        for _, group in groupby(range(len(refs)), lambda k: refs[k].counter // size):
            yield list(group)

    def _neighbors(self, refs: list[PatchRef], group: list[int], parts: Sequence[Array]) -> bool:
        """Read neighbors at once; False where there are none, or where damage asks to read them one by one."""
        if len(group) == 1:
            return False
        try:
            self.reader.read_neighbors([refs[k] for k in group], [parts[k] for k in group])
        except StoreError as error:
            if error.code not in DAMAGED:
                raise
            return False
        return True

    def _read(self, refs: list[PatchRef], k: int, margins_zyx: Sequence[Shape], outs: Sequence[Array]) -> list[str]:
        """Read patch k: packed voxels, or channels and labels. `refs[k]` becomes what was read; returns the faults."""
        counter, faults = refs[k].counter, list[str]()
        while True:
            try:
                if len(outs) == 1:
                    self.reader.read_packed(refs[k], outs[0], margins_zyx[k])
                else:
                    self.reader.read(refs[k], outs[0], outs[1])
                return faults
            except StoreError as error:
                if error.code not in DAMAGED or len(faults) == _MOST_ATTEMPTS:
                    raise
                faults.append(f"patch {counter} of case {refs[k].case_id} cannot be read: {error}")
                refs[k] = self.sampler.replacement(counter, len(faults))
