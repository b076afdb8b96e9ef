"""The worst cases as pictures: reference and prediction over the slices where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from livprep.geometry import Triple, canonical_axes
from livprep.labels import Label, LabelArray
from livprep.windows import Window
from livtrain.evaluate.evaluation import Evaluation, Pair
from livtrain.evaluate.references import read_label_file
from livtrain.evaluate.summary import case_values
from livtrain.figures import Panel, draw_gallery

Value = TypeVar("Value", bound=np.generic)
WINDOW = Window(50.0, 400.0)
"""For looking, not for networks (method.md, section 1)."""


@dataclass(frozen=True)
class WorstCase:
    """A case of the gallery: its picture as PNG, why it is here, and what the picture shows."""

    case: str
    reason: str
    caption: str
    png: bytes


def worst_cases(evaluation: Evaluation, pairs: Sequence[Pair], each: int) -> list[WorstCase]:
    """Draw the `each` cases of lowest liver Dice and as many of lowest tumor Dice (where either side has any)."""
    by_name = {pair.name: pair for pair in pairs}
    chosen: dict[str, tuple[str, Label]] = {}
    for label, name in ((Label.TUMOR, "nnunet_tumor_dice"), (Label.LIVER, "nnunet_liver_dice")):
        values = case_values(name, evaluation.cases)
        ranked = [k for k in np.argsort(values, kind="stable") if not np.isnan(values[k])]
        for rank, k in enumerate(ranked[:each], 1):
            case = evaluation.cases[k].case
            organ = label.name.lower()
            reason = f"{organ} Dice {values[k]:.3f}, rank {rank} from below of {len(ranked)}"
            before = chosen.get(case)
            chosen[case] = (f"{before[0]}; {reason}", before[1]) if before else (reason, label)
    return [_draw(by_name[case], reason, label) for case, (reason, label) in chosen.items()]


def _draw(pair: Pair, reason: str, label: Label) -> WorstCase:
    known = pair.reference.load()
    scan = None if pair.reference.image is None else pair.reference.image()
    # The scan's geometry is repaired, so that left is left also where the label file's header is known to be wrong.
    turn, grid = canonical_axes(known.geometry if scan is None else scan.geometry)
    prediction = turn.apply(pair.reference.place(read_label_file(pair.prediction)[0]))
    reference = turn.apply(known.labels)
    image = None if scan is None else turn.apply(scan.hu)
    z, y = _planes(reference, prediction, label)
    panels = [
        _panel(f"axial, slice {z} of {grid.shape_zyx[0]}", image, reference, prediction, grid.spacing_mm, axis=0, at=z),
        _panel(f"coronal, row {y} of {grid.shape_zyx[1]}", image, reference, prediction, grid.spacing_mm, axis=1, at=y),
    ]
    shown = (
        f"window: level {WINDOW.center_hu:g}, width {WINDOW.width_hu:g} HU (abdominal soft tissue)"
        if image is not None
        else "labels only"
    )
    caption = f"{shown}; the slices in which reference and predicted {label.name.lower()} differ most"
    return WorstCase(pair.name, reason, caption, draw_gallery(panels))


def _planes(reference: LabelArray, prediction: LabelArray, label: Label) -> tuple[int, int]:
    """Slice and row with the most voxels of difference; of the reference where nothing differs."""
    differ = (reference >= label) != (prediction >= label)
    if not differ.any():
        differ = reference >= label
    z = int(differ.sum(axis=(1, 2)).argmax())
    y = int(differ.sum(axis=(0, 2)).argmax())
    return z, y


def _panel(
    title: str,
    image: npt.NDArray[np.int16] | None,
    reference: LabelArray,
    prediction: LabelArray,
    spacing_mm: Triple,
    *,
    axis: int,
    at: int,
) -> Panel:
    """One plane in radiological view: the patient's right on the left; coronal planes have the head on top."""

    def plane(volume: npt.NDArray[Value]) -> npt.NDArray[Value]:
        # LPS order: rows grow toward the back in axial planes, and toward the head in coronal ones, hence the flip
        return volume[at] if axis == 0 else volume[::-1, at]

    rows_mm = spacing_mm[1] if axis == 0 else spacing_mm[0]
    return Panel(
        title=title,
        image=None if image is None else WINDOW.apply(np.ascontiguousarray(plane(image))),
        reference=plane(reference),
        prediction=plane(prediction),
        spacing_mm=(rows_mm, spacing_mm[2]),
        letters=("R", "L", "A", "P") if axis == 0 else ("R", "L", "S", "I"),
    )
