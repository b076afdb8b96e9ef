"""Grids: orientation, canonical order, affines, tolerance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livprep.errors import GeometryError
from livprep.geometry import Geometry, canonical_axes, shortest_decimal

SIGNED_PERMUTATIONS = [
    tuple(tuple(float(sign * (row == axis)) for axis, sign in zip(order, signs, strict=True)) for row in range(3))
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""All 48 directions along the axes (half of them are mirrored)."""

spacings = st.sampled_from([0.57, 0.7, 0.742188, 1.0, 1.6, 2.5, 4.0])
shapes = st.tuples(*[st.integers(1, 5)] * 3)
origins = st.tuples(*[st.floats(-400, 400).map(lambda v: round(v, 3))] * 3)


def rotation(axis: int, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any of the 48 axis orders, tilted by up to 20 degrees about each axis in half of the examples."""
    direction = np.array(draw(st.sampled_from(SIGNED_PERMUTATIONS)))
    if draw(st.booleans()):
        for axis in range(3):
            direction = rotation(axis, draw(st.floats(-20, 20))) @ direction
    return Geometry(
        draw(shapes), draw(st.tuples(spacings, spacings, spacings)), draw(origins), tuple(map(tuple, direction))
    )


@given(geometries())
def test_canonical_axes_keep_each_voxel_in_place(geometry: Geometry) -> None:
    axes, canonical = canonical_axes(geometry)
    assert canonical.orientation == "LPS"
    zyx = np.stack(np.meshgrid(*map(np.arange, geometry.shape_zyx), indexing="ij"))
    homogeneous = np.concatenate([zyx[::-1], np.ones((1, *geometry.shape_zyx))])
    positions = np.einsum("ij,jzyx->izyx", geometry.affine_lps, homogeneous)
    turned = np.stack([axes.apply(component) for component in positions])
    zyx = np.stack(np.meshgrid(*map(np.arange, canonical.shape_zyx), indexing="ij"))
    expected = np.einsum(
        "ij,jzyx->izyx", canonical.affine_lps, np.concatenate([zyx[::-1], np.ones((1, *canonical.shape_zyx))])
    )
    np.testing.assert_allclose(turned, expected, atol=2e-3)


@given(geometries())
def test_canonical_axes_are_undone_by_invert(geometry: Geometry) -> None:
    axes, canonical = canonical_axes(geometry)
    array = np.arange(np.prod(geometry.shape_zyx)).reshape(geometry.shape_zyx)
    assert axes.apply(array).shape == canonical.shape_zyx
    np.testing.assert_array_equal(axes.invert(axes.apply(array)), array)
    assert np.shares_memory(axes.apply(array), array)


@given(geometries())
def test_canonical_order_is_a_fixed_point(geometry: Geometry) -> None:
    _, canonical = canonical_axes(geometry)
    axes, again = canonical_axes(canonical)
    assert axes.permutation_zyx == (0, 1, 2)
    assert axes.flipped_zyx == (False, False, False)
    assert again.same_grid(canonical)


@given(geometries())
def test_affines_and_dictionaries_come_back(geometry: Geometry) -> None:
    assert Geometry.from_affine_lps(geometry.affine_lps, geometry.shape_zyx).same_grid(geometry)
    assert Geometry.from_affine_ras(geometry.affine_ras, geometry.shape_zyx).same_grid(geometry)
    assert Geometry.from_dict(geometry.as_dict()) == geometry


@pytest.mark.parametrize(("text", "expected"), [("0.569999992847443", 0.57), ("1.6000000238418579", 1.6)])
def test_float32_tails_are_no_information(text: str, expected: float) -> None:
    assert shortest_decimal(float(text)) == expected


def test_from_affine_leaves_no_tails_or_negative_zero() -> None:
    affine = np.diag([-0.569999992847443, -0.569999992847443, 1.6000000238418579, 1.0])
    geometry = Geometry.from_affine_ras(affine, (2, 3, 4))
    assert geometry.spacing_mm == (1.6, 0.57, 0.57)
    assert geometry.direction == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert not np.signbit(np.ravel(geometry.direction)).any()
    assert not np.signbit(geometry.origin_mm).any()


def test_orientation_letters_follow_the_index_axes() -> None:
    identity_ras = Geometry.from_affine_ras(np.eye(4), (1, 1, 1))
    assert identity_ras.orientation == "RAS"
    assert Geometry((1, 1, 1), (1, 1, 1)).orientation == "LPS"


def test_affine_agrees_with_simpleitk() -> None:
    import SimpleITK as sitk

    direction = rotation(0, 12) @ np.array(SIGNED_PERMUTATIONS[13])
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7), (10.0, -20.0, 30.0), tuple(map(tuple, direction)))
    image = sitk.Image(5, 4, 3, sitk.sitkUInt8)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(np.ravel(direction).tolist())
    for index in [(0, 0, 0), (4, 3, 2), (1, 2, 0)]:
        expected = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((geometry.affine_lps @ [*index, 1])[:3], expected, atol=1e-9)


def test_voxel_volume() -> None:
    assert Geometry((1, 1, 1), (1.6, 0.57, 0.57)).voxel_volume_ml == pytest.approx(1.6 * 0.57 * 0.57 / 1000)


def test_same_grid_has_a_tolerance() -> None:
    geometry = Geometry((3, 4, 5), (1.6, 0.57, 0.57))
    assert geometry.same_grid(Geometry((3, 4, 5), (1.6, 0.5700001, 0.57), (0.0005, 0, 0)))
    assert not geometry.same_grid(Geometry((3, 4, 6), (1.6, 0.57, 0.57)))
    assert not geometry.same_grid(Geometry((3, 4, 5), (1.6, 0.58, 0.57)))
    assert not geometry.same_grid(Geometry((3, 4, 5), (1.6, 0.57, 0.57), (0.01, 0, 0)))
    assert not geometry.same_grid(Geometry((3, 4, 5), (1.6, 0.57, 0.57), direction=SIGNED_PERMUTATIONS[1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1, 1), (1, 1, float("nan"))), "not finite"),
        (((1, 1, 1), (1, 1, 1), (0, float("inf"), 0)), "not finite"),
        (((0, 1, 1), (1, 1, 1)), "positive sizes"),
        (((1, 1, 1), (1, 0, 1)), "positive sizes and spacings"),
        (((1, 1, 1), (1, 1, 1), (0, 0, 0), ((1, 0.1, 0), (0, 1, 0), (0, 0, 1))), "orthonormal"),
    ],
)
def test_impossible_grids_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(GeometryError, match=message) as caught:
        Geometry(*arguments)
    assert caught.value.code == "GEOMETRY"


@pytest.mark.parametrize("affine", [np.diag([0.0, 1, 1, 1]), np.diag([np.nan, 1, 1, 1])])
def test_singular_affines_are_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="singular or not finite"):
        Geometry.from_affine_lps(affine, (1, 1, 1))


def test_two_axes_along_one_patient_axis_have_no_order() -> None:
    half = np.sqrt(0.5)
    matrix = ((half, half, 0.0), (0.5, -0.5, half), (0.5, -0.5, -half))
    geometry = Geometry((2, 2, 2), (1, 1, 1), direction=matrix)
    with pytest.raises(GeometryError, match="no LPS order exists"):
        canonical_axes(geometry)


def test_geometry_error_travels_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(GeometryError("grids differ")))
    assert (error.code, error.message, str(error)) == ("GEOMETRY", "grids differ", "grids differ")
