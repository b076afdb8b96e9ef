"""Arrays and grids must agree."""

from __future__ import annotations

import numpy as np
import pytest

from livprep.errors import GeometryError
from livprep.geometry import Geometry
from livprep.labels import Label, label_counts
from livprep.volume import LabelledVolume, LabelMap, Volume

GRID = Geometry((2, 3, 4), (2, 1, 1))


@pytest.mark.parametrize("hu", [np.zeros((2, 3, 4), np.float32), np.zeros((4, 3, 2), np.int16)])
def test_volume_refuses_another_type_or_shape(hu: np.ndarray) -> None:
    with pytest.raises(GeometryError, match=r"expected int16 \(2, 3, 4\) \(zyx\)"):
        Volume(hu, GRID)


@pytest.mark.parametrize("labels", [np.zeros((2, 3, 4), np.int16), np.zeros((4, 3, 2), np.uint8)])
def test_labels_refuse_another_type_or_shape(labels: np.ndarray) -> None:
    with pytest.raises(GeometryError, match=r"expected uint8 \(2, 3, 4\) \(zyx\)"):
        LabelMap(labels, GRID)


def test_scan_and_labels_share_a_grid() -> None:
    image = Volume(np.zeros((2, 3, 4), np.int16), GRID)
    elsewhere = LabelMap(np.zeros((2, 3, 4), np.uint8), Geometry((2, 3, 4), (2, 1, 1), (5, 0, 0)))
    with pytest.raises(GeometryError, match="expected one grid"):
        LabelledVolume(image, elsewhere)
    assert LabelledVolume(image).label_map is None
    assert LabelledVolume(image).geometry is GRID


def test_counts_name_each_label_and_liver_excludes_tumor() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], np.uint8).reshape(1, 2, 3)
    assert label_counts(labels) == {"background": 3, "liver": 2, "tumor": 1}
    assert label_counts(np.zeros((1, 1, 2), np.uint8)) == {"background": 2, "liver": 0, "tumor": 0}
    assert [int(label) for label in Label] == [0, 1, 2]
