"""Recognise a scan under another name, from its voxels alone.

The fingerprint is a hash of the histogram of clipped HU at the source's own voxels. A histogram does not change
under flips and transpositions, other headers, other files; clipping makes it blind to how a converter cut off
metal and padding.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

LOW_HU, HIGH_HU = -900, 900
"""Both data sets cut HU off outside about +-1000; what lies beyond counts as the nearest bound."""


def fingerprint(hu: npt.NDArray[np.int16]) -> str:
    """Return the hex sha256 of the histogram of `(z, y, x)` int16 HU clipped to `LOW_HU`...`HIGH_HU`."""
    counts = np.zeros(HIGH_HU - LOW_HU + 1, dtype="<i8")
    for section in hu:  # by slice: the widened copies stay small
        clipped = np.clip(section, LOW_HU, HIGH_HU).astype(np.int64) - LOW_HU
        counts += np.bincount(clipped.ravel(), minlength=counts.size)
    return hashlib.sha256(counts.tobytes()).hexdigest()
