"""What the page shows of a case: volumes as NIfTI made when they are asked for, and one description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.catalog import load_catalog
from livprep.formats.nifti import encode
from livprep.labels import LABEL_COLORS, Label, LabelArray
from livprep.store import CaseStore
from livprep.windows import Window

SCAN, REFERENCE, PREDICTION = "hu", "reference", "prediction"
_CHANNEL = "channel/"


@dataclass(frozen=True, eq=False)
class Scene:
    """A case, the predictions beside it (on its grid), and the window that is shown first."""

    case: CaseStore
    window: Window
    prediction: LabelArray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Volumes that `nifti` knows."""
        labels = ([REFERENCE] if self.case.has_labels else []) + ([PREDICTION] if self.prediction is not None else [])
        return (SCAN, *labels, *(f"{_CHANNEL}{name}" for name in self.case.window_names))

    def nifti(self, name: str) -> bytes | None:
        """A volume as an uncompressed NIfTI-1 with the stored grid's own affine; None for an unknown name."""
        if name not in self.names:
            return None
        return encode(self._voxels(name), self.case.geometry)

    def _voxels(self, name: str) -> npt.NDArray[np.generic]:
        if name == SCAN:
            return self.case.read_hu()
        if name == REFERENCE:
            return self.case.read_labels()
        if name == PREDICTION:
            assert self.prediction is not None
            return self.prediction
        return self.case.read_window(name.removeprefix(_CHANNEL))

    def describe(self) -> dict[str, Any]:
        """What the page needs to know: volumes, windows, colors; no path and no header text."""
        first = self.window if self.window.is_local else load_catalog().windows.presets["abdomen"]
        stored = tuple(self.case.windows)
        return {
            "case": self.case.case_id,
            "shape_zyx": list(self.case.shape_zyx),
            "spacing_mm": list(self.case.geometry.spacing_mm),
            "labels": [name for name in self.names if name in (REFERENCE, PREDICTION)],
            "window": {"wl": first.center_hu, "ww": first.width_hu},
            "channel": "" if self.window.is_local else self.window.name,
            "windows": [_linear(window) for window in stored if type(window) is Window]
            + [_linear(window) for name, window in load_catalog().windows.presets.items() if window not in stored],
            "channels": [window.name for window in stored if type(window) is not Window],
            "classes": [
                {"value": int(label), "name": label.name.lower(), "rgb": list(LABEL_COLORS[label])} for label in Label
            ],
        }


def _linear(window: Window) -> dict[str, Any]:
    return {"name": window.name, "wl": window.center_hu, "ww": window.width_hu}
