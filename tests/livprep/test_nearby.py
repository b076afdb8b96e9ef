"""The index of the liver's surroundings: which voxels it may hold, how they are drawn, what verify says of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from livprep.errors import StoreError
from livprep.labels import Label
from livprep.schema import INDEX_POINTS
from livprep.store import Surroundings, near_points, nearby, open_store
from livprep.store.points import read_points

spacings = st.tuples(*[st.floats(0.4, 12)] * 3)


def _mask(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    distance = ndimage.distance_transform_edt(labels == 0, sampling=spacing_mm)
    return (labels == 0) & (distance <= nearby.NEAR_MM * (1 + 1e-9))


@given(seed=st.integers(0, 10_000), spacing_mm=spacings, density=st.sampled_from([0.001, 0.01, 0.3]))
def test_membership_is_that_of_a_distance_transform(
    seed: int, spacing_mm: tuple[float, float, float], density: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=(9, 14, 12), p=[1 - density, density / 2, density / 2]).astype(np.uint8)
    found = Surroundings.of(labels, spacing_mm)
    if found is None:
        assert not labels.any()
        return
    everywhere = np.argwhere(np.ones(labels.shape, bool))
    np.testing.assert_array_equal(found.contain(everywhere).reshape(labels.shape), _mask(labels, spacing_mm))
    points = near_points("a", labels, spacing_mm)
    assert len(points) == _mask(labels, spacing_mm).sum()  # so few that all are kept
    assert _mask(labels, spacing_mm)[tuple(points.T)].all()
    assert len(np.unique(points, axis=0)) == len(points)


def test_many_voxels_are_drawn_without_bias() -> None:
    labels = np.zeros((40, 60, 60), np.uint8)
    labels[10:30, 20:40, 20:40] = 1
    points = near_points("a", labels, (2.0, 1.0, 1.0))
    assert points.dtype == np.int16
    assert len(points) == INDEX_POINTS == len(np.unique(points, axis=0))
    np.testing.assert_array_equal(points, near_points("a", labels, (2.0, 1.0, 1.0)))
    assert not np.array_equal(points, near_points("b", labels, (2.0, 1.0, 1.0)))
    truth = np.argwhere(_mask(labels, (2.0, 1.0, 1.0)))

    def cells(voxels: np.ndarray) -> np.ndarray:
        return np.bincount(np.ravel_multi_index((voxels // 15).T, (3, 4, 4)), minlength=48)

    expected = cells(truth) * len(points) / len(truth)
    held = expected > 5
    assert (
        stats.chisquare(cells(points)[held], expected[held] * cells(points)[held].sum() / expected[held].sum()).pvalue
        > 0.001
    )


def test_a_large_box_with_little_liver_bounds_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "_MOST_CANDIDATES", 100_000)
    labels = np.zeros((60, 90, 90), np.uint8)
    labels[0, 0, 0] = labels[-1, -1, -1] = 1
    points = near_points("a", labels, (5.0, 5.0, 5.0))
    assert 0 < len(points) < _mask(labels, (5.0, 5.0, 5.0)).sum()
    assert _mask(labels, (5.0, 5.0, 5.0))[tuple(points.T)].all()


def test_without_liver_there_are_none() -> None:
    assert near_points("a", np.zeros((4, 5, 6), np.uint8), (1.0, 1.0, 1.0)).shape == (0, 3)
    assert near_points("a", np.ones((4, 5, 6), np.uint8), (1.0, 1.0, 1.0)).shape == (0, 3)


def test_stored_points_are_read_back(small_store: Path) -> None:
    for case in open_store(small_store).values():
        labels = case.read_labels()
        points = case.near_points()
        assert points.dtype == np.int32
        assert len(points) == case.near_count
        np.testing.assert_array_equal(points, near_points(case.case_id, labels, case.geometry.spacing_mm))


def test_an_older_store_has_none(store_copy: Path) -> None:
    case = next(iter(open_store(store_copy).values()))
    shutil.rmtree(case.path / "index" / "near")
    again = open_store(store_copy)[case.case_id]
    assert again.near_count == 0
    assert again.near_points().shape == (0, 3)


def test_damaged_metadata_are_named(store_copy: Path) -> None:
    case = next(iter(open_store(store_copy).values()))
    (case.path / "index" / "near" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=f"{case.case_id}: array index/near cannot be opened"):
        _ = open_store(store_copy)[case.case_id].near_count


def test_zarr_opens_the_array(small_store: Path) -> None:
    case = next(iter(open_store(small_store).values()))
    array = zarr.open_array(case.path / "index" / "near", mode="r")
    assert array.dtype == np.int16
    assert array.shape == (case.near_count, 3)


# --- reading coordinates without zarr ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["background", "liver", "tumor", "near"])
def test_coordinates_equal_what_zarr_reads(small_store: Path, name: str) -> None:
    for case in open_store(small_store).values():
        folder = case.path / "index" / name
        expected = zarr.open_array(folder, mode="r")[...]
        found = read_points(folder)
        if len(expected):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found is None  # nothing was written; zarr knows what to make of it


def test_another_codec_is_left_to_zarr(store_copy: Path) -> None:
    case = next(iter(open_store(store_copy).values()))
    folder = case.path / "index" / "near"
    points = case.near_points()
    shutil.rmtree(folder)
    array = zarr.create_array(folder, shape=points.shape, dtype="int16", chunks=points.shape)
    array[...] = points
    assert read_points(folder) is None
    (case.path / "index" / "manifest.json").write_text('{"files": {}}')
    np.testing.assert_array_equal(open_store(store_copy)[case.case_id].near_points(), points)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_coordinates_are_refused(store_copy: Path, damage: str) -> None:
    case = next(iter(open_store(store_copy).values()))
    chunk = case.path / "index" / "liver" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    if damage == "flip":
        data[7] ^= 1
        chunk.write_bytes(data)
        with pytest.raises(StoreError, match=rf"{case.case_id}: index/liver cannot be decoded \(the crc32c"):
            case.class_points(Label.LIVER)
    else:
        chunk.write_bytes(data[:-3])
        with pytest.raises(ValueError, match=rf"has {len(data) - 3} bytes, expected {len(data)}"):
            read_points(chunk.parents[2])
        with pytest.raises(StoreError, match="is missing or of another size"):
            case.class_points(Label.LIVER)
