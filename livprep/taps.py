"""Separable filters over volumes as compiled loops: each output voxel is a short weighted sum along each axis.

Weights of an axis are `(first, weights)`: output `k` is the sum of `weights[k, t]` times input `first[k] + t`, where
an index beyond the ends counts as the end (the edge value continues).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled
from livprep.labels import Label, LabelArray

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """Weights of one axis.

    Parameters
    ----------
    first
        int64 `(n_out,)`: input index of the first weight; may lie outside the input.
    weights
        float32 `(n_out, taps)`; rows sum to 1.
    """

    first: npt.NDArray[np.int64]
    weights: FloatArray

    @classmethod
    def identity(cls, size: int) -> AxisTaps:
        """Weights that leave an axis as it is."""
        return cls(np.arange(size, dtype=np.int64), np.ones((size, 1), dtype=np.float32))


def filter_volume(values: npt.NDArray[Any], z: AxisTaps, y: AxisTaps, x: AxisTaps, out: npt.NDArray[Any]) -> None:
    """Filter `(z, y, x)` values along y, x and z into `out`.

    Sums are float32, in the order of the weights. Into an integer `out` they are rounded half to even and clipped
    to the range of `values`. Only as many filtered slices are held as one output slice needs.
    """
    whole = out.dtype.kind == "i"
    low, high = (np.float32(values.min()), np.float32(values.max())) if whole else (np.float32(0), np.float32(0))
    _filter(values, z.first, z.weights, y.first, y.weights, x.first, x.weights, whole, low, high, out)


@compiled
def _filter(values, z_first, z_weights, y_first, y_weights, x_first, x_weights, whole, low, high, out):  # type: ignore[no-untyped-def]
    depth, height, width = values.shape
    rows, columns = len(y_first), len(x_first)
    z_taps, y_taps, x_taps = z_weights.shape[1], y_weights.shape[1], x_weights.shape[1]
    ring = np.empty((z_taps, rows, columns), np.float32)
    line = np.empty(width, np.float32)
    total = np.empty((rows, columns), np.float32)
    held = np.full(z_taps, -1, np.int64)
    for k in range(len(z_first)):
        total[...] = 0
        for t in range(z_taps):
            z = min(max(z_first[k] + t, 0), depth - 1)
            weight = z_weights[k, t]
            if weight == 0:
                continue
            place = z % z_taps
            plane = ring[place]
            if held[place] != z:
                held[place] = z
                for i in range(rows):
                    line[...] = 0
                    for s in range(y_taps):
                        share = y_weights[i, s]
                        if share == 0:
                            continue
                        source = values[z, min(max(y_first[i] + s, 0), height - 1)]
                        for j in range(width):
                            line[j] += share * np.float32(source[j])
                    for j in range(columns):
                        start = x_first[j]
                        value = np.float32(0)
                        if start >= 0 and start + x_taps <= width:
                            for s in range(x_taps):
                                value += x_weights[j, s] * line[start + s]
                        else:
                            for s in range(x_taps):
                                value += x_weights[j, s] * line[min(max(start + s, 0), width - 1)]
                        plane[i, j] = value
            for i in range(rows):
                for j in range(columns):
                    total[i, j] += weight * plane[i, j]
        for i in range(rows):
            for j in range(columns):
                value = total[i, j]
                if whole:
                    value = min(max(np.rint(value), low), high)
                out[k, i, j] = value


@dataclass(frozen=True, eq=False)
class AxisNeighbors:
    """The two input indices around each output position of an axis, and the share of the second, float64 0...1."""

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]


def vote(labels: LabelArray, z: AxisNeighbors, y: AxisNeighbors, x: AxisNeighbors) -> LabelArray:
    """Interpolate the indicator of each label linearly and take the largest; ties go to the lower label.

    Parameters
    ----------
    labels
        `(z, y, x)` uint8 values of `Label`.
    z, y, x
        Positions of the output's voxels.
    """
    out = np.zeros((len(z.lower), len(y.lower), len(x.lower)), dtype=np.uint8)
    sums = np.zeros(len(Label), dtype=np.float64)
    _vote(
        labels, labels.any(axis=2), z.lower, z.upper, z.share, y.lower, y.upper, y.share, x.lower, x.upper, x.share,
        sums, out,
    )  # fmt: skip
    return out


@compiled
def _vote(labels, filled, z_lower, z_upper, z_share, y_lower, y_upper, y_share, x_lower, x_upper, x_share, sums, out):  # type: ignore[no-untyped-def]
    for k in range(len(z_lower)):
        z0, z1, fz = z_lower[k], z_upper[k], z_share[k]
        for i in range(len(y_lower)):
            y0, y1, fy = y_lower[i], y_upper[i], y_share[i]
            if not (filled[z0, y0] or filled[z0, y1] or filled[z1, y0] or filled[z1, y1]):
                continue  # background, as `out` is
            for j in range(len(x_lower)):
                x0, x1 = x_lower[j], x_upper[j]
                a, b = labels[z0, y0, x0], labels[z0, y0, x1]
                c, d = labels[z0, y1, x0], labels[z0, y1, x1]
                e, f = labels[z1, y0, x0], labels[z1, y0, x1]
                g, h = labels[z1, y1, x0], labels[z1, y1, x1]
                if a == b == c == d == e == f == g == h:
                    out[k, i, j] = a
                    continue
                fx = x_share[j]
                sums[:] = 0
                sums[a] += (1 - fz) * (1 - fy) * (1 - fx)
                sums[b] += (1 - fz) * (1 - fy) * fx
                sums[c] += (1 - fz) * fy * (1 - fx)
                sums[d] += (1 - fz) * fy * fx
                sums[e] += fz * (1 - fy) * (1 - fx)
                sums[f] += fz * (1 - fy) * fx
                sums[g] += fz * fy * (1 - fx)
                sums[h] += fz * fy * fx
                best = 0
                for label in range(1, len(sums)):
                    if sums[label] > sums[best] + 1e-9:  # what rounding makes of a tie is a tie
                        best = label
                out[k, i, j] = best
