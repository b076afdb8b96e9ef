"""Choices of prediction, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from livprep.geometry import Geometry
from livprep.labels import Label, LabelArray
from livtrain.cleanup import Cleanup
from livtrain.inference.window import Accumulate

HalfVolume = npt.NDArray[np.float16]


@dataclass(frozen=True)
class PredictOptions:
    """Choices of prediction; None leaves a choice to the run.

    Parameters
    ----------
    tta
        Mean over the 8 mirrorings; for networks that were trained with flips.
    keep_largest, min_lesion_ml, cleanup
        Post-processing; a choice made here wins over what was tuned for the run, and that over the defaults.
    probabilities
        Hand back probabilities beside the labels.
    overlap
        Of neighboring patches.
    batch
        Patches a forward pass; None is as many as fit (on a CPU, at most the run's).
    amp
        bfloat16; None is as the run was trained, on a CUDA device.
    accumulate
        Where sums of patches are kept.
    crf
        A dense CRF over the probabilities, in 3D or slice by slice; None is none.
    """

    tta: bool = False
    keep_largest: bool | None = None
    min_lesion_ml: float | None = None
    cleanup: Cleanup = field(default_factory=Cleanup)
    probabilities: bool = False
    overlap: float | None = None
    batch: int | None = None
    amp: bool | None = None
    accumulate: Accumulate = "auto"
    crf: Literal["3d", "2d"] | None = None

    @property
    def chosen(self) -> Cleanup:
        """Post-processing chosen here."""
        named = Cleanup(keep_largest=self.keep_largest, min_lesion_ml=self.min_lesion_ml)
        return named.over(self.cleanup)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels 0, 1, 2 on the source's grid and axis order, and probabilities by name if they were asked for.

    Probabilities are float16, whose steps below 1 are 0.0005. `network_s` of the `seconds` passed in networks.
    """

    labels: LabelArray
    geometry: Geometry
    probabilities: Mapping[str, HalfVolume] = field(default_factory=dict)
    seconds: float = 0.0
    network_s: float = 0.0

    def volume_ml(self, lowest: Label) -> float:
        """Volume of the voxels with at least that label."""
        return int(np.count_nonzero(self.labels >= lowest)) * self.geometry.voxel_volume_ml
