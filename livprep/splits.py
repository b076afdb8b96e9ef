"""Splits of a cohort by patient, so that one patient, or one scan under two names, never lies on two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from livprep.errors import UsageError

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")


class Split(BaseModel):
    """Case ids for training, validation and test, and why each case lies where it does, or nowhere."""

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

    def side(self, name: Side) -> tuple[str, ...]:
        """Case ids of one side."""
        sides = {"train": self.train, "val": self.val, "test": self.test}
        return sides[name]


def make_split(
    patients: Mapping[str, str],
    *,
    name: str = "default",
    val_fraction: float = 0.2,
    test: float | Sequence[str] = 0.0,
    seed: int = 0,
    fingerprints: Mapping[str, str] | None = None,
    burden: Mapping[str, float] | None = None,
    unused: Mapping[str, str] | None = None,
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
        Seed of the draw.
    fingerprints
        Case id -> fingerprint of its voxels; cases with the same one stay together and count as one patient.
    burden
        Case id -> tumor volume over liver volume; patients are sorted by it and drawn evenly over the order.
    unused
        Case id -> why a case of the store lies on no side; recorded among the reasons.

    Raises
    ------
    UsageError
        SPLIT_INVALID: no case, a share outside 0...1, an unknown test case, or nothing left to train on.
    """
    _check_share("val", val_fraction)
    rng = np.random.default_rng(seed)
    groups = _Groups(patients, fingerprints or {}, burden or {}, rng)
    held, rest = groups.hold_out(test, rng)
    count = max(1, round(val_fraction * len(rest))) if val_fraction > 0 and len(rest) > 1 else 0
    validation = _draw(rest, count, rng)
    return groups.split(name, seed, validation, held, unused or {}, f"drawn for {{}} with seed {seed}")


def make_folds(
    patients: Mapping[str, str],
    count: int,
    *,
    name: str = "default",
    test: float | Sequence[str] = 0.0,
    seed: int = 0,
    fingerprints: Mapping[str, str] | None = None,
    burden: Mapping[str, float] | None = None,
    unused: Mapping[str, str] | None = None,
) -> list[Split]:
    """Divide cases by patient into `count` folds: split `<name>-fold<k>` validates on fold k and trains on the others.

    Each patient that is not in test validates exactly once. Parameters and errors as in `make_split`; also
    SPLIT_INVALID where there are fewer than two folds or fewer patients than folds.
    """
    rng = np.random.default_rng(seed)
    groups = _Groups(patients, fingerprints or {}, burden or {}, rng)
    held, rest = groups.hold_out(test, rng)
    if not 2 <= count <= len(rest):
        raise UsageError("SPLIT_INVALID", f"{count} folds of {len(rest)} patients: expected 2 up to that many")
    folds: list[set[str]] = [set() for _ in range(count)]
    for start in range(0, len(rest), count):
        # neighbors in tumor burden go to different folds
        for group, fold in zip(rest[start : start + count], rng.permutation(count), strict=False):
            folds[fold].add(group)
    reason = f"dealt to {{}} of fold {{fold}} of {count} with seed {seed}"
    return [
        groups.split(f"{name}-fold{k}", seed, fold, held, unused or {}, reason.replace("{fold}", str(k)))
        for k, fold in enumerate(folds)
    ]


def given_split(
    sides: Mapping[Side, Sequence[str]],
    patients: Mapping[str, str],
    *,
    name: str,
    fingerprints: Mapping[str, str] | None = None,
    unused: Mapping[str, str] | None = None,
) -> Split:
    """Take over a split that was made by hand; cases of `patients` that it does not name lie on no side.

    Raises
    ------
    UsageError
        SPLIT_INVALID: see `check_split`; or nothing to train on, or a case without labels.
    """
    train, val, test = (tuple(sides.get(side, ())) for side in SIDES)
    blank = [case for case in (*train, *val, *test) if case in (unused or {})]
    if blank:
        raise UsageError("SPLIT_INVALID", f"split {name}: {blank[0]} cannot be used: {(unused or {})[blank[0]]}")
    reasons = dict.fromkeys(patients, "not used: not named in the given split") | dict(unused or {})
    reasons |= {case: f"{side} as given" for side in SIDES for case in sides.get(side, ())}
    split = Split(name=name, seed=0, train=train, val=val, test=test, reasons=dict(sorted(reasons.items())))
    check_split(split, patients, fingerprints or {})
    if not train:
        raise UsageError("SPLIT_INVALID", f"split {name}: names no case for training")
    return split


def check_split(split: Split, patients: Mapping[str, str], fingerprints: Mapping[str, str]) -> None:
    """Check that a split names known cases once, and no patient and no scan on two sides.

    Raises
    ------
    UsageError
        SPLIT_INVALID, naming the case or the pair of cases.
    """
    side_of: dict[str, Side] = {}
    for side in SIDES:
        for case in split.side(side):
            if case not in patients:
                raise UsageError("SPLIT_INVALID", f"split {split.name}: {case} ({side}) is not in the store")
            if case in side_of:
                raise UsageError(
                    "SPLIT_INVALID", f"split {split.name}: {case} is named twice ({side_of[case]}, {side})"
                )
            side_of[case] = side
    joined = join_patients(patients, fingerprints)
    same = [
        ("are one patient", patients),
        ("have the same voxels", fingerprints),
        ("are one patient by a copy", joined),
    ]
    for what, identity in same:
        together: dict[str, list[str]] = {}
        for case in side_of:
            if case in identity:
                together.setdefault(identity[case], []).append(case)
        for a, b in (pair for cases in together.values() for pair in combinations(cases, 2)):
            if side_of[a] != side_of[b]:
                text = f"{a} ({side_of[a]}) and {b} ({side_of[b]}) {what}; expected both on one side"
                raise UsageError("SPLIT_INVALID", f"split {split.name}: {text}")


class _Groups:
    """Patients of a cohort, joined where a scan of one is a scan of the other; in the order to draw from."""

    def __init__(
        self,
        patients: Mapping[str, str],
        fingerprints: Mapping[str, str],
        burden: Mapping[str, float],
        rng: np.random.Generator,
    ) -> None:
        if not patients:
            raise UsageError("SPLIT_INVALID", "split: found no cases, expected at least one")
        self.patients = patients
        self.group_of = join_patients(patients, fingerprints)
        names = sorted(set(self.group_of.values()))
        shuffled = [names[k] for k in rng.permutation(len(names))]
        shares: dict[str, list[float]] = {}
        for case in sorted(burden):
            if case in self.group_of:
                shares.setdefault(self.group_of[case], []).append(burden[case])
        means = {group: sum(values) / len(values) for group, values in shares.items()}
        # stable: chance alone decides among equals, and everywhere where nothing is known
        self.order = sorted(shuffled, key=lambda group: means.get(group, -1.0))

    def hold_out(self, test: float | Sequence[str], rng: np.random.Generator) -> tuple[set[str], list[str]]:
        """The groups of the test side, and the others in order."""
        if isinstance(test, int | float):
            _check_share("test", test)
            held = _draw(self.order, max(1, round(test * len(self.order))) if test > 0 else 0, rng)
        else:
            unknown = [case for case in test if case not in self.patients]
            if unknown:
                raise UsageError("SPLIT_INVALID", f"test cases {unknown}: not in the store")
            held = {self.group_of[case] for case in test}
        return held, [group for group in self.order if group not in held]

    def split(
        self, name: str, seed: int, validation: set[str], held: set[str], unused: Mapping[str, str], reason: str
    ) -> Split:
        """The split that follows from the groups of two sides."""
        if not set(self.order) - validation - held:
            raise UsageError("SPLIT_INVALID", f"split of {len(self.order)} patients: nothing is left for training")
        sides: dict[Side, list[str]] = {side: [] for side in SIDES}
        reasons = dict(unused)
        for case, group in sorted(self.group_of.items()):
            side: Side = "test" if group in held else "val" if group in validation else "train"
            sides[side].append(case)
            joined = "" if group == self.patients[case] else f" (the same voxels as {group})"
            reasons[case] = f"patient {self.patients[case]}{joined} {reason.format(side)}"
        train, val, test = (tuple(sides[side]) for side in SIDES)
        return Split(name=name, seed=seed, train=train, val=val, test=test, reasons=dict(sorted(reasons.items())))


def join_patients(patients: Mapping[str, str], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Case id -> name of its group: patients are joined where any of their cases have equal fingerprints.

    A group is named after the first of its patients by name.
    """
    parent = {patient: patient for patient in patients.values()}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    for case in sorted(patients):
        if case in fingerprints:
            a, b = root(patients[case]), root(first.setdefault(fingerprints[case], patients[case]))
            parent[max(a, b)] = min(a, b)
    return {case: root(patient) for case, patient in patients.items()}


def _draw(order: Sequence[str], count: int, rng: np.random.Generator) -> set[str]:
    """One of each of `count` consecutive parts of about equal length."""
    parts = np.array_split(np.arange(len(order)), count) if count else []
    return {order[int(rng.choice(part))] for part in parts}


def _check_share(what: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UsageError("SPLIT_INVALID", f"{what} share {value}: expected 0 up to below 1")
