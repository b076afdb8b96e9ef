"""A batch of patches, and in which form it is delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.geometry import Triple
from livprep.windows import WindowBank
from livtrain.dataset import NO_MARGIN
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
    packed_BZYX
        uint16 packed voxels (`livtrain.unpack`), with `deliver="packed"` only.
    unpacked
        Channels and labels, where they were made already.
    margin_zyx
        Voxels that the tensors are larger than the patch at each side: the most that a patch of the batch asked for.
    margins_zyx
        What each patch asked for; its voxels beyond that are 0.
    """

    counters: tuple[int, ...]
    case_ids: tuple[str, ...]
    spacing_mm: tuple[Triple, ...]
    windows: WindowBank
    packed_BZYX: Tensor | None = None
    unpacked: tuple[Tensor, Tensor] | None = None
    margin_zyx: Shape = NO_MARGIN
    margins_zyx: tuple[Shape, ...] = ()

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        if self.unpacked is not None:
            return self.unpacked
        assert self.packed_BZYX is not None
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
        packed = None if self.packed_BZYX is None else self.packed_BZYX.pin_memory()
        return replace(self, packed_BZYX=packed, unpacked=pinned)


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
    """

    mode: Deliver
    windows: WindowBank
    table: Table | None
    label_dtype: torch.dtype = torch.uint8

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
            return cls(mode, windows, normalization.table(), torch.int16)
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


def largest(margins_zyx: Sequence[Shape]) -> Shape:
    """The most voxels that any patch asks for along each axis."""
    columns: Any = zip(*margins_zyx, strict=True)
    z, y, x = (max(column) for column in columns) if margins_zyx else NO_MARGIN
    return z, y, x
