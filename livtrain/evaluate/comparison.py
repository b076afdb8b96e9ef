"""Two sets of predictions of the same cases, paired."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from livprep.errors import UsageError
from livtrain.evaluate.evaluation import Evaluation


@dataclass(frozen=True)
class Difference:
    """Dice of the first set minus that of the second, over the cases in which both are defined.

    Parameters
    ----------
    cases, better, worse
        Cases compared, and in how many the first is higher or lower.
    mean, median
        Of the differences; NaN without a case.
    p_value
        Wilcoxon's signed-rank test, two-sided (zeros split); NaN where nothing differs.
    """

    cases: int
    better: int
    worse: int
    mean: float
    median: float
    p_value: float

    def as_json(self) -> dict[str, float | None]:
        """Names and values; undefined numbers are None."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def compare(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """Compare `liver_dice` and `tumor_dice` of two evaluations of the same cases.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: a case is in one evaluation only.
    """
    mine, other = ({case.case: case for case in evaluation.cases} for evaluation in (first, second))
    if lonely := sorted(mine.keys() ^ other.keys()):
        raise UsageError("EVALUATE_UNPAIRED", f"--against: cases in one folder only: {', '.join(lonely)}")
    return {
        "liver_dice": _difference([(mine[name].liver.dice, other[name].liver.dice) for name in mine]),
        "tumor_dice": _difference([(mine[name].tumor.dice, other[name].tumor.dice) for name in mine]),
    }


def _difference(pairs: list[tuple[float, float]]) -> Difference:
    differences = np.array([a - b for a, b in pairs if not (math.isnan(a) or math.isnan(b))], dtype=np.float64)
    if not differences.size:
        return Difference(0, 0, 0, math.nan, math.nan, math.nan)
    p_value = math.nan
    if differences.any():
        p_value = float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    return Difference(
        cases=differences.size,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        mean=float(differences.mean()),
        median=float(np.median(differences)),
        p_value=p_value,
    )
