"""Losses on logits, with the formulas of the MICCAI-LITS2017 code as it meant them.

Notation: p probability, t target in {0, 1}, w voxel mask; sums run over one sample's volume, the mean over
the batch comes last. The smooth term 1 is in the denominators only (as published), so an empty target with an
empty prediction costs 1, not 0.

With one logit map (K = 1) p is its sigmoid. With K > 1 maps p is the softmax; region losses are the mean over
the foreground classes 1...K-1 or, where asked for, over all (with K = 1 then of p and 1 - p). The cross-entropies
run over all classes, always.

MONAI's Dice, Tversky and focal losses give the same numbers (the tests hold it), but know no voxel mask without
changing the probabilities, so ours stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from livprep.errors import UsageError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits_BKZYX, target_BZYX, weight_BZYX or None) -> scalar."""

SMOOTH = 1.0
TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7  # weights of false positives and false negatives (Salehi et al. 2017)
SENSITIVITY_WEIGHT = 0.05
WCE_BACKGROUND = 0.05  # weight of background voxels; foreground has 1
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017


@dataclass(frozen=True)
class _Voxels:
    """Flattened batch: probabilities and targets of the region classes, and the mask; float32 or float64.

    `p`, `t` are `(B, F, N)`; `log_true` is the log-probability of each voxel's own class `(B, N)`; `labels` (int64,
    the classes) and `w` are `(B, N)`.
    """

    p: Tensor
    t: Tensor
    log_true: Tensor
    labels: Tensor
    w: Tensor

    @property
    def foreground(self) -> Tensor:
        """1 where the class is not background, `(B, N)`."""
        return (self.labels > 0).to(self.w)

    def sum(self, values_BFN: Tensor) -> Tensor:
        """Masked sum over the volume: `(B, F)`."""
        return (values_BFN * self.w[:, None]).sum(dim=-1)

    def mean(self, values_BN: Tensor, weights_BN: Tensor | None = None) -> Tensor:
        """Masked (and weighted) mean over the volume: `(B,)`; 0 where the mask is empty."""
        weights = self.w if weights_BN is None else self.w * weights_BN
        return (values_BN * weights).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1e-12)


def _flatten(logits: Tensor, target: Tensor, weight: Tensor | None, background: bool) -> _Voxels:
    if logits.ndim != 5 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise UsageError(
            "CONFIG_INVALID",
            f"loss: logits {tuple(logits.shape)} and target {tuple(target.shape)}; expected (B, K, z, y, x) "
            "and (B, z, y, x)",
        )
    batch, classes = logits.shape[:2]
    # float32 also under autocast: sums over millions of voxels overflow float16
    flat = (logits if logits.dtype == torch.float64 else logits.float()).reshape(batch, classes, -1)
    labels = target.reshape(batch, -1).long()
    w = flat.new_ones(labels.shape) if weight is None else weight.reshape(batch, -1).to(flat)
    if classes == 1:
        labels = (labels > 0).long()
        t = labels.to(flat)
        log_true = -functional.binary_cross_entropy_with_logits(flat[:, 0], t, reduction="none")
        p, t = torch.sigmoid(flat), t[:, None]
        if background:
            p, t = torch.cat([torch.sigmoid(-flat), p], dim=1), torch.cat([1 - t, t], dim=1)
        return _Voxels(p, t, log_true, labels, w)
    log_p = torch.log_softmax(flat, dim=1)
    log_true = log_p.gather(1, labels[:, None])[:, 0]
    first = 0 if background else 1
    one_hot = torch.stack([(labels == k).to(flat) for k in range(first, classes)], dim=1)
    return _Voxels(log_p[:, first:].exp(), one_hot, log_true, labels, w)


def _dice_score(v: _Voxels) -> Tensor:
    return 2 * v.sum(v.p * v.t) / (v.sum(v.p**2) + v.sum(v.t) + SMOOTH)


def _dice(v: _Voxels) -> Tensor:
    """1 - 2 sum(pt) / (sum(p^2) + sum(t^2) + 1)."""
    return 1 - _dice_score(v).mean(dim=1)


def _eldice(v: _Voxels) -> Tensor:
    """(-ln(dice + 1e-5))^0.3, clamped to [0, 2] (Wong et al. 2018's exponential logarithmic Dice)."""
    # Above 5e4 voxels dice + 1e-5 can exceed 1, where the power is undefined; and its slope at 0 is infinite.
    base = (-torch.log(_dice_score(v) + 1e-5)).clamp_min(1e-6)
    return base.pow(0.3).clamp(0, 2).mean(dim=1)


def _jaccard(v: _Voxels) -> Tensor:
    """1 - sum(pt) / (sum(p^2) + sum(t^2) - sum(pt) + 1)."""
    both = v.sum(v.p * v.t)
    return (1 - both / (v.sum(v.p**2) + v.sum(v.t) - both + SMOOTH)).mean(dim=1)


def _ss(v: _Voxels) -> Tensor:
    """0.05 sum((p-t)^2 t)/(1+sum t) + 0.95 sum((p-t)^2 (1-t))/(1+sum(1-t)) (Brosch et al. 2015)."""
    error = (v.p - v.t) ** 2
    sensitivity = v.sum(error * v.t) / (SMOOTH + v.sum(v.t))
    specificity = v.sum(error * (1 - v.t)) / (SMOOTH + v.sum(1 - v.t))
    return (SENSITIVITY_WEIGHT * sensitivity + (1 - SENSITIVITY_WEIGHT) * specificity).mean(dim=1)


def _tversky(v: _Voxels) -> Tensor:
    """1 - sum(pt) / (sum(pt) + 0.3 sum(p(1-t)) + 0.7 sum((1-p)t) + 1), clamped to [0, 2]."""
    both = v.sum(v.p * v.t)
    false_positive, false_negative = v.sum(v.p * (1 - v.t)), v.sum((1 - v.p) * v.t)
    score = both / (both + TVERSKY_ALPHA * false_positive + TVERSKY_BETA * false_negative + SMOOTH)
    return (1 - score).clamp(0, 2).mean(dim=1)


def _bce(v: _Voxels) -> Tensor:
    """Mean of -ln p(true class)."""
    return v.mean(-v.log_true)


def _wce(v: _Voxels, class_weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy divided by the sum of the weights; by default 0.05 for background and 1 for the other classes."""
    if class_weights is None:
        return v.mean(-v.log_true, WCE_BACKGROUND + (1 - WCE_BACKGROUND) * v.foreground)
    weights = torch.zeros_like(v.w)
    for label, weight in enumerate(class_weights):  # a table of them would have to be copied, which waits for a GPU
        weights.masked_fill_(v.labels == label, weight)
    return v.mean(-v.log_true, weights)


def _focal(v: _Voxels) -> Tensor:
    """Mean of -a (1 - p(true class))^2 ln p(true class), a = 0.25 for foreground and 0.75 for background."""
    alpha = 1 - FOCAL_ALPHA + (2 * FOCAL_ALPHA - 1) * v.foreground
    return v.mean(-alpha * (1 - v.log_true.exp()) ** FOCAL_GAMMA * v.log_true)


def _hybrid(v: _Voxels) -> Tensor:
    """Dice + 1.0 cross-entropy."""
    return _dice(v) + _bce(v)


def _dice_ce(v: _Voxels) -> Tensor:
    """1/2 Dice + 1/2 cross-entropy (3DUNet-Pytorch)."""
    return 0.5 * _dice(v) + 0.5 * _bce(v)


LOSSES: dict[str, Callable[[_Voxels], Tensor]] = {
    "tversky": _tversky,
    "dice": _dice,
    "eldice": _eldice,
    "jaccard": _jaccard,
    "ss": _ss,
    "hybrid": _hybrid,
    "bce": _bce,
    "wce": _wce,
    "focal": _focal,
    "dice_ce": _dice_ce,
}


def build_loss(
    name: str = "tversky", *, background: bool = False, class_weights: Sequence[float] | None = None
) -> Loss:
    """Return a loss by name.

    The result takes `logits_BKZYX` (any float dtype), `target_BZYX` (integer classes; with K = 1 nonzero is
    foreground) and `weight_BZYX` (0 = voxel ignored, 1 = counted) or None, and gives a scalar: float64 for float64
    logits, else float32.

    Parameters
    ----------
    name
        A key of `LOSSES`.
    background
        Region losses count the background as a class; the cross-entropies always do.
    class_weights
        Weight of each class of `wce`, background first; two for one logit map.

    Raises
    ------
    UsageError
        No loss has that name, it takes no class weights, or they are not one for each class.
    """
    if name not in LOSSES:
        raise UsageError("CONFIG_INVALID", f"loss {name!r}: expected one of {', '.join(sorted(LOSSES))}")
    formula = LOSSES[name]
    if class_weights is not None:
        if name != "wce":
            raise UsageError("CONFIG_INVALID", f"loss {name}: class weights belong to the loss wce alone")
        formula = partial(_wce, class_weights=tuple(class_weights))

    def loss(logits_BKZYX: Tensor, target_BZYX: Tensor, weight_BZYX: Tensor | None = None) -> Tensor:
        classes = max(logits_BKZYX.shape[1], 2)
        if class_weights is not None and len(class_weights) != classes:
            raise UsageError(
                "CONFIG_INVALID", f"class weights {list(class_weights)}: expected {classes}, background first"
            )
        return formula(_flatten(logits_BKZYX, target_BZYX, weight_BZYX, background)).mean()

    return loss


@dataclass(frozen=True)
class AlphaSchedule:
    """Weight of the three coarse maps: `start * decay ** (epoch // every)`."""

    start: float = 0.33
    decay: float = 0.8
    every: float = 40.0

    def at(self, epoch: float) -> float:
        """Weight at an epoch (fractions are allowed)."""
        return self.start * self.decay ** int(epoch // self.every)


@dataclass(frozen=True)
class DeepSupervision:
    """Loss over the maps of a network in training: alpha (w1 l1 + ... ) + w l of the finest.

    Parameters
    ----------
    loss
        What `build_loss` returns.
    schedule
        Weight of the coarse maps over the epochs.
    weights
        Weight of each map, coarse to fine; None is 1 each, the published (l1 + l2 + l3) alpha + l4.
    """

    loss: Loss
    schedule: AlphaSchedule = field(default_factory=AlphaSchedule)
    weights: Sequence[float] | None = None

    def __call__(
        self,
        maps: Sequence[Tensor],
        target_BZYX: Tensor,
        weight_BZYX: Tensor | None = None,
        *,
        epoch: float = 0.0,
    ) -> Tensor:
        """Sum the losses of `maps` (coarse to fine, all at the target's size) at an epoch.

        Raises
        ------
        UsageError
            CONFIG_INVALID: there are not as many maps as weights.
        """
        weights = self.weights or (1.0,) * len(maps)
        if len(weights) != len(maps):
            raise UsageError("CONFIG_INVALID", f"deep supervision: {len(maps)} maps, expected {len(weights)}")
        *coarse, fine = (
            weight * self.loss(m, target_BZYX, weight_BZYX) for weight, m in zip(weights, maps, strict=True)
        )
        return fine + self.schedule.at(epoch) * torch.stack(coarse).sum() if coarse else fine
