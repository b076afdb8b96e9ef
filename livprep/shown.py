"""A case as it is looked at: which window, which predictions beside the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from livprep.cases import FileRef
from livprep.catalog import load_catalog
from livprep.errors import GeometryError, SourceError, UsageError
from livprep.formats.archive import read_bytes
from livprep.formats.nifti import read_nifti, to_labels
from livprep.labels import Label, LabelArray
from livprep.prepare import Preparation, prepare
from livprep.store import CaseStore
from livprep.volume import LabelledVolume, LabelMap, Volume
from livprep.windows import Window

DEFAULT_PRESET = "abdomen"


@dataclass(frozen=True, eq=False)
class Shown:
    """A case as gray values and labels, all `(z, y, x)` uint8 on the stored grid (LPS order)."""

    case: CaseStore
    window: Window
    gray: npt.NDArray[np.uint8]
    reference: LabelArray | None
    prediction: LabelArray | None

    @property
    def labels(self) -> LabelArray | None:
        """The reference, else the prediction."""
        return self.prediction if self.reference is None else self.reference


def choose_window(case: CaseStore, text: str | None) -> Window:
    """A stored channel, a preset of the catalogue, or `LEVEL/WIDTH` in HU; without text, abdominal soft tissue.

    Raises
    ------
    UsageError
        It is none of them.
    """
    presets = load_catalog().windows.presets
    stored = {window.name: window for window in case.windows}
    if text is None:
        return presets[DEFAULT_PRESET]
    pair = re.fullmatch(r"(?:hu:)?(-?[\d.]+)/([\d.]+)", text.strip())
    if pair:
        return Window(float(pair[1]), float(pair[2]))
    if (found := stored.get(text) or presets.get(text)) is None:
        raise UsageError(
            "USAGE",
            f"window {text!r}: {case.case_id} stores {', '.join(stored) or 'none'}, presets are "
            f"{', '.join(presets)}; expected one of them or LEVEL/WIDTH in HU, as 40/220",
        )
    return found


def read_prediction(case: CaseStore, folder: Path, preparation: Preparation) -> LabelArray:
    """The predicted labels of a case, `<case>.nii.gz` or `.nii` in a folder, brought to the stored grid.

    The file holds the source's voxels in the source's order, as `livtrain predict` writes them; its header is not
    looked at, because it may repeat a fault of the source's.

    Raises
    ------
    SourceError
        PREDICTION_MISSING: there is no such file; or it is unreadable.
    GeometryError
        It has another shape than the source.
    """
    files = [folder] if folder.is_file() else [folder / f"{case.case_id}{end}" for end in (".nii.gz", ".nii")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise SourceError("PREDICTION_MISSING", f"{folder}: holds no prediction {case.case_id}.nii.gz")
    ref = FileRef(str(path))
    labels = to_labels(ref, read_nifti(ref, read_bytes(ref)), tuple(int(label) for label in Label))
    source = case.source_geometry
    if labels.shape != source.shape_zyx:
        raise GeometryError(
            f"{case.case_id}: prediction of {labels.shape} voxels (zyx), expected the scan's own {source.shape_zyx}"
        )
    void = Volume(np.zeros(source.shape_zyx, dtype=np.int16), source)
    moved = prepare(LabelledVolume(void, LabelMap(labels, source)), preparation).label_map
    assert moved is not None
    return moved.labels


def load_shown(case: CaseStore, window: Window, prediction: LabelArray | None = None) -> Shown:
    """Read a case in a window; a stored channel is read as it is stored."""
    stored = window in tuple(case.windows)
    gray = case.read_window(window.name) if stored else window.apply(case.read_hu())
    return Shown(case, window, gray, case.read_labels() if case.has_labels else None, prediction)
