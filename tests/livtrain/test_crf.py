"""The dense CRF beside its definition, and what it does to a noisy map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from livtrain.crf import CrfSettings, refine

torch.set_num_threads(2)
SPACING = (2.5, 1.0, 1.2)


def _scene(seed: int = 0, shape: tuple[int, int, int] = (7, 13, 11)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with noise, HU with noise, and the structure: a box that is 60 HU brighter."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=bool)
    truth[1:-2, 3:9, 2:8] = True
    hu = np.where(truth, 100, 40) + rng.normal(0, 6, shape)
    p = np.clip(np.where(truth, 0.65, 0.35) + rng.normal(0, 0.18, shape), 0.02, 0.98)
    return p.astype(np.float32), np.rint(hu).astype(np.int16), truth


def _by_definition(p: np.ndarray, hu: np.ndarray, spacing: tuple[float, float, float], s: CrfSettings) -> np.ndarray:
    """Mean field over all pairs of voxels in float64."""
    index = np.stack(np.meshgrid(*map(np.arange, p.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    mm = index * np.array(spacing)
    distance2 = ((mm[:, None] - mm) ** 2).sum(axis=-1)
    same_slice = index[:, None, 0] == index[:, 0]
    values = np.clip(hu.ravel().astype(np.float64), s.low_hu, s.high_hu)
    smooth = np.exp(-distance2 / (2 * s.smooth_mm**2))
    alike = np.exp(-distance2 / (2 * s.appearance_mm**2) - (values[:, None] - values) ** 2 / (2 * s.appearance_hu**2))
    kernels = []
    for weight, kernel in ((s.smooth_weight, smooth), (s.appearance_weight, alike)):
        kernel = kernel * same_slice if s.planar else kernel
        root = 1 / np.sqrt(kernel.sum(axis=1))
        kernels.append((weight, root[:, None] * kernel * root))
    unary = np.log(p.ravel().astype(np.float64) / (1 - p.ravel()))
    q = p.ravel().astype(np.float64)
    for _ in range(s.iterations):
        energy = unary + sum(w * (kernel @ q - kernel @ (1 - q)) for w, kernel in kernels)
        q = 1 / (1 + np.exp(-energy))
    return q.reshape(p.shape)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("weights", [(3.0, 0.0), (0.0, 2.0), (1.0, 2.0), (3.0, 10.0)])
def test_the_mean_field_is_the_definitions(planar: bool, weights: tuple[float, float]) -> None:
    p, hu, _ = _scene()
    settings = CrfSettings(
        smooth_weight=weights[0], appearance_weight=weights[1], appearance_mm=4.0, planar=planar, iterations=5, cells=3
    )
    expected = _by_definition(p, hu, SPACING, settings)
    found = refine(p, hu, SPACING, settings)
    assert (found.dtype, found.shape) == (np.float32, p.shape)
    assert np.abs(found - expected).mean() < 0.01
    assert ((found >= 0.5) == (expected >= 0.5)).mean() > 0.99


def test_smoothness_alone_is_exact() -> None:
    p, hu, _ = _scene(1)
    settings = CrfSettings(appearance_weight=0.0, smooth_mm=2.0, iterations=3)
    # the filter ends at 3 standard deviations
    assert refine(p, hu, SPACING, settings) == pytest.approx(_by_definition(p, hu, SPACING, settings), abs=5e-3)


def test_noise_goes_and_edges_in_hu_stay() -> None:
    p, hu, truth = _scene(2)
    found = refine(p, hu, SPACING) >= 0.5
    assert (found == truth).mean() > 0.97 > ((p >= 0.5) == truth).mean()


def test_spacing_counts() -> None:
    p, hu, _ = _scene(3)
    settings = CrfSettings(smooth_weight=0.5, appearance_weight=0.5, iterations=2)
    near, far = (refine(p, hu, (z_mm, 1.0, 1.0), settings) for z_mm in (1.0, 40.0))
    alone = refine(p[3:4], hu[3:4], (40.0, 1.0, 1.0), settings)
    assert far[3:4] == pytest.approx(alone, abs=0.005)  # 4 standard deviations away, slices do not speak
    assert np.abs(near[3:4] - alone).max() > 0.03


def test_large_structures_are_solved_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    p, hu, _ = _scene(5, (60, 12, 12))
    settings = CrfSettings(appearance_mm=4.0, smooth_weight=1.0, appearance_weight=2.0, iterations=4)
    whole = refine(p, hu, (1.0, 1.0, 1.0), settings)
    monkeypatch.setattr("livtrain.crf._MOST_VOXELS", 40 * 144)
    blocks = refine(p, hu, (1.0, 1.0, 1.0), settings)
    assert not np.array_equal(blocks, whole)
    assert np.abs(blocks - whole).mean() < 0.01
    assert ((blocks >= 0.5) == (whole >= 0.5)).mean() > 0.995


def test_slices_by_themselves_do_not_depend_on_one_another() -> None:
    p, hu, _ = _scene(4, (20, 9, 9))
    settings = CrfSettings(planar=True, iterations=3)
    whole = refine(p, hu, SPACING, settings)
    for z in (0, 7, 19):
        assert whole[z] == pytest.approx(refine(p[z : z + 1], hu[z : z + 1], SPACING, settings)[0], abs=1e-5)


def test_a_sure_and_even_map_stays() -> None:
    hu = np.full((4, 6, 6), 60, dtype=np.int16)
    for value in (0.0, 1.0):
        p = np.full(hu.shape, value, dtype=np.float16)
        assert refine(p, hu, SPACING) == pytest.approx(value, abs=1e-3)
