"""Whole patches through the augmenter: what passes, what depends on what, and the margin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank
from livtrain.augment import Augmenter
from livtrain.augment.draws import draw_geometry, draw_intensity, draw_windows
from livtrain.augment.geometry import largest_margin
from livtrain.augment_config import AugmentSettings

Shape = tuple[int, int, int]
BANK = WindowBank((Window(40, 220), Window(60, 140)))
SHAPE = (20, 24, 28)
SPACING = (2.0, 0.8, 0.7)
MOVING = {"rotation": {"p": 1, "max_deg": 30}, "scaling": {"p": 1, "field": (0.7, 1.4)}, "shear": 1, "elastic": 1}
EVERYTHING = {
    **MOVING, "window": 1, "noise": 1, "blur": 1, "brightness": 1, "contrast": 1, "low_resolution": 1,
    "gamma_inverted": 1, "gamma": 1, "flip_z": True, "flip_y": True, "flip_x": True,
}  # fmt: skip


def only(**changes: object) -> AugmentSettings:
    return AugmentSettings.model_validate({"preset": "none", **changes})


def packed(shape: Shape, seed: int = 0, labels: Sequence[int] = (0, 1, 2)) -> Tensor:
    rng = np.random.default_rng(seed)
    hu = rng.integers(-200, 300, shape) + 1024
    return torch.from_numpy((hu | rng.choice(labels, shape) << 12).astype(np.uint16))


def augmenter(settings: AugmentSettings, shape: Shape = SHAPE, seed: int = 0) -> Augmenter:
    return Augmenter(settings, shape, seed, BANK)


def regions(made: Augmenter, counters: Sequence[int]) -> list[Tensor]:
    """Patches with the margin they ask for; their content follows from the counter."""
    margins = [made.margin(counter, SPACING) for counter in counters]
    return [
        packed((SHAPE[0] + 2 * z, SHAPE[1] + 2 * y, SHAPE[2] + 2 * x), counter)
        for counter, (z, y, x) in zip(counters, margins, strict=True)
    ]


def run(made: Augmenter, counters: Sequence[int]) -> tuple[Tensor, Tensor]:
    return made.from_packed(regions(made, counters), counters=counters, spacing_mm=[SPACING] * len(counters))


def plain(patch: Tensor) -> tuple[Tensor, Tensor]:
    """Stored channels / 255 and labels, by the definitions of the store."""
    array = patch.numpy()
    hu = (array & 0xFFF).astype(np.int16) - 1024
    return torch.from_numpy(BANK.apply(hu).astype(np.float32)) / 255, torch.from_numpy((array >> 12).astype(np.uint8))


@pytest.mark.parametrize("margin", [0, 3])
def test_without_chances_patches_pass_bit_for_bit(margin: int) -> None:
    batch = [packed((SHAPE[0] + 2 * margin, SHAPE[1], SHAPE[2] + 2 * margin), k, (0, 1, 2, 15)) for k in range(3)]
    image, labels = augmenter(only()).from_packed(batch, counters=range(3), spacing_mm=[SPACING] * 3)
    for k, patch in enumerate(batch):
        channels, marks = plain(patch[margin : margin + SHAPE[0], :, margin : margin + SHAPE[2]])
        assert torch.equal(image[k], channels)
        assert torch.equal(labels[k], marks)
    again = augmenter(only()).from_channels(image, labels, counters=range(3), spacing_mm=[SPACING] * 3)
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], labels)


def test_patches_for_which_nothing_is_drawn_pass_bit_for_bit() -> None:
    settings = only(rotation=0.3, scaling=0.3, noise=0.3, gamma=0.3, window=0.3)
    made = augmenter(settings)
    quiet = [
        k
        for k in range(60)
        if not draw_geometry(settings, False, 0, k).resamples
        and not draw_intensity(settings, False, 2, 0, k)
        and draw_windows(settings, BANK.windows, 0, k) is None
    ]
    assert 3 < len(quiet) < 30
    image, labels = run(made, range(60))
    for k in range(60):
        same = torch.equal(image[k], plain(packed(SHAPE, k))[0])
        assert same == (k in quiet)
        assert k not in quiet or torch.equal(labels[k], plain(packed(SHAPE, k))[1])


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(0, 2**70))
@examples(max_examples=12)
def test_a_patch_is_changed_by_seed_and_counter_alone(counters: list[int], seed: int) -> None:
    made = augmenter(only(**EVERYTHING), seed=seed)
    batch = regions(made, counters)
    before = [patch.clone() for patch in batch]
    image, labels = made.from_packed(batch, counters=counters, spacing_mm=[SPACING] * len(counters))
    assert all(torch.equal(patch, copy) for patch, copy in zip(batch, before, strict=True))
    for k, counter in enumerate(counters):
        alone = augmenter(only(**EVERYTHING), seed=seed).from_packed(
            batch[k : k + 1], counters=[counter], spacing_mm=[SPACING]
        )
        assert torch.equal(alone[0][0], image[k])
        assert torch.equal(alone[1][0], labels[k])
    other = augmenter(only(**EVERYTHING), seed=seed + 1)
    assert not torch.equal(run(other, counters)[0], image)


def test_the_number_of_threads_changes_no_position() -> None:
    made = Augmenter(only(**MOVING), (48, 20, 20), 0, BANK)
    patch = packed((80, 60, 60))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(made.from_packed([patch], counters=[4], spacing_mm=[(1.0, 1.0, 1.0)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_values_stay_in_range_and_labels_stay_labels() -> None:
    image, labels = run(augmenter(only(**EVERYTHING)), range(12))
    assert image.min() >= 0
    assert image.max() <= 1
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    unlabelled = packed(SHAPE, labels=(15,))
    _, kept = augmenter(only(rotation=1)).from_packed([unlabelled], counters=[0], spacing_mm=[SPACING])
    assert set(kept.unique().tolist()) == {0, 15}  # without a margin, what lies outside is background


def test_without_clipping_values_leave_the_window() -> None:
    image, _ = run(augmenter(only(noise={"p": 1, "sd": (0.1, 0.1)}, clip=False)), range(2))
    assert image.min() < 0
    assert image.max() > 1


def test_packed_and_stored_channels_are_changed_alike() -> None:
    """Windows of interpolated HU and interpolated windows agree where nothing saturates."""
    wide = WindowBank((Window(50, 800),))
    changes = {key: value for key, value in EVERYTHING.items() if key not in ("window", "noise")}
    made = Augmenter(only(**changes), SHAPE, 0, wide)
    counters = range(4)
    batch = regions(made, counters)
    image, labels = made.from_packed(batch, counters=counters, spacing_mm=[SPACING] * 4)
    hu = [(patch.numpy() & 0xFFF).astype(np.float32) - 1024 for patch in batch]
    channels = [torch.from_numpy((array + 350) / 800)[None] for array in hu]
    marks = [torch.from_numpy((patch.numpy() >> 12).astype(np.uint8)) for patch in batch]
    stored = made.from_channels(channels, marks, counters=counters, spacing_mm=[SPACING] * 4)
    torch.testing.assert_close(stored[0], image, atol=2e-4, rtol=0)
    assert (stored[1] != labels).float().mean() < 1e-3  # positions midway between voxels, within rounding


def test_flips_of_image_and_label_agree() -> None:
    made = augmenter(only(flip_z=True, flip_y=True, flip_x=True))
    image, labels = run(made, range(40))
    seen = set()
    for k in range(40):
        channels, marks = plain(packed(SHAPE, k))
        flips = draw_geometry(made.settings, False, 0, k).flips
        seen.add(flips)
        assert torch.equal(image[k], channels.flip([axis + 1 for axis in flips]))
        assert torch.equal(labels[k], marks.flip(flips))
    assert len(seen) == 8


def test_left_and_right_are_not_swapped_unless_asked() -> None:
    settings = only(flip_z=True, flip_y=True)
    assert all(2 not in draw_geometry(settings, False, 0, k).flips for k in range(100))


@given(
    st.integers(0, 10_000),
    st.tuples(*[st.integers(4, 16)] * 3),
    st.tuples(*[st.floats(0.4, 4)] * 3),
    st.booleans(),
)
@examples(max_examples=60)
def test_the_margin_is_enough(counter: int, shape: Shape, spacing: tuple[float, float, float], flips: bool) -> None:
    """In a volume that is 1 everywhere no 0 appears, for the compiled loop and for grid_sample."""
    changes = {**MOVING, "rotation": {"p": 1, "max_deg": 180, "in_plane_deg": 180}, "flip_z": flips, "flip_x": flips}
    made = Augmenter(only(**changes), shape, 0, WindowBank((Window(100, 100),)))
    margin = made.margin(counter, spacing)
    assert margin <= largest_margin(made.settings, shape, spacing)
    assert all(m <= most for m, most in zip(margin, largest_margin(made.settings, shape, spacing), strict=True))
    region = torch.full([n + 2 * m for n, m in zip(shape, margin, strict=True)], 1024 + 125 | 1 << 12)
    patch = region.to(torch.uint16)
    image, labels = made.from_packed([patch], counters=[counter], spacing_mm=[spacing])
    torch.testing.assert_close(image, torch.full_like(image, 0.75), atol=1e-5, rtol=0)
    assert torch.equal(labels, torch.ones_like(labels))
    channels, marks = made.from_channels(
        [torch.ones((1, *patch.shape))],
        [torch.ones(patch.shape, dtype=torch.uint8)],
        counters=[counter],
        spacing_mm=[spacing],
    )
    torch.testing.assert_close(channels, torch.ones_like(channels), atol=1e-5, rtol=0)
    assert torch.equal(marks, torch.ones_like(marks))


def test_a_margin_is_asked_only_by_patches_that_are_resampled() -> None:
    settings = AugmentSettings(preset="nnunet")
    made = Augmenter(settings, (128, 128, 128), 0, BANK)
    margins = [made.margin(k, (1.0, 0.8, 0.8)) for k in range(200)]
    moved = [draw_geometry(settings, False, 0, k).resamples for k in range(200)]
    assert 50 < sum(moved) < 95  # 1 - 0.8^2 = 0.36 of them
    assert all(margin == (0, 0, 0) for margin, moves in zip(margins, moved, strict=True) if not moves)
    assert largest_margin(only(noise=1), (128, 128, 128), SPACING) == (0, 0, 0)


def test_flat_patches_change_in_their_plane() -> None:
    made = Augmenter(only(**{**MOVING, "low_resolution": 1}), (16, 60, 64), 0, BANK)
    for k in range(20):
        geometry = draw_geometry(made.settings, True, 0, k)
        assert geometry.matrix_mm is not None
        assert geometry.matrix_mm[0].tolist() == [1, 0, 0]
        assert geometry.matrix_mm[:, 0].tolist() == [1, 0, 0]
        assert geometry.elastic is not None
        assert geometry.elastic.shift_mm[0] == 0
        assert {step.zoom_zyx[0] for step in draw_intensity(made.settings, True, 2, 0, k)} == {1.0}
        assert made.margin(k, SPACING)[0] == 0
    assert max(made.margin(k, SPACING)[1] for k in range(20)) > 5
    tall = Augmenter(only(**MOVING, in_plane_ratio=None), (16, 60, 64), 0, BANK)
    assert max(tall.margin(k, SPACING)[0] for k in range(20)) > 5


def test_streams_do_not_shift_each_other() -> None:
    """Turning a transform off, or another number of channels, leaves the other draws as they are."""
    full, less = only(**EVERYTHING), only(**{**EVERYTHING, "noise": 0, "rotation": 0})
    for k in range(5):
        three, two = (draw_intensity(full, False, channels, 0, k) for channels in (3, 2))
        kept = [step for step in two if type(step).__name__ != "NoiseStep"]
        assert list(draw_intensity(less, False, 2, 0, k)) == kept
        assert [step for step in three if step.channel == 0] == [step for step in two if step.channel == 0]
        a, b = draw_geometry(full, False, 0, k), draw_geometry(less, False, 0, k)
        assert a.matrix_mm is not None
        assert b.matrix_mm is not None
        assert np.linalg.det(a.matrix_mm) == pytest.approx(np.linalg.det(b.matrix_mm))
        assert a.flips == b.flips


def test_probabilities_are_those_of_the_settings() -> None:
    settings = AugmentSettings.model_validate({"preset": "nnunet", "window": 0.4, "elastic": 0.3})
    count = 1500
    steps = [draw_intensity(settings, False, 1, 5, k) for k in range(count)]
    seen = {
        name: np.mean([any(type(s).__name__ == name for s in patch) for patch in steps])
        for name in ("NoiseStep", "BlurStep", "BrightnessStep", "ContrastStep", "LowResolutionStep")
    }
    gammas = [[s.invert for s in patch if type(s).__name__ == "GammaStep"] for patch in steps]
    geometry = [draw_geometry(settings, False, 5, k) for k in range(count)]
    windows = [draw_windows(settings, BANK.windows, 5, k) is not None for k in range(count)]
    expected = {
        "NoiseStep": 0.1, "BlurStep": 0.1, "BrightnessStep": 0.15, "ContrastStep": 0.15, "LowResolutionStep": 0.125,
        "inverted": 0.1, "gamma": 0.3, "matrix": 0.36, "elastic": 0.3, "window": 0.4, "flips": 0.5,
    }  # fmt: skip
    seen |= {
        "inverted": np.mean([True in g for g in gammas]),
        "gamma": np.mean([False in g for g in gammas]),
        "matrix": np.mean([g.matrix_mm is not None for g in geometry]),
        "elastic": np.mean([g.elastic is not None for g in geometry]),
        "window": np.mean(windows),
        "flips": np.mean([1 in g.flips for g in geometry]),
    }
    for name, p in expected.items():
        assert abs(seen[name] - p) < 4 * np.sqrt(p * (1 - p) / count), name


def test_factors_are_split_at_one() -> None:
    factors = [draw_intensity(only(brightness={"p": 1, "factor": (0.9, 1.5)}), False, 1, 0, k)[0] for k in range(400)]
    values = np.array([step.factor for step in factors])  # type: ignore[attr-defined]
    assert 160 < (values < 1).sum() < 240
    assert values.min() > 0.9
    assert values.max() < 1.5


def test_faults_are_said() -> None:
    made = augmenter(only(rotation=1))
    for shape in ((18, 24, 28), (21, 24, 28)):
        with pytest.raises(UsageError, match="expected 20x24x28 and an equal margin"):
            made.from_packed([packed(shape)], counters=[0], spacing_mm=[SPACING])
    with pytest.raises(UsageError, match="expected 20x24x28 and an equal margin"):
        augmenter(only()).from_packed([packed((21, 24, 28))], counters=[0], spacing_mm=[SPACING])
    with pytest.raises(UsageError, match=r"set augment\.window=0"):
        augmenter(only(window=0.1)).from_channels(
            torch.zeros((1, 2, *SHAPE)), torch.zeros((1, *SHAPE)), counters=[0], spacing_mm=[SPACING]
        )
    lungs = Augmenter(only(), SHAPE, 0, WindowBank((Window(-600, 1500),)))
    with pytest.raises(UsageError, match=r"-1350 \.\.\. 150 HU, the packed array holds"):
        lungs.from_packed([packed(SHAPE)], counters=[0], spacing_mm=[SPACING])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_nothing_but_rounding_and_noise() -> None:
    settings = only(**{**EVERYTHING, "noise": 0})
    made = augmenter(settings)
    batch = regions(made, range(4))
    here = made.from_packed(batch, counters=range(4), spacing_mm=[SPACING] * 4)
    there = made.from_packed([patch.cuda() for patch in batch], counters=range(4), spacing_mm=[SPACING] * 4)
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-3, rtol=0)
    assert (there[1].cpu() != here[1]).float().mean() < 1e-3
    whole = augmenter(only())
    plain_there = whole.from_packed([packed(SHAPE).cuda()], counters=[0], spacing_mm=[SPACING])
    assert torch.equal(plain_there[0][0].cpu(), plain(packed(SHAPE))[0])
