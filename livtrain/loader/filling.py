"""Fill the host memory of one batch: plan, read, and draw again what cannot be read. Runs in threads or workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from livprep.errors import StoreError
from livprep.geometry import Triple
from livtrain.dataset import NO_MARGIN, PatchReader
from livtrain.loader.batch import Batch, Delivery, Margin, largest
from livtrain.sampling import PatchRef, PatchSampler, Shape
from livtrain.unpack import unpack_arrays

Array = npt.NDArray[Any]
DAMAGED = ("STORE_CORRUPT", "STORE_DECODE")
_MOST_ATTEMPTS = 8
"""Draws of a patch before its error is passed on."""


class Memory(Protocol):
    """Where the arrays of batches come from."""

    def take(self, shape: Sequence[int], /) -> Array: ...


@dataclass(frozen=True, eq=False)
class Filled:
    """A batch in host memory.

    Parameters
    ----------
    refs
        What was read, in order.
    faults
        One line for each patch that could not be read and was drawn again.
    packed
        `(B, Z, Y, X)` uint16, or None where `image` holds the channels.
    image, labels
        `(B, C, Z, Y, X)` channels and `(B, Z, Y, X)` labels: uint8 channels as stored, or unpacked ones.
    margins_zyx
        Voxels that each patch asked for at its sides.
    """

    refs: list[PatchRef]
    faults: list[str]
    packed: Array | None
    image: Array | None
    labels: Array | None
    margins_zyx: tuple[Shape, ...]


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
    slots
        Memory of what is read: uint16, or uint8 where channels are.
    images, labels
        Memory of channels and labels.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        reader: PatchReader,
        delivery: Delivery,
        spacing_mm: Mapping[str, Triple],
        margin: Margin | None,
        slots: Memory,
        images: Memory,
        labels: Memory,
    ) -> None:
        self.sampler, self.reader, self.delivery = sampler, reader, delivery
        self._spacing, self._margin = spacing_mm, margin
        self._slots, self._images, self._labels = slots, images, labels

    def fill(self, counters: range) -> Filled:
        """Read the patches of some counters.

        A patch that meets a damaged chunk is replaced by the next draw of its own counter, so what a run sees does
        not depend on which thread met it.
        """
        refs = self.sampler.refs(counters)
        margins = self.margins(refs)
        shape = self.shape(margins)
        faults: list[str] = []
        if self.delivery.from_bytes:
            image = self._slots.take((len(refs), self.delivery.channels, *shape))
            labels = self._labels.take((len(refs), *shape))
            for k in range(len(refs)):
                faults += self._read(refs, k, margins, (image, labels))
            return Filled(refs, faults, None, image, labels, margins)
        packed = self._slots.take((len(refs), *shape))
        for group in self._groups(refs, margins):
            if not self._neighbors(refs, group, packed):
                for k in group:
                    faults += self._read(refs, k, margins, (packed,))
        return Filled(refs, faults, packed, None, None, margins)

    def unpacked(self, filled: Filled) -> Filled:
        """The same batch as delivered: channels and labels beside the packed voxels, or instead of them."""
        if self.delivery.mode == "packed":
            return filled
        source = filled.image if filled.packed is None else filled.packed
        assert source is not None
        count, sizes = len(filled.refs), source.shape[-3:]
        image = self._images.take((count, self.delivery.channels, *sizes))
        if filled.packed is None:
            np.divide(source, np.float32(255), out=image)
            return Filled(filled.refs, filled.faults, None, image, filled.labels, filled.margins_zyx)
        assert self.delivery.table is not None
        labels = self._labels.take((count, *sizes))
        unpack_arrays(filled.packed, self.delivery.table, image, labels)
        return Filled(filled.refs, filled.faults, None, image, labels, filled.margins_zyx)

    def batch(self, filled: Filled) -> Batch:
        """What is delivered, in host memory and without a copy."""
        both = None
        if filled.image is not None and filled.labels is not None:
            both = torch.from_numpy(filled.image), torch.from_numpy(filled.labels)
        packed = None if filled.packed is None else torch.from_numpy(filled.packed)
        return self.described(filled.refs, filled.margins_zyx, packed, both)

    def described(
        self,
        refs: Sequence[PatchRef],
        margins_zyx: tuple[Shape, ...],
        packed: torch.Tensor | None,
        unpacked: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Batch:
        """A batch of these tensors."""
        return Batch(
            counters=tuple(ref.counter for ref in refs),
            case_ids=tuple(ref.case_id for ref in refs),
            spacing_mm=tuple(self._spacing[ref.case_id] for ref in refs),
            windows=self.delivery.windows,
            packed_BZYX=packed,
            unpacked=unpacked,
            margin_zyx=largest(margins_zyx),
            margins_zyx=margins_zyx,
        )

    def will_need(self, counters: range) -> None:
        """Have the disk fetch what later patches will read."""
        refs = self.sampler.refs(counters)
        for ref, margin in zip(refs, self.margins(refs), strict=True):
            self.reader.will_need(ref, margin)

    def margins(self, refs: Sequence[PatchRef]) -> tuple[Shape, ...]:
        """Voxels that each patch asks for at its sides."""
        if self._margin is None:
            return (NO_MARGIN,) * len(refs)
        return tuple(self._margin(ref.counter, self._spacing[ref.case_id]) for ref in refs)

    def shape(self, margins_zyx: Sequence[Shape]) -> Shape:
        """Size of the batch's patches with the largest margin."""
        sizes = zip(self.reader.patch_zyx, largest(margins_zyx), strict=True)
        z, y, x = (size + 2 * margin for size, margin in sizes)
        return z, y, x

    def _groups(self, refs: list[PatchRef], margins_zyx: Sequence[Shape]) -> Iterator[list[int]]:
        """Positions of the patches that one read serves."""
        size = self.sampler.patches_per_read
        if size == 1 or any(any(margin) for margin in margins_zyx):
            yield from ([k] for k in range(len(refs)))
            return
        for _, group in groupby(range(len(refs)), lambda k: refs[k].counter // size):
            yield list(group)

    def _neighbors(self, refs: list[PatchRef], group: list[int], packed: Array) -> bool:
        """Read neighbors at once; False where there are none, or where damage asks to read them one by one."""
        if len(group) == 1:
            return False
        try:
            self.reader.read_neighbors([refs[k] for k in group], [packed[k] for k in group])
        except StoreError as error:
            if error.code not in DAMAGED:
                raise
            return False
        return True

    def _read(self, refs: list[PatchRef], k: int, margins_zyx: Sequence[Shape], arrays: Sequence[Array]) -> list[str]:
        """Read patch k into its part of the arrays; `refs[k]` becomes what was read, the faults are returned."""
        margin, most = margins_zyx[k], largest(margins_zyx)
        if margin != most:
            for array in arrays:
                array[k] = 0
        inner = tuple(slice(m - own, m + own + n) for m, own, n in zip(most, margin, self.reader.patch_zyx, strict=True))
        parts = [array[k][(..., *inner)] for array in arrays]
        counter, faults = refs[k].counter, list[str]()
        while True:
            try:
                if len(parts) == 1:
                    self.reader.read_packed(refs[k], parts[0], margin)
                else:
                    self.reader.read(refs[k], parts[0], parts[1], margin)
                return faults
            except StoreError as error:
                if error.code not in DAMAGED or len(faults) == _MOST_ATTEMPTS:
                    raise
                faults.append(f"patch {counter} of case {refs[k].case_id} cannot be read: {error}")
                refs[k] = self.sampler.replacement(counter, len(faults))
