"""Values that are no HU are told from the values; those of every phantom and of usual scans are not."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from building import scan
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from livprep.catalog import load_catalog
from livprep.errors import CODES
from livprep.fingerprint import HIGH_HU, LOW_HU, fingerprint, fingerprint_of
from livprep.geometry import Geometry
from livprep.intensity import LIVER_HU, Intensity, describe_intensity, suspicions
from livprep.phantom import make_phantom
from livprep.store import open_store
from livprep.synthesis import ircadb_phantom, lits_phantom
from livprep.volume import LOWEST_HU, LabelledVolume, LabelMap, Volume, histogram

volumes = hnp.arrays(np.int16, st.tuples(*[st.integers(1, 4)] * 3), elements=st.integers(-32768, 32767))


def labelled(hu: np.ndarray, labels: np.ndarray | None = None, geometry: Geometry | None = None) -> LabelledVolume:
    grid = geometry or Geometry(hu.shape, (2.0, 0.8, 0.7))
    return LabelledVolume(Volume(hu, grid), None if labels is None else LabelMap(labels, grid))


def look(volume: LabelledVolume) -> tuple[Intensity, list[str]]:
    counts = histogram(volume.image.hu)
    found = describe_intensity(volume, counts)
    return found, [each.code for each in suspicions(found, counts)]


@given(volumes)
def test_a_histogram_counts_every_value(hu: np.ndarray) -> None:
    counts = histogram(hu)
    assert counts.shape == (65536,)
    values, expected = np.unique(hu, return_counts=True)
    assert np.array_equal(np.flatnonzero(counts) + LOWEST_HU, values)
    assert np.array_equal(counts[counts > 0], expected)


@given(volumes)
def test_the_fingerprint_is_that_of_clipped_values(hu: np.ndarray) -> None:
    clipped = np.bincount(np.clip(hu, LOW_HU, HIGH_HU).ravel().astype(int) - LOW_HU, minlength=HIGH_HU - LOW_HU + 1)
    inner = np.zeros(65536, np.int64)
    inner[LOW_HU - LOWEST_HU : HIGH_HU - LOWEST_HU + 1] = clipped
    assert fingerprint(hu) == fingerprint_of(inner)


@given(volumes, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_any_values_are_described_as_numbers_that_json_holds(hu: np.ndarray, order: list, flips: tuple) -> None:
    found, codes = look(labelled(hu, np.ones(hu.shape, np.uint8)))
    assert (found.low_hu, found.high_hu, found.voxels) == (hu.min(), hu.max(), hu.size)
    assert found.liver_voxels == hu.size
    text = json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert Intensity.model_validate_json(text) == found
    assert set(codes) <= CODES.keys()
    assert set(codes) <= {"HU_NO_AIR"}  # so few voxels say nothing else


def test_turning_a_scan_changes_nothing_that_is_said() -> None:
    phantom = make_phantom((20, 40, 36), (9.0, 9.0, 10.0), patient="p", seed=1)
    expected = look(labelled(phantom.hu, phantom.labels()))
    for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        direction = np.zeros((3, 3))
        for array_axis, patient_axis in enumerate(order):  # array axis k holds what was axis order[k]
            direction[2 - patient_axis, 2 - array_axis] = flips[array_axis]
        turned = np.ascontiguousarray(phantom.hu.transpose(order)[tuple(slice(None, None, f) for f in flips)])
        labels = np.ascontiguousarray(phantom.labels().transpose(order)[tuple(slice(None, None, f) for f in flips)])
        spacing = tuple((9.0, 9.0, 10.0)[k] for k in order)
        grid = Geometry(turned.shape, spacing, direction=tuple(tuple(row) for row in direction))
        assert look(labelled(turned, labels, grid)) == expected


@pytest.mark.parametrize("seed", range(6))
def test_no_phantom_is_suspected(seed: int) -> None:
    catalog = load_catalog()
    # 16: hardly enhanced, 8: strongly, 3: metal and stones, 28: the same as 1
    phantoms = [ircadb_phantom(n, seed=seed, size=32, catalog=catalog) for n in (16, 8, 3)]
    phantoms.append(lits_phantom(60 + seed, seed=seed, size=32, catalog=catalog))
    for phantom in phantoms:
        found, codes = look(labelled(phantom.hu, phantom.labels(), phantom.geometry))
        assert codes == []
        assert abs(found.liver_hu - phantom.findings.liver_hu) < 30
        assert -1024 <= found.air_hu <= -980
        assert [entry.hu for entry in found.padding] == [-1024]


def test_peaks_shares_and_padding_are_those_of_the_values() -> None:
    rng = np.random.default_rng(0)
    hu = np.full((10, 30, 30), -1000, np.int16)
    hu[:, 5:25, 5:25] = rng.integers(30, 60, (10, 20, 20))
    hu[:, 8:18, 8:18] = 107
    hu[:, :3, :3] = hu[:, -3:, -3:] = -2048
    hu[0, 0, 1], hu[5, 10, 20] = 3071, 3500
    labels = np.zeros(hu.shape, np.uint8)
    labels[:, 8:18, 8:18] = 1
    found, codes = look(labelled(hu, labels))
    # the other corners hold air alone, which is what is expected of a filling
    assert [(entry.hu, entry.share) for entry in found.padding] == [
        (hu_value, round(int((hu == hu_value).sum()) / 9000, 6)) for hu_value in (-2048, -1000)
    ]
    assert (found.liver_hu, found.liver_voxels) == (107, 1000)
    assert (found.low_hu, found.high_hu, found.step_hu) == (-2048, 3500, 1)
    assert found.high_share == round(2 / 9000, 6)
    assert found.tissue_share == round(int(((hu >= -200) & (hu <= 300)).sum()) / 9000, 6)
    assert codes == ["HU_PADDING"]


def test_lungs_without_other_air_are_no_wrong_air() -> None:
    """A field of view that shows nothing outside the body."""
    rng = np.random.default_rng(0)
    hu = rng.normal(50, 15, (12, 40, 40))
    hu[:, 5:20, 5:20] = rng.normal(-850, 40, (12, 15, 15))
    assert look(labelled(np.rint(hu).astype(np.int16)))[1] == []
    hu[:, :, :3] = hu[:, :, -3:] = -3024  # nor where all that lies outside was filled
    assert look(labelled(np.rint(hu).astype(np.int16)))[1] == ["HU_PADDING"]


def test_the_store_keeps_what_was_seen(small_store: object) -> None:
    for case in open_store(small_store).values():
        found = case.meta.hu_sanity
        assert found is not None
        assert (found.low_hu, found.high_hu) == (case.hu_min, case.hu_max)
        assert found.liver_voxels == case.label_counts["liver"] + case.label_counts["tumor"]
        assert not [line for line in case.meta.warnings if line.startswith("HU_")]


def test_every_patient_of_3dircadb_has_a_plausible_liver() -> None:
    modes = [case.liver_hu.mode for case in load_catalog().ircadb.cases]
    assert len(modes) == 20
    assert all(LIVER_HU[0] + 25 <= mode <= LIVER_HU[1] - 25 for mode in modes)


def test_a_scan_too_small_to_tell_is_not_suspected() -> None:
    assert look(scan((4, 6, 5)))[1] == []
