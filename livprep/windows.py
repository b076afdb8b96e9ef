"""Windows: linear maps of HU to uint8 channels. Other functions: `livprep.channels`.

The function is DICOM's LINEAR_EXACT (PS3.3 C.11.2.1.3.2): (x - (WL - WW/2)) / WW clipped to 0...1, stored as
round(255 v) in float64, half to even. `Window(40, 220)` therefore spans [-70, 150] HU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.errors import UsageError

FUNCTION = "linear_exact"


@dataclass(frozen=True)
class Window:
    """A window of HU.

    Parameters
    ----------
    center_hu, width_hu
        Level (WL) and width (WW) in HU.
    name
        Channel name; `wl40_ww220` by default.

    Raises
    ------
    UsageError
        The width is not positive or a value is not finite.
    """

    center_hu: float
    width_hu: float
    name: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center_hu) and math.isfinite(self.width_hu) and self.width_hu > 0):
            raise UsageError(
                "WINDOW_INVALID",
                f"window WL {self.center_hu:g} WW {self.width_hu:g} HU: expected finite values and a positive width",
            )
        object.__setattr__(self, "center_hu", float(self.center_hu))
        object.__setattr__(self, "width_hu", float(self.width_hu))
        if not self.name:
            object.__setattr__(self, "name", f"wl{self.center_hu:g}_ww{self.width_hu:g}")
        # A channel is a folder of its name, beside the group's own zarr.json.
        if not all(c.isalnum() or c in "._-" for c in self.name) or self.name.startswith((".", "zarr.json")):
            raise UsageError("WINDOW_INVALID", f"window name {self.name!r}: expected letters, digits, '.', '_' or '-'")

    @property
    def function(self) -> str:
        """How HU become bytes; stored with each channel."""
        return FUNCTION

    @property
    def parameters(self) -> dict[str, Any]:
        """What the function needs beside level and width; plain JSON values."""
        return {}

    @property
    def is_local(self) -> bool:
        """Whether a voxel's byte follows from its own HU; else `apply` needs the whole volume (`livprep.channels`)."""
        return True

    @property
    def parts(self) -> tuple[tuple[float, Window], ...]:
        """The linear windows whose mean the channel is, each with its share; shares sum to 1."""
        return ((1.0, self),)

    def moved(self, shift: float, factor: float) -> Window:
        """The window with its level moved by `shift` widths and its width multiplied by `factor`; without name."""
        return Window(self.center_hu + self.width_hu * shift, self.width_hu * factor)

    def measured(self, hu: npt.NDArray[np.int16]) -> dict[str, float]:
        """What the function found in a volume, in HU; nothing where it does not look at the volume."""
        return {}

    def __str__(self) -> str:
        return f"{self.name} [{self.low_hu:g}, {self.high_hu:g}] HU"

    @property
    def low_hu(self) -> float:
        """HU that map to 0 and below."""
        return self.center_hu - self.width_hu / 2

    @property
    def high_hu(self) -> float:
        """HU that map to 255 and above."""
        return self.center_hu + self.width_hu / 2

    def apply(self, hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """Window an int16 HU array of any shape into uint8 0...255 of the same shape."""
        if hu.dtype != np.int16:
            raise UsageError("WINDOW_INVALID", f"window {self.name}: found HU of dtype {hu.dtype}, expected int16")
        return look_up(self.table(), hu)

    def table(self) -> npt.NDArray[np.uint8]:
        """All 65,536 results, indexed by the HU's two's-complement uint16; the fast path of `evaluate`."""
        return _table(self.center_hu, self.width_hu)

    def evaluate(self, hu: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The defining formula in float64, for any real dtype; `apply` equals it on int16."""
        unit = (np.asarray(hu, dtype=np.float64) - self.low_hu) / self.width_hu
        return np.rint(255.0 * np.clip(unit, 0.0, 1.0)).astype(np.uint8)


def look_up(table: npt.NDArray[np.uint8], hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Replace int16 HU of any shape by the entries of a table of 65,536, indexed by their two's-complement uint16."""
    out = np.empty(hu.shape, dtype=np.uint8)
    np.take(table, hu.view(np.uint16), out=out, mode="clip")
    return out


@lru_cache(maxsize=64)
def _table(center_hu: float, width_hu: float) -> npt.NDArray[np.uint8]:
    values = np.arange(65536, dtype=np.uint16).view(np.int16)
    table = Window(center_hu, width_hu).evaluate(values)
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class WindowBank:
    """Windows in channel order; names are unique."""

    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        names = [window.name for window in self.windows]
        if len(set(names)) != len(names):
            raise UsageError("WINDOW_INVALID", f"windows {names}: expected unique names")

    def __iter__(self) -> Iterator[Window]:
        return iter(self.windows)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def is_local(self) -> bool:
        """Whether every channel of a region follows from that region alone."""
        return all(window.is_local for window in self.windows)

    def apply(self, hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """Window `(z, y, x)` int16 HU into `(channel, z, y, x)` uint8.

        `hu` is a whole volume where a channel is not local (`Window.is_local`).
        """
        return np.stack([window.apply(hu) for window in self.windows])
