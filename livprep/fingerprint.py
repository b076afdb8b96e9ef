"""Recognise a scan under another name, from its voxels alone.

The fingerprint is a hash of the histogram of clipped HU at the source's own voxels. A histogram does not change
under flips and transpositions, other headers, other files; clipping makes it blind to how a converter cut off
metal and padding.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled

LOWEST_HU = -32768
"""Lowest value of int16."""
LOW_HU, HIGH_HU = -900, 900
"""Both data sets cut HU off outside about +-1000; what lies beyond counts as the nearest bound."""


def fingerprint(hu: npt.NDArray[np.int16]) -> str:
    """Return the hex sha256 of the histogram of `(z, y, x)` int16 HU clipped to `LOW_HU`...`HIGH_HU`."""
    counts = histogram(hu)
    low, high = LOW_HU - LOWEST_HU, HIGH_HU - LOWEST_HU
    clipped = counts[low : high + 1].astype("<i8")
    clipped[0] += counts[:low].sum()
    clipped[-1] += counts[high + 1 :].sum()
    return hashlib.sha256(clipped.tobytes()).hexdigest()


def histogram(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Count the voxels of each value of `(z, y, x)` int16 HU: 65536 counts, the first of `LOWEST_HU`."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    _count(hu, counts)
    return counts


@compiled
def _count(hu, counts):  # type: ignore[no-untyped-def]
    for section in hu:
        for line in section:
            for value in line:
                counts[value + 32768] += 1
