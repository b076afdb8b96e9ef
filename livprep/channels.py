"""Channels beyond one linear window: weighted means, equalized histograms, CLAHE, and a window found in the image.

Each is a `Window` with another function, so that a bank, a store and a run's settings hold any of them. Level and
width are then the HU that can change its bytes. None looks at a label: whatever is stored can be made again of a scan
that has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from livprep.errors import UsageError
from livprep.windows import FUNCTION, Window, look_up

IntArray = npt.NDArray[np.int64]
HuArray = npt.NDArray[np.int16]
ByteArray = npt.NDArray[np.uint8]
Part = tuple[float, float, float]
"""Level, width (HU) and weight of one window of a mean."""

HIDAJAT_WEIGHTS = (2.0, 3.0, 1.0)
"""Hidajat et al. 2007, Comput Biol Med 37:1629. The paper's windows could not be found; they are the user's."""
_LOWEST, _HIGHEST = -1024.0, 3071.0
"""HU of a CT of 12 bits, as nominal range of channels that are scaled by the volume itself."""


@dataclass(frozen=True)
class WeightedMean(Window):
    """Weighted mean of windowed images: still a table of HU, so it is made wherever a window is.

    Parameters
    ----------
    weighted
        Level, width (HU) and weight of each window. Level and width of the mean itself span all of them.
    """

    weighted: tuple[Part, ...] = ()

    @classmethod
    def of(cls, windows: tuple[Window, ...], weights: tuple[float, ...], name: str = "blend") -> WeightedMean:
        """The mean of some windows.

        Raises
        ------
        UsageError
            WINDOW_INVALID: not one positive weight for each of at least two windows.
        """
        if len(windows) != len(weights) or len(windows) < 2 or any(weight <= 0 for weight in weights):
            raise UsageError(
                "WINDOW_INVALID",
                f"blend {name}: {len(windows)} windows and weights {list(weights)}; expected one positive weight for "
                "each of at least two windows",
            )
        low, high = min(w.low_hu for w in windows), max(w.high_hu for w in windows)
        parts = tuple((w.center_hu, w.width_hu, float(weight)) for w, weight in zip(windows, weights, strict=True))
        return cls((low + high) / 2, high - low, name, parts)

    @property
    def function(self) -> str:
        """`weighted_mean`."""
        return "weighted_mean"

    @property
    def parameters(self) -> dict[str, Any]:
        """Windows and weights."""
        return {"weighted": [list(part) for part in self.weighted]}

    @property
    def parts(self) -> tuple[tuple[float, Window], ...]:
        """The windows with their shares."""
        total = sum(weight for _, _, weight in self.weighted)
        return tuple((weight / total, Window(center, width)) for center, width, weight in self.weighted)

    def moved(self, shift: float, factor: float) -> Window:
        """Each window moved by `shift` of its own width."""
        windows = tuple(window.moved(shift, factor) for _, window in self.parts)
        return WeightedMean.of(windows, tuple(share for share, _ in self.parts))

    def table(self) -> ByteArray:
        """All 65,536 results."""
        return _mean_table(self)

    def evaluate(self, hu: npt.NDArray[Any]) -> ByteArray:
        """round(255 * sum of shares * windowed values 0...1), in float64."""
        values = np.asarray(hu, dtype=np.float64)
        total = np.zeros(values.shape)
        for share, window in self.parts:
            total += share * np.clip((values - window.low_hu) / window.width_hu, 0.0, 1.0)
        return np.rint(255.0 * total).astype(np.uint8)


@lru_cache(maxsize=16)
def _mean_table(mean: WeightedMean) -> ByteArray:
    table = mean.evaluate(np.arange(65536, dtype=np.uint16).view(np.int16))
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class _WholeVolume(Window):
    """A channel whose bytes depend on more of the volume than the voxel."""

    @property
    def is_local(self) -> bool:
        return False

    def table(self) -> ByteArray:
        """There is none.

        Raises
        ------
        UsageError
            WINDOW_INVALID.
        """
        raise UsageError("WINDOW_INVALID", f"channel {self.name}: {self.function} needs the whole volume, not a table")

    def evaluate(self, hu: npt.NDArray[Any]) -> ByteArray:
        """The same as `apply`: the function is defined on int16 alone."""
        return self.apply(np.asarray(hu))

    def moved(self, shift: float, factor: float) -> Window:
        """There is no window to move.

        Raises
        ------
        UsageError
            WINDOW_INVALID.
        """
        raise UsageError("WINDOW_INVALID", f"channel {self.name}: {self.function} has no window that can be moved")

    def _checked(self, hu: npt.NDArray[Any]) -> HuArray:
        if hu.dtype != np.int16 or hu.ndim != 3:
            raise UsageError(
                "WINDOW_INVALID",
                f"channel {self.name}: found {hu.dtype} of {hu.ndim} axes, expected int16 HU (z, y, x) of a whole scan",
            )
        return hu

    def __str__(self) -> str:
        return f"{self.name} ({self.function})"


@dataclass(frozen=True)
class Equalized(_WholeVolume):
    """Equalized histogram: `bins` breaks of equal count, bytes linear between them.

    fastai's `freqhist_bins` and `hist_scaled`, as Multiclass-U-Net uses them: breaks are the values at the quantiles
    `low`, (k + 1/2) / bins and `high`; equal breaks count once; the k-th of n breaks becomes k / (n - 1).

    Parameters
    ----------
    per
        `volume`: one curve for the scan. `slice`: one for each axial slice, which gives one tissue another value in
        the next slice.
    bins, low, high
        Breaks, and the quantiles of the first and the last one.
    """

    per: Literal["volume", "slice"] = "volume"
    bins: int = 100
    low: float = 0.001
    high: float = 0.999

    @classmethod
    def make(cls, per: Literal["volume", "slice"] = "volume", name: str = "") -> Equalized:
        """With the published settings."""
        return cls((_LOWEST + _HIGHEST) / 2, _HIGHEST - _LOWEST, name or f"equalized_{per}", per)

    @property
    def function(self) -> str:
        """`equalized`."""
        return "equalized"

    @property
    def parameters(self) -> dict[str, Any]:
        """Volume or slice, bins and quantiles."""
        return {"per": self.per, "bins": self.bins, "low": self.low, "high": self.high}

    def apply(self, hu: HuArray) -> ByteArray:
        """Equalize `(z, y, x)` int16 HU of a whole scan into uint8."""
        volume = self._checked(hu)
        if self.per == "volume":
            return look_up(self._curve(volume), volume)
        return np.stack([look_up(self._curve(plane), plane) for plane in volume])

    def measured(self, hu: HuArray) -> dict[str, float]:
        """First and last break of the volume."""
        breaks = self._breaks(hu)
        return {"low_hu": float(breaks[0]), "high_hu": float(breaks[-1])}

    def _breaks(self, hu: HuArray) -> IntArray:
        at = np.concatenate([[self.low], (np.arange(self.bins) + 0.5) / self.bins, [self.high]])
        return np.unique(_at_ranks(hu, (hu.size * at).astype(np.int64)))

    def _curve(self, hu: HuArray) -> ByteArray:
        breaks = self._breaks(hu)
        values = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64)
        unit = np.interp(values, breaks, np.linspace(0.0, 1.0, len(breaks)))
        return np.rint(255.0 * unit).astype(np.uint8)


@dataclass(frozen=True)
class Adaptive(_WholeVolume):
    """A window found in the scan: from one quantile of its soft tissue to another, then linear.

    No narrow window suits both a liver of 165 HU and one of 25 HU (datasets.md, D). Which voxels are soft tissue is
    decided by HU alone, so the same window is found in a scan without labels.

    Parameters
    ----------
    soft_low_hu, soft_high_hu
        HU of soft tissue, ends included: between fat, and bone and contrast.
    low, high
        Quantiles of those voxels that become 0 and 255.
    margin_hu
        Added at both ends.
    """

    soft_low_hu: int = -20
    soft_high_hu: int = 280
    low: float = 0.05
    high: float = 0.98
    margin_hu: float = 20.0

    @classmethod
    def make(cls, name: str = "adaptive") -> Adaptive:
        """With the settings above; level and width are those of the widest window that it can find."""
        plain = cls(0.0, 1.0, name)
        low, high = plain.soft_low_hu - plain.margin_hu, plain.soft_high_hu + plain.margin_hu
        return cls((low + high) / 2, high - low, name)

    @property
    def function(self) -> str:
        """`adaptive`."""
        return "adaptive"

    @property
    def parameters(self) -> dict[str, Any]:
        """Range of soft tissue, quantiles and margin."""
        return {
            "soft_low_hu": self.soft_low_hu,
            "soft_high_hu": self.soft_high_hu,
            "low": self.low,
            "high": self.high,
            "margin_hu": self.margin_hu,
        }

    def window(self, hu: HuArray) -> Window:
        """The window that `apply` uses for a scan; the widest one where it has no soft tissue."""
        soft = hu[(hu >= self.soft_low_hu) & (hu <= self.soft_high_hu)]
        if not soft.size:
            return Window(self.center_hu, self.width_hu, self.name)
        ranks = np.array([int(self.low * (soft.size - 1)), int(self.high * (soft.size - 1))])
        first, last = _at_ranks(soft, ranks)
        low, high = float(first) - self.margin_hu, float(last) + self.margin_hu
        return Window((low + high) / 2, max(high - low, 1.0), self.name)

    def apply(self, hu: HuArray) -> ByteArray:
        """Window `(z, y, x)` int16 HU of a whole scan into uint8."""
        return self.window(self._checked(hu)).apply(hu)

    def measured(self, hu: HuArray) -> dict[str, float]:
        """Level and width that were found."""
        found = self.window(hu)
        return {"wl": found.center_hu, "ww": found.width_hu}


@dataclass(frozen=True)
class Clahe(_WholeVolume):
    """Contrast-limited adaptive equalization of each axial slice, after windowing (Unet_Window; OpenCV's CLAHE).

    Parameters
    ----------
    clip_limit
        OpenCV's: a bin of the histogram may hold this many times the mean bin.
    tiles
        Of a slice, in each direction.
    """

    clip_limit: float = 2.0
    tiles: int = 8

    @classmethod
    def after(cls, window: Window) -> Clahe:
        """With the published settings, of one window."""
        return cls(window.center_hu, window.width_hu, f"clahe_{window.name}")

    @property
    def function(self) -> str:
        """`clahe`."""
        return "clahe"

    @property
    def parameters(self) -> dict[str, Any]:
        """Clip limit and tiles."""
        return {"clip_limit": self.clip_limit, "tiles": self.tiles}

    def apply(self, hu: HuArray) -> ByteArray:
        """Window and equalize `(z, y, x)` int16 HU of whole slices into uint8."""
        import cv2

        windowed = Window(self.center_hu, self.width_hu).apply(self._checked(hu))
        clahe = cv2.createCLAHE(clipLimit=self.clip_limit, tileGridSize=(self.tiles, self.tiles))
        return np.stack([np.asarray(clahe.apply(np.ascontiguousarray(plane)), dtype=np.uint8) for plane in windowed])


def _at_ranks(hu: HuArray, ranks: IntArray) -> IntArray:
    """The values at some ranks (from 0) of the sorted voxels, from their histogram."""
    lowest = int(hu.min())
    ends = np.cumsum(np.bincount(hu.ravel().astype(np.int32) - lowest))
    return np.searchsorted(ends, np.minimum(ranks, hu.size - 1), side="right").astype(np.int64) + lowest


_KINDS: Mapping[str, type[Window]] = {
    "weighted_mean": WeightedMean,
    "equalized": Equalized,
    "adaptive": Adaptive,
    "clahe": Clahe,
}


def channel_of(name: str, wl: float, ww: float, function: str, parameters: Mapping[str, Any]) -> Window:
    """The channel that a store's or a run's record describes.

    Raises
    ------
    UsageError
        WINDOW_INVALID: a function that this version does not know, or parameters that are not its own.
    """
    if function == FUNCTION and not parameters:
        return Window(wl, ww, name)
    values = dict(parameters)
    try:
        if "weighted" in values:
            values["weighted"] = tuple((float(c), float(w), float(k)) for c, w, k in values["weighted"])
        return _KINDS[function](wl, ww, name, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "WINDOW_INVALID",
            f"channel {name}: function {function!r} with parameters {sorted(parameters)}; expected {FUNCTION}, "
            f"{', '.join(_KINDS)} with their own",
        ) from error


__all__ = [
    "HIDAJAT_WEIGHTS",
    "Adaptive",
    "Clahe",
    "Equalized",
    "WeightedMean",
    "channel_of",
]
