from __future__ import annotations

import numpy as np
import pytest
import torch

from livtrain.augment import Augmentation, augment

NONE = Augmentation(intensity=0, gamma=0, noise=0, rotation_deg=0, scale=0)
STRONG = Augmentation(probability=1, intensity=0.3, gamma=0.3, noise=0.1, rotation_deg=30, scale=0.3)


def _batch(count: int = 3, shape: tuple[int, int, int] = (12, 16, 20)) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand((count, 2, *shape), generator=rng), torch.randint(
        0, 3, (count, *shape), generator=rng, dtype=torch.uint8
    )


def _run(
    image: torch.Tensor,
    labels: torch.Tensor,
    strength: Augmentation,
    counters: list[int] | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    counters = list(range(len(image))) if counters is None else counters
    return augment(image, labels, counters=counters, spacing_mm=[spacing] * len(image), seed=seed, strength=strength)


@pytest.mark.parametrize("strength", [NONE, Augmentation(probability=0)])
def test_no_strength_changes_nothing(strength: Augmentation) -> None:
    image, labels = _batch()
    out, moved = _run(image, labels, strength)
    assert torch.equal(out, image)
    assert torch.equal(moved, labels)


def test_a_patch_is_changed_by_seed_and_counter_alone() -> None:
    image, labels = _batch()
    before = image.clone()
    together = _run(image, labels, STRONG, [5, 6, 7])
    assert torch.equal(image, before)
    for k in range(3):
        alone = _run(image[k : k + 1], labels[k : k + 1], STRONG, [5 + k])
        assert torch.equal(alone[0][0], together[0][k])
        assert torch.equal(alone[1][0], together[1][k])
    assert not torch.equal(_run(image, labels, STRONG, [8, 6, 7])[0][0], together[0][0])
    assert not torch.equal(_run(image, labels, STRONG, [5, 6, 7], seed=1)[0], together[0])


def test_values_stay_in_range_and_labels_stay_labels() -> None:
    image, labels = _batch(8)
    out, moved = _run(image, labels, STRONG)
    assert out.min() >= 0
    assert out.max() <= 1
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1, 2}


def test_labels_move_with_the_image() -> None:
    labels = torch.zeros((6, 16, 24, 24), dtype=torch.uint8)
    labels[:, 4:10, 3:15, 8:20] = 1
    affine = Augmentation(
        probability=1, intensity=0, gamma=0, noise=0, rotation_deg=30, scale=0.3, flip_y=True, flip_x=True
    )
    out, moved = _run(labels[:, None].float(), labels, affine)
    assert not torch.equal(moved, labels)
    for k in range(6):
        a, b = out[k, 0] > 0.5, moved[k] > 0
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_turns_happen_in_mm() -> None:
    """A ball in mm on thick slices stays the same ball when turned about its center."""
    spacing = (4.0, 1.0, 1.0)
    z, y, x = np.meshgrid((np.arange(13) - 6) * 4.0, np.arange(41) - 20.0, np.arange(41) - 20.0, indexing="ij")
    ball = torch.from_numpy((z**2 + y**2 + x**2 < 15**2).astype(np.uint8))[None].repeat(5, 1, 1, 1)
    turn = Augmentation(probability=1, intensity=0, gamma=0, noise=0, rotation_deg=90, scale=0)
    _, moved = _run(ball[:, None].float(), ball, turn, spacing=spacing)
    dice = 2 * (moved & ball).sum() / (moved.sum() + ball.sum())
    assert dice > 0.9
    _, sheared = _run(ball[:, None].float(), ball, turn, spacing=(1.0, 1.0, 1.0))
    assert 2 * (sheared & ball).sum() / (sheared.sum() + ball.sum()) < 0.85


def test_zoom_keeps_its_bounds() -> None:
    cube = torch.zeros((20, 24, 24, 24), dtype=torch.uint8)
    cube[:, 6:18, 6:18, 6:18] = 1
    zoom = Augmentation(probability=1, intensity=0, gamma=0, noise=0, rotation_deg=0, scale=0.3)
    _, moved = _run(cube[:, None].float(), cube, zoom)
    ratios = moved.flatten(1).sum(1) / 12**3
    assert ratios.min() < 0.8
    assert ratios.max() > 1.2
    assert ratios.min() > 0.6**3
    assert ratios.max() < 1.4**3


def test_left_and_right_are_not_swapped_unless_asked() -> None:
    image, labels = _batch(20)
    assert Augmentation().flip_x is False
    flips = Augmentation(probability=0, flip_x=True)
    out, moved = _run(image, labels, flips)
    same = [torch.equal(a, b) for a, b in zip(out, image, strict=True)]
    assert 4 < sum(same) < 16
    k = same.index(False)
    assert torch.equal(out[k], image[k].flip(3))
    assert torch.equal(moved[k], labels[k].flip(2))
