"""Splits of a cohort by patient, so that one patient never lies on two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from livprep.errors import UsageError


class Split(BaseModel):
    """Case ids for training, validation and test, and why each case lies where it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    reasons: dict[str, str] = {}

    @property
    def case_ids(self) -> tuple[str, ...]:
        """All cases of the split."""
        return (*self.train, *self.val, *self.test)


def make_split(
    patients: Mapping[str, str],
    *,
    name: str = "default",
    val_fraction: float = 0.2,
    test: float | Sequence[str] = 0.0,
    seed: int = 0,
) -> Split:
    """Divide cases by patient at random.

    Parameters
    ----------
    patients
        Case id -> patient id; cases of one patient stay together.
    val_fraction
        Share of the patients that are not in test, rounded, at least one; a single patient is not divided.
    test
        Share of all patients (rounded, at least one where positive), or the case ids to hold out; their
        patients' other cases follow them.
    seed
        Seed of the shuffle.

    Raises
    ------
    UsageError
        SPLIT_INVALID: no case, a share outside 0...1, an unknown test case, or nothing left to train on.
    """
    if not patients:
        raise UsageError("SPLIT_INVALID", "split: found no cases, expected at least one")
    order = sorted(set(patients.values()))
    shuffled = [order[k] for k in np.random.default_rng(seed).permutation(len(order))]
    if isinstance(test, int | float):
        _check_share("test", test)
        held = set(shuffled[: max(1, round(test * len(order)))]) if test > 0 else set()
    else:
        unknown = [case for case in test if case not in patients]
        if unknown:
            raise UsageError("SPLIT_INVALID", f"test cases {unknown}: not in the store")
        held = {patients[case] for case in test}
    _check_share("val", val_fraction)
    rest = [patient for patient in shuffled if patient not in held]
    count = max(1, round(val_fraction * len(rest))) if val_fraction > 0 and len(rest) > 1 else 0
    validation = set(rest[:count])
    if not set(rest) - validation:
        raise UsageError("SPLIT_INVALID", f"split of {len(order)} patients: nothing is left for training")
    sides: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    reasons: dict[str, str] = {}
    for case, patient in sorted(patients.items()):
        side = "test" if patient in held else "val" if patient in validation else "train"
        sides[side].append(case)
        reasons[case] = f"patient {patient} drawn for {side} with seed {seed}"
    return Split(
        name=name,
        seed=seed,
        train=tuple(sides["train"]),
        val=tuple(sides["val"]),
        test=tuple(sides["test"]),
        reasons=reasons,
    )


def _check_share(what: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UsageError("SPLIT_INVALID", f"{what} share {value}: expected 0 up to below 1")
