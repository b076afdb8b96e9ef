"""Components, holes and margins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from livtrain import postprocess
from livtrain.postprocess import (
    _lower_envelope,
    bounding_box,
    box_at_least,
    dilate_mm,
    drop_small,
    fill_holes,
    grow_box,
    largest_component,
    surroundings,
)

torch.set_num_threads(2)
MASKS = arrays(np.bool_, st.tuples(*[st.integers(1, 7)] * 3))


@settings(max_examples=60, deadline=None)
@given(
    mask=MASKS,
    spacing=st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.6, 5.0])] * 3),
    radius=st.sampled_from([0.0, 1.0, 2.5, 10.0]),
)
def test_dilation_is_the_euclidean_distance_within_the_radius(
    mask: np.ndarray, spacing: tuple[float, float, float], radius: float
) -> None:
    got = dilate_mm(torch.from_numpy(mask), spacing, radius).numpy()
    assert np.array_equal(surroundings(mask, spacing, radius), got)
    if not mask.any():
        assert not got.any()
        return
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius + 1e-5
    assert np.array_equal(got, expected)


def test_the_sweep_is_the_same_for_tensors_and_arrays() -> None:
    """On a GPU the sweep runs on tensors, on a CPU on arrays."""
    values = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32) * 30
    for axis in range(3):
        array, tensor = values.copy(), torch.from_numpy(values.copy())
        _lower_envelope(array, axis, 0.8, 4, np.minimum)
        _lower_envelope(tensor, axis, 0.8, 4, torch.minimum)
        assert np.array_equal(array, tensor.numpy())


@given(mask=MASKS)
def test_the_bounding_box_is_the_smallest_that_holds_the_mask(mask: np.ndarray) -> None:
    box = bounding_box(mask)
    if box is None:
        assert not mask.any()
        return
    assert np.count_nonzero(mask[box]) == np.count_nonzero(mask)
    for axis in range(3):
        faces = mask[box].take([0, -1], axis=axis)
        assert faces.any(axis=tuple(k for k in range(3) if k != axis)).all()


@given(start=st.integers(0, 9), length=st.integers(1, 10), wanted=st.integers(1, 30), size=st.integers(10, 24))
def test_a_box_grows_to_the_wanted_size_inside_the_volume(start: int, length: int, wanted: int, size: int) -> None:
    stop = min(start + length, size)
    (grown, _, _) = box_at_least((slice(start, stop),) * 3, (wanted,) * 3, (size,) * 3)
    assert 0 <= grown.start <= start
    assert stop <= grown.stop <= size
    assert grown.stop - grown.start == max(stop - start, min(wanted, size))


def test_boxes_stay_in_the_volume_when_widened() -> None:
    grown = grow_box((slice(1, 3), slice(0, 2), slice(4, 5)), (2, 1, 9), (8, 8, 8))
    assert grown == (slice(0, 5), slice(0, 3), slice(0, 8))


def test_only_the_largest_component_stays() -> None:
    mask = np.zeros((3, 5, 9), dtype=bool)
    mask[0, 0, :4], mask[2, 2:5, 6:8] = True, True
    assert np.count_nonzero(largest_component(mask)) == 6
    assert largest_component(mask)[2, 3, 7]
    empty = np.zeros((2, 2, 2), dtype=bool)
    assert not largest_component(empty).any()


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = np.ones((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = False
    bay = mask.copy()
    bay[2, 2, 2:] = False
    assert fill_holes(mask).all()
    assert not fill_holes(bay)[2, 2, 2]


@given(mask=MASKS)
def test_filling_equals_scipys(mask: np.ndarray) -> None:
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_small_components_are_dropped_by_volume() -> None:
    mask = np.zeros((1, 1, 12), dtype=bool)
    mask[..., :2], mask[..., 4:7], mask[..., 9:] = True, True, True
    assert np.count_nonzero(drop_small(mask, voxel_volume_ml=0.1, min_ml=0.3)) == 6  # exactly 0.3 ml stays
    assert np.array_equal(drop_small(mask, 0.1, 0.0), mask)


def test_only_the_surroundings_of_a_mask_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def noted(mask: torch.Tensor, spacing: Any, radius: float) -> torch.Tensor:
        shapes.append(tuple(mask.shape))
        return dilate_mm(mask, spacing, radius)

    monkeypatch.setattr(postprocess, "dilate_mm", noted)
    mask = np.zeros((30, 40, 50), bool)
    mask[12, 3, 20:23] = True
    near = surroundings(mask, (2.0, 1.0, 1.0), 4.0)
    assert shapes == [(7, 9, 13)]
    assert np.array_equal(near, dilate_mm(torch.from_numpy(mask), (2.0, 1.0, 1.0), 4.0).numpy())
