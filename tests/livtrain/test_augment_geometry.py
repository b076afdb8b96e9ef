"""Positions: against numpy and scipy, in mm, without folds."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from livtrain.augment.draws import ElasticDraw, GeometryDraw, Matrix, draw_geometry
from livtrain.augment.gather import sample, sample_packed
from livtrain.augment.geometry import displacement, needed_margin, voxel_matrix
from livtrain.augment_config import FOLDING_LIMIT, AugmentSettings

Shape = tuple[int, int, int]
CPU = torch.device("cpu")


def turn(axis: int, degrees: float) -> Matrix:
    first, second = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(math.radians(degrees))
    matrix[second, first] = math.sin(math.radians(degrees))
    matrix[first, second] = -matrix[second, first]
    return matrix


def smooth(shape: Shape, seed: int = 0, sigma: float = 2) -> npt.NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return np.rint(2000 + 800 * noise / np.abs(noise).max())


def both(
    values: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], matrix: Matrix, shift: Tensor | None, patch: Shape
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]:
    """The result of grid_sample and of the compiled loop."""
    results = []
    out, marks = torch.empty((1, *patch)), torch.empty(patch, dtype=torch.uint8)
    image = torch.from_numpy(values.astype(np.float32))[None]
    sample(image, torch.from_numpy(labels.astype(np.uint8)), matrix, shift, out, marks)
    results.append((out[0].numpy().copy(), marks.numpy().copy()))
    packed = torch.from_numpy((values.astype(np.uint16) | labels.astype(np.uint16) << 12).astype(np.uint16))
    sample_packed(packed, matrix, shift, out[0], marks)
    results.append((out[0].numpy(), marks.numpy()))
    return results


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(axis: int, quarters: int) -> None:
    values, labels = smooth((9, 9, 9), sigma=0.3), np.random.default_rng(1).integers(0, 3, (9, 9, 9))
    plane = tuple(k for k in range(3) if k != axis)
    # the matrix leads from the result to the source, so it turns the other way
    for out, marks in both(values, labels, turn(axis, -90 * quarters), None, (9, 9, 9)):
        np.testing.assert_allclose(out, np.rot90(values, quarters, plane), atol=0.02)
        np.testing.assert_array_equal(marks, np.rot90(labels, quarters, plane))


@given(st.integers(0, 10_000), st.tuples(*[st.integers(3, 12)] * 3), st.tuples(*[st.integers(0, 5)] * 3), st.booleans())
@examples(max_examples=40)
def test_positions_and_interpolation_are_those_of_scipy(seed: int, patch: Shape, margin: Shape, elastic: bool) -> None:
    """scipy's grid-constant interpolates towards the padding, as zeros do in grid_sample."""
    rng = np.random.default_rng(seed)
    region = (patch[0] + 2 * margin[0], patch[1] + 2 * margin[1], patch[2] + 2 * margin[2])
    values, labels = smooth(region, seed, 0.5), rng.integers(0, 4, region)
    matrix = np.eye(3) + rng.uniform(-0.6, 0.6, (3, 3))
    shift = torch.from_numpy(rng.uniform(-2, 2, (3, *patch)).astype(np.float32)) if elastic else None
    at = np.indices(patch).reshape(3, -1) - (np.array(patch)[:, None] - 1) / 2
    source = matrix @ at + (np.array(region)[:, None] - 1) / 2
    if shift is not None:
        source += shift.numpy().reshape(3, -1)
    expected = map_coordinates(values, source, order=1, mode="grid-constant", cval=0).reshape(patch)
    nearest = map_coordinates(labels, np.rint(source), order=0, mode="constant", cval=0).reshape(patch)
    clear = (np.abs(source - np.floor(source) - 0.5).min(0) > 1e-3).reshape(patch)
    for out, marks in both(values, labels, matrix, shift, patch):
        np.testing.assert_allclose(out, expected, atol=0.05)  # of 2000: positions are float32
        np.testing.assert_array_equal(marks[clear], nearest[clear])
        assert set(np.unique(marks)) <= set(np.unique(labels)) | {0}


def test_turning_forth_and_back_gives_the_patch_again() -> None:
    values, labels = smooth((60, 60, 60), sigma=4), (smooth((60, 60, 60), 3, 4) > 2000).astype(np.int64)
    matrix = turn(0, 25) @ turn(1, -15) @ turn(2, 10)
    for (out, marks), back in zip(both(values, labels, matrix, None, (44, 44, 44)), (0, 1), strict=True):
        again = both(out.astype(np.float64), marks.astype(np.int64), matrix.T, None, (16, 16, 16))[back]
        middle = (slice(22, 38),) * 3
        assert np.abs(again[0] - values[middle]).max() < 25  # of 1600: two linear interpolations smooth
        assert (again[1] == labels[middle]).mean() > 0.95


@pytest.mark.parametrize("field", [0.7, 1.4])
def test_a_larger_field_of_view_shrinks_organs(field: float) -> None:
    z, y, x = np.indices((61, 61, 61)) - 30
    ball = (z**2 + y**2 + x**2 < 14.3**2).astype(np.int64)
    for _, marks in both(ball * 100.0, ball, np.eye(3) * field, None, (61, 61, 61)):
        assert marks.sum() / ball.sum() == pytest.approx(field**-3, rel=0.04)  # voxels of a small ball


def test_turns_happen_in_mm() -> None:
    """A ball in mm on thick slices stays the same ball when turned about its center; in voxels it would not."""
    spacing = (4.0, 1.0, 1.0)
    z, y, x = np.meshgrid((np.arange(13) - 6) * 4.0, np.arange(41) - 20.0, np.arange(41) - 20.0, indexing="ij")
    ball = (z**2 + y**2 + x**2 < 15**2).astype(np.int64)
    settings = AugmentSettings.model_validate({"preset": "none", "rotation": {"p": 1, "max_deg": 90}})
    for k in range(5):
        draw = draw_geometry(settings, False, 0, k)
        for _, marks in both(ball * 100.0, ball, voxel_matrix(draw, spacing), None, (13, 41, 41)):
            assert 2 * (marks & ball).sum() / (marks.sum() + ball.sum()) > 0.93
    sheared = both(ball * 100.0, ball, turn(1, 45), None, (13, 41, 41))[0][1]
    assert 2 * (sheared & ball).sum() / (sheared.sum() + ball.sum()) < 0.85


@given(st.integers(0, 10_000))
@examples(max_examples=30)
def test_rotations_turn_and_shears_keep_the_volume(counter: int) -> None:
    turning = AugmentSettings.model_validate({"preset": "none", "rotation": {"p": 1, "max_deg": 180}})
    matrix = draw_geometry(turning, False, 0, counter).matrix_mm
    assert matrix is not None
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    shearing = AugmentSettings.model_validate({"preset": "none", "rotation": 1, "shear": {"p": 1, "max": 0.5}})
    matrix = draw_geometry(shearing, False, 0, counter).matrix_mm
    assert matrix is not None
    assert np.linalg.det(matrix) == pytest.approx(1)
    scaling = AugmentSettings.model_validate({"preset": "none", "scaling": {"p": 1, "isotropic": False}})
    matrix = draw_geometry(scaling, False, 0, counter).matrix_mm
    assert matrix is not None
    assert len(set(np.diag(matrix))) == 3
    assert np.diag(matrix).min() >= 0.85
    assert np.diag(matrix).max() <= 1.15


@given(st.integers(0, 10_000), st.floats(8, 40), st.tuples(*[st.floats(0.5, 3)] * 3))
@examples(max_examples=30)
def test_the_strongest_displacement_folds_nothing(seed: int, step: float, spacing: tuple[float, float, float]) -> None:
    largest = FOLDING_LIMIT * step
    draw = GeometryDraw(elastic=ElasticDraw(step, (largest, largest, largest), seed, 0))
    shape = (20, 21, 22)
    field = displacement(draw, shape, spacing, CPU)
    assert field is not None
    moved_mm = field.numpy().astype(np.float64) * np.array(spacing)[:, None, None, None]
    assert np.abs(moved_mm).max() <= largest * (1 + 1e-5)
    slopes = np.stack([np.stack(np.gradient(part, *spacing), -1) for part in moved_mm], -2)
    assert np.linalg.det(np.eye(3) + slopes).min() > 0
    assert needed_margin(draw, shape, spacing) == tuple(math.ceil(largest / mm + 1e-3) for mm in spacing)


def test_an_even_lattice_moves_everything_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """B-splines sum to 1, so equal shifts of the lattice are a translation."""
    draw = GeometryDraw(elastic=ElasticDraw(7.0, (2.0, 2.0, 2.0), 0, 0))
    monkeypatch.setattr(ElasticDraw, "points", lambda self, shape: np.full((3, *shape), 2, dtype=np.float32))
    field = displacement(draw, (9, 10, 11), (2.0, 1.0, 0.5), CPU)
    assert field is not None
    for part, voxels in zip(field, (1, 2, 4), strict=True):
        torch.testing.assert_close(part, torch.full_like(part, voxels))


def test_displacement_is_of_its_seed_and_counter() -> None:
    def draws(seed: int, counter: int) -> npt.NDArray[np.float32]:
        return ElasticDraw(10.0, (1.0, 2.0, 3.0), seed, counter).points((4, 5, 6))

    assert np.array_equal(draws(1, 2), draws(1, 2))
    assert not np.array_equal(draws(1, 2), draws(1, 3))
    assert not np.array_equal(draws(1, 2), draws(2, 2))
    assert np.abs(draws(1, 2)).max(axis=(1, 2, 3)) == pytest.approx([1, 2, 3], rel=0.1)
