"""The label map: 0 background, 1 liver, 2 tumor."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled

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
    counts = row_counts(labels).sum(axis=(0, 1), dtype=np.int64)
    return {label.name.lower(): int(counts[label]) for label in Label}


def row_counts(labels: LabelArray) -> npt.NDArray[np.int32]:
    """Voxels of each label in each row of a `(z, y, x)` uint8 array: `(z, y, label)`."""
    counts = np.zeros((*labels.shape[:2], len(Label)), dtype=np.int32)
    _count_rows(labels, counts)
    return counts


@compiled
def _count_rows(labels, counts):  # type: ignore[no-untyped-def]
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            row = labels[z, y]
            for label in range(counts.shape[2]):
                count = 0
                for x in range(len(row)):
                    count += row[x] == label
                counts[z, y, label] = count


def voxels_at(labels: LabelArray, label: Label, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Coordinates `(n, 3)` (z, y, x) of the voxels of a label whose place among them, in array order, is `ranks`."""
    counts = row_counts(labels)[..., label].ravel()
    ends = np.cumsum(counts, dtype=np.int64)
    rows = np.searchsorted(ends, ranks, side="right")
    points = np.empty((len(ranks), 3), dtype=np.int16)
    points[:, 0], points[:, 1] = np.divmod(rows, labels.shape[1])
    _find_columns(labels, int(label), ranks - (ends[rows] - counts[rows]), points)
    return points


@compiled
def _find_columns(labels, label, nth, points):  # type: ignore[no-untyped-def]
    for k in range(len(nth)):
        row = labels[points[k, 0], points[k, 1]]
        left = nth[k]
        for x in range(len(row)):
            if row[x] == label:
                if left == 0:
                    points[k, 2] = x
                    break
                left -= 1
