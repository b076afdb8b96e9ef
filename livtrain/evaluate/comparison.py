"""Two sets of predictions of the same cases, paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from livprep.errors import UsageError
from livtrain.evaluate.evaluation import Evaluation
from livtrain.evaluate.summary import LOWER_IS_BETTER, case_values
from livtrain.metrics import bootstrap, weighted_mean

COMPARED = {
    "liver_dice": "nnunet_liver_dice",
    "tumor_dice": "nnunet_tumor_dice",
    "lesion_dice_per_case": "lesion_dice_per_case",
    "liver_assd": "liver_assd",
    "liver_surface_dice": "liver_surface_dice",
    "tumor_surface_dice": "tumor_surface_dice",
}
"""What is compared -> its name in `livtrain.evaluate.summary.INTERVALS`."""


@dataclass(frozen=True)
class Difference:
    """A score of the first set minus that of the second, over the cases in which both are defined.

    A patient with several cases counts once, with the mean of its differences.

    Parameters
    ----------
    cases, patients
        Cases compared, and whom they show.
    better, worse
        In how many patients the first is better or worse (for a distance, better is lower).
    mean, median
        Of the differences; NaN without a case.
    low, high
        95 % bootstrap interval of the mean, patients resampled; NaN with fewer than two.
    p_value
        Wilcoxon's signed-rank test, two-sided (zeros split); NaN where nothing differs. Not corrected for the
        number of scores that are compared.
    """

    cases: int
    patients: int
    better: int
    worse: int
    mean: float
    median: float
    low: float
    high: float
    p_value: float

    def as_json(self) -> dict[str, float | None]:
        """Names and values; undefined numbers are None."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def compare(first: Evaluation, second: Evaluation, seed: int = 0) -> dict[str, Difference]:
    """Compare the scores of `COMPARED` in two evaluations of the same cases; the interval's draws follow the seed.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: a case is in one evaluation only.
    """
    mine, other = ({case.case: case for case in evaluation.cases} for evaluation in (first, second))
    if lonely := sorted(mine.keys() ^ other.keys()):
        raise UsageError("EVALUATE_UNPAIRED", f"--against: cases in one folder only: {', '.join(lonely)}")
    names = sorted(mine)
    patients = [mine[name].patient for name in names]
    found = {}
    for label, name in COMPARED.items():
        a, b = (case_values(name, [side[case] for case in names]) for side in (mine, other))
        found[label] = _difference(a - b, patients, name in LOWER_IS_BETTER, seed)
    return found


def _difference(
    differences: npt.NDArray[np.float64], patients: Sequence[str], lower_is_better: bool, seed: int
) -> Difference:
    known = ~np.isnan(differences)
    if not known.any():
        return Difference(0, 0, 0, 0, *(math.nan,) * 5)
    by_patient: dict[str, list[float]] = {}
    for patient, value, use in zip(patients, differences, known, strict=True):
        if use:
            by_patient.setdefault(patient, []).append(float(value))
    each = np.array([sum(values) / len(values) for values in by_patient.values()])
    interval = bootstrap(weighted_mean(differences), patients, known=known, seed=seed)
    p_value = float(stats.wilcoxon(each, zero_method="zsplit").pvalue) if each.any() else math.nan
    higher, lower = int((each > 0).sum()), int((each < 0).sum())
    return Difference(
        cases=int(known.sum()),
        patients=len(each),
        better=lower if lower_is_better else higher,
        worse=higher if lower_is_better else lower,
        mean=interval.estimate,
        median=float(np.median(each)),
        low=interval.low,
        high=interval.high,
        p_value=p_value,
    )
