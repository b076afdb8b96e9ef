"""Rates of one mask against another, by their textbook definitions.

Beside `MaskScores`, whose RVD is the LiTS scorer's, because published code names several of these otherwise: an FNR
over the union, an RVD called VOE.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskRates:
    """Rates of a prediction P against a reference R; NaN where the denominator is 0.

    Parameters
    ----------
    sensitivity, precision
        |P and R| / |R| and |P and R| / |P|.
    fnr
        |R without P| / |R|, which is 1 - sensitivity.
    fpr
        |P without R| / |not R|, over every voxel of the scan: it depends on the field of view.
    rvd_reference
        (|P| - |R|) / |R|: the usual relative volume difference, relative to the reference, positive where too much
        was segmented (Heimann et al. 2009, IEEE TMI 28:1251).
    """

    sensitivity: float
    precision: float
    fnr: float
    fpr: float
    rvd_reference: float

    def as_dict(self) -> dict[str, float]:
        """Names and values in order."""
        return asdict(self)


def mask_rates(prediction: BoolArray, reference: BoolArray, scan_voxels: int) -> MaskRates:
    """Count two masks of one shape.

    Parameters
    ----------
    scan_voxels
        Voxels of the whole scan, of which the masks may be a crop.
    """
    both = int(np.count_nonzero(prediction & reference))
    size_p, size_r = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    return MaskRates(
        sensitivity=_share(both, size_r),
        precision=_share(both, size_p),
        fnr=_share(size_r - both, size_r),
        fpr=_share(size_p - both, scan_voxels - size_r),
        rvd_reference=_share(size_p - size_r, size_r),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
