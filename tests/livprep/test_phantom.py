"""Phantoms: determinism, anatomy, contrast, lesions."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livprep.labels import Label
from livprep.phantom import Findings, Organ, Phantom, draw_findings, make_phantom
from livprep.phantom import field as field_module
from livprep.phantom.field import BOUND, Axes, Field, Slab, stream
from livprep.phantom.lesions import CoarseLiver, plan_lesions
from livprep.phantom.organs import LIVER_SET, TUMORS_MAX
from livprep.phantom.shapes import ellipsoid, rotation, smooth_max, tube

SHAPE, SPACING = (44, 80, 80), (4.8, 5.0, 5.0)


def _digest(phantom: Phantom) -> str:
    return hashlib.sha256(phantom.hu.tobytes() + phantom.organs.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SHAPE, SPACING, patient="a", seed=0, findings=Findings(tumors=3, tumor_fraction=0.05, cysts=1))


def _center(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def test_same_arguments_same_bytes_and_others_differ() -> None:
    draw = {
        (patient, seed): _digest(make_phantom((8, 40, 40), (20, 10, 10), patient=patient, seed=seed))
        for patient in "ab"
        for seed in (0, 1)
    }
    assert len(set(draw.values())) == 4
    assert _digest(make_phantom((8, 40, 40), (20, 10, 10), patient="b", seed=1)) == draw["b", 1]


def test_bytes_do_not_depend_on_how_many_slices_are_drawn_at_once(
    phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_module, "SLAB_SLICES", 5)
    assert _digest(make_phantom(SHAPE, SPACING, patient="a", seed=0, findings=phantom.findings)) == _digest(phantom)


def test_anatomy_is_the_patients_and_not_the_grids(phantom: Phantom) -> None:
    finer = make_phantom((88, 160, 160), (2.4, 2.5, 2.5), patient="a", seed=0, findings=phantom.findings)
    coarse = finer.organs.reshape(44, 2, 80, 2, 80, 2)
    inside = np.isin(coarse, LIVER_SET).sum(axis=(1, 3, 5))
    sure = (inside == 0) | (inside == 8)
    assert (phantom.liver()[sure] == (inside[sure] == 8)).all()
    assert sure.mean() > 0.95


def test_hu_and_masks_have_the_promised_form(phantom: Phantom) -> None:
    assert (phantom.hu.dtype, phantom.organs.dtype) == (np.int16, np.uint8)
    assert phantom.hu.shape == phantom.organs.shape == phantom.geometry.shape_zyx == SHAPE
    assert phantom.geometry.orientation == "LPS"
    assert phantom.hu.min() == -1024
    assert phantom.hu.max() <= 1023
    assert (phantom.hu[:, 0, 0] == -1024).all()  # padding outside the reconstruction circle
    middle_air = phantom.hu[:, 6, 40]
    assert -1024 < np.median(middle_air) < -950
    labels = phantom.labels()
    assert ((labels > Label.BACKGROUND) == phantom.liver()).all()
    assert ((labels == Label.TUMOR) == phantom.tumors()).all()
    assert sum(phantom.tumor(k).sum() for k in range(TUMORS_MAX)) == phantom.tumors().sum()


def test_organs_lie_where_a_patient_has_them(phantom: Phantom) -> None:
    body, liver = _center(phantom.body()), _center(phantom.liver())
    spine, spleen = _center(phantom.mask(Organ.MARROW, Organ.DISC)), _center(phantom.mask(Organ.SPLEEN))
    assert liver[2] < body[2] - 5 < body[2] + 5 < spleen[2]  # liver on the right: low columns
    assert spine[1] > body[1] + 3  # bone behind: high rows
    lungs, kidneys = (
        phantom.mask(Organ.LUNG_RIGHT, Organ.LUNG_LEFT),
        phantom.mask(Organ.KIDNEY_RIGHT, Organ.KIDNEY_LEFT),
    )
    assert _center(kidneys)[0] < liver[0] < _center(lungs)[0]
    assert _center(phantom.mask(Organ.TABLE))[1] > body[1] + 10
    volume_ml = phantom.geometry.voxel_volume_ml
    assert 800 < phantom.liver().sum() * volume_ml < 2600
    for organ in (
        Organ.STOMACH_GAS,
        Organ.ARTERY,
        Organ.VENA_CAVA,
        Organ.PORTAL_IN_LIVER,
        Organ.GALLBLADDER,
        Organ.CORTEX,
    ):
        assert phantom.mask(organ).any(), organ


@pytest.mark.parametrize("liver_hu", [25.0, 48.0, 76.0, 110.0, 165.0])
def test_contrast_follows_the_liver(liver_hu: float) -> None:
    phantom = make_phantom(SHAPE, SPACING, patient="c", seed=0, findings=Findings(liver_hu=liver_hu, tumors=0))
    median = np.median(phantom.hu[phantom.mask(Organ.LIVER)])
    assert abs(median - liver_hu) < 5
    blood = np.median(phantom.hu[phantom.mask(Organ.ARTERY)])
    assert blood > liver_hu + 15 if liver_hu > 76 else 30 < blood < 110
    near = np.median(phantom.hu[phantom.mask(Organ.SPLEEN)])
    assert abs(near - liver_hu) < 30


def test_neighbors_have_the_livers_hu(phantom: Phantom) -> None:
    """No threshold finds the liver: other tissue of its HU is larger than itself."""
    hu, liver = phantom.hu, phantom.liver()
    low, high = np.percentile(hu[liver], [5, 95])
    alike = (hu >= low) & (hu <= high)
    assert (alike & ~liver).sum() > 0.5 * (alike & liver).sum()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), tumors=st.integers(0, 7), fraction=st.floats(0.002, 0.25))
def test_every_tumor_is_there_and_inside_the_liver(seed: int, tumors: int, fraction: float) -> None:
    findings = Findings(tumors=tumors, tumor_fraction=fraction, cysts=1, scar=True)
    phantom = make_phantom((24, 48, 48), (9, 8.4, 8.4), patient="t", seed=seed, findings=findings)
    assert all(phantom.tumor(k).any() for k in range(tumors))
    assert not phantom.tumor(tumors).any()
    assert phantom.mask(Organ.CYST).any()
    assert phantom.mask(Organ.SCAR).any()
    assert (phantom.liver() | ~phantom.tumors()).all()


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2])
def test_tumor_volume_is_about_as_asked(fraction: float) -> None:
    got = []
    for seed in range(4):
        findings = Findings(tumors=2, tumor_fraction=fraction)
        phantom = make_phantom(SHAPE, SPACING, patient="f", seed=seed, findings=findings)
        got.append(phantom.tumors().sum() / phantom.liver().sum())
    assert 0.5 * fraction < np.mean(got) < 1.7 * fraction


def test_look_alikes_are_drawn_and_are_no_liver() -> None:
    findings = Findings(tumors=0, adrenal_left_mm=54, adrenal_right_mm=9, stones=True, metal=True)
    phantom = make_phantom((60, 112, 112), (3.5, 3.6, 3.6), patient="l", seed=0, findings=findings)
    for organ in (Organ.ADRENAL_TUMOR_LEFT, Organ.ADRENAL_TUMOR_RIGHT, Organ.STONE, Organ.METAL):
        assert phantom.mask(organ).any(), organ
        assert not (phantom.mask(organ) & phantom.liver()).any()
    assert (phantom.labels() != Label.TUMOR).all()


def test_a_scan_that_misses_the_liver_has_no_lesions() -> None:
    empty = CoarseLiver(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    assert plan_lesions(empty, Findings(tumors=2, cysts=1), np.random.default_rng(0)) == ()


def test_one_slice_is_a_phantom_too() -> None:
    phantom = make_phantom((1, 32, 32), (5, 12, 12), patient="n", seed=0, findings=Findings(tumors=2))
    assert phantom.hu.shape == (1, 32, 32)
    assert phantom.body().any()


def test_findings_are_drawn_as_asked() -> None:
    drawn = [draw_findings(f"p{k}", 0) for k in range(200)]
    assert {findings.tumors for findings in drawn} == set(range(8))
    assert min(f.liver_hu for f in drawn) < 50 < 140 < max(f.liver_hu for f in drawn)
    assert all(draw_findings(f"p{k}", 0, tumor_free=True).tumors == 0 for k in range(20))
    assert all(draw_findings(f"p{k}", 0, tumor_free=False).tumors > 0 for k in range(20))


def test_fields_are_smooth_bounded_and_of_unit_spread() -> None:
    positions = np.arange(-280.0, 280.0, 5.0)
    values = Field(np.random.default_rng(0), 30.0).on(positions, positions).at(positions)
    assert values.dtype == np.float32
    assert np.abs(values).max() <= BOUND
    assert 0.75 < values.std() < 1.15
    assert np.abs(np.diff(values, axis=0)).max() < 1.0
    assert np.array_equal(
        Field(np.random.default_rng(0), 30.0).on(positions[3:9], positions).at(positions[:2]), values[:2, 3:9]
    )


def test_streams_are_independent_of_order_and_name() -> None:
    first = stream(0, "a", "x").random(3)
    assert np.array_equal(stream(0, "a", "x").random(3), first)
    for other in (stream(1, "a", "x"), stream(0, "b", "x"), stream(0, "a", "y")):
        assert not np.array_equal(other.random(3), first)


def _slab() -> Slab:
    axes = Axes.centered((21, 31, 41), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    z, y, x = np.meshgrid(axes.z_mm, axes.y_mm, axes.x_mm, indexing="ij")
    return Slab(
        x.astype(np.float32), y.astype(np.float32), z.astype(np.float32), np.zeros(z.shape, np.float32), axes, 0.0
    )


def test_shapes_have_the_promised_extent() -> None:
    slab = _slab()
    part = ellipsoid(slab, (4.0, 0.0, 0.0), (16.0, 10.0, 8.0))
    assert part is not None
    box, values = part
    inside = np.zeros(slab.x.shape, bool)
    inside[box] = values < 0
    expected = ((slab.x - 4) / 16) ** 2 + (slab.y / 10) ** 2 + (slab.z / 8) ** 2 < 1
    assert np.array_equal(inside, expected)
    turned = ellipsoid(slab, (0.0, 0.0, 0.0), (16.0, 10.0, 8.0), rotation(0, 0, 90))
    assert turned is not None
    assert (slab.y[turned[0]][turned[1] < 0]).max() > 13  # the long axis now points along y
    assert ellipsoid(slab, (500.0, 0.0, 0.0), (16.0, 10.0, 8.0)) is None


def test_tube_and_rounded_intersection() -> None:
    slab = _slab()
    inside = np.zeros(slab.x.shape, bool)
    for box, values in tube(slab, [(-20.0, 0.0, 0.0), (20.0, 0.0, 0.0)], 6.0, 3.0):
        inside[box] |= values < 0
    assert inside[10, 15, 20]
    left, right = (inside[:, :, k].sum() for k in (11, 29))
    assert left > 2 * right > 0
    a, b = np.float32([-5, 0, 4]), np.float32([-5, 3, -9])
    rounded = smooth_max(a, b, 4.0)
    assert (rounded >= np.maximum(a, b)).all()
    assert rounded[2] == 4
    assert rounded[0] == -5 + 1
