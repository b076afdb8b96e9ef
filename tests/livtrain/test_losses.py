"""Every loss against its formula in numpy float64, and the stages that feed them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livprep.errors import UsageError
from livtrain.losses import LOSSES, AlphaSchedule, DeepSupervision, build_loss
from livtrain.stages import get_stage

torch.set_num_threads(2)
Array = npt.NDArray[np.float64]


Reference = Callable[..., float]


def _region(formula: Callable[[Array, Array, Array], float]) -> Reference:
    """Mean of a formula (p, t, w) over the classes from `first` on of one sample."""

    def loss(p: Array, t: Array, w: Array, first: int = 1) -> float:
        return float(np.mean([formula(p[k], t[k], w) for k in range(first, len(p))]))

    return loss


def _dice(p: Array, t: Array, w: Array) -> float:
    return 2 * (w * p * t).sum() / ((w * p * p).sum() + (w * t * t).sum() + 1)


def _jaccard(p: Array, t: Array, w: Array) -> float:
    both = (w * p * t).sum()
    return 1 - both / ((w * p * p).sum() + (w * t * t).sum() - both + 1)


def _ss(p: Array, t: Array, w: Array) -> float:
    error = (p - t) ** 2 * w
    inside, outside = (error * t).sum() / (1 + (w * t).sum()), (error * (1 - t)).sum() / (1 + (w * (1 - t)).sum())
    return 0.05 * inside + 0.95 * outside


def _tversky(p: Array, t: Array, w: Array) -> float:
    both = (w * p * t).sum()
    return 1 - both / (both + 0.3 * (w * p * (1 - t)).sum() + 0.7 * (w * (1 - p) * t).sum() + 1)


def _cross_entropy(weights: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], float]:
    def loss(p: Array, t: Array, w: Array) -> float:
        true = (p * t).sum(axis=0)
        return float((w * weights(true, t) * -np.log(true)).sum())

    return loss


def _bce(p: Array, t: Array, w: Array, first: int = 1) -> float:
    return _cross_entropy(lambda true, t: np.ones_like(true))(p, t, w) / w.sum()


def _wce(p: Array, t: Array, w: Array, first: int = 1) -> float:
    weights = np.where(t[0] > 0, 0.05, 1.0)
    return _cross_entropy(lambda true, t: weights)(p, t, w) / (w * weights).sum()


def _focal(p: Array, t: Array, w: Array, first: int = 1) -> float:
    weighting = _cross_entropy(lambda true, t: np.where(t[0] > 0, 0.75, 0.25) * (1 - true) ** 2)
    return weighting(p, t, w) / w.sum()


_DICE = _region(lambda p, t, w: 1 - _dice(p, t, w))
REFERENCE: dict[str, Reference] = {
    "tversky": _region(_tversky),
    "dice": _DICE,
    "eldice": _region(lambda p, t, w: min((-np.log(_dice(p, t, w) + 1e-5)) ** 0.3, 2.0)),
    "jaccard": _region(_jaccard),
    "ss": _region(_ss),
    "hybrid": lambda p, t, w, first=1: _DICE(p, t, w, first) + _bce(p, t, w),
    "bce": _bce,
    "wce": _wce,
    "focal": _focal,
    "dice_ce": lambda p, t, w, first=1: 0.5 * _DICE(p, t, w, first) + 0.5 * _bce(p, t, w),
}


def _expected(name: str, logits: Array, target: npt.NDArray[np.int64], weight: Array, first: int = 1) -> float:
    values = []
    for x, labels, w in zip(logits, target, weight, strict=True):
        if len(x) == 1:
            p1 = 1 / (1 + np.exp(-x[0]))
            p = np.stack([1 - p1, p1])
            t = np.stack([labels == 0, labels > 0]).astype(np.float64)
        else:
            e = np.exp(x - x.max(axis=0))
            p = e / e.sum(axis=0)
            t = np.stack([labels == k for k in range(len(x))]).astype(np.float64)
        values.append(REFERENCE[name](p, t, w, first))
    return float(np.mean(values))


def test_every_loss_has_a_reference() -> None:
    assert REFERENCE.keys() == LOSSES.keys()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_follow_their_formulas(name: str, classes: int, masked: bool) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(2, classes, 4, 6, 5))
    target = rng.integers(0, max(classes, 2), size=(2, 4, 6, 5))
    weight = (rng.random(target.shape) < 0.7).astype(np.float64) if masked else np.ones(target.shape)
    got = build_loss(name)(
        torch.from_numpy(logits).float(),
        torch.from_numpy(target).to(torch.uint8),
        torch.from_numpy(weight).float() if masked else None,
    )
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(_expected(name, logits, target, weight), rel=2e-5)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_in_float64_follow_their_formulas_to_the_last_digits(name: str, classes: int, background: bool) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=3, size=(2, classes, 3, 5, 4))
    target = rng.integers(0, max(classes, 2), size=(2, 3, 5, 4))
    weight = (rng.random(target.shape) < 0.6).astype(np.float64)
    loss = build_loss(name, background=background)
    got = loss(torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(weight))
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(_expected(name, logits, target, weight, 0 if background else 1), rel=1e-11)


@pytest.mark.parametrize("classes", [1, 3])
def test_class_weights_weigh_the_cross_entropy(classes: int) -> None:
    rng = np.random.default_rng(4)
    weights = (0.36, 6.6, 14.4)[: max(classes, 2)]
    logits = rng.normal(size=(2, classes, 3, 4, 5))
    target = rng.integers(0, max(classes, 2), size=(2, 3, 4, 5))
    both = np.concatenate([np.zeros_like(logits), logits], axis=1) if classes == 1 else logits
    log_p = both - np.log(np.exp(both).sum(axis=1, keepdims=True))
    each = [
        sum(-weights[c] * x[:, target[b] == c][c].sum() for c in range(len(weights)))
        / sum(weights[c] * (target[b] == c).sum() for c in range(len(weights)))
        for b, x in enumerate(log_p)
    ]
    loss = build_loss("wce", class_weights=weights)
    assert loss(torch.from_numpy(logits), torch.from_numpy(target), None).item() == pytest.approx(np.mean(each))
    plain = build_loss("wce", class_weights=(0.05, 1.0, 1.0)[: max(classes, 2)])
    expected = build_loss("wce")(torch.from_numpy(logits), torch.from_numpy(target), None)
    assert plain(torch.from_numpy(logits), torch.from_numpy(target), None).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("classes", [1, 3])
def test_monai_gives_the_same_where_it_has_the_formula(classes: int) -> None:
    """Independent code for Dice, Tversky and focal; 2 x Dice's numerator and smoothing are as published here."""
    from monai.losses import DiceLoss, FocalLoss, TverskyLoss

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, 4, 5, 6, generator=generator)
    target = torch.randint(0, max(classes, 2), (2, 4, 5, 6), generator=generator)
    one_hot = classes > 1
    common = {"sigmoid": not one_hot, "softmax": one_hot, "to_onehot_y": one_hot, "smooth_nr": 0.0, "smooth_dr": 1.0}
    for background in (False, True) if one_hot else (False,):
        options = {**common, "include_background": background or not one_hot}
        for name, theirs in (
            ("dice", DiceLoss(squared_pred=True, **options)),
            ("tversky", TverskyLoss(alpha=0.3, beta=0.7, **options)),
        ):
            ours = build_loss(name, background=background)(logits, target, None)
            assert ours.item() == pytest.approx(theirs(logits, target[:, None].float()).item(), rel=1e-5)
    if classes == 1:
        focal = FocalLoss(gamma=2.0, alpha=0.25)(logits, target[:, None].float())
        assert build_loss("focal")(logits, target, None).item() == pytest.approx(focal.item(), rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_ignored_voxels_have_no_say(name: str) -> None:
    rng = np.random.default_rng(2)
    logits, target = torch.randn(1, 1, 4, 4, 4), torch.randint(0, 2, (1, 4, 4, 4))
    weight = torch.from_numpy(rng.random((1, 4, 4, 4)) < 0.5).float()
    loss = build_loss(name)
    moved = torch.where(weight[:, None] > 0, logits, -logits * 3)
    assert loss(moved, torch.where(weight > 0, target, 1 - target), weight).item() == pytest.approx(
        loss(logits, target, weight).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("scale", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_stay_finite(name: str, scale: float, dtype: torch.dtype) -> None:
    target = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    target[:, 2:6] = 1
    logits = ((target[:, None] * 2 - 1) * scale).to(dtype).requires_grad_()
    loss = build_loss(name)(logits, target, torch.zeros(1, 8, 8, 8) if scale == 0 else None)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_eldice_of_a_large_perfect_prediction_is_defined() -> None:
    """Beyond 5e4 voxels dice + 1e-5 exceeds 1, and the power of a negative number would be NaN."""
    target = torch.ones(1, 40, 40, 40, dtype=torch.long)
    logits = torch.full((1, 1, 40, 40, 40), 30.0, requires_grad=True)
    loss = build_loss("eldice")(logits, target, None)
    loss.backward()
    assert 0 <= loss.item() < 0.05
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["tversky", "dice", "jaccard"])
def test_an_empty_target_with_an_empty_prediction_costs_one(name: str) -> None:
    """The smooth term is in the denominators only, as published."""
    loss = build_loss(name)(torch.full((1, 1, 4, 4, 4), -50.0), torch.zeros(1, 4, 4, 4, dtype=torch.long), None)
    assert loss.item() == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), name=st.sampled_from(["tversky", "dice", "jaccard", "ss"]))
def test_region_losses_lie_between_zero_and_one(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, 1, 3, 4, 5, generator=generator)
    target = torch.randint(0, 2, (2, 3, 4, 5), generator=generator)
    assert 0 <= build_loss(name)(logits, target, None).item() <= 1


def test_deep_supervision_weights_the_coarse_maps_by_epoch() -> None:
    def loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return logits.mean()

    total = DeepSupervision(loss)
    maps = [torch.full((1, 1, 8, 8, 8), float(v)) for v in (1, 2, 4, 8)]
    target = torch.zeros(1, 8, 8, 8)
    assert total(maps, target).item() == pytest.approx(7 * 0.33 + 8)
    assert total(maps, target, epoch=39.9).item() == pytest.approx(7 * 0.33 + 8)
    assert total(maps, target, epoch=80).item() == pytest.approx(7 * 0.33 * 0.64 + 8)
    assert total(maps[3:], target, epoch=80).item() == pytest.approx(8)
    weighted = DeepSupervision(loss, AlphaSchedule(1.0, 1.0), weights=(0.0, 0.25, 0.25, 0.5))
    assert weighted(maps, target, epoch=500).item() == pytest.approx(0.5 + 1 + 4)
    with pytest.raises(UsageError, match="deep supervision: 1 maps, expected 4"):
        weighted(maps[3:], target)
    assert AlphaSchedule(start=0.4, decay=0.5, every=0.25).at(0.5) == pytest.approx(0.1)


def test_misuse_is_named() -> None:
    with pytest.raises(UsageError, match="loss 'tverski': expected one of bce, dice"):
        build_loss("tverski")
    with pytest.raises(UsageError, match=r"target \(1, 4, 4\)"):
        build_loss("dice")(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 4, 4), None)
    with pytest.raises(UsageError, match="loss dice: class weights belong to the loss wce alone"):
        build_loss("dice", class_weights=(1, 2))
    with pytest.raises(UsageError, match=r"class weights \[1, 2\]: expected 3, background first"):
        build_loss("wce", class_weights=(1, 2))(torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 2, 2, 2), None)


def test_stages_say_what_is_learned() -> None:
    labels = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    assert get_stage("liver").target(labels).tolist() == [[[0, 1, 1]]]
    assert get_stage("tumor").target(labels.numpy()).tolist() == [[[0, 0, 1]]]
    assert get_stage("multiclass").target(labels).dtype == torch.uint8
    assert [get_stage(name).out_channels for name in ("liver", "tumor", "multiclass")] == [1, 1, 3]
    with pytest.raises(UsageError, match="stage 'lung': expected one of liver, tumor, multiclass"):
        get_stage("lung")


def test_the_tumor_stage_counts_voxels_within_10_mm_of_the_liver() -> None:
    labels = torch.zeros(2, 1, 1, 41, dtype=torch.uint8)
    labels[0, 0, 0, 20], labels[1, 0, 0, 20] = 1, 2  # tumor is liver too
    weight = get_stage("tumor").weight(labels, [(1.0, 1.0, 1.0), (1.0, 1.0, 2.5)])
    assert weight is not None
    assert weight.sum(dim=(1, 2, 3)).tolist() == [21, 9]
    assert get_stage("liver").weight(labels, [(1.0, 1.0, 1.0)] * 2) is None


def test_stages_turn_probabilities_into_labels() -> None:
    logits = torch.tensor([[-1.0, 0.0, 1.0]]).reshape(1, 1, 1, 1, 3)
    p = get_stage("liver").probabilities(logits)[0].numpy()
    assert get_stage("liver").labels(p).tolist() == [[[0, 1, 1]]]
    assert get_stage("tumor").labels(p).tolist() == [[[0, 2, 2]]]
    three = get_stage("multiclass").probabilities(torch.eye(3).reshape(1, 3, 1, 1, 3))[0]
    assert three.sum(dim=0).numpy() == pytest.approx(1)
    assert get_stage("multiclass").labels(three.numpy()).tolist() == [[[0, 1, 2]]]
