"""Divide the cases of a store and record it there; find its duplicates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livprep.errors import StoreError, UsageError
from livprep.overlaps import Duplicate, find_overlaps
from livprep.splits import SIDES, Side, Split, given_split, make_folds, make_split
from livprep.store import Store, open_store

FILE_LIMIT_BYTES = 1 << 20
NO_LABELS = "not used: the case has no labels"


@dataclass(frozen=True)
class SplitRequest:
    """What the user asked of `livprep split`; `test` is a share or `ircadb`, `file` a split made by hand."""

    store: Path
    name: str = "default"
    val: float = 0.2
    test: float | str = 0.0
    folds: int | None = None
    seed: int = 0
    file: Path | None = None


@dataclass(frozen=True)
class Cohort:
    """What splitting needs to know of a store: case id -> each fact, of the cases with labels."""

    patients: Mapping[str, str]
    fingerprints: Mapping[str, str]
    burden: Mapping[str, float]
    unused: Mapping[str, str]


def cohort_of(store: Store) -> Cohort:
    """Read the facts from the cases' attributes; cases without labels are named as unused.

    Raises
    ------
    StoreError
        STORE_EMPTY: there is no case; STORE_UNREADABLE: the attributes of one are damaged.
    """
    if not len(store):
        raise StoreError("STORE_EMPTY", f"{store.path}: holds no case")
    cases = {case_id: case for case_id, case in store.items() if case.has_labels}
    return Cohort(
        {case_id: case.patient for case_id, case in cases.items()},
        {case_id: case.fingerprint for case_id, case in cases.items()},
        {case_id: tumor_burden(case.label_counts or {}) for case_id, case in cases.items()},
        {case_id: NO_LABELS for case_id in store if case_id not in cases},
    )


def tumor_burden(counts: Mapping[str, int]) -> float:
    """Tumor voxels over those of liver and tumor; 0 where there is no liver."""
    tumor = counts.get("tumor", 0)
    return tumor / max(1, tumor + counts.get("liver", 0))


def divide(request: SplitRequest) -> list[Split]:
    """Make the split or folds, record them in the store and return them.

    Raises
    ------
    UsageError
        SPLIT_INVALID: the shares, the folds or the given file do not fit the store.
    """
    store = open_store(request.store)
    cohort = cohort_of(store)
    test: float | list[str] = _ircadb_cases(cohort) if isinstance(request.test, str) else request.test
    facts: dict[str, Any] = {"fingerprints": cohort.fingerprints, "unused": cohort.unused, "name": request.name}
    drawn: dict[str, Any] = {**facts, "burden": cohort.burden, "seed": request.seed, "test": test}
    if request.file is not None:
        splits = [given_split(_read_sides(request.file), cohort.patients, **facts)]
    elif request.folds is not None:
        splits = make_folds(cohort.patients, request.folds, **drawn)
    else:
        splits = [make_split(cohort.patients, val_fraction=request.val, **drawn)]
    for split in splits:
        store.write_split(split)
    return splits


def _ircadb_cases(cohort: Cohort) -> list[str]:
    """Every case of a 3DIRCADb patient, under whichever name: LiTS 28-47 are the same patients."""
    found = [case for case, patient in cohort.patients.items() if patient.startswith("ircadb-")]
    if not found:
        raise UsageError("SPLIT_INVALID", "--test ircadb: the store holds no case of a 3DIRCADb patient with labels")
    return found


def _read_sides(path: Path) -> dict[Side, list[str]]:
    """Case ids by side of a JSON file `{"train": [...], "val": [...], "test": [...]}`; other keys are ignored."""
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise UsageError("SPLIT_INVALID", f"{path}: larger than {FILE_LIMIT_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        sides: dict[Side, list[str]] = {side: data.get(side, []) for side in SIDES}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError("SPLIT_INVALID", f"{path}: no JSON object with train, val and test") from error
    for side, cases in sides.items():
        if not (isinstance(cases, list) and all(isinstance(case, str) for case in cases)):
            raise UsageError("SPLIT_INVALID", f"{path}: {side} is no list of case ids")
    return sides


def store_overlaps(store: Store) -> list[Duplicate]:
    """Pairs of cases of a store that are one scan, or that the catalogue calls one patient; see `find_overlaps`."""
    return find_overlaps(
        {case_id: case.patient for case_id, case in store.items()},
        {case_id: case.meta.fingerprint for case_id, case in store.items()},
    )
