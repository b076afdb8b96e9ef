"""Which lesions a prediction finds, as the LiTS challenge's public scoring code of 2017-09-03 decides it.

Two properties of that code decide digits and are kept:

* components are numbered in the raster order of the file's first axis, here the last array axis;
* the union of a pair's IoU takes, of the prediction, the components matched to the reference lesion whose
  *number* equals that of the pair's first component (the code compares numbers of two different numberings).
  `own_union=True` gives the plain IoU instead.

Not kept: its 8-bit mask, which would wrap beyond 255 reference lesions in one scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detection:
    """Lesions of one case at one overlap threshold.

    Parameters
    ----------
    tp, fp, fn
        Detected, prediction components - tp, reference lesions - tp. The scorer starts tp from the matched
        prediction groups and takes off, for each that fails, the number of reference lesions merged in it.
    pairs
        For each detected lesion the component numbers of the prediction and of the reference.
    """

    tp: int
    fp: int
    fn: int
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Number the 6-connected components of a `(z, y, x)` mask from 1, in raster order of its transpose."""
    # The scorer's numbers: order x, y, z, and an output in C order, on which scipy's numbering depends.
    numbered = np.zeros(mask.shape[::-1], dtype=np.int32)
    ndimage.label(mask.T, output=numbered)
    return numbered.T


def overlaps(parts_p: npt.NDArray[np.int32], parts_r: npt.NDArray[np.int32]) -> IntArray:
    """Count voxels of each pair of components: `(n_p + 1, n_r + 1)`, row and column 0 are background."""
    rows, columns = int(parts_p.max(initial=0)) + 1, int(parts_r.max(initial=0)) + 1
    joint = parts_p.astype(np.int64) * columns + parts_r
    return np.bincount(joint.ravel(order="K"), minlength=rows * columns).reshape(rows, columns)


def detect(table: IntArray, min_overlap: float, *, own_union: bool = False) -> Detection:
    """Match prediction components to reference lesions and keep those above an overlap.

    1. A reference lesion is tied to the component that covers most of it (the first of equals); lesions tied
       to one component are merged.
    2. A component goes to the merged lesion that it covers most (the first of equals); components of one
       merged lesion are merged.
    3. A pair is detected if intersection / union > `min_overlap`, strictly.

    Parameters
    ----------
    table
        Result of `overlaps`.
    own_union
        Take the pair's true union instead of the scorer's (see the module).
    """
    count_p, count_r = table.shape[0] - 1, table.shape[1] - 1
    hits = table[1:, 1:]
    merged = _merge_references(hits)
    columns = np.zeros((count_p, len(merged)), dtype=np.int64)
    for k, group in enumerate(merged):
        columns[:, k] = hits[:, [number - 1 for number in group]].sum(axis=1)
    matched = [p for p in range(count_p) if columns[p].any()]
    owner = {p + 1: int(columns[p].argmax()) for p in matched}  # component number -> index of merged lesion
    groups = [tuple(p for p in owner if owner[p] == k) for k in range(len(merged))]
    sizes_p, sizes_r = table.sum(axis=1), table.sum(axis=0)
    label_of = {group[0]: k for k, group in enumerate(merged)}  # a merged lesion bears its first number
    alive = set(range(len(merged)))
    tp, pairs = 0, []
    # The scorer goes through the groups by their first component; a failed group leaves later unions.
    for k in sorted((k for k, group in enumerate(groups) if group), key=lambda k: groups[k][0]):
        taken = k if own_union else label_of.get(groups[k][0], -1)
        inside = groups[taken] if taken in alive else ()
        rows = [p - 1 for p in groups[k]]
        intersection = int(columns[rows, k].sum())
        shared = int(columns[[p - 1 for p in inside], k].sum())
        union = int(sizes_p[list(inside)].sum() + sizes_r[list(merged[k])].sum()) - shared
        if intersection / union > min_overlap:
            tp += 1
            pairs.append((k, (groups[k], merged[k])))
        else:
            tp += 1 - len(merged[k])
            alive.discard(k)
    return Detection(tp, count_p - tp, count_r - tp, tuple(pair for _, pair in sorted(pairs)))


def _merge_references(hits: IntArray) -> list[tuple[int, ...]]:
    """Group the numbers of the reference lesions that are tied to one component, by their first number."""
    tied: dict[int, list[int]] = {}
    alone: list[tuple[int, ...]] = []
    for index in range(hits.shape[1]):
        column = hits[:, index]
        if column.any():
            tied.setdefault(int(column.argmax()), []).append(index + 1)
        else:
            alone.append((index + 1,))
    return sorted([*alone, *(tuple(group) for group in tied.values())])
