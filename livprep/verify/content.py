"""Decode a stored case and compute again what follows from its HU and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from livprep.errors import LivError, UsageError
from livprep.fingerprint import fingerprint
from livprep.geometry import canonical_axes
from livprep.labels import Label, LabelArray, label_counts
from livprep.prepare import Preparation
from livprep.schema import INDEX_POINTS, WindowMeta
from livprep.store import CaseStore, Findings, Surroundings, index_points, layout, near_points, ome, pack
from livprep.windows import FUNCTION

T = TypeVar("T")
Points = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
SLAB = 64
"""Slices decoded at a time beside the scan itself; the depth of an inner chunk."""
_POSITIONS = 1 << 20


def check_attributes(found: Findings, case: CaseStore, preparation: Preparation) -> None:
    """Compare the attributes that follow from other attributes."""
    meta, grid, source = case.meta, case.geometry, case.source_geometry
    expected = {
        "case": case.case_id,
        "grid": preparation.grid(source).as_dict(),
        "affine_lps": grid.affine_lps.tolist(),
        "affine_ras": grid.affine_ras.tolist(),
        "source_orientation": source.orientation,
        "source_spacing_mm": list(source.spacing_mm),
        "label_map": {label.name.lower(): int(label) for label in Label},
    }
    wrong = [name for name, value in expected.items() if getattr(meta, name) != value]
    if wrong:
        found.add("STORE_ATTRIBUTES", f"{', '.join(wrong)}: not what follows from the other attributes")
    counts = meta.label_voxels
    if counts is not None and sum(counts.values()) != np.prod(grid.shape_zyx):
        found.add("STORE_ATTRIBUTES", f"label_voxels add up to {sum(counts.values())} on a grid of {grid.shape_zyx}")


def check_content(found: Findings, case: CaseStore, damaged: set[str]) -> None:
    """Decode every array of the components that are not damaged, and compare what one says of another."""
    if layout.HU in damaged:
        return  # what the other arrays should be is not known
    content = _Content(found, case, damaged)
    hu = content.decode(case.read_hu)
    labels = content.decode(case.read_labels) if case.has_labels else None
    if hu is None or (labels is None and case.has_labels):
        return
    content.check_positions(f"{layout.HU}/scale0")
    if labels is not None:
        content.check_positions(f"{layout.HU}/{layout.LABELS}")
    content.check_values(hu, labels)
    if layout.TRAIN not in damaged:
        content.check_packed(hu, labels)
    if layout.INDEX not in damaged and labels is not None:
        content.check_index(labels)
    for folder in sorted((case.path / layout.WINDOWS).iterdir()):
        if folder.is_dir() and f"{layout.WINDOWS}/{folder.name}" not in damaged:
            content.check_positions(f"{layout.WINDOWS}/{folder.name}/scale0")
            content.check_window(folder, hu)


@dataclass
class _Content:
    found: Findings
    case: CaseStore
    damaged: set[str]

    def decode(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None, and a finding, where it cannot be decoded."""
        try:
            return read()
        except (LivError, OSError) as error:
            self.found.add("STORE_DECODE", str(error))
            return None

    def check_positions(self, level: str) -> None:
        """Compare the stored positions along the axes with the grid."""
        for axis, positions in ome.axis_coordinates(self.case.geometry).items():
            name = f"{level}/{axis}"
            stored = self.decode(partial(self.case.read_array, name, _POSITIONS))
            if stored is not None and not np.array_equal(stored, positions):
                self.found.add("STORE_ATTRIBUTES", f"{name} does not hold the positions of the grid")

    def check_values(self, hu: npt.NDArray[np.int16], labels: LabelArray | None) -> None:
        """Compare the attributes that follow from HU and labels."""
        expected: dict[str, Any] = {"hu_min": int(hu.min()), "hu_max": int(hu.max())}
        if labels is not None:
            if int(labels.max()) > max(Label):
                self.found.add("STORE_ATTRIBUTES", f"labels hold the value {int(labels.max())}")
            expected["label_voxels"] = label_counts(labels)
        if canonical_axes(self.case.source_geometry)[1] == self.case.geometry:  # else of voxels that are not stored
            expected["fingerprint"] = fingerprint(hu)
        for name, value in expected.items():
            stated = getattr(self.case.meta, name)
            if stated != value:
                self.found.add("STORE_ATTRIBUTES", f"{name} is {stated}, the arrays give {value}")

    def check_packed(self, hu: npt.NDArray[np.int16], labels: LabelArray | None) -> None:
        """Compare the training array with HU and labels."""
        for part, region in _slabs(hu):
            stored = self.decode(partial(self.case.read_packed, region))
            if stored is None:
                return
            if wrong := np.count_nonzero(stored != pack(hu[part], None if labels is None else labels[part])):
                self.found.add("STORE_PACKED", f"{wrong} voxels from slice {part.start} are not their HU and label")
                return

    def check_index(self, labels: LabelArray) -> None:
        """Compare the sampling index with the labels."""
        counts = layout.read_attributes(self.case.path / layout.INDEX).get("counts")
        if counts != label_counts(labels):
            self.found.add("STORE_INDEX", f"its counts are {counts}, the labels give {label_counts(labels)}")
        for label in Label:
            expected = index_points(self.case.case_id, labels, label)
            self._check_points(label.name.lower(), expected, labels, partial(_has_label, labels, label))
        spacing_mm = self.case.geometry.spacing_mm
        around = Surroundings.of(labels, spacing_mm)
        expected = near_points(self.case.case_id, labels, spacing_mm)
        self._check_points(layout.NEAR, expected, labels, _nowhere if around is None else around.contain)

    def _check_points(
        self, name: str, expected: npt.NDArray[np.int16], labels: LabelArray, belong: Callable[[Points], BoolArray]
    ) -> None:
        """Compare one array of the index with what would be drawn; `belong` tells which voxels it may hold."""
        stored = self.decode(partial(self.case.read_array, f"{layout.INDEX}/{name}", 3 * INDEX_POINTS))
        if stored is None or np.array_equal(stored, expected):
            return
        # Another numpy may draw other points of the same voxels from one seed; they are as good.
        if _is_sample(stored, labels.shape, len(expected)) and bool(belong(stored).all()):
            self.found.add("STORE_INDEX", f"{name}: drawn otherwise than this version would", "warning")
        else:
            self.found.add("STORE_INDEX", f"{name}: its points are no sample of its voxels")

    def check_window(self, folder: Path, hu: npt.NDArray[np.int16]) -> None:
        """Compare a stored channel with its window of the stored HU."""
        meta = WindowMeta.model_validate(layout.read_attributes(folder))
        try:
            window = meta.channel()
        except UsageError:
            window = None
        if window is None or meta.name != folder.name:
            self.found.add("STORE_WINDOW", f"{folder.name} calls itself {meta.name}, function {meta.function}")
            return
        whole = None if window.is_local else window.apply(hu)
        for part, region in _slabs(hu):
            stored = self.decode(partial(self.case.read_window, meta.name, region))
            if stored is None:
                return
            if wrong := np.count_nonzero(stored != (window.apply(hu[part]) if whole is None else whole[part])):
                what = f"WL {meta.wl:g} WW {meta.ww:g}" if window.function == FUNCTION else window.function
                detail = f"{meta.name}: {wrong} voxels from slice {part.start} are not {what}"
                self.found.add("STORE_WINDOW", f"{detail} of the stored HU")
                return


def _slabs(hu: npt.NDArray[np.int16]) -> Iterator[tuple[slice, tuple[slice, slice, slice]]]:
    for start in range(0, hu.shape[0], SLAB):
        part = slice(start, min(start + SLAB, hu.shape[0]))
        yield part, (part, slice(None), slice(None))


def _is_sample(points: Points, shape_zyx: tuple[int, ...], count: int) -> bool:
    """Whether points `(n, 3)` are `count` different voxels of the volume."""
    if points.shape != (count, 3) or (points < 0).any() or (points >= shape_zyx).any():
        return False
    return len(np.unique(points, axis=0)) == count


def _has_label(labels: LabelArray, label: Label, points: Points) -> BoolArray:
    z, y, x = points.T
    return np.asarray(labels[z, y, x] == label)


def _nowhere(points: Points) -> BoolArray:
    return np.zeros(len(points), dtype=np.bool_)
