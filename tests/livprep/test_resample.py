"""Resampling: weights, grids, agreement with scipy and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from livprep.geometry import Geometry
from livprep.resample import (
    axis_taps,
    resample_hu,
    resample_labels,
    resample_probabilities,
    resampled_geometry,
    sitk_resample,
)

OBLIQUE = ((0.0, -0.8, 0.6), (0.0, 0.6, 0.8), (-1.0, 0.0, 0.0))
spacings = st.sampled_from([0.5, 0.57, 0.8, 1.0, 1.6, 2.0, 3.0, 5.0])
triples = st.tuples(spacings, spacings, spacings)
interpolations = st.sampled_from(["cubic", "linear", "bspline"])


def dense(n_in: int, n_out: int, ratio: float, kernel: str, *, antialias: bool = True) -> np.ndarray:
    """Weights of an axis as a matrix `(n_out, n_in)`; what lies beyond the ends counts as the end."""
    taps = axis_taps(n_in, n_out, ratio, kernel, antialias=antialias)
    matrix = np.zeros((n_out, n_in))
    for row, (first, weights) in enumerate(zip(taps.first, taps.weights, strict=True)):
        for k, weight in enumerate(weights):
            matrix[row, min(max(first + k, 0), n_in - 1)] += weight
    return matrix


def keys(distance: float) -> float:
    """Keys' kernel with a = -1/2, as printed in the paper."""
    d = abs(distance)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.1, 8),
    st.sampled_from(["cubic", "linear"]),
    st.booleans(),
)
def test_rows_of_weights_sum_to_one(n_in: int, n_out: int, ratio: float, kernel: str, antialias: bool) -> None:
    taps = axis_taps(n_in, n_out, ratio, kernel, antialias=antialias)
    assert (len(taps.first), len(taps.weights), taps.weights.dtype) == (n_out, n_out, np.float32)
    np.testing.assert_allclose(taps.weights.sum(axis=1), 1.0, atol=2e-6)


@given(st.integers(1, 30), st.sampled_from(["cubic", "linear"]))
def test_weights_at_the_same_spacing_are_the_identity(n: int, kernel: str) -> None:
    np.testing.assert_allclose(dense(n, n, 1.0, kernel), np.eye(n), atol=1e-7)


@given(st.integers(5, 12), st.floats(0.3, 1.0))
def test_upsampling_weights_are_keys_kernel(n_in: int, ratio: float) -> None:
    n_out = round(n_in / ratio)
    weights = dense(n_in, n_out, ratio, "cubic")
    for row in range(n_out):
        center = (row - (n_out - 1) / 2) * ratio + (n_in - 1) / 2
        expected = np.zeros(n_in)
        for k in range(-4, n_in + 4):
            expected[min(max(k, 0), n_in - 1)] += keys(k - center)
        np.testing.assert_allclose(weights[row], expected, atol=1e-6)


@given(st.tuples(*[st.integers(1, 30)] * 3), triples, triples)
def test_new_grid_has_the_spacing_and_keeps_the_center(shape: tuple, old_mm: tuple, new_mm: tuple) -> None:
    old = Geometry(shape, old_mm, (10.0, -20.0, 5.0), OBLIQUE)
    new = resampled_geometry(old, new_mm)
    assert new.spacing_mm == new_mm
    centers = [g.affine_lps @ [*((n - 1) / 2 for n in g.shape_zyx[::-1]), 1] for g in (old, new)]
    np.testing.assert_allclose(*centers, atol=1e-6)
    extents = [np.array(g.shape_zyx) * g.spacing_mm for g in (old, new)]
    assert (
        np.abs(extents[0] - extents[1]) <= np.maximum(np.array(new_mm) / 2 + 1e-9, np.array(new_mm) - extents[0])
    ).all()


@given(st.tuples(*[st.integers(2, 9)] * 3), triples, triples, st.integers(-1024, 3071), interpolations)
@settings(max_examples=40)
def test_a_constant_stays_constant(shape: tuple, old_mm: tuple, new_mm: tuple, value: int, interpolation: str) -> None:
    old = Geometry(shape, old_mm)
    new = resampled_geometry(old, new_mm)
    out = resample_hu(np.full(shape, value, np.int16), old, new, interpolation)
    assert (out.shape, out.dtype) == (new.shape_zyx, np.int16)
    assert (out == value).all()


@given(st.integers(0, 2), spacings, spacings, st.sampled_from(["cubic", "linear"]))
def test_a_ramp_stays_the_ramp_inside(axis: int, old_mm: float, new_mm: float, interpolation: str) -> None:
    """Exact to rounding; the stretched cubic of a coarser grid shifts by up to 0.03 old voxels."""
    shape, spacing, wanted = [3, 3, 3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]
    shape[axis], spacing[axis], wanted[axis] = 60, old_mm, new_mm
    old = Geometry(tuple(shape), tuple(spacing))
    new = resampled_geometry(old, tuple(wanted))
    ramp = np.broadcast_to(np.expand_dims(np.arange(60) * 20 - 600, [k for k in range(3) if k != axis]), shape)
    out = np.moveaxis(resample_hu(ramp.astype(np.int16), old, new, interpolation), axis, 0)
    n = new.shape_zyx[axis]
    index = (np.arange(n) - (n - 1) / 2) * new_mm / old_mm + 59 / 2
    reach = 2 * max(1.0, new_mm / old_mm) + 1
    inside = (index > reach) & (index < 59 - reach)
    low_passed = interpolation == "cubic" and new_mm > old_mm
    atol = 0.501 + (0.03 * 20 if low_passed else 0.0)
    np.testing.assert_allclose(out[inside, 1, 1], (index * 20 - 600)[inside], atol=atol)


@given(hnp.arrays(np.int16, (5, 6, 7), elements=st.integers(-1024, 1500)), triples, triples, interpolations)
@settings(max_examples=40)
def test_values_stay_in_the_range_of_the_input(
    hu: np.ndarray, old_mm: tuple, new_mm: tuple, interpolation: str
) -> None:
    old = Geometry(hu.shape, old_mm)
    out = resample_hu(hu, old, resampled_geometry(old, new_mm), interpolation)
    assert hu.min() <= out.min() <= out.max() <= hu.max()


def coordinates(old: Geometry, new: Geometry) -> np.ndarray:
    axes = [
        (np.arange(m) - (m - 1) / 2) * t / s + (n - 1) / 2
        for n, m, s, t in zip(old.shape_zyx, new.shape_zyx, old.spacing_mm, new.spacing_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@given(hnp.arrays(np.float32, (2, 4, 5, 6), elements=st.floats(0, 1, width=32)), triples, triples)
@settings(max_examples=40)
def test_probabilities_equal_scipys_linear_interpolation(values: np.ndarray, old_mm: tuple, new_mm: tuple) -> None:
    old = Geometry(values.shape[1:], old_mm)
    new = resampled_geometry(old, new_mm)
    out = resample_probabilities(values, old, new)
    expected = [
        ndimage.map_coordinates(channel.astype(np.float64), coordinates(old, new), order=1, mode="nearest")
        for channel in values
    ]
    np.testing.assert_allclose(out, np.stack(expected), atol=2e-6)


def test_probabilities_equal_simpleitks_on_an_oblique_grid() -> None:
    old = Geometry((6, 7, 8), (3.0, 0.8, 0.7), (5.0, 6.0, 7.0), OBLIQUE)
    new = resampled_geometry(old, (1.3, 1.1, 0.5))
    values = np.random.default_rng(0).random((1, *old.shape_zyx), dtype=np.float32)
    ours = resample_probabilities(values, old, new)[0]
    theirs = sitk_resample(values[0], old, new, "linear")
    inside = (slice(2, -2),) * 3  # outside the outermost centers SimpleITK takes the nearest voxel
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return np.rint(400 * np.sin(z / 5) * np.cos(y / 6) + 200 * np.sin(x / 7)).astype(np.int16)


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.9)])
def test_cubic_is_near_spline_interpolation_on_smooth_data(wanted: tuple) -> None:
    """Keys' kernel is exact to second order: within 3 HU of cubic splines where nothing is low-passed."""
    hu = smooth((20, 24, 28))
    old = Geometry(hu.shape, (2.0, 1.0, 1.0))
    new = resampled_geometry(old, wanted)
    ours = resample_hu(hu, old, new, "cubic").astype(float)
    spline = ndimage.map_coordinates(hu.astype(float), coordinates(old, new), order=3, mode="nearest")
    simpleitk = resample_hu(hu, old, new, "bspline").astype(float)
    inside = (slice(4, -4),) * 3
    assert np.abs(ours[inside] - spline[inside]).max() < 3
    assert np.abs(ours[inside] - simpleitk[inside]).max() < 3
    assert np.abs(simpleitk[inside] - spline[inside]).max() < 1.5


def test_coarser_grids_are_low_passed() -> None:
    """A pattern at the old Nyquist frequency would alias; SimpleITK's filters let it through, ours does not."""
    hu = np.where(np.indices((4, 4, 63)).sum(axis=0) % 2, 500, -500).astype(np.int16)
    old = Geometry(hu.shape, (1.0, 1.0, 1.0))
    new = resampled_geometry(old, (1.0, 1.0, 3.0))
    assert np.abs(resample_hu(hu, old, new, "cubic")[:, :, 4:-4]).max() < 60
    assert np.abs(resample_hu(hu, old, new, "linear")[:, :, 4:-4]).max() > 400


@given(hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 2)), triples, triples)
@settings(max_examples=40)
def test_labels_are_the_largest_linear_share(labels: np.ndarray, old_mm: tuple, new_mm: tuple) -> None:
    old = Geometry(labels.shape, old_mm)
    new = resampled_geometry(old, new_mm)
    out = resample_labels(labels, old, new)
    shares = np.stack(
        [
            ndimage.map_coordinates((labels == k).astype(float), coordinates(old, new), order=1, mode="nearest")
            for k in range(3)
        ]
    )
    assert out.dtype == np.uint8
    chosen = np.take_along_axis(shares, out[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, shares.max(axis=0), atol=1e-5)


def test_label_ties_go_to_the_lower_label() -> None:
    labels = np.array([0, 1, 2, 1], np.uint8).reshape(1, 1, 4)
    old = Geometry(labels.shape, (1.0, 1.0, 1.0))
    out = resample_labels(labels, old, Geometry((1, 1, 2), (1.0, 1.0, 2.0), (0.5, 0.0, 0.0)))
    assert out.ravel().tolist() == [0, 1]  # each new voxel lies halfway between two old ones


def test_order_of_axes_is_not_mixed_up() -> None:
    hu = smooth((10, 14, 18))
    old = Geometry(hu.shape, (2.0, 1.0, 0.5))
    new = resampled_geometry(old, (1.0, 0.7, 1.1))
    turned_old = Geometry(hu.transpose(2, 0, 1).shape, (0.5, 2.0, 1.0))
    turned_new = resampled_geometry(turned_old, (1.1, 1.0, 0.7))
    for interpolation in ("cubic", "linear"):
        out = resample_hu(hu, old, new, interpolation).transpose(2, 0, 1)
        turned = resample_hu(np.ascontiguousarray(hu.transpose(2, 0, 1)), turned_old, turned_new, interpolation)
        assert np.abs(out.astype(int) - turned).max() <= 1  # the order of summation rounds differently
