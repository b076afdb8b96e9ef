"""Mirror images of a scan are told from the scan, axis by axis; what cannot be told is not said."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from building import scan
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from livprep.anatomy import doubts
from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.errors import CODES
from livprep.geometry import Geometry
from livprep.phantom import Phantom, make_phantom
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case
from livprep.store import open_store
from livprep.synthesis import ircadb_phantom, lits_phantom
from livprep.synthesis.lits import stored_in
from livprep.volume import LabelledVolume, LabelMap, Volume

AXES = ("ANATOMY_HEAD_FEET", "ANATOMY_FRONT_BACK", "ANATOMY_LEFT_RIGHT")
"""What a flip of z, y, x is called."""
FLIPS = list(itertools.product([False, True], repeat=3))
GRIDS = [((40, 48, 48), (4.0, 8.3, 8.3)), ((90, 96, 96), (2.0, 4.2, 4.2)), ((34, 160, 160), (5.0, 2.5, 2.5))]


def drawn(shape: tuple, spacing: tuple, patient: str = "p", seed: int = 0) -> Phantom:
    return make_phantom(shape, spacing, patient=patient, seed=seed)


def volume_of(
    hu: np.ndarray, spacing: tuple, labels: np.ndarray | None = None, order: tuple = (slice(None),) * 3
) -> LabelledVolume:
    turned = np.ascontiguousarray(hu[order])
    grid = Geometry(turned.shape, spacing)
    return LabelledVolume(
        Volume(turned, grid), None if labels is None else LabelMap(np.ascontiguousarray(labels[order]), grid)
    )


def codes(volume: LabelledVolume) -> set[str]:
    return {doubt.code for doubt in doubts(volume)}


def mirrored(flips: tuple) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in flips)


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_eight_mirror_images_are_told(shape: tuple, spacing: tuple, seed: int) -> None:
    phantom = drawn(shape, spacing, f"p{seed}", seed)
    for flips in FLIPS:
        order = mirrored(flips)
        expected = {name for name, flip in zip(AXES, flips, strict=True) if flip}
        assert codes(volume_of(phantom.hu, spacing, phantom.labels(), order)) == expected
        # without labels nothing tells left from right
        assert codes(volume_of(phantom.hu, spacing, order=order)) == expected - {"ANATOMY_LEFT_RIGHT"}


@pytest.mark.parametrize("seed", range(12))
def test_no_phantom_raises_a_false_alarm(seed: int) -> None:
    shape, spacing = GRIDS[0]
    phantom = drawn(shape, spacing, f"patient-{seed}", seed)
    assert codes(volume_of(phantom.hu, spacing, phantom.labels())) == set()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 5))])
@pytest.mark.parametrize("number", [1, 5, 8, 16, 20, 0, 53, 87, 120])
def test_all_eight_mirror_images_of_both_data_sets_are_told(number: int, seed: int) -> None:
    """Patients 1, 5, 8, 16, 20 of 3DIRCADb and LiTS 0, 53, 87, 120, each on the grid that its data set has."""
    catalog = load_catalog()
    draw = ircadb_phantom if number in (1, 5, 8, 16, 20) else lits_phantom
    phantom = draw(number, seed=10 + seed, size=64, catalog=catalog)  # at 40 pixels of 10 mm the chest wall is open
    for flips in FLIPS:
        expected = {name for name, flip in zip(AXES, flips, strict=True) if flip}
        volume = volume_of(phantom.hu, phantom.geometry.spacing_mm, phantom.labels(), mirrored(flips))
        assert codes(volume) == expected


@pytest.mark.parametrize("number", range(28, 48))
def test_the_header_of_every_volume_from_28_to_47_is_doubted_unless_repaired(number: int) -> None:
    """The array lies toward L A S and the identity header says R A S."""
    phantom = lits_phantom(number, seed=number, size=40, catalog=load_catalog())
    axis_map, stored = stored_in(phantom.geometry, "LAS")
    hu, labels = (np.ascontiguousarray(axis_map.apply(a)) for a in (phantom.hu, phantom.labels()))
    stated = Geometry.from_affine_ras(np.diag([*stored.spacing_mm[::-1], 1.0]), stored.shape_zyx)
    for grid, expected in ((stated, {"ANATOMY_LEFT_RIGHT"}), (stored, set())):
        volume = LabelledVolume(Volume(hu, grid), LabelMap(labels, grid))
        assert codes(prepare(volume, Preparation())) == expected


def with_arms(phantom: Phantom, spacing: tuple, sides: tuple[int, ...], reach: float = 30.0) -> np.ndarray:
    """Arms of soft tissue and bone beside the body (-1: the patient's right), as far as the field shows them."""
    hu = np.pad(phantom.hu, ((0, 0), (0, 0), (12, 12)), constant_values=-1000)
    middle = (np.array(hu.shape[1:]) - 1) / 2
    y, x = (np.mgrid[: hu.shape[1], : hu.shape[2]] - middle[:, None, None]) * np.array(spacing[1:])[:, None, None]
    for side in sides:
        distance = np.hypot(y - 20, x - side * (hu.shape[2] * spacing[2] / 2 - reach))
        for z in range(len(hu)):
            hu[z][(distance < 45) & (hu[z] < -500)] = 40
            hu[z][distance < 14] = 700
    return hu


@pytest.mark.parametrize("sides", [(-1,), (1,), (-1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_arms_beside_the_body_raise_no_false_alarm(sides: tuple, seed: int) -> None:
    shape, spacing = GRIDS[0]
    phantom = drawn(shape, spacing, f"arms-{seed}", seed)
    for reach in (30.0, 5.0):  # whole, and cut by the field of view
        hu = with_arms(phantom, spacing, sides, reach)
        labels = np.pad(phantom.labels(), ((0, 0), (0, 0), (12, 12)))
        assert codes(volume_of(hu, spacing, labels)) == set()


PARTS = {
    "middle": np.s_[:, 8:40, 8:40],
    "the right half": np.s_[:, :, :26],
    "the left half": np.s_[:, :, 22:],
    "the front": np.s_[:, :24, :],
    "the back": np.s_[:, 24:, :],
    "the lower half": np.s_[:20],
    "the upper half": np.s_[20:],
    "the middle third": np.s_[13:27],
    "the liver alone": np.s_[10:30, 10:34, 6:30],
}


@pytest.mark.parametrize("part", PARTS, ids=list(PARTS))
@pytest.mark.parametrize("seed", range(6))
def test_a_part_of_the_body_raises_no_false_alarm(part: str, seed: int) -> None:
    """A field of view that cuts the body, or a scan without lungs."""
    shape, spacing = GRIDS[0]
    phantom = drawn(shape, spacing, f"part-{seed}", seed)
    assert codes(volume_of(phantom.hu, spacing, phantom.labels(), PARTS[part])) == set()
    circle = phantom.hu.copy()  # what a small reconstruction circle leaves, padded as scanners do
    y, x = np.mgrid[:48, :48] - 23.5
    circle[:, x**2 + y**2 > 15**2] = -1024
    assert codes(volume_of(circle, spacing, phantom.labels())) == set()


def test_exchanged_axes_are_told() -> None:
    shape, spacing = GRIDS[0]
    phantom = drawn(shape, spacing)
    assert codes(volume_of(phantom.hu.transpose(0, 2, 1), spacing)) == {"ANATOMY_AXES"}
    assert codes(volume_of(phantom.hu.transpose(0, 2, 1)[:, :, ::-1], spacing)) == {"ANATOMY_AXES"}


@pytest.mark.parametrize("flips", FLIPS)
def test_without_lungs_nothing_is_said_of_head_and_feet(flips: tuple) -> None:
    """The lower half of the scan: kidneys and bowel with gas."""
    shape, spacing = GRIDS[1]
    part = drawn(shape, spacing).hu[:45]
    assert "ANATOMY_HEAD_FEET" not in codes(volume_of(part, spacing, order=mirrored(flips)))


def test_a_part_of_a_liver_says_nothing_of_left_and_right() -> None:
    shape, spacing = GRIDS[0]
    phantom = drawn(shape, spacing)
    few = np.zeros(shape, np.uint8)
    few[20, 20:22, 40:42] = 1
    assert codes(volume_of(phantom.hu, spacing, few)) == set()
    assert codes(volume_of(phantom.hu, spacing, np.zeros(shape, np.uint8))) == set()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_slices_raise_no_false_alarm(count: int) -> None:
    shape, spacing = GRIDS[1]
    phantom = drawn(shape, spacing)
    for start in range(0, shape[0] - count, 7):
        part = slice(start, start + count)
        assert codes(volume_of(phantom.hu[part], spacing, phantom.labels()[part])) == set()


def test_bone_at_both_sides_is_no_spine() -> None:
    """As at the height of the hips; or of one side alone, in a body that lies as it should."""
    hu = np.full((30, 90, 60), -1000, np.int16)
    hu[:, 5:85, 8:52] = 40
    hu[:, 41:49, 14:20] = hu[:, 41:49, 41:47] = 700
    assert codes(volume_of(hu, (4.0, 5.0, 5.0))) == set()
    hu[:, 41:49, 14:20] = 40
    assert codes(volume_of(hu, (4.0, 5.0, 5.0))) == {"ANATOMY_AXES"}
    assert codes(volume_of(hu, (4.0, 2.5, 5.0))) == set()


@given(
    hnp.arrays(np.int16, st.tuples(*[st.integers(1, 9)] * 3), elements=st.sampled_from([-2000, -1000, 0, 40, 900])),
    st.tuples(*[st.sampled_from([0.5, 5.0, 40.0])] * 3),
)
def test_any_volume_is_judged_without_an_error(hu: np.ndarray, spacing: tuple) -> None:
    assert codes(volume_of(hu, spacing, (hu > 0).astype(np.uint8))) <= set(CODES)


def test_the_scan_is_not_changed() -> None:
    volume = scan((9, 30, 30))
    before = volume.image.hu.copy()
    doubts(volume)
    assert np.array_equal(volume.image.hu, before)


# --- through the readers


def test_an_identity_header_without_repair_is_told(phantom_lits: Path, tmp_path: Path) -> None:
    """LiTS 28 as it came, under a number whose header is not repaired: left and right are exchanged."""
    catalog = load_catalog(phantom_lits / "catalog.yaml")
    for kind in ("volume", "segmentation"):
        (tmp_path / f"{kind}-70.nii.gz").write_bytes((phantom_lits / f"{kind}-28.nii.gz").read_bytes())
        assert np.array_equal(nib.load(tmp_path / f"{kind}-70.nii.gz").affine, np.eye(4))
    (case,) = discover([tmp_path], catalog).cases
    read = prepare(read_case(case, catalog).volume, Preparation())
    # its spacing of 1 mm shrinks this coarse phantom to a tenth: give it its size, and doubt the orientation alone
    true = catalog.lits.repair(28).spacing_mm
    assert codes(volume_of(read.image.hu, true, read.label_map.labels)) == {"ANATOMY_LEFT_RIGHT"}
    repaired = next(case for case in discover([phantom_lits], catalog).cases if case.case_id == "lits-028")
    assert codes(prepare(read_case(repaired, catalog).volume, Preparation())) == set()


def test_ingest_records_doubts_as_warnings(phantom_lits: Path, tmp_path: Path) -> None:
    """LiTS 68 with its header's x axis turned around."""
    (tmp_path / "catalog.yaml").write_bytes((phantom_lits / "catalog.yaml").read_bytes())
    for kind in ("volume", "segmentation"):
        image = nib.load(phantom_lits / f"{kind}-68.nii.gz")
        turned = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag([-1, 1, 1, 1]))
        nib.save(turned, tmp_path / f"{kind}-68.nii.gz")
    store = tmp_path / "liver.zarr"
    (receipt,) = run_ingest(plan_ingest(IngestRequest((tmp_path,), store, workers=1)))
    assert receipt.status == "published"
    (warning,) = [line for line in open_store(store)["lits-068"].meta.warnings if line.startswith("ANATOMY_")]
    assert warning.startswith("ANATOMY_LEFT_RIGHT: lits-068: the liver's center lies ")
    assert warning in receipt.warnings


def test_no_phantom_of_the_store_is_doubted(small_store: Path) -> None:
    warnings = [line for case in open_store(small_store).values() for line in case.meta.warnings]
    assert not [line for line in warnings if line.startswith("ANATOMY_")]
