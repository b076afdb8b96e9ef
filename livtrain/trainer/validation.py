"""Whole held-out cases through the sliding window, and their Dice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from livprep.labels import Label, LabelArray
from livtrain.config import Settings
from livtrain.dataset import CaseReader, PatchReader
from livtrain.inference import sliding_window
from livtrain.model import model_input
from livtrain.postprocess import Box, bounding_box, box_at_least, surroundings
from livtrain.sampling import PatchRef, Shape
from livtrain.stages import Stage, get_stage

THRESHOLD = 0.5
"""Probability from which a voxel counts as foreground."""
_SCORED: dict[str, tuple[str, ...]] = {
    "liver": ("liver",),
    "tumor": ("tumor",),
    "multiclass": ("liver", "tumor"),
}


@dataclass(frozen=True, eq=False)
class CaseScore:
    """Dice of one case per structure (NaN where the reference has none of it), and what was scored."""

    case_id: str
    dice: dict[str, float]
    image_ZYX: npt.NDArray[np.uint8]
    reference_ZYX: LabelArray
    predicted_ZYX: LabelArray
    spacing_mm: tuple[float, float, float]


class Interrupted(Exception):  # noqa: N818 - flow of control, no fault
    """Raised inside a validation that was asked to stop."""


def score_case(
    network: nn.Module,
    case_id: str,
    case: CaseReader,
    spacing_mm: tuple[float, float, float],
    settings: Settings,
) -> CaseScore:
    """Segment one whole case and compare it with its labels.

    The tumor stage is scored within the reference liver dilated by the stage's margin, as it was trained;
    `livtrain evaluate` scores it within the predicted liver.
    """
    stage = get_stage(settings.stage)
    reader = PatchReader({case_id: case}, case.shape_zyx, settings.bank, settings.window_source)
    image = np.zeros((len(settings.bank), *case.shape_zyx), dtype=np.uint8)
    reference = np.zeros(case.shape_zyx, dtype=np.uint8)
    reader.read(PatchRef(case_id, (0, 0, 0), 0, "whole"), image, reference)
    given = model_input(settings, case.read_hu()) if settings.learn_windows else image
    margin_mm = stage.liver_margin_mm
    counted = None if margin_mm is None else surroundings(reference >= Label.LIVER, spacing_mm, margin_mm)
    box = _region(counted, settings, case.shape_zyx)
    predicted = np.zeros(case.shape_zyx, dtype=np.uint8)
    if box is not None:
        probability = sliding_window(
            network,
            given[(slice(None), *box)],
            settings.patch_zyx,
            settings.overlap,
            settings.device,
            batch=settings.batch,
            amp=settings.amp == "bf16",
        )
        predicted[box] = _labels(probability, stage)
    if counted is not None:
        predicted[~counted] = Label.BACKGROUND
    dice = {name: _dice(*_masks(name, reference, predicted)) for name in _SCORED[stage.name]}
    return CaseScore(case_id, dice, image[0], reference, predicted, spacing_mm)


def validate(
    network: nn.Module,
    cases: Mapping[str, CaseReader],
    spacings_mm: Mapping[str, tuple[float, float, float]],
    case_ids: Sequence[str],
    settings: Settings,
    stop: Callable[[], bool],
) -> list[CaseScore]:
    """Score cases one after the other.

    Raises
    ------
    Interrupted
        `stop` became true; it is asked before every forward pass, so that a signal never waits for a large scan.
    """

    def check(*_: object) -> None:
        if stop():
            raise Interrupted

    hook = network.register_forward_pre_hook(check)
    try:
        return [score_case(network, name, cases[name], spacings_mm[name], settings) for name in case_ids]
    finally:
        hook.remove()


def mean_dice(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases per structure, and `mean` over structures.

    Cases without the structure do not count: whether a network leaves them empty flips from step to step, and would
    outweigh everything else in the choice of the best weights. `livtrain evaluate` counts them.
    """
    names = scores[0] if scores else {}
    means = {name: _nan_mean([dice[name] for dice in scores]) for name in names}
    return {**means, "mean": _nan_mean(list(means.values()))}


def _region(counted_ZYX: npt.NDArray[np.bool_] | None, settings: Settings, shape_zyx: Shape) -> Box | None:
    """What of a case is segmented: all of it, or the box of what counts, at least a patch, as prediction does it."""
    if counted_ZYX is None:
        return slice(0, shape_zyx[0]), slice(0, shape_zyx[1]), slice(0, shape_zyx[2])
    box = bounding_box(counted_ZYX)
    return None if box is None else box_at_least(box, settings.patch_zyx, shape_zyx)


def _labels(probability_KZYX: npt.NDArray[np.float32], stage: Stage) -> LabelArray:
    """Labels of `Label` from probabilities."""
    if stage.name == "multiclass":
        labels: LabelArray = probability_KZYX.argmax(axis=0).astype(np.uint8)
        return labels
    value = Label.LIVER if stage.name == "liver" else Label.TUMOR
    return np.where(probability_KZYX[0] >= THRESHOLD, np.uint8(value), np.uint8(0))


def _masks(
    structure: str, reference: LabelArray, predicted: LabelArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    if structure == "liver":
        return reference >= Label.LIVER, predicted >= Label.LIVER
    return reference == Label.TUMOR, predicted == Label.TUMOR


def _dice(reference: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> float:
    wanted = int(reference.sum())
    return 2 * int((reference & predicted).sum()) / (wanted + int(predicted.sum())) if wanted else math.nan


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
