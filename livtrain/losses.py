"""Losses on logits, with the formulas of the MICCAI-LITS2017 code as it meant them.

Notation: p probability, t target in {0, 1}, w voxel mask; sums run over one sample's volume, the mean over
the batch comes last. The smooth term 1 is in the denominators only (as published), so an empty target with an
empty prediction costs 1, not 0.

With one logit map (K = 1) p is its sigmoid. With K > 1 maps p is the softmax; region losses are the mean over
the foreground classes 1...K-1, and the cross-entropies run over all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    """Flattened batch: probabilities and targets of the foreground classes, and the mask, all float32.

    `p`, `t` are `(B, F, N)`; `log_true` is the log-probability of each voxel's own class `(B, N)`;
    `foreground` and `w` are `(B, N)`.
    """

    p: Tensor
    t: Tensor
    log_true: Tensor
    foreground: Tensor
    w: Tensor

    def sum(self, values_BFN: Tensor) -> Tensor:
        """Masked sum over the volume: `(B, F)`."""
        return (values_BFN * self.w[:, None]).sum(dim=-1)

    def mean(self, values_BN: Tensor, weights_BN: Tensor | None = None) -> Tensor:
        """Masked (and weighted) mean over the volume: `(B,)`; 0 where the mask is empty."""
        weights = self.w if weights_BN is None else self.w * weights_BN
        return (values_BN * weights).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1e-12)


def _flatten(logits: Tensor, target: Tensor, weight: Tensor | None) -> _Voxels:
    if logits.ndim != 5 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise UsageError(
            "CONFIG_INVALID",
            f"loss: logits {tuple(logits.shape)} and target {tuple(target.shape)}; expected (B, K, z, y, x) "
            "and (B, z, y, x)",
        )
    batch, classes = logits.shape[:2]
    # float32 also under autocast: sums over millions of voxels overflow float16
    flat = logits.float().reshape(batch, classes, -1)
    labels = target.reshape(batch, -1).long()
    w = flat.new_ones(labels.shape) if weight is None else weight.reshape(batch, -1).float()
    if classes == 1:
        t = (labels > 0).float()
        log_true = -functional.binary_cross_entropy_with_logits(flat[:, 0], t, reduction="none")
        return _Voxels(torch.sigmoid(flat), t[:, None], log_true, t, w)
    log_p = torch.log_softmax(flat, dim=1)
    log_true = log_p.gather(1, labels[:, None])[:, 0]
    one_hot = torch.stack([(labels == k).float() for k in range(1, classes)], dim=1)
    return _Voxels(log_p[:, 1:].exp(), one_hot, log_true, (labels > 0).float(), w)


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


def _wce(v: _Voxels) -> Tensor:
    """Cross-entropy with weights 0.05 (background) and 1 (foreground), divided by the sum of the weights."""
    return v.mean(-v.log_true, WCE_BACKGROUND + (1 - WCE_BACKGROUND) * v.foreground)


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


def build_loss(name: str = "tversky") -> Loss:
    """Return a loss by name.

    The result takes `logits_BKZYX` (any float dtype), `target_BZYX` (integer classes; with K = 1 nonzero is
    foreground) and `weight_BZYX` (0 = voxel ignored, 1 = counted) or None, and gives a float32 scalar.

    Raises
    ------
    UsageError
        No loss has that name.
    """
    if name not in LOSSES:
        raise UsageError("CONFIG_INVALID", f"loss {name!r}: expected one of {', '.join(sorted(LOSSES))}")
    formula = LOSSES[name]

    def loss(logits_BKZYX: Tensor, target_BZYX: Tensor, weight_BZYX: Tensor | None = None) -> Tensor:
        return formula(_flatten(logits_BKZYX, target_BZYX, weight_BZYX)).mean()

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
    """Loss over the four maps of a network in training: (l1 + l2 + l3) alpha + l4.

    Parameters
    ----------
    loss
        What `build_loss` returns.
    schedule
        Weight of the coarse maps over the epochs.
    """

    loss: Loss
    schedule: AlphaSchedule = field(default_factory=AlphaSchedule)

    def __call__(
        self,
        maps: Sequence[Tensor],
        target_BZYX: Tensor,
        weight_BZYX: Tensor | None = None,
        *,
        epoch: float = 0.0,
    ) -> Tensor:
        """Sum the losses of `maps` (coarse to fine, all at the target's size) at an epoch."""
        *coarse, fine = maps
        total = self.loss(fine, target_BZYX, weight_BZYX)
        if not coarse:
            return total
        alpha = self.schedule.at(epoch)
        return total + alpha * torch.stack([self.loss(m, target_BZYX, weight_BZYX) for m in coarse]).sum()
