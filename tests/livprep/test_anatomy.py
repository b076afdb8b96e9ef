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
