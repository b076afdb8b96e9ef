"""From the packed training array to what a network takes: channels and labels, on the device that holds them.

A packed voxel is (clip(HU, -1024, 3071) + 1024) | label << 12 (streaming.md). Twelve bits have 4096 values, so every
function of the HU is one table: the channels are read from it, not computed, and are the same numbers on each
device: windows the uint8 of the stored channels / 255, in float32, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank

PACKED_LOW_HU, PACKED_HIGH_HU = -1024, 3071
"""HU that the 12 bits of the packed training array hold; what lies beyond is clipped there (streaming.md)."""
HU_BITS = 12
HU_MASK = (1 << HU_BITS) - 1
_LABEL_MASK = 15
_BLOCK = 2048
"""Voxels that are unpacked at once: 12 kB of values and labels."""

Table = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CtNormalization:
    """nnU-Net's normalization of CT: clip, subtract the mean, divide by the standard deviation; all in HU.

    nnU-Net takes the numbers from the foreground of the training cases (0.5 and 99.5 percentile, mean, standard
    deviation). The defaults are round numbers for liver; give the cohort's own where values matter.
    """

    low_hu: float = -20.0
    high_hu: float = 200.0
    mean_hu: float = 100.0
    deviation_hu: float = 40.0

    def table(self) -> Table:
        """The value of each of the 4096 packed HU, `(1, 4096)` float32."""
        hu = np.clip(_hu().astype(np.float32), self.low_hu, self.high_hu)
        return ((hu - np.float32(self.mean_hu)) / np.float32(self.deviation_hu))[None]


def fits_packed(window: Window) -> bool:
    """Whether the 12 bits of the packed array decide every byte of a window."""
    return window.is_local and window.low_hu >= PACKED_LOW_HU and window.high_hu <= PACKED_HIGH_HU


def packed_table(window: Window) -> npt.NDArray[np.uint8]:
    """The window's byte for each of the 4096 values of the packed array's HU bits."""
    return window.table()[_hu().astype(np.int16).view(np.uint16)]


@lru_cache(maxsize=64)
def channel_table(bank: WindowBank) -> Table:
    """The channels' values 0...1 for each of the 4096 packed HU, `(channel, 4096)` float32.

    Raises
    ------
    UsageError
        WINDOW_INVALID: a window reaches beyond 12 bits; its channel must come from the int16 HU.
    """
    for window in bank:
        if not window.is_local:
            raise UsageError("WINDOW_INVALID", f"channel {window} needs the whole scan, not packed voxels")
        if not fits_packed(window):
            raise UsageError(
                "WINDOW_INVALID",
                f"window {window.name} spans {window.low_hu:g} ... {window.high_hu:g} HU, the packed array holds "
                f"{PACKED_LOW_HU} ... {PACKED_HIGH_HU} HU",
            )
    table: Table = np.stack([_unit()[packed_table(window)] for window in bank])
    table.flags.writeable = False
    return table


@lru_cache(maxsize=64)
def linear_table(bank: WindowBank) -> Table:
    """The channels' values without clipping or rounding, 0...1 within the window: `(channel, 4096)` float32."""
    hu = _hu().astype(np.float64)
    table: Table = np.stack([(hu - window.low_hu) / window.width_hu for window in bank]).astype(np.float32)
    table.flags.writeable = False
    return table


def unpack(packed_BZYX: Tensor, bank: WindowBank) -> tuple[Tensor, Tensor]:
    """Channels and labels of packed patches, on their device.

    Parameters
    ----------
    packed_BZYX
        uint16 (or the same bits as int16), contiguous.
    bank
        Windows in channel order, all within 12 bits.

    Returns
    -------
    `(B, C, Z, Y, X)` float32 channels 0...1 and `(B, Z, Y, X)` uint8 labels (15 where unlabelled).
    """
    table = channel_table(bank)
    image = torch.empty(
        (packed_BZYX.shape[0], len(bank), *packed_BZYX.shape[1:]), dtype=torch.float32, device=packed_BZYX.device
    )
    labels = torch.empty(packed_BZYX.shape, dtype=torch.uint8, device=packed_BZYX.device)
    unpack_into(packed_BZYX, table, image, labels)
    return image, labels


def unpack_into(packed_BZYX: Tensor, table: Table, image_BCZYX: Tensor, labels_BZYX: Tensor) -> None:
    """Fill channels by any table `(C, 4096)` float32, and labels of any integer type; all contiguous, one device."""
    if packed_BZYX.device.type == "cpu":
        unpack_arrays(packed_BZYX.numpy(), table, image_BCZYX.numpy(), labels_BZYX.numpy())
    else:
        gather(packed_BZYX, _on_device(table.tobytes(), packed_BZYX.device), image_BCZYX, labels_BZYX)


def unpack_arrays(
    packed_BZYX: npt.NDArray[Any],
    table: Table,
    image_BCZYX: npt.NDArray[np.float32],
    labels_BZYX: npt.NDArray[Any],
    normalization: CtNormalization | None = None,
) -> None:
    """The same for arrays in main memory; holds no lock while it runs (about 2 ms for 128^3 and two channels).

    `normalization` is what the table was made from, where it was: it is then computed, which gives the same numbers
    in half the time that looking them up takes.
    """
    count, channels = image_BCZYX.shape[:2]
    packed = packed_BZYX.view(np.uint16).reshape(count, -1)
    image, labels = image_BCZYX.reshape(count, channels, -1), labels_BZYX.reshape(count, -1)
    look_up, compute = _kernels()
    if normalization is None:
        look_up(packed, table, image, labels)
    else:
        n = normalization
        numbers = tuple(map(np.float32, (n.low_hu, n.high_hu, n.mean_hu, n.deviation_hu)))
        compute(packed, numbers, image.reshape(count, -1), labels)


def gather(packed_BZYX: Tensor, table: Tensor, image_BCZYX: Tensor, labels_BZYX: Tensor) -> None:
    """The same in torch alone, for any device; `table` lies on it."""
    bits = packed_BZYX.view(torch.int16)
    labels_BZYX.copy_((bits >> HU_BITS) & _LABEL_MASK)  # the mask takes the copied sign bits away
    index = (bits & HU_MASK).to(torch.int32).reshape(len(bits), -1)
    for image, row in zip(image_BCZYX, index, strict=True):
        for channel, values in zip(image, table, strict=True):
            torch.index_select(values, 0, row, out=channel.view(-1))


def unit_interval(values: Tensor) -> Tensor:
    """uint8 channels as float32 values / 255, the same numbers on each device as those of `unpack`."""
    return _on_device(_unit().tobytes(), values.device).index_select(0, values.reshape(-1).int()).view(values.shape)


def _hu() -> npt.NDArray[np.int32]:
    return np.arange(HU_MASK + 1, dtype=np.int32) + PACKED_LOW_HU


def _unit() -> Table:
    """float32 of 0/255 ... 255/255. A table, because devices may multiply by 1/255 where a division is written."""
    return np.arange(256, dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=64)
def _on_device(data: bytes, device: torch.device) -> Tensor:
    """A table on a device, by its bytes; `(C, 4096)` or `(256,)`."""
    table = torch.frombuffer(bytearray(data), dtype=torch.float32)
    return (table if len(table) == 256 else table.view(-1, HU_MASK + 1)).to(device)


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Compile at first use: importing numba takes half a second, which a device's unpacking does not need.

    What is made leaves by way of blocks that the first cache holds, past the caches (`primitives.stream32`): a batch
    is larger than they are, and what is overwritten need not be fetched then.
    """
    import numba

    from livprep.store.primitives import stream32

    mask, shift, offset = np.uint16(HU_MASK), np.uint16(HU_BITS), np.float32(PACKED_LOW_HU)

    inline = numba.njit(nogil=True, inline="always")

    @inline  # type: ignore[untyped-decorator]
    def put(block: Any, out: Any, start: int) -> None:
        of, to = block.ctypes.data, out.ctypes.data + start * out.itemsize
        for at in range(0, _BLOCK * out.itemsize, 32):
            stream32(to + at, of + at)

    @inline  # type: ignore[untyped-decorator]
    def streamed(out: Any) -> Any:
        return out.size // _BLOCK * _BLOCK if out.ctypes.data % 32 == 0 else 0

    @inline  # type: ignore[untyped-decorator]
    def normalized(voxel: Any, low: Any, high: Any, mean: Any, deviation: Any) -> Any:
        hu = np.float32(voxel & mask) + offset
        hu = low if hu < low else hu
        hu = high if hu > high else hu
        return (hu - mean) / deviation

    def look_up(packed: Any, table: Any, image: Any, labels: Any) -> None:
        marks, values = np.empty(_BLOCK, labels.dtype), np.empty(_BLOCK, image.dtype)
        for b in range(packed.shape[0]):
            row, label = packed[b], labels[b]
            end = streamed(label)
            for start in range(0, end, _BLOCK):
                part = row[start : start + _BLOCK]  # from its start: numba makes vectors of such a loop alone
                for i in range(_BLOCK):
                    marks[i] = part[i] >> shift
                put(marks, label, start)
            for i in range(end, row.size):
                label[i] = row[i] >> shift
            for c in range(table.shape[0]):  # one channel after the other: its 16 kB of table stay in the cache
                known, channel = table[c], image[b, c]
                end = streamed(channel)
                for start in range(0, end, _BLOCK):
                    part = row[start : start + _BLOCK]
                    for i in range(_BLOCK):
                        values[i] = known[part[i] & mask]
                    put(values, channel, start)
                for i in range(end, row.size):
                    channel[i] = known[row[i] & mask]

    def compute(packed: Any, numbers: Any, image: Any, labels: Any) -> None:
        low, high, mean, deviation = numbers
        marks, values = np.empty(_BLOCK, labels.dtype), np.empty(_BLOCK, image.dtype)
        for b in range(packed.shape[0]):
            row, label, channel = packed[b], labels[b], image[b]
            end = min(streamed(label), streamed(channel))
            for start in range(0, end, _BLOCK):
                part = row[start : start + _BLOCK]
                for i in range(_BLOCK):
                    marks[i] = part[i] >> shift
                    values[i] = normalized(part[i], low, high, mean, deviation)
                put(marks, label, start)
                put(values, channel, start)
            for i in range(end, row.size):
                label[i] = row[i] >> shift
                channel[i] = normalized(row[i], low, high, mean, deviation)

    def compiled(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder for the cache can be written
            return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]

    return compiled(look_up), compiled(compute)
