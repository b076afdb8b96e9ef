"""Which cases are exported, on which side of the split each lies, and how their voxels become NIfTI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from livprep.catalog import load_catalog
from livprep.errors import UsageError
from livprep.formats.nifti_write import write_nifti
from livprep.labels import Label
from livprep.splits import SIDES, Split
from livprep.store import CaseStore, Store

Place = Literal["train", "val", "test", "none"]
"""Side of the split; `none` for a case that the split does not name."""

LABEL_NAMES = {label.value: label.name.lower() for label in Label}


@dataclass(frozen=True)
class ExportedCase:
    """What became of a case: paths below the exported folder (`label` empty without labels), and its side."""

    case: str
    image: str
    label: str
    split: Place
    bytes: int


@dataclass(frozen=True, eq=False)
class Cohort:
    """The cases of an export.

    Parameters
    ----------
    cases
        Case id -> case, by id.
    places
        Case id -> side. Without a recorded split every labelled case is for training, every other for test.
    folds
        The recorded folds of that name, or the split itself; empty where nothing is recorded.
    license
        Of the data sets that the cases come from.
    """

    cases: Mapping[str, CaseStore]
    places: Mapping[str, Place]
    folds: tuple[Split, ...]
    license: str

    def on(self, *places: Place, labelled: bool | None = None) -> list[str]:
        """Case ids on the given sides, with or without labels."""
        found = [name for name in self.cases if self.places[name] in places]
        return [name for name in found if labelled is None or self.cases[name].has_labels == labelled]


def choose_cases(store: Store, patterns: str | None, split: str) -> Cohort:
    """Find the cases that fit, and their sides.

    Raises
    ------
    UsageError
        USAGE: no case fits, or an id is unfit for a file name in other tools.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")] if patterns else ["*"]
    cases = {name: case for name, case in store.items() if any(fnmatchcase(name, pattern) for pattern in wanted)}
    if not cases:
        raise UsageError("USAGE", f"export: no case of {store.path} fits {patterns or 'an empty store'}")
    recorded = store.read_split(split)
    folds = _folds(store, split)
    if recorded is None and folds:
        recorded = folds[0]
    places: dict[str, Place] = {}
    for name, case in cases.items():
        places[name] = ("train" if case.has_labels else "test") if recorded is None else _place(recorded, name)
    every = folds or (() if recorded is None else (recorded,))
    return Cohort(cases, places, tuple(every), _license({case.dataset for case in cases.values()}))


def _folds(store: Store, name: str) -> tuple[Split, ...]:
    found: list[Split] = []
    while (fold := store.read_split(f"{name}-fold{len(found)}")) is not None:
        found.append(fold)
    return tuple(found)


def _place(split: Split, case_id: str) -> Place:
    return next((side for side in SIDES if case_id in split.side(side)), "none")


def _license(datasets: set[str]) -> str:
    catalog = load_catalog()
    known = {"ircadb": catalog.ircadb.license, "lits": catalog.lits.license}
    return ", ".join(sorted({known.get(name, "unknown") for name in datasets}))


def write_image(case: CaseStore, path: Path) -> int:
    """Write the HU as int16 NIfTI; returns the bytes."""
    write_nifti(path, case.read_hu(), case.geometry.affine_ras)
    return path.stat().st_size


def write_label(case: CaseStore, path: Path) -> int:
    """Write the labels as uint8 NIfTI; returns the bytes."""
    write_nifti(path, case.read_labels(), case.geometry.affine_ras)
    return path.stat().st_size


def write_pair(cohort: Cohort, name: str, folder: Path, image: str, label: str) -> ExportedCase:
    """Write a case's image and, if it has labels, its label map to paths below `folder`."""
    case = cohort.cases[name]
    for path in (image, label) if case.has_labels else (image,):
        (folder / path).parent.mkdir(exist_ok=True)
    size = write_image(case, folder / image)
    if case.has_labels:
        size += write_label(case, folder / label)
    return ExportedCase(name, image, label if case.has_labels else "", cohort.places[name], size)
