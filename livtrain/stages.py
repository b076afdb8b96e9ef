"""What the stages learn: which labels are the target, which voxels count, how logits become probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.geometry import Triple
from livprep.labels import Label, LabelArray
from livtrain.postprocess import dilate_mm

StageName = Literal["liver", "tumor", "multiclass"]
Labels = TypeVar("Labels", Tensor, npt.NDArray[Any])

THRESHOLD = 0.5
"""Probability from which a voxel counts as foreground."""
LIVER_MARGIN_MM = 10.0
"""Stage 2 sees the liver (in training the reference, at prediction stage 1's) and this much around it."""


@dataclass(frozen=True)
class Stage:
    """One of the three things that a network can be trained for.

    Parameters
    ----------
    name
        `liver` (label >= 1), `tumor` (label == 2, only near the liver) or `multiclass` (background, liver,
        tumor).
    out_channels
        Logit maps: 1 with a sigmoid, 3 with a softmax.
    liver_margin_mm
        Voxels further than this from the liver are ignored; None counts every voxel.
    """

    name: StageName
    out_channels: int
    liver_margin_mm: float | None = None

    def target(self, labels: Labels) -> Labels:
        """Class of each voxel, uint8, of labels 0, 1, 2 (tensor or array of any integer dtype)."""
        if self.name == "liver":
            chosen: Any = labels >= int(Label.LIVER)
        elif self.name == "tumor":
            chosen = labels == int(Label.TUMOR)
        else:
            chosen = labels
        as_uint8: Any = chosen.to(torch.uint8) if isinstance(chosen, Tensor) else chosen.astype(np.uint8)
        return cast(Labels, as_uint8)

    def weight(self, labels_BZYX: Tensor, spacing_mm: Sequence[Triple]) -> Tensor | None:
        """Mask of the voxels that count (float32, 1 or 0), or None where all do.

        Parameters
        ----------
        labels_BZYX
            Labels 0, 1, 2 on any device.
        spacing_mm
            Spacing (zyx, mm) of each sample.
        """
        if self.liver_margin_mm is None:
            return None
        masks = [
            dilate_mm(labels >= int(Label.LIVER), spacing, self.liver_margin_mm)
            for labels, spacing in zip(labels_BZYX, spacing_mm, strict=True)
        ]
        return torch.stack(masks).float()

    def probabilities(self, logits_BKZYX: Tensor) -> Tensor:
        """Sigmoid of one map, softmax of several; float32, same shape."""
        return probabilities(logits_BKZYX)

    def labels(self, probabilities_KZYX: npt.NDArray[np.float32]) -> LabelArray:
        """Labels `(z, y, x)` of probabilities: from 0.5 on with one map, the largest of several.

        `liver` gives 0 and 1, `tumor` 0 and 2, `multiclass` 0, 1 and 2.
        """
        if self.out_channels > 1:
            largest: LabelArray = probabilities_KZYX.argmax(axis=0).astype(np.uint8)
            return largest
        value = Label.LIVER if self.name == "liver" else Label.TUMOR
        return np.where(probabilities_KZYX[0] >= THRESHOLD, np.uint8(value), np.uint8(Label.BACKGROUND))


def probabilities(logits_BKZYX: Tensor) -> Tensor:
    """Sigmoid of one logit map, softmax over several; float32, same shape."""
    logits = logits_BKZYX.float()
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


STAGES: dict[str, Stage] = {
    "liver": Stage("liver", 1),
    "tumor": Stage("tumor", 1, liver_margin_mm=LIVER_MARGIN_MM),
    "multiclass": Stage("multiclass", 3),
}


def get_stage(name: str) -> Stage:
    """Return the stage of that name.

    Raises
    ------
    UsageError
        There is no such stage.
    """
    if name not in STAGES:
        raise UsageError("CONFIG_INVALID", f"stage {name!r}: expected one of {', '.join(STAGES)}")
    return STAGES[name]
