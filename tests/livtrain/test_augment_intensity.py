"""Changes of values, each against its formula in numpy or scipy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from livprep.windows import Window, WindowBank
from livtrain.augment.channels import apply_windows, hu_bits, label_bits
from livtrain.augment.draws import draw_windows
from livtrain.augment.intensity import (
    TRUNCATE,
    BlurStep,
    BrightnessStep,
    ContrastStep,
    GammaStep,
    LowResolutionStep,
    NoiseStep,
    Step,
)
from livtrain.augment_config import AugmentSettings

Shape = tuple[int, int, int]
Values = npt.NDArray[np.float32]


def channel(shape: Shape = (7, 9, 11), seed: int = 0) -> Values:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def applied(step: Step, values: Values) -> Values:
    x = torch.from_numpy(values.copy())
    step.apply(x, torch.full_like(x, float("nan")))  # scratch holds anything
    return x.numpy()


def test_noise_has_its_variance_and_its_seed() -> None:
    values = channel((32, 32, 32))
    added = applied(NoiseStep(0, 0.1, 7), values) - values
    assert added.mean() == pytest.approx(0, abs=0.003)
    assert added.var() == pytest.approx(0.01, rel=0.03)
    assert np.array_equal(applied(NoiseStep(0, 0.1, 7), values) - values, added)
    other = applied(NoiseStep(0, 0.1, 8), values) - values
    assert abs(np.corrcoef(added.ravel(), other.ravel())[0, 1]) < 0.03


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    applied(NoiseStep(0, 0.1, 7), channel())
    assert torch.equal(torch.get_rng_state(), state)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.3, 2)] * 3))
@examples(max_examples=40)
def test_blur_is_that_of_scipy(shape: Shape, sigma: tuple[float, float, float]) -> None:
    values = channel(shape)
    radius = [min(int(TRUNCATE * s + 0.25), n - 1) for s, n in zip(sigma, shape, strict=True)]
    expected = gaussian_filter(values.astype(np.float64), sigma, mode="mirror", radius=radius)
    np.testing.assert_allclose(applied(BlurStep(0, sigma), values), expected, atol=2e-6)


def test_brightness_multiplies() -> None:
    np.testing.assert_allclose(applied(BrightnessStep(0, 1.2), channel()), channel() * 1.2, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_is_about_the_mean_and_within_the_range(factor: float) -> None:
    values = channel()
    expected = np.clip((values - values.mean()) * factor + values.mean(), values.min(), values.max())
    np.testing.assert_allclose(applied(ContrastStep(0, factor), values), expected, atol=1e-6)


@given(st.tuples(*[st.integers(2, 12)] * 3), st.tuples(*[st.floats(0.4, 1)] * 3))
@examples(max_examples=40)
def test_low_resolution_is_nearest_then_linear(shape: Shape, zoom: tuple[float, float, float]) -> None:
    values = channel(shape)
    expected = values.astype(np.float64)
    for axis, (n, z) in enumerate(zip(shape, zoom, strict=True)):
        coarse = max(1, round(n * z))
        small = np.take(expected, np.floor((np.arange(coarse) + 0.5) * n / coarse).astype(int), axis)
        at = (np.arange(n) + 0.5) * coarse / n - 0.5  # np.interp holds the ends, as torch does
        expected = np.apply_along_axis(lambda row, at=at: np.interp(at, np.arange(len(row)), row), axis, small)
    np.testing.assert_allclose(applied(LowResolutionStep(0, zoom), values), expected, atol=2e-6)
    same = applied(LowResolutionStep(0, (1.0, 1.0, 1.0)), values)
    np.testing.assert_allclose(same, values, atol=1e-6)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_that_of_the_formula(exponent: float, invert: bool, retain: bool) -> None:
    values = 0.2 + 0.5 * channel().astype(np.float64)
    x = -values if invert else values
    low, spread = x.min(), np.ptp(x)
    expected = ((x - low) / spread) ** exponent * spread + low
    if retain:
        expected = (expected - expected.mean()) / expected.std(ddof=1) * x.std(ddof=1) + x.mean()
    expected = -expected if invert else expected
    result = applied(GammaStep(0, exponent, invert, retain), values.astype(np.float32))
    np.testing.assert_allclose(result, expected, atol=2e-5)
    if retain:
        assert result.mean() == pytest.approx(values.mean(), abs=1e-5)
        assert result.std() == pytest.approx(values.std(), rel=1e-4)
    else:
        assert np.argsort(result.ravel())[-1] == np.argsort(values.ravel())[-1]


@pytest.mark.parametrize("step", [GammaStep(0, 1.5, True, True), ContrastStep(0, 1.2), BlurStep(0, (1.0, 1.0, 1.0))])
def test_an_even_channel_stays_finite_and_even(step: Step) -> None:
    np.testing.assert_allclose(applied(step, np.full((5, 5, 5), 0.25, np.float32)), 0.25, atol=1e-6)


HU = st.lists(st.integers(-1024, 3071), min_size=8, max_size=8)
WINDOWS = st.builds(Window, st.floats(-200, 300), st.floats(50, 1200))


def _packed(hu: list[int], label: int = 1) -> torch.Tensor:
    return torch.from_numpy(((np.array(hu) + 1024) | label << 12).astype(np.uint16)).view(2, 2, 2)


@given(HU, WINDOWS, st.integers(0, 15))
def test_windows_are_those_of_the_store_within_half_a_step(hu: list[int], window: Window, label: int) -> None:
    packed, stored = _packed(hu, label), window.apply(np.array(hu, dtype=np.int16).reshape(2, 2, 2))
    out = torch.empty((1, 2, 2, 2))
    apply_windows(hu_bits(packed).float(), (window,), out)
    steps = out[0].numpy() * 255
    assert np.abs(steps - stored).max() <= 0.5 + 1e-3
    tie = np.abs(steps % 1 - 0.5) < 1e-3  # which float32 may round the other way
    assert np.array_equal(np.rint(steps)[~tie], stored[~tie])
    assert set(label_bits(packed).unique().tolist()) == {label}


def test_a_jitter_of_0_gives_the_plain_windows() -> None:
    settings = AugmentSettings.model_validate({"preset": "none", "window": {"p": 1, "level": 0, "width": (1, 1)}})
    bank = WindowBank((Window(40, 220), Window(60, 140)))
    drawn = draw_windows(settings, bank.windows, 0, 0)
    assert drawn is not None
    assert [(w.center_hu, w.width_hu) for w in drawn] == [(40, 220), (60, 140)]


@given(HU, st.integers(0, 10_000))
def test_jittered_windows_are_windows_of_hu(hu: list[int], counter: int) -> None:
    settings = AugmentSettings.model_validate({"preset": "none", "window": {"p": 1, "level": 0.2, "width": (0.5, 2)}})
    bank = WindowBank((Window(40, 220), Window(60, 140)))
    drawn = draw_windows(settings, bank.windows, 0, counter)
    assert drawn is not None
    for window, moved in zip(bank, drawn, strict=True):
        assert abs(moved.center_hu - window.center_hu) <= 0.2 * window.width_hu
        assert 0.5 <= moved.width_hu / window.width_hu <= 2
    out = torch.empty((2, 2, 2, 2))
    apply_windows(hu_bits(_packed(hu)).float(), drawn, out)
    for plane, window in zip(out.numpy(), drawn, strict=True):
        stored = window.evaluate(np.array(hu).reshape(2, 2, 2))
        assert np.abs(plane * 255 - stored).max() <= 0.5 + 1e-3
