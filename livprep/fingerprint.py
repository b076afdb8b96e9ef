"""Recognise a scan under another name, from its voxels alone.

The fingerprint is a hash of the histogram of clipped HU at the source's own voxels. A histogram does not change
under flips and transpositions, other headers, other files; clipping makes it blind to how a converter cut off
metal and padding.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from livprep.volume import LOWEST_HU, histogram

LOW_HU, HIGH_HU = -900, 900
"""Both data sets cut HU off outside about +-1000; what lies beyond counts as the nearest bound."""


def fingerprint(hu: npt.NDArray[np.int16]) -> str:
    """Return the hex sha256 of the histogram of `(z, y, x)` int16 HU clipped to `LOW_HU`...`HIGH_HU`."""
    return fingerprint_of(histogram(hu))


def fingerprint_of(counts: npt.NDArray[np.int64]) -> str:
    """Return the fingerprint of a scan from its `livprep.volume.histogram`."""
    first, last = LOW_HU - LOWEST_HU, HIGH_HU - LOWEST_HU
    clipped = counts[first : last + 1].astype("<i8")
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last + 1 :].sum()
    return hashlib.sha256(clipped.tobytes()).hexdigest()
