"""Which window? What each keeps of liver and tumor, and how well it tells them apart, for every labelled patient.

Labels are read to choose a window for a cohort; choose on training or validation cases, never on the test cases that
are reported (method.md, section 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from livprep.errors import StoreError
from livprep.labels import Label
from livprep.store import Store
from livprep.tallies import Tally, tally
from livprep.windows import Window

LEVELS_HU = tuple(float(level) for level in range(-50, 201, 10))
WIDTHS_HU = tuple(float(width) for width in range(50, 501, 10))
"""The grid of the heat maps."""
LIVER_OPTIMUM = ((30.0, 50.0), (200.0, 240.0))
LESION_OPTIMUM = ((50.0, 70.0), (130.0, 150.0))
"""Levels and widths (HU) of Unet_Window's published search optimum for each stage (method.md, section 1)."""


@dataclass(frozen=True)
class Row:
    """What one window does to one case; shares 0...1, NaN where there is no such class."""

    window: Window
    liver_kept: float
    tumor_kept: float
    auc: float

    def as_json(self) -> dict[str, object]:
        """Window and numbers; NaN becomes null."""
        numbers = {"liver_kept": self.liver_kept, "tumor_kept": self.tumor_kept, "auc": self.auc}
        return {
            "window": self.window.name,
            "wl": self.window.center_hu,
            "ww": self.window.width_hu,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        }


@dataclass(frozen=True)
class Verdict:
    """The windows' rows for one case."""

    case: str
    patient: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class Search:
    """Mean over cases of what each window of the grid does: `(level, width)` arrays, NaN where nobody has the class."""

    liver_kept: npt.NDArray[np.float64]
    tumor_kept: npt.NDArray[np.float64]
    auc: npt.NDArray[np.float64]
    cases: int


def tally_cohort(store: Store, pattern: str = "*") -> list[Tally]:
    """Count every labelled case that fits.

    Raises
    ------
    StoreError
        STORE_EMPTY: there is none.
    """
    chosen = [case for name, case in store.items() if fnmatchcase(name, pattern) and case.has_labels]
    if not chosen:
        raise StoreError("STORE_EMPTY", f"{store.path}: holds no labelled case that fits {pattern!r}")
    return [tally(case) for case in chosen]


def judge(tallies: Sequence[Tally], windows: Sequence[Window]) -> list[Verdict]:
    """What windows do to each case; the liver is the whole organ (label 1 and 2), bounds of a window included."""
    return [Verdict(each.case, each.patient, tuple(_row(each, window) for window in windows)) for each in tallies]


def _row(each: Tally, window: Window) -> Row:
    return Row(window, each.kept(window, Label.LIVER), each.kept(window, Label.TUMOR), each.separability(window))


def search(tallies: Sequence[Tally]) -> Search:
    """The grid `LEVELS_HU` x `WIDTHS_HU`, mean over the cases that have the class."""
    cells = np.full((3, len(tallies), len(LEVELS_HU), len(WIDTHS_HU)), np.nan)
    for t, each in enumerate(tallies):
        for k, level in enumerate(LEVELS_HU):
            for m, width in enumerate(WIDTHS_HU):
                row = _row(each, Window(level, width))
                cells[:, t, k, m] = row.liver_kept, row.tumor_kept, row.auc
    known = ~np.isnan(cells)
    total = np.where(known, cells, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        liver, tumor, auc = total / known.sum(axis=1)
    return Search(liver, tumor, auc, len(tallies))
