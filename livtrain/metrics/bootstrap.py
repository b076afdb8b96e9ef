"""Confidence intervals by resampling patients.

A patient is drawn as a whole, because scans of one patient are not independent; a patient with several cases (the same
scan under two names, say) counts once: its cases share the weight of one. Percentile intervals (Efron and Tibshirani
1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""Weights `(draws, cases)` to one number for each draw, NaN where it does not exist."""

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number and its interval.

    Parameters
    ----------
    estimate
        The statistic with every patient weighted once.
    low, high
        Of the interval; NaN with fewer than two patients, or where no draw has a value.
    patients, cases
        How many had a value.
    """

    estimate: float
    low: float
    high: float
    patients: int
    cases: int


def weighted_mean(values: FloatArray) -> Statistic:
    """Mean of values `(cases,)` over those that are not NaN."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def statistic(weights: FloatArray) -> FloatArray:
        return _divide(weights @ filled, weights @ known.astype(np.float64))

    return statistic


def weighted_ratio(numerators: FloatArray, denominators: FloatArray) -> Statistic:
    """Sum of numerators `(cases,)` over sum of denominators, as of a global Dice or a pooled recall."""

    def statistic(weights: FloatArray) -> FloatArray:
        return _divide(weights @ numerators, weights @ denominators)

    return statistic


def _divide(part: FloatArray, whole: FloatArray) -> FloatArray:
    out: FloatArray = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def bootstrap(
    statistic: Statistic,
    patients: Sequence[str],
    *,
    known: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Estimate a statistic and its interval.

    Parameters
    ----------
    statistic
        See `Statistic`.
    patients
        Patient of each case.
    known
        Cases that have a value; only they and their patients are drawn. None takes all.
    seed
        Of the draws: the same arguments give the same interval.
    resamples, level
        Draws, and coverage of the interval.
    """
    chosen = np.ones(len(patients), dtype=np.bool_) if known is None else known
    names, of_case = np.unique([name for name, use in zip(patients, chosen, strict=True) if use], return_inverse=True)
    count = len(names)
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    share = np.zeros((count, len(patients)))
    share[of_case, np.flatnonzero(chosen)] = 1.0 / np.bincount(of_case)[of_case]
    estimate = float(statistic(np.ones((1, count)) @ share)[0])
    low = high = math.nan
    if count > 1:
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        found = statistic(draws.astype(np.float64) @ share)
        found = found[~np.isnan(found)]
        if found.size:
            low, high = (float(edge) for edge in np.quantile(found, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(estimate, low, high, count, int(chosen.sum()))
