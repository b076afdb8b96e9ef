"""How often each HU occurs in each class of a stored case: what windows are judged by, and what reports draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.labels import Label
from livprep.schema import PACKED_HIGH_HU, PACKED_LOW_HU
from livprep.store import CaseStore
from livprep.volume import LOWEST_HU, histogram
from livprep.windows import Window

_SLAB = 64
"""Slices decoded at a time: the depth of an inner chunk."""
_LABELS, _VALUES = 16, 4096

HU = np.arange(PACKED_LOW_HU, PACKED_HIGH_HU + 1, dtype=np.int16)
"""HU of the columns of a tally."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Voxels of a case by label and HU.

    Parameters
    ----------
    case, patient
        Case id, and the catalogue's patient.
    counts
        `(16, 4096)` int64: row = label (15 where a case has none), column k = `HU[k]`. What lies beyond -1024...3071
        HU counts at the ends.
    """

    case: str
    patient: str
    counts: npt.NDArray[np.int64]

    def of(self, lowest: Label, highest: Label = Label.TUMOR) -> npt.NDArray[np.int64]:
        """Voxels of the labels from one to another, for each HU of `HU`."""
        total: npt.NDArray[np.int64] = self.counts[lowest : highest + 1].sum(axis=0)
        return total

    def kept(self, window: Window, lowest: Label) -> float:
        """Share of the voxels of at least that label within a window, bounds included; NaN where there are none."""
        voxels = self.of(lowest)
        if not (total := int(voxels.sum())):
            return float("nan")
        return float(voxels[(window.low_hu <= HU) & (window.high_hu >= HU)].sum() / total)

    def separability(self, window: Window) -> float:
        """AUC of tumor against liver by their windowed bytes, at least 0.5: which of them is darker does not matter.

        Mann-Whitney's U over the number of pairs, equal bytes counting half; NaN without tumor or liver.
        """
        table = window.table()[HU.view(np.uint16)]
        liver, tumor = (
            np.bincount(table, weights=self.counts[label], minlength=256) for label in (Label.LIVER, Label.TUMOR)
        )
        pairs = float(liver.sum() * tumor.sum())
        if not pairs:
            return float("nan")
        below = np.cumsum(liver) - liver
        auc = float((tumor * (below + liver / 2)).sum()) / pairs
        return max(auc, 1 - auc)


def tally(case: CaseStore) -> Tally:
    """Count a stored case slab by slab, from its packed array."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, case.shape_zyx[0], _SLAB):
        part = slice(start, min(start + _SLAB, case.shape_zyx[0]))
        packed = case.read_packed((part, slice(None), slice(None)))
        counts += np.roll(histogram(packed.view(np.int16)), LOWEST_HU)  # from int16 order to that of uint16
    return Tally(case.case_id, case.patient, counts.reshape(_LABELS, _VALUES))
