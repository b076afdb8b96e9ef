"""The one preprocessing and its way back."""

from __future__ import annotations

import numpy as np
import pytest
from building import scan
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import SIGNED_PERMUTATIONS

from livprep.errors import UsageError
from livprep.geometry import Geometry, canonical_axes
from livprep.labels import Label
from livprep.prepare import Preparation, prepare, restore
from livprep.volume import LabelledVolume, LabelMap, Volume

NATIVE = Preparation()


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_native_preparation_and_restoring_only_reorder(direction: tuple) -> None:
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7), (-12.5, 30.0, 8.0), direction)
    volume = scan(geometry=geometry)
    prepared = prepare(volume, NATIVE)
    assert prepared.geometry.orientation == "LPS"
    assert sorted(prepared.geometry.spacing_mm) == sorted(geometry.spacing_mm)
    assert np.array_equal(np.sort(prepared.image.hu.ravel()), np.sort(volume.image.hu.ravel()))
    assert prepared.image.hu.flags.c_contiguous
    values = np.stack([prepared.image.hu, prepared.label_map.labels]).astype(np.float32)
    back = restore(values, prepared.geometry, geometry)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[0], volume.image.hu)
    np.testing.assert_array_equal(back[1], volume.label_map.labels)


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_resampling_does_not_depend_on_how_the_scan_was_stored(direction: tuple) -> None:
    """The same patient stored along other axes gives the same prepared arrays."""
    lps = scan((6, 7, 8), seed=1)
    stored_geometry = Geometry((1, 1, 1), (1, 1, 1), direction=direction)
    order = [int(np.argmax(np.abs(np.array(direction)[axis]))) for axis in range(3)]  # index axis of x, y, z
    axes, _ = canonical_axes(stored_geometry)
    shape = axes.invert(lps.image.hu).shape
    mm = [0.0, 0.0, 0.0]
    for axis, index in enumerate(order):
        mm[2 - index] = lps.geometry.spacing_mm[2 - axis]
    origin = [
        (lps.geometry.shape_zyx[2 - axis] - 1) * lps.geometry.spacing_mm[2 - axis] if sum(direction[axis]) < 0 else 0.0
        for axis in range(3)
    ]
    geometry = Geometry(shape, tuple(mm), tuple(origin), direction)
    stored = LabelledVolume(
        Volume(np.ascontiguousarray(axes.invert(lps.image.hu)), geometry),
        LabelMap(np.ascontiguousarray(axes.invert(lps.label_map.labels)), geometry),
    )
    preparation = Preparation((1.5, None, 1.1))
    ours, theirs = prepare(stored, preparation), prepare(lps, preparation)
    assert ours.geometry.same_grid(theirs.geometry)
    np.testing.assert_array_equal(ours.image.hu, theirs.image.hu)
    np.testing.assert_array_equal(ours.label_map.labels, theirs.label_map.labels)


def test_prepare_does_not_change_its_input_and_is_repeatable() -> None:
    volume = scan(geometry=Geometry((4, 6, 5), (2.0, 0.8, 0.7), direction=SIGNED_PERMUTATIONS[7]))
    hu, labels = volume.image.hu.copy(), volume.label_map.labels.copy()
    once = prepare(volume, Preparation((3.0, 1.0, 1.0)))
    again = prepare(volume, Preparation((3.0, 1.0, 1.0)))
    np.testing.assert_array_equal(once.image.hu, again.image.hu)
    np.testing.assert_array_equal(once.label_map.labels, again.label_map.labels)
    np.testing.assert_array_equal(volume.image.hu, hu)
    np.testing.assert_array_equal(volume.label_map.labels, labels)


def test_native_preparation_is_idempotent() -> None:
    volume = scan(geometry=Geometry((4, 6, 5), (2.0, 0.8, 0.7), direction=SIGNED_PERMUTATIONS[30]))
    once = prepare(volume, NATIVE)
    again = prepare(once, NATIVE)
    assert once.geometry == again.geometry
    np.testing.assert_array_equal(once.image.hu, again.image.hu)


@given(st.tuples(*[st.sampled_from([None, 0.5, 1.0, 3.0])] * 3), st.sampled_from(["cubic", "linear", "bspline"]))
@settings(max_examples=30)
def test_grid_foretells_the_prepared_grid(spacing: tuple, interpolation: str) -> None:
    preparation = Preparation(spacing, interpolation)
    volume = scan(geometry=Geometry((4, 6, 5), (2.0, 0.8, 0.7), direction=SIGNED_PERMUTATIONS[21]))
    prepared = prepare(volume, preparation)
    assert prepared.geometry == preparation.grid(volume.geometry)
    _, canonical = canonical_axes(volume.geometry)
    for want, got, own in zip(spacing, prepared.geometry.spacing_mm, canonical.spacing_mm, strict=True):
        assert got == (own if want is None else want)
    assert set(np.unique(prepared.label_map.labels)) <= {int(label) for label in Label}


def test_asking_for_the_scans_own_spacing_resamples_nothing() -> None:
    volume = scan((4, 6, 5))
    np.testing.assert_array_equal(prepare(volume, Preparation((2.0, 0.8, 0.7))).image.hu, volume.image.hu)


def test_scans_without_labels_stay_without() -> None:
    volume = LabelledVolume(scan().image)
    assert prepare(volume, NATIVE).label_map is None
    assert prepare(volume, Preparation((1.0, 1.0, 1.0))).label_map is None


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::7])
def test_restoring_resampled_probabilities_reaches_the_source_grid(direction: tuple) -> None:
    source = Geometry((12, 20, 18), (2.5, 0.8, 0.7), (-12.5, 30.0, 8.0), direction)
    preparation = Preparation((2.0, 1.5, 1.0))
    grid = preparation.grid(source)
    # A linear function of the position stays itself under linear interpolation, away from the border.
    slope = np.array([0.01, -0.02, 0.015])

    def field(geometry: Geometry) -> np.ndarray:
        z, y, x = np.meshgrid(*map(np.arange, geometry.shape_zyx), indexing="ij")
        points = np.einsum("ij,jzyx->izyx", geometry.affine_lps, np.stack([x, y, z, np.ones_like(x)]))
        return np.einsum("i,izyx->zyx", slope, points[:3])

    back = restore(field(grid)[None].astype(np.float32), grid, source)
    assert back.shape == (1, *source.shape_zyx)
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[0][inside], field(source)[inside], atol=1e-5)


def test_restored_probabilities_still_sum_to_one() -> None:
    source = Geometry((7, 9, 8), (2.5, 0.8, 0.7), direction=SIGNED_PERMUTATIONS[11])
    grid = Preparation((3.0, 1.0, 1.2)).grid(source)
    values = np.random.default_rng(0).dirichlet([1, 1, 1], grid.shape_zyx).astype(np.float32).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(restore(values, grid, source).sum(axis=0), 1.0, atol=1e-5)


@pytest.mark.parametrize("preparation", [NATIVE, Preparation((3.0, None, 0.75), "bspline")])
def test_preparation_survives_json(preparation: Preparation) -> None:
    import json

    again = Preparation.from_dict(json.loads(json.dumps(preparation.as_dict())))
    assert again == preparation
    assert again.digest == preparation.digest


def test_digest_and_nativeness_tell_preparations_apart() -> None:
    assert NATIVE.is_native
    assert not Preparation((None, None, 1.0)).is_native
    digests = {Preparation((s, None, None), i).digest for s in (None, 1.0, 2.0) for i in ("cubic", "linear")}
    assert len(digests) == 6


@pytest.mark.parametrize("value", [0.0, -1.0, 0.01, 50.0, float("nan"), float("inf")])
def test_impossible_spacings_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match=r"expected 0.1 to 20.0 mm or native") as caught:
        Preparation((value, None, None))
    assert caught.value.code == "USAGE"


def test_unknown_interpolation_is_refused() -> None:
    with pytest.raises(UsageError, match="expected cubic, linear or bspline"):
        Preparation(interpolation="nearest")
