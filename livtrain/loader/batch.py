"""A batch of patches, and in which form it is delivered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.geometry import Triple
from livprep.windows import WindowBank
from livtrain.dataset import NO_MARGIN, enlarged
from livtrain.sampling import Shape
from livtrain.unpack import CtNormalization, Table, channel_table, fits_packed, unpack

Deliver = Literal["channels", "packed", "nnunet"]
Margin = Callable[[int, Triple], Shape]
"""Voxels (zyx) that a patch needs at each side, by its counter and spacing (zyx, mm)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on its device. It is its holder's: nothing overwrites it as long as a tensor of it is referred to.

    Parameters
    ----------
    counters
        Counter of each patch; patch k is a function of (seed, k).
    case_ids
        Case of each patch.
    spacing_mm
        Voxel distances (zyx, mm) of each patch.
    windows
        The channels.
    patch_zyx
        Shape of a patch in voxels.
    unpacked
        Channels and labels, where they were made already.
    flat
        uint16 packed voxels of all patches one after the other (`livtrain.unpack`), with `deliver="packed"` only.
    margins_zyx
        Voxels that each patch of `flat` is larger at each side; none unless the loader was given a margin.
    """

    counters: tuple[int, ...]
    case_ids: tuple[str, ...]
    spacing_mm: tuple[Triple, ...]
    windows: WindowBank
    patch_zyx: Shape
    unpacked: tuple[Tensor, Tensor] | None = None
    flat: Tensor | None = None
    margins_zyx: tuple[Shape, ...] = ()

    @cached_property
    def packed(self) -> tuple[Tensor, ...]:
        """Each patch with its own margin, `(z, y, x)` uint16, contiguous; what `Augmenter.from_packed` takes."""
        return patches(self._voxels, self.patch_zyx, self.margins_zyx)

    @cached_property
    def packed_BZYX(self) -> Tensor:
        """The patches without their margins, uint16; a copy where there are any."""
        if not any(map(any, self.margins_zyx)):
            return self._voxels.view(len(self.counters), *self.patch_zyx)
        # int16: torch copies hardly anything of uint16
        inner = [
            patch.view(torch.int16)[tuple(slice(m, m + n) for m, n in zip(margin, self.patch_zyx, strict=True))]
            for patch, margin in zip(self.packed, self.margins_zyx, strict=True)
        ]
        return torch.stack(inner).view(torch.uint16)

    @property
    def _voxels(self) -> Tensor:
        if self.flat is None:
            raise UsageError("CONFIG_INVALID", "batch: has no packed voxels; expected a loader with deliver='packed'")
        return self.flat

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        if self.unpacked is not None:
            return self.unpacked
        if not len(self.windows):
            raise UsageError("NO_WINDOWS", "batch: no windows given and none stored; expected windows for channels")
        return unpack(self.packed_BZYX, self.windows)

    @property
    def image_BCZYX(self) -> Tensor:
        """float32 channels, 0...1 = uint8 / 255 (nnU-Net's normalized HU with `deliver="nnunet"`)."""
        return self._tensors[0]

    @property
    def labels_BZYX(self) -> Tensor:
        """uint8 labels 0, 1, 2; 15 where a case has none (int16 with `deliver="nnunet"`)."""
        return self._tensors[1]

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; torch's DataLoader asks for it."""
        pinned = None if self.unpacked is None else (self.unpacked[0].pin_memory(), self.unpacked[1].pin_memory())
        return replace(self, unpacked=pinned, flat=None if self.flat is None else self.flat.pin_memory())


@dataclass(frozen=True, eq=False)
class Delivery:
    """What is made of the voxels of a batch.

    Parameters
    ----------
    mode
        `channels`: float32 channels 0...1 and uint8 labels; `packed`: the packed voxels as they are stored, unpacked
        when somebody asks; `nnunet`: normalized float32 HU as one channel and int16 labels, nnU-Net's types.
    windows
        The channels.
    table
        Value of each packed HU in each channel, `(C, 4096)`; None where channels come as uint8 from the store.
    label_type
        Of the labels.
    normalization
        What the table of `nnunet` was made from.
    """

    mode: Deliver
    windows: WindowBank
    table: Table | None
    label_type: Literal["uint8", "int16"] = "uint8"
    normalization: CtNormalization | None = None

    @classmethod
    def of(cls, mode: Deliver, windows: WindowBank, uses_packed: bool, normalization: CtNormalization) -> Delivery:
        """Check that a mode can be had.

        Raises
        ------
        UsageError
            CONFIG_INVALID: an unknown mode, or one that needs the packed array where windows reach beyond it.
            NO_WINDOWS: channels are asked for and there are none.
        """
        if mode not in ("channels", "packed", "nnunet"):
            raise UsageError("CONFIG_INVALID", f"deliver {mode!r}: expected channels, packed or nnunet")
        if mode == "nnunet":
            return cls(mode, windows, normalization.table(), "int16", normalization)
        if mode == "channels" and not len(windows):
            raise UsageError("NO_WINDOWS", "loader: no windows given and none stored; run `livprep window` first")
        if uses_packed:
            return cls(mode, windows, channel_table(windows) if len(windows) else None)
        if mode == "packed":
            wide = [window.name for window in windows if not fits_packed(window)]
            raise UsageError(
                "CONFIG_INVALID",
                f"deliver 'packed': source is 'stored', or windows {wide} reach beyond -1024 ... 3071 HU; "
                "expected source 'packed' and windows within, or deliver 'channels'",
            )
        return cls(mode, windows, None)

    @property
    def from_bytes(self) -> bool:
        """Whether uint8 channels are read, not packed voxels."""
        return self.mode == "channels" and self.table is None

    @property
    def channels(self) -> int:
        """Channels of the delivered image."""
        return 1 if self.mode == "nnunet" else len(self.windows)


def sizes(patch_zyx: Shape, margins_zyx: Sequence[Shape]) -> list[Shape]:
    """Shape of each patch with its margin."""
    return [enlarged(NO_MARGIN, patch_zyx, margin)[1] for margin in margins_zyx]


def patches(flat: Any, patch_zyx: Shape, margins_zyx: Sequence[Shape]) -> tuple[Any, ...]:
    """Views of the patches that lie one after the other in a flat array or tensor."""
    views, start = [], 0
    for shape in sizes(patch_zyx, margins_zyx):
        end = start + math.prod(shape)
        views.append(flat[start:end].reshape(shape))
        start = end
    return tuple(views)
