"""The label map: 0 background, 1 liver, 2 tumor."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

LabelArray = npt.NDArray[np.uint8]


class Label(IntEnum):
    """Values of every label array of the project (LiTS's own)."""

    BACKGROUND = 0
    LIVER = 1
    TUMOR = 2


UNLABELLED = 15
"""Value of the packed training array's four label bits where a case has no labels (streaming.md)."""

LABEL_COLORS: dict[Label, tuple[int, int, int]] = {
    Label.BACKGROUND: (0, 0, 0),
    Label.LIVER: (0, 114, 178),  # blue and orange of Okabe and Ito's palette, safe for color-blind readers
    Label.TUMOR: (230, 159, 0),
}


def label_counts(labels: LabelArray) -> dict[str, int]:
    """Count voxels per label of a `(z, y, x)` uint8 array; keys `background`, `liver`, `tumor`.

    `liver` counts label 1 alone (liver without tumor).
    """
    # slice by slice, and not by np.bincount, which widens all voxels to eight bytes first
    return {label.name.lower(): sum(int(np.count_nonzero(section == label)) for section in labels) for label in Label}
